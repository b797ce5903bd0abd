"""The text after `-o`: mount(8)'s words, and settings."""

from __future__ import annotations

import re
from difflib import get_close_matches
from typing import Any

from refgenfs.core.errors import ConfigError

# Words that mount(8) and fstab use, and that change nothing here: the tree is read-only, and holds neither
# devices nor set-uid programs, whatever they say.
_IGNORED = frozenset(
    {"ro", "rw", "suid", "nosuid", "dev", "nodev", "exec", "noexec", "atime", "noatime", "diratime"}
    | {"nodiratime", "relatime", "norelatime", "strictatime", "lazytime", "nolazytime", "sync", "async"}
    | {"auto", "noauto", "user", "nouser", "users", "nousers", "owner", "group", "defaults", "_netdev"}
    | {"nofail", "default_permissions"}
)
_IGNORED_BEGINNINGS = ("x-", "X-", "comment=", "fsname=", "subtype=", "uhelper=", "helper=")
_SETTINGS = {
    "allow_other": "mount.allow_other",
    "readahead": "mount.readahead",
    "cache_dir": "cache.dir",
    "cache_size": "cache.size",
    "min_free": "cache.min_free",
    "refresh": "catalog.refresh",
    "read_deadline": "limits.read_deadline",
    "lookup_deadline": "limits.lookup_deadline",
    "retry_for": "limits.retry_for",
    "connections": "limits.connections",
    "memory": "limits.memory",
    "open_files": "limits.open_files",
    "siblings": "prefetch.siblings",
    "indices": "indices.make",
    "largest_indexed": "indices.largest",
    "refget_genomes": "refget.genomes",
    "refget_servers": "refget.servers",
    "refget_search": "refget.search",
    "log_level": "log.level",
    "web_listen": "web.listen",
    "web_token_file": "web.token_file",
}
_FLAGS = frozenset({"allow_other"})


def parse_mount_options(text: str) -> dict[str, Any]:
    """Return the overrides (dotted key to value) in a comma-separated text; raise ConfigError.

    A comma in a value is written `\\,`.
    """
    overrides: dict[str, Any] = {}
    for word in re.split(r"(?<!\\),", text):
        option = word.replace("\\,", ",").strip()
        if not option or option in _IGNORED or option.startswith(_IGNORED_BEGINNINGS):
            continue
        name, given, value = option.partition("=")
        key = _SETTINGS.get(name, name if name in _SETTINGS.values() else "")
        if not key:
            raise ConfigError(_unknown(name))
        if not given and name not in _FLAGS:
            raise ConfigError(f"-o {name}: a value is missing; write {name}=…")
        overrides[key] = value if given else True
    return overrides


def known_options(text: str) -> str:
    """Return a comma-separated text without the options that are unknown here (mount(8), -s)."""
    words = [word for word in re.split(r"(?<!\\),", text) if _is_known(word.replace("\\,", ",").strip())]
    return ",".join(words)


def _is_known(option: str) -> bool:
    name = option.partition("=")[0]
    ignored = option in _IGNORED or option.startswith(_IGNORED_BEGINNINGS)
    return not option or ignored or name in _SETTINGS or name in _SETTINGS.values()


def asks_for_writing(text: str) -> bool:
    """Say whether a comma-separated text has the word `rw` (and no `ro` after it)."""
    words = [word.strip() for word in text.split(",")]
    return ([word for word in words if word in ("ro", "rw")] or ["ro"])[-1] == "rw"


def _unknown(name: str) -> str:
    known = [*_SETTINGS, *_SETTINGS.values(), *sorted(_IGNORED)]
    close = get_close_matches(name, known, 1)
    return f"-o {name}: unknown; " + (
        f"did you mean {close[0]!r}?" if close else f"known are: {', '.join(_SETTINGS)}"
    )
