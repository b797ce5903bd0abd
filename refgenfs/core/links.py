"""Names inside an archive, and where its symbolic links lead."""

from __future__ import annotations

from dataclasses import dataclass

from refgenfs.core.keys import is_name

MAX_COMPONENT = 255  # NAME_MAX
MAX_PATH = 4096  # PATH_MAX
BUILD_FOLDER = "_refgenie_build"  # how an asset was made: logs and recipes, no part of it


@dataclass(frozen=True, slots=True)
class LinkTarget:
    """Where a symbolic link leads: a file of the same asset, or of another one of the same genome."""

    name: str
    asset: str | None = None  # None: of the same asset and tag
    tag: str | None = None


def resolve_link(name: str, target: str, genome_digest: str) -> LinkTarget | None:
    """Return where the symbolic link `name` leads, or None: then it leads nowhere and is not to be shown.

    A relative target is followed inside the asset. An absolute one is a path of the machine where the asset
    was built; the last `…/<genome digest>/<asset>/<tag>/<file>` in it names a file of a sibling asset. What
    the target holds besides, where it would lead here, and whether the file exists, is not looked at.
    """
    if "\0" in target or not target:
        return None
    if target.startswith("/"):
        return _resolve_absolute(target, genome_digest)
    parts = name.split("/")[:-1]
    for part in target.split("/"):
        if part == "..":
            if not parts:
                return None
            parts.pop()
        elif part not in ("", "."):
            parts.append(part)
    path = "/".join(parts)
    return LinkTarget(path) if _is_file_path(parts) and path != name else None


def _resolve_absolute(target: str, genome_digest: str) -> LinkTarget | None:
    parts = [part for part in target.split("/") if part not in ("", ".")]
    for at in range(len(parts) - 4, -1, -1):
        if parts[at] != genome_digest:
            continue
        asset, tag, *rest = parts[at + 1 :]
        if is_name(asset) and is_name(tag) and _is_file_path(rest) and ".." not in rest:
            return LinkTarget("/".join(rest), asset, tag)
        return None
    return None


def _is_file_path(parts: list[str]) -> bool:
    sizes = [len(part.encode(errors="surrogateescape")) for part in parts]
    if not parts or max(sizes) > MAX_COMPONENT or sum(sizes) + len(sizes) > MAX_PATH:
        return False
    return not parts[0].startswith(BUILD_FOLDER)
