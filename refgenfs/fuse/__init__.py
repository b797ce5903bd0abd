"""The FUSE layer: requests in, answers out. The one importer of pyfuse3, and the one place of errnos."""

from refgenfs.fuse.errnos import ERRNOS, Answers, Interrupted, answered, errno_of
from refgenfs.fuse.operations import Operations
from refgenfs.fuse.session import Mount

__all__ = ["ERRNOS", "Answers", "Interrupted", "Mount", "Operations", "answered", "errno_of"]
