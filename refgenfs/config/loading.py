"""Finding the file, laying the command line over it, and telling where each value came from."""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from refgenfs.config.explain import explain, relevant, suggestion
from refgenfs.config.model import Config
from refgenfs.core.errors import ConfigError
from refgenfs.paths import config_places, home_dir

_PATHS = {("mount", "point"), ("cache", "dir"), ("web", "token_file")}
_SOURCE_PATHS = ("token_file", "password_file", "netrc_file", "ca_file", "path")
_TOML_PLACE = re.compile(r" \(at (?:line (\d+), column \d+|end of document)\)$")


@dataclass(frozen=True)
class LoadedConfig:
    """A configuration, and where it came from.

    `origins` has every dotted key: "default", "file /path", "environment X" or "command line". `path` is the
    file, None where there is none. `overrides` are the command line's values, with absolute paths.
    """

    config: Config
    origins: Mapping[str, str]
    path: Path | None
    overrides: Mapping[str, Any]

    def settings(self) -> Iterator[tuple[str, str, str]]:
        """Yield each dotted key, its value as text with nothing secret in it, and its origin."""
        for key, value in _leaves(self.config.model_dump(mode="json")):
            yield key, _as_toml(value), self.origins[key]


def load_config(
    path: Path | None,
    overrides: Mapping[str, Any],
    environ: Mapping[str, str],
    *,
    uid: int | None = None,
) -> LoadedConfig:
    """Return the configuration in force; raise ConfigError, with a line for each thing that is wrong.

    `path` is the file the user named; without one the usual places are looked at, and with no file anywhere
    the defaults hold. `overrides` maps dotted keys ("cache.size") to values that win over the file's.
    """
    uid = os.geteuid() if uid is None else uid
    home = home_dir(environ, uid)
    found = find_config(path, environ, home)
    data = _read(found) if found else {}
    _make_paths_absolute(data, found.parent if found else Path.cwd(), home)
    origins = {key: f"file {found}" for key, _ in _leaves(data)}
    laid_over: dict[str, Any] = {}
    for key, value in overrides.items():
        section, _, name = _known_override(key).partition(".")
        laid_over[key] = (
            _absolute(value, Path.cwd(), home) if (section, name) in _PATHS and value is not None else value
        )
        table = data.setdefault(section, {})
        if isinstance(table, dict):
            table[name] = laid_over[key]
        origins[key] = "command line"
    _default_cache_dir(data, origins, environ, home, uid)
    config = _validate(data, found, laid_over)
    every = {key: origins.get(key, "default") for key, _ in _leaves(config.model_dump(mode="json"))}
    return LoadedConfig(config, every, found, laid_over)


def find_config(path: Path | None, environ: Mapping[str, str], home: str) -> Path | None:
    """Return the file to read, or None: the one named, else `$REFGENFS_CONFIG`, the user's, /etc's."""
    named = path or environ.get("REFGENFS_CONFIG")
    if named:
        found = _absolute(str(named), Path.cwd(), home)
        if not found.exists():
            why = "" if path else " (named by REFGENFS_CONFIG)"
            raise ConfigError(f"{found}: no such file{why}; write it, or name another")
        return found
    return next((place for place in config_places(environ, home) if os.path.exists(place)), None)


def override_keys() -> list[str]:
    """Return the dotted keys that the command line can set, sorted."""
    return sorted(key for key, _ in _leaves(Config().model_dump()) if not key.startswith("source."))


def _read(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_bytes().decode())
    except OSError as exc:
        raise ConfigError(f"{path}: can't be read: {exc.strerror}; name a file that this user can read") from exc
    except UnicodeDecodeError as exc:
        raise ConfigError(f"{path}: is no text in UTF-8 (byte {exc.start})") from exc
    except tomllib.TOMLDecodeError as exc:
        place = _TOML_PLACE.search(str(exc))
        line = f":{place[1]}" if place and place[1] else ""
        what = _TOML_PLACE.sub("", str(exc)) + (" at its end" if place and not place[1] else "")
        raise ConfigError(f"{path}{line}: is no TOML: {what[:1].lower()}{what[1:]}") from exc


def _absolute(text: object, base: Path, home: str) -> Path:
    """Return an absolute path for what a user wrote; what is no path is left to the validation."""
    if not isinstance(text, str | Path) or not str(text) or "\0" in str(text):
        return text  # type: ignore[return-value]
    plain = str(text)
    if plain == "~" or plain.startswith("~/"):
        plain = home + plain[1:]
    return Path(os.path.normpath(base / os.path.expanduser(plain)))


def _make_paths_absolute(data: dict[str, Any], base: Path, home: str) -> None:
    tables = [(data.get(section), name) for section, name in _PATHS]
    sources = data.get("source")
    if isinstance(sources, list):
        tables += [(source, name) for source in sources for name in _SOURCE_PATHS]
    for table, name in tables:
        if isinstance(table, dict) and name in table:
            table[name] = _absolute(table[name], base, home)


def _default_cache_dir(
    data: dict[str, Any], origins: dict[str, str], environ: Mapping[str, str], home: str, uid: int
) -> None:
    table = data.setdefault("cache", {})
    if uid == 0 or not isinstance(table, dict) or "dir" in table:
        return
    if environ.get("CACHE_DIRECTORY"):  # a unit's own (systemd.exec(5), CacheDirectory=)
        origins["cache.dir"] = "environment CACHE_DIRECTORY"
        table["dir"] = Path(environ["CACHE_DIRECTORY"].partition(":")[0])
        return
    if environ.get("XDG_CACHE_HOME"):
        origins["cache.dir"] = "environment XDG_CACHE_HOME"
    table["dir"] = Path(environ.get("XDG_CACHE_HOME") or os.path.join(home, ".cache"), "refgenfs")


def _known_override(key: str) -> str:
    known = override_keys()
    if key not in known:
        raise ConfigError(f"command line: {key}: unknown key{suggestion(key, known)}")
    return key


def _validate(data: dict[str, Any], path: Path | None, overrides: Mapping[str, Any]) -> Config:
    try:
        return Config.model_validate(data)
    except ValidationError as exc:
        lines = []
        for error in relevant(exc.errors(include_url=False, include_input=False)):
            key, message = explain(error, data)
            place = "command line" if key in overrides else str(path or "command line")
            lines.append(f"{place}: {key}: {message}" if key else f"{place}: {message}")
        raise ConfigError("\n".join(lines)) from exc


def _leaves(data: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield dotted keys and values; keys of a source, and of a rule, go by its name."""
    for section, table in data.items():
        if section == "source" and isinstance(table, list | tuple):
            for source in table:
                if isinstance(source, Mapping):
                    yield from ((f"source.{source.get('name')}.{key}", source[key]) for key in source)
        elif isinstance(table, Mapping):
            for key, value in table.items():
                if key == "rule" and isinstance(value, list | tuple):
                    rules = [rule for rule in value if isinstance(rule, Mapping)]
                    yield from ((f"{section}.rule.{rule.get('name')}.{k}", rule[k]) for rule in rules for k in rule)
                else:
                    yield f"{section}.{key}", value


def _as_toml(value: object) -> str:
    match value:
        case None:
            return "none"
        case bool():
            return str(value).lower()
        case list() | tuple():
            return f"[{', '.join(_as_toml(item) for item in value)}]"
        case str():
            return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
    return str(value)
