"""`list`, `info`, `seek` and `id`: what there is, and where."""

from __future__ import annotations

import os
from typing import Annotated, Any

import typer

from refgenfs.cli.connection import choose
from refgenfs.cli.options import AsJson, ConfigFile, Key, Mountpoint, complete_genome_or_asset
from refgenfs.cli.output import DASH, Column, Table, write, write_json, write_pairs, write_table
from refgenfs.core.errors import KeyFormatError
from refgenfs.core.keys import AssetKey, is_name

Where = Annotated[
    str | None,
    typer.Argument(
        metavar="GENOME[/ASSET]",
        help="A genome, by alias or digest, or one of its assets. Without it: all genomes.",
        autocompletion=complete_genome_or_asset,
        show_default=False,
    ),
]


def list_(
    where: Where = None, mountpoint: Mountpoint = None, config: ConfigFile = None, as_json: AsJson = False
) -> None:
    """Show the genomes, the assets of one, or the tags of one asset."""
    args = _parse_where(where)
    answer = choose(mountpoint, config, os.environ, os.geteuid()).call("list", **args)
    if as_json:
        write_json(answer)
    elif "genome" in args:
        write_table(_assets(answer["assets"]), empty=f"no source has assets of {where}")
    else:
        write_table(_genomes(answer["genomes"]), empty="no source has a genome yet: see `refgenfs status`")


def info(key: Key, mountpoint: Mountpoint = None, config: ConfigFile = None, as_json: AsJson = False) -> None:
    """Show one asset: its files, sizes, digests, origin, and how much of it is on this machine."""
    parsed = AssetKey.parse(key)
    answer = choose(mountpoint, config, os.environ, os.geteuid()).call("info", key=str(parsed))
    if as_json:
        write_json(answer)
    else:
        _show_info(answer)


def seek(key: Key, mountpoint: Mountpoint = None, config: ConfigFile = None) -> None:
    """Print the path of an asset's file or folder under the mountpoint."""
    parsed = AssetKey.parse(key)
    write(choose(mountpoint, config, os.environ, os.geteuid()).call("seek", key=str(parsed))["path"])


def id_(key: Key, mountpoint: Mountpoint = None, config: ConfigFile = None) -> None:
    """Print the digest of an asset's content."""
    parsed = AssetKey.parse(key)
    write(choose(mountpoint, config, os.environ, os.geteuid()).call("id", key=str(parsed))["digest"])


def _parse_where(where: str | None) -> dict[str, str]:
    text = (where or "").strip("/")
    if not text:
        return {}
    genome, slash, asset = text.partition("/")
    for what, name in (("genome", genome), ("asset", asset)):
        if (what == "genome" or slash) and not is_name(name):
            raise KeyFormatError(f"{name!r} in {where!r} is no {what}; write GENOME or GENOME/ASSET, as hg38/fasta")
    return {"genome": genome, "asset": asset} if slash else {"genome": genome}


def _genomes(genomes: list[dict[str, Any]]) -> Table:
    table = Table(
        (
            Column("GENOME", style="bold cyan"),
            Column("ALSO"),
            Column("ASSETS", right=True),
            Column("DIGEST", style="dim", shorten=True),
            Column("DESCRIPTION", fold=True),
        )
    )
    for item in sorted(genomes, key=lambda item: str(item["name"]).lower()):
        also = ", ".join(name for name in item["names"] if name not in (item["name"], item["digest"]))
        table.add(item["name"], also or DASH, str(item["assets"]), item["digest"], item["description"] or DASH)
    return table


def _assets(assets: list[dict[str, Any]]) -> Table:
    from refgenfs.core.units import human_bytes

    table = Table(
        (
            Column("KEY", style="bold cyan"),
            Column("SIZE", right=True),
            Column("ARCHIVE", right=True),
            Column("HERE", right=True),
            Column("SEEK KEYS", fold=True),
            Column("DESCRIPTION", style="dim", fold=True, spare=True),
        )
    )
    for item in assets:
        table.add(
            item["key"],
            item["asset_size"] or DASH,
            item["archive_size"] or DASH,
            human_bytes(item["resident"]) if item["resident"] else DASH,
            ", ".join(item["seek_keys"]) or DASH,
            item["description"] or DASH,
        )
    return table


def _share(resident: float | None) -> str:
    return DASH if resident is None else f"{int(resident)} %"


def _show_info(answer: dict[str, Any]) -> None:
    from refgenfs.core.units import human_bytes

    size = answer["size"]
    unknown = "not known yet: `ls -l` asks for it"
    if any(file["size"] is None and file["origin"] == "archive" for file in answer["files"]):
        unknown = "known once the archive has been read"
    write_pairs(
        [
            ("key", answer["key"] + (" (the default tag)" if answer["default"] else "")),
            ("description", answer["description"]),
            ("path", answer["path"]),
            ("source", answer["source"]),
            ("genome", ", ".join(dict.fromkeys([*answer["names"], answer["genome_digest"]]))),
            ("size", unknown if size is None else f"{human_bytes(size)} ({size:,} bytes)"),
            ("resident", _share(answer["resident"]) + (", pinned" if answer["pinned"] else "")),
            ("archive", answer["archive_size"]),
            ("asset digest", answer["asset_digest"]),
            ("archive digest", answer["archive_digest"]),
            ("parents", ", ".join(answer["parents"])),
            ("seek keys", ", ".join(answer["seek_keys"])),
        ]
    )
    write()
    table = Table(
        (
            Column("FILE", style="cyan"),
            Column("BYTES", right=True),
            Column("HERE", right=True),
            Column("PINNED"),
            Column("ORIGIN", style="dim"),
        )
    )
    for file in answer["files"]:
        table.add(
            file["name"],
            DASH if file["size"] is None else f"{file['size']:,}",
            _share(file["resident"]),
            "yes" if file["pinned"] else "no",
            file["origin"] or DASH,
        )
    write_table(table, empty="this asset has no files")
