"""`config show|check`: the configuration in force, and whether it is right."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from refgenfs.cli.options import AsJson, ConfigFile
from refgenfs.cli.output import Column, Table, note, write, write_json, write_table
from refgenfs.core.errors import ConfigError

if TYPE_CHECKING:
    from refgenfs.config import LoadedConfig

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
    from refgenfs.config import file_problems, load_config

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
