"""The names of an asset's files as the tree shows them.

An origin names files by the genome's digest; under an alias the alias stands in every path component where
the digest stood, as `refgenie pull` lays them out (refgenconf replaces it in file and folder names alike).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

# What desktops, file managers and crawlers look for in every folder of every mount: never an asset's file,
# so the answer needs no origin.
_JUNK = frozenset(
    {
        ".hidden", ".DS_Store", ".directory", ".localized", ".metadata_never_index", ".Spotlight-V100",
        ".fseventsd", ".nomedia", ".git", ".hg", ".svn", ".bzr", ".xdg-volume-info", ".autorun", "autorun.inf",
        "autorun.sh", "autorun", "desktop.ini", "Thumbs.db", "BDMV", "VIDEO_TS", "AACS", "DCIM", "HEAD",
        "System Volume Information", "RECYCLER", "$RECYCLE.BIN", "lost+found", ".updatedb", ".snapshot",
    }
)  # fmt: skip
_JUNK_PREFIXES = (".Trash", "._", ".nfs", ".fuse_hidden", ".~lock.")


def is_junk(name: str) -> bool:
    """Say whether `name` is one that desktops and crawlers probe for, and no reference file's."""
    return name in _JUNK or name.startswith(_JUNK_PREFIXES)


# Names of files that no origin has, and that are made when they are asked for, begin with it; no listed name can.
DERIVED = "\0"


@dataclass(frozen=True, slots=True)
class Child:
    """One entry of a folder: a file with its name at the origin, or (`origin_name` None) a folder.

    The name of a file that is not its origin's begins with `DERIVED`.
    """

    name: str
    origin_name: str | None

    @property
    def is_dir(self) -> bool:
        """Whether this is a folder."""
        return self.origin_name is None


class Layout:
    """The folders and files of one asset version, under one name of its genome."""

    __slots__ = ("_folders",)

    def __init__(self, folders: Mapping[str, Mapping[str, Child]]) -> None:
        self._folders = folders

    def children(self, prefix: str) -> Mapping[str, Child]:
        """Return what is in the folder `prefix` ("" is the asset's own); raise KeyError."""
        return self._folders[prefix]

    def find(self, prefix: str) -> Mapping[str, Child] | None:
        """Do as `children`; None for a folder that there is not."""
        return self._folders.get(prefix)


def build_layout(names: Iterable[str], digest: str, shown_as: str) -> Layout:
    """Lay out the origin's relative file names with `digest` shown as `shown_as`.

    Of two files that get one name, or a file and a folder, the first in sorted order of origin names stays.
    """
    folders: dict[str, dict[str, Child]] = {"": {}}
    for name in sorted(names):
        shown = name.replace(digest, shown_as) if digest else name
        *parents, base = shown.split("/")
        path = ""
        for part in parents:
            entry = folders[path].setdefault(part, Child(part, None))
            if not entry.is_dir:
                break
            path = f"{path}/{part}" if path else part
            folders.setdefault(path, {})
        else:
            folders[path].setdefault(base, Child(base, name))
    return Layout(folders)
