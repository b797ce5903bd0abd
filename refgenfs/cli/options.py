"""Options and arguments that several commands share, and the completion of keys."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

import typer

from refgenfs.core.errors import RefgenfsError


def complete_key(incomplete: str) -> list[str]:
    """Return keys that begin with `incomplete` in the running daemon's catalog; none where it can't say."""
    try:
        return _matching_keys(incomplete)
    except (RefgenfsError, LookupError, TypeError):
        return []


def complete_genome_or_asset(incomplete: str) -> list[str]:
    """Return genomes that begin with `incomplete`, and assets once a genome is whole."""
    pairs = (key.partition("/") for key in complete_key(incomplete))
    return sorted({f"{genome}/{asset.partition(':')[0].partition('.')[0]}" for genome, _, asset in pairs})


def _matching_keys(incomplete: str) -> list[str]:
    from refgenfs.cli.connection import running

    clients = running(os.environ, os.geteuid(), timeout=0.3)
    if not clients:
        return []
    client = clients[0]
    genome, slash, _ = incomplete.partition("/")
    if not slash:
        known = client.call("list")["genomes"]
        found = sorted({name for item in known for name in item["names"] if name.startswith(genome)})
        if len(found) != 1:
            return [f"{name}/" for name in found]
        genome = found[0]
    return [key for key in _keys_of(client.call("list", genome=genome), genome) if key.startswith(incomplete)]


def _keys_of(answer: dict[str, Any], genome: str) -> list[str]:
    keys = set()
    for item in answer["assets"]:
        tag = "" if item["default"] else f":{item['tag']}"
        keys.add(f"{genome}/{item['asset']}{tag}")
        keys.update(f"{genome}/{item['asset']}.{name}{tag}" for name in item.get("seek_keys", ()))
    return sorted(keys)


KEY_HELP = "genome/asset[.seek_key][:tag]"
_PANEL = "Which daemon"

Key = Annotated[str, typer.Argument(metavar="KEY", help=KEY_HELP, autocompletion=complete_key, show_default=False)]
Keys = Annotated[
    list[str], typer.Argument(metavar="KEY…", help=KEY_HELP, autocompletion=complete_key, show_default=False)
]
Mountpoint = Annotated[
    str | None,
    typer.Option(
        "-m",
        "--mountpoint",
        metavar="DIR",
        help="Ask the daemon at this mountpoint. Without it: the configuration's; if it names none, the only one.",
        rich_help_panel=_PANEL,
    ),
]
ConfigFile = Annotated[
    Path | None,
    typer.Option(
        "-c",
        "--config",
        metavar="FILE",
        help="The configuration file. Without it: $REFGENFS_CONFIG, the user's, /etc/refgenfs/config.toml.",
        rich_help_panel=_PANEL,
    ),
]
AsJson = Annotated[bool, typer.Option("--json", metavar="", help="Print JSON, for programs.")]
