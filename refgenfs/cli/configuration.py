"""`config show|check`: the configuration in force, and whether it is right."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING

from refgenfs.cli.options import AsJson, ConfigFile
from refgenfs.cli.output import Column, Table, note, write, write_json, write_table
from refgenfs.core.errors import ConfigError
from refgenfs.paths import home_dir

if TYPE_CHECKING:
    from refgenfs.config import Config, LoadedConfig, WebSource

PLACES = "none of $REFGENFS_CONFIG, ~/.config/refgenfs/config.toml and /etc/refgenfs/config.toml is there"


def show(config: ConfigFile = None, as_json: AsJson = False) -> None:
    """Show every setting, its value, and where it came from."""
    from refgenfs.config import load_config

    loaded = load_config(config, {}, os.environ)
    if as_json:
        values = {key: {"value": value, "from": origin} for key, value, origin in _values(loaded)}
        write_json({"path": str(loaded.path) if loaded.path else None, "values": values})
        return
    table = Table((Column("KEY", style="cyan"), Column("VALUE", fold=True), Column("FROM", style="dim", fold=True)))
    for key, text, origin in loaded.settings():
        table.add(key, text, origin)
    if loaded.path is None:
        note(f"no configuration file ({PLACES}): the defaults hold")
    write_table(table)


def check(config: ConfigFile = None, as_json: AsJson = False) -> None:
    """Say whether the configuration is right; name every mistake, and what would be right."""
    from refgenfs.config import load_config

    try:
        loaded = load_config(config, {}, os.environ)
        problems = file_problems(loaded.config)
        path = str(loaded.path) if loaded.path else None
    except ConfigError as exc:
        named = config or os.environ.get("REFGENFS_CONFIG")
        problems, path = str(exc).splitlines(), os.path.abspath(os.path.expanduser(named)) if named else None
    if as_json:
        write_json({"ok": not problems, "path": path, "problems": problems})
    if problems:
        raise ConfigError("\n".join(problems))
    if not as_json:
        write(f"{path}: right" if path else f"the defaults: right ({PLACES})")


def _values(loaded: LoadedConfig) -> list[tuple[str, object, str]]:
    dump = loaded.config.model_dump(mode="json")
    plain = {
        f"{section}.{key}": value for section in dump if section != "source" for key, value in dump[section].items()
    }
    for source in dump["source"]:
        plain |= {f"source.{source['name']}.{key}": value for key, value in source.items()}
    return [(key, plain[key], origin) for key, _, origin in loaded.settings()]


def file_problems(config: Config) -> list[str]:
    """Return what is wrong with files that a configuration names, one line each."""
    from refgenfs.config import WebSource

    page = config.web.token_file
    problems = [f"web.token_file: {problem}"] if page and (problem := token_problem(page)) else []
    for source in config.source:
        if not isinstance(source, WebSource):
            continue
        found = [(name, token_problem(path)) for name, path in secret_files(source)]
        if source.ca_file and not os.access(source.ca_file, os.R_OK):
            found.append(("ca_file", f"{source.ca_file} can't be read by this user"))
        problems += [f"source.{source.name}.{name}: {problem}" for name, problem in found if problem]
    return problems


def secret_files(source: WebSource) -> list[tuple[str, Path]]:
    """Return the files with secrets that a source names, by the keys that name them."""
    named = [(name, getattr(source, name)) for name in ("token_file", "password_file", "netrc_file")]
    found = [(name, path) for name, path in named if path]
    if source.netrc and source.netrc_file is None:
        found.append(("netrc", Path(home_dir(os.environ, os.geteuid()), ".netrc")))
    return found


def token_problem(path: Path) -> str:
    """Return what is wrong with a file that holds a secret, or an empty text."""
    try:
        facts = path.stat()
    except OSError as exc:
        return f"{path} can't be read: {exc.strerror}"
    if not stat.S_ISREG(facts.st_mode) or not os.access(path, os.R_OK):
        return f"{path} can't be read by this user"
    if facts.st_mode & 0o077:
        return f"{path} can be read by others: chmod 600 {path}"
    return ""
