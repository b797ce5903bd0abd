"""From a name to a content: which file of which version, by which route, how large."""

from refgenfs.library.derived import Companions, Deriver, Located
from refgenfs.library.library import Library

__all__ = ["Companions", "Deriver", "Library", "Located"]
