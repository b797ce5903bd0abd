"""What the kernel is told, beside answers."""

from __future__ import annotations

import os

import pyfuse3


def forget_name(parent: int, name: str) -> None:
    """Have the kernel look a name up anew, and forget its inode where nobody uses it; returns at once."""
    pyfuse3.invalidate_entry_async(parent, pyfuse3.FileNameT(os.fsencode(name)), ignore_enoent=True)
