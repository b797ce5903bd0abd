"""`cache info|verify|clear`: what is on the disk."""

from __future__ import annotations

import os
import sys
import time
from typing import Annotated, Any

import typer

from refgenfs.cli.connection import choose, mountpoint_of_daemon
from refgenfs.cli.options import AsJson, ConfigFile, Mountpoint
from refgenfs.cli.output import DASH, Column, Table, note, write, write_json, write_pairs, write_table
from refgenfs.cli.residency import follow
from refgenfs.core.errors import IntegrityError, RefgenfsError
from refgenfs.core.units import human_age, human_bytes, human_percent

Yes = Annotated[bool, typer.Option("--yes", "-y", metavar="", help="Don't ask.")]


def info(mountpoint: Mountpoint = None, config: ConfigFile = None, as_json: AsJson = False) -> None:
    """Show what the cache holds, file by file, and its bounds."""
    answer = choose(mountpoint, config, os.environ, os.geteuid()).call("cache_info")
    if as_json:
        write_json(answer)
        return
    used, size = answer["used"], answer["size"]
    free, kept = human_bytes(answer["free"]), human_bytes(answer["min_free"])
    write_pairs(
        [
            ("directory", answer["dir"]),
            ("used", f"{human_bytes(used)} of {human_bytes(size)}, {human_percent(used, size)}"),
            ("disk", f"{free} free, of which {kept} stays free"),
        ]
    )
    write()
    write_table(_contents(answer["contents"], time.time()), empty=_emptiness(used))


def _emptiness(used: int) -> str:
    return f"the cache holds no files; the {human_bytes(used)} in use are its own book-keeping"


def _contents(contents: list[dict[str, Any]], now: float) -> Table:
    table = Table(
        (
            Column("KEY", style="cyan"),
            Column("FILE", fold=True),
            Column("SIZE", right=True),
            Column("HERE", right=True),
            Column("PINNED"),
            Column("LAST READ", right=True),
        )
    )
    for item in sorted(contents, key=lambda item: (item["key"] is None, item["key"] or "", item["name"] or "")):
        used = item["last_used"]
        table.add(
            item["key"] or "(in no catalog)",
            item["name"] or DASH,
            human_bytes(item["size"]),
            human_bytes(item["resident"]),
            "yes" if item["pinned"] else "no",
            human_age(now - used) if used else DASH,
        )
    return table


def verify(mountpoint: Mountpoint = None, config: ConfigFile = None, as_json: AsJson = False) -> None:
    """Check every block on the disk against its checksum, and fetch again what is damaged.

    Fails if some of it could not be fetched: that is no longer in the cache, and is asked for when it is read.
    """
    answer = follow(choose(mountpoint, config, os.environ, os.geteuid()), "cache_verify")
    damaged = answer["damaged"]
    lost = [item for item in damaged if not item["healed"]]
    if as_json:
        write_json(answer)
    else:
        healed = f", {len(damaged) - len(lost):,} healed" if damaged else ""
        write(f"{answer['checked']:,} blocks checked, {len(damaged):,} damaged{healed}")
        for item in damaged:
            where = f"{item['key'] or '(in no catalog)'} {item['name']}"
            now = "healed" if item["healed"] else f"not healed: {item['error']}"
            write(f"  {where}: byte {item['offset']}, block {item['block']} of {item['path']}: {now}")
    if lost:
        raise IntegrityError(
            f"{len(lost):,} of {len(damaged):,} damaged blocks could not be fetched again and were dropped; they are "
            "asked for when they are read. Check the disk: `dmesg`, `smartctl`"
        )
    if damaged:
        note("what was damaged was fetched again, and is right now. Check the disk: `dmesg`, `smartctl`")


def clear(
    yes: Yes = False, mountpoint: Mountpoint = None, config: ConfigFile = None, as_json: AsJson = False
) -> None:
    """Empty the cache of all that isn't pinned. It fills again as files are read."""
    client = choose(mountpoint, config, os.environ, os.geteuid())
    where = mountpoint_of_daemon(client)
    if not yes:
        _confirm(client.call("cache_info"), where)
    freed = client.call("cache_clear")["freed"]
    if as_json:
        write_json({"freed": freed})
    else:
        write(f"{where}: {human_bytes(freed)} freed")


def _confirm(facts: dict[str, Any], where: str) -> None:
    if not sys.stdin.isatty():
        raise RefgenfsError("`cache clear` asks first, and nobody is there to answer: add --yes")
    goes = human_bytes(facts["used"] - facts["pinned"])
    if not typer.confirm(f"{where}: remove up to {goes} from {facts['dir']}?", err=True):
        note("nothing removed")
        raise typer.Exit(1)
