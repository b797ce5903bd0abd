"""`ticket`: print the htsget ticket for regions of a file."""

from __future__ import annotations

import os
from typing import Annotated

import typer

from refgenfs.cli.connection import choose
from refgenfs.cli.options import ConfigFile, Key, Mountpoint
from refgenfs.cli.output import write_json
from refgenfs.core.htsget.model import Class, Format
from refgenfs.core.keys import AssetKey


def _class(text: str) -> str:
    if text != Class.HEADER:
        raise typer.BadParameter("it can only be header")
    return text


def _format(text: str) -> str:
    if text.upper() not in set(Format):
        raise typer.BadParameter(f"it has to be {', '.join(Format)}")
    return text.upper()


def ticket(
    key: Key,
    regions: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="REGION…",
            help="Regions as samtools writes them: chr1:1,000-2,000 (1-based, the end included), chr1, chr1:5-; '*' "
            "for reads that are placed nowhere. Without any: all of the file.",
            show_default=False,
        ),
    ] = None,
    class_: Annotated[
        str | None,
        typer.Option("--class", metavar="header", parser=_class, help="Only the file's header.", show_default=False),
    ] = None,
    format_: Annotated[
        str | None,
        typer.Option(
            "--format",
            metavar="FORMAT",
            parser=_format,
            help="BAM, CRAM, VCF or BCF: fail if the file is of another.",
            show_default=False,
        ),
    ] = None,
    file: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Which file, where the asset has several.", show_default=False),
    ] = None,
    url: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            help="Where others get the file, or (ending in /) the folder it is in. Without it: its origin's URL.",
            show_default=False,
        ),
    ] = None,
    mountpoint: Mountpoint = None,
    config: ConfigFile = None,
) -> None:
    """Print the htsget ticket for regions of a BAM, CRAM, VCF or BCF: the byte ranges that have them."""
    parsed = AssetKey.parse(key)
    client = choose(mountpoint, config, os.environ, os.geteuid())
    write_json(
        client.call(
            "ticket",
            key=str(parsed),
            regions=list(regions or ()),
            file=file,
            url=url,
            format=format_,
            **{"class": class_},
        )
    )
