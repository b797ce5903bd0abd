"""What stat shows of nodes, and for how long the kernel may believe it. No I/O, no state."""

from __future__ import annotations

import stat
from dataclasses import replace

from refgenfs.core.access import Rule
from refgenfs.core.content import FileFacts, Generated, Sliced
from refgenfs.tree.nodes import Attributes

# A name can come to mean another version when the catalog is refreshed; then the kernel is told, so this only
# bounds what it may believe if that word is lost.
NAME_TIMEOUT = 60.0  # seconds
# A content never changes, nor do its attributes.
CONTENT_TIMEOUT = 86400.0  # seconds
# For a size that is not known yet: the kernel must ask again before it uses it.
UNKNOWN_TIMEOUT = 0.0
# An index that is made here goes with its data, which may be replaced in place: the name is asked for each time.
MADE_TIMEOUT = 1.0  # seconds
# Who may not look a name up must not find it among what the kernel remembers of others.
GUARDED_TIMEOUT = 0.0  # seconds


def of_folder(number: int, born: float) -> Attributes:
    """Return what is shown of a folder, which has been there since `born` (Unix seconds)."""
    return Attributes(number, stat.S_IFDIR | 0o555, 0, born, NAME_TIMEOUT, NAME_TIMEOUT)


def of_file(number: int, facts: FileFacts | None, born: float, hold: float | None) -> Attributes:
    """Return what is shown of a file that everybody may read.

    `hold` is for how long (seconds) it is believed that it is what it was, None for good: from then on, who looks the
    name up has the origin asked. Without facts it has no size yet, and is as old as the tree: `born`.
    """
    mode = stat.S_IFREG | 0o444
    if facts is None:
        return Attributes(number, mode, 0, born, UNKNOWN_TIMEOUT, UNKNOWN_TIMEOUT)
    believed = NAME_TIMEOUT if hold is None else min(NAME_TIMEOUT, hold)
    if isinstance(facts.extent, Generated | Sliced):
        believed = min(believed, MADE_TIMEOUT)
    return Attributes(number, mode, facts.size, facts.mtime, believed, CONTENT_TIMEOUT)


def owned(attributes: Attributes, rule: Rule) -> Attributes:
    """Return attributes as a rule has them; the kernel asks for such a name anew each time, for each user."""
    shown = rule.ownership
    mode = shown.mode if stat.S_ISDIR(attributes.mode) else shown.file_mode()
    return replace(
        attributes,
        mode=stat.S_IFMT(attributes.mode) | mode,
        entry_timeout=GUARDED_TIMEOUT,
        uid=shown.uid,
        gid=shown.gid,
    )
