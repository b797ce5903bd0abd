"""The catalog: what exists, from all sources, kept fresh in the background and kept on disk."""

from refgenfs.catalog.catalog import Catalog
from refgenfs.catalog.feeds import SourceStatus

__all__ = ["Catalog", "SourceStatus"]
