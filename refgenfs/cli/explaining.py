"""`explain`: where a file's bytes come from, and what a read of it would fetch."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

import typer

from refgenfs.cli.connection import canonical, choose
from refgenfs.cli.options import AsJson, ConfigFile, Mountpoint, complete_key
from refgenfs.cli.output import DASH, Column, Table, note, write, write_json, write_pairs, write_table
from refgenfs.control_client import ControlClient
from refgenfs.core.errors import ControlError
from refgenfs.core.keys import AssetKey
from refgenfs.core.units import human_bytes, parse_size
from refgenfs.paths import socket_of

_RANGES = 8  # resident stretches that are shown

What = Annotated[
    str,
    typer.Argument(
        metavar="PATH|KEY[/FILE]",
        help="A path below a mountpoint, or a key, or a key and a file of it.",
        autocompletion=complete_key,
        show_default=False,
    ),
]


def _size(text: str) -> int:
    try:
        return parse_size(text)
    except ValueError as exc:
        raise typer.BadParameter(str(exc)) from exc


def explain(
    what: What,
    offset: Annotated[
        int, typer.Option(metavar="SIZE", parser=_size, help="Where a read would begin.", show_default=False)
    ] = 0,
    length: Annotated[
        int | None,
        typer.Option(
            metavar="SIZE", parser=_size, help="How much it would read. Without it: to the end.", show_default=False
        ),
    ] = None,
    mountpoint: Mountpoint = None,
    config: ConfigFile = None,
    as_json: AsJson = False,
) -> None:
    """Say where a file's bytes come from, what of it is here, and what a read of it would fetch; reads nothing."""
    client, asked = _question(what, mountpoint, config)
    answer = client.call("explain", offset=offset, length=length, **asked)
    if as_json:
        write_json(answer)
    elif len(answer["files"]) == 1:
        _show(answer["files"][0])
    else:
        _list(answer)


def _question(what: str, mountpoint: str | None, config: Path | None) -> tuple[ControlClient, dict[str, str]]:
    """Return whom to ask, and what; a path itself says which daemon it belongs to."""
    if what.startswith(("/", "./", "../", "~")) or what in (".", ".."):
        place = os.path.abspath(os.path.expanduser(what))
        found = _daemon_above(place) if mountpoint is None else None
        if found is None:
            found = choose(mountpoint, config, os.environ, os.geteuid()), _inside(place, mountpoint)
        return found[0], {"path": found[1]}
    client = choose(mountpoint, config, os.environ, os.geteuid())
    if what.strip("/").count("/") == 1:
        return client, {"key": str(AssetKey.parse(what.strip("/")))}
    return client, {"path": what}


def _daemon_above(place: str) -> tuple[ControlClient, str] | None:
    """Return the daemon whose mountpoint a path is below, and the rest of the path. No mount is touched."""
    parts = place.split("/")
    for count in range(2, len(parts) + 1):  # from above, so that links are followed outside of mounts only
        point = canonical("/".join(parts[:count]))
        socket = socket_of(point, os.environ, os.geteuid())
        if socket.exists():
            return ControlClient(socket, mountpoint=point), "/".join(parts[count:])
    return None


def _inside(place: str, mountpoint: str | None) -> str:
    """Return a path below the mountpoint that was named."""
    if mountpoint is not None:
        point = str(canonical(mountpoint))
        for whole in (place, str(canonical(place))):
            if whole == point or whole.startswith(f"{point}/"):
                return whole[len(point) + 1 :]
    raise ControlError(f"{place} is below no mountpoint of a daemon that runs; write a key, as hg38/fasta")


def _show(file: dict[str, Any]) -> None:
    size, read = file["size"], file["read"]
    here = human_bytes(file["resident_bytes"])
    if size is not None:
        here += f" of {human_bytes(size)}, {file['resident']} %"
    if file["on_its_way"]:
        here += f"; {human_bytes(file['on_its_way'])} on its way"
    write_pairs(
        [
            ("path", file["path"]),
            ("key", file["key"]),
            ("source", file["source"]),
            ("route", file["route"]),
            ("from", ", ".join(file["from"])),
            ("size", "not known yet" if size is None else f"{human_bytes(size)} ({size:,} bytes)"),
            ("here", here),
            ("blocks", _ranges(file)),
            ("pinned by", ", ".join(one or "(its file)" for one in file["pinned_by"])),
            ("a read fetches", _cost(read)),
            ("", read["how"]),
            ("error", file["error"] or ""),
        ]
    )
    for reason in file["slow"]:
        note(reason)


def _ranges(file: dict[str, Any]) -> str:
    stretches = file["resident_ranges"]
    if not stretches or file["resident"] == 100:
        return ""
    shown = ", ".join(f"{start:,}–{stop:,}" for start, stop in stretches[:_RANGES])
    more = len(stretches) - _RANGES + file["more_ranges"]
    return f"{shown} and {more:,} more stretches" if more > 0 else shown


def _cost(read: dict[str, Any]) -> str:
    if read["bytes"] is None and read["requests"] is None:
        return "can't be told"
    size = "an unknown amount" if read["bytes"] is None else human_bytes(read["bytes"])
    count = read["requests"]
    return size if count is None else f"{size} in {count:,} {'request' if count == 1 else 'requests'}"


def _list(answer: dict[str, Any]) -> None:
    table = Table(
        (
            Column("FILE", style="cyan"),
            Column("ROUTE"),
            Column("SIZE", right=True),
            Column("HERE", right=True),
            Column("A READ FETCHES", right=True),
        )
    )
    for file in answer["files"]:
        size, share = file["size"], file["resident"]
        table.add(
            file["file"],
            file["route"],
            DASH if size is None else human_bytes(size),
            DASH if share is None else f"{share} %",
            _cost(file["read"]),
        )
    write_table(table, empty="nothing there")
    if answer["more"]:
        write(f"and {answer['more']:,} more files")
    for reason in dict.fromkeys(reason for file in answer["files"] for reason in file["slow"]):
        note(reason)
