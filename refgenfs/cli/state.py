"""`status`: how a running daemon is doing."""

from __future__ import annotations

import os
import time
from collections import Counter
from typing import Annotated, Any

import typer

from refgenfs import users
from refgenfs.cli.connection import canonical, choose
from refgenfs.cli.options import AsJson, ConfigFile, Mountpoint
from refgenfs.cli.output import (
    Column,
    Table,
    clean,
    console,
    on_terminal,
    write,
    write_json,
    write_table,
)
from refgenfs.core.units import counted, human_age, human_bytes, human_duration, human_percent

_NEARLY = 0.9  # of the room there is: evictions are near
_BAR = 32
_ERRORS = 5  # the log has them all
_USERS = 10


Point = Annotated[
    str | None, typer.Argument(metavar="MOUNTPOINT", help="The mountpoint, as with -m.", show_default=False)
]


def status(
    point: Point = None, mountpoint: Mountpoint = None, config: ConfigFile = None, as_json: AsJson = False
) -> None:
    """Show sources and their health, cache use, what was served, fetched and saved, recent errors."""
    answer = choose(the_one(point, mountpoint), config, os.environ, os.geteuid()).call("status")
    if as_json:
        write_json(answer)
        return
    _write_head(answer)
    _write_sources(answer["sources"])
    _write_cache(answer["cache"])
    _write_traffic(answer)
    _write_users(answer.get("users", []))
    _write_making(answer.get("making") or [])
    _write_errors(answer["errors"], time.time())


def the_one(point: str | None, mountpoint: str | None) -> str | None:
    """Return the mountpoint that is given as an argument, or by -m; raise BadParameter where they differ."""
    if point is not None and mountpoint is not None and canonical(point) != canonical(mountpoint):
        raise typer.BadParameter("the mountpoint is given twice, and differs")
    return mountpoint if point is None else point


def _line(*parts: tuple[str, str]) -> None:
    """Write one line of styled pieces."""
    if not on_terminal():
        write(clean("".join(text for text, _ in parts)))
        return
    from rich.text import Text

    console().print(Text.assemble(*((clean(text), style) for text, style in parts)), overflow="fold")


def _heading(title: str) -> None:
    write()
    _line((title, "bold"))


def _write_head(answer: dict[str, Any]) -> None:
    good = answer["state"] in ("mounted", "running", "ready")
    _line(
        (answer["mountpoint"], "bold cyan"),
        ("  ", ""),
        (answer["state"], "green" if good else "bold yellow"),
        (f"  up {human_duration(answer['uptime'])}", ""),
    )
    memory = f", {human_bytes(answer['memory'])} of memory" if answer.get("memory") else ""
    _line((f"refgenfs {answer['version']}, pid {answer['pid']}{memory}", "dim"))


def _write_sources(sources: list[dict[str, Any]]) -> None:
    _heading("Sources")
    table = Table(
        (
            Column("NAME", style="cyan"),
            Column("HEALTH"),
            Column("GENOMES", right=True),
            Column("ASSETS", right=True),
            Column("ANSWERED"),
            Column("URL", fold=True),
        )
    )
    for source in sources:
        age = source["age"]
        table.add(
            source["name"],
            "ok" if source["healthy"] else "failing",
            str(source["genomes"]),
            str(source["assets"]),
            "never" if age is None else human_age(age),
            source["url"],
        )
    write_table(table)
    for source in sources:
        _write_routes(source)
    for source in sources:
        if source["error"]:
            _line((f"{source['name']}: {source['error']}", "red"))


def _write_routes(source: dict[str, Any]) -> None:
    """Write by which proxies and to which servers a source's requests went, where there are several."""
    routes = source.get("routes", [])
    if all([route["kind"] for route in routes].count(kind) < 2 for kind in ("proxy", "server")):
        return
    for route in routes:
        what = "" if route["url"] == "direct" else f"{route['kind']} "
        state = ("", "") if route["up"] else (", failing: asked after the others", "yellow")
        asked = f", {counted(route['requests'], 'request')}"
        _line((f"{source['name']}: ", ""), (f"{what}{route['url']}", ""), (asked, ""), state)


def _write_cache(cache: dict[str, Any]) -> None:
    _heading("Cache")
    used, size = cache["used"], cache["size"]
    filled = min(_BAR, -(-_BAR * used // size)) if size else 0
    if on_terminal():
        _line(
            ("━" * filled, "green" if used < 0.9 * size else "yellow"),
            ("━" * (_BAR - filled), "bright_black"),
            (f"  {human_bytes(used)} of {human_bytes(size)}, {human_percent(used, size)}", ""),
        )
    else:
        write(f"used {human_bytes(used)} of {human_bytes(size)}, {human_percent(used, size)}")
    files = counted(cache["contents"], "file")
    if used and not cache["contents"]:
        files += " (what is used is the cache's own book-keeping)"
    held = f"{files}, {human_bytes(cache['pinned'])} pinned"
    held += f", {counted(cache['evictions'], 'eviction')}"
    _line((f"{held}; {human_bytes(cache['min_free'])} stays free in {cache['dir']}", ""))
    room = max(0, cache["free"] + used - cache["min_free"])
    if room < size and used > _NEARLY * room:
        _line((f"the disk bounds it, not cache.size: it has room for {human_bytes(room)}", "yellow"))
    if cache.get("opening"):
        _line(("what it holds is still being looked through", "yellow"))
    if cache["uncached"]:
        _line(("the disk refuses: reads go on without the cache", "bold yellow"))
    if cache["error"]:
        _line((str(cache["error"]), "red"))


def _write_traffic(answer: dict[str, Any]) -> None:
    _heading("Traffic since it was mounted")
    served, fetched = answer["served"], answer["fetched"]
    hits = answer["hit_ratio"]
    flights = answer["flights"] if isinstance(answer["flights"], int) else len(answer["flights"])
    _line(
        (f"{human_bytes(served)} served, {human_bytes(fetched)} fetched", ""),
        (f" in {counted(answer['requests'], 'request')}" if isinstance(answer["requests"], int) else "", ""),
        (f", {human_bytes(answer['saved'])} saved", "green"),
        ("" if hits is None else f", {human_percent(hits, 1)} of reads from the cache", ""),
    )
    _line((f"{counted(answer['open_files'], 'file')} open, {counted(flights, 'transfer')} under way", ""))
    if len(answer["sources"]) > 1:
        _write_savings(answer["sources"])


def _write_savings(sources: list[dict[str, Any]]) -> None:
    """Write what each source was asked for, and what the cache saved of it."""
    columns = (Column("NAME", style="cyan"), *(Column(title, right=True) for title in ("SERVED", "FETCHED", "SAVED")))
    table = Table(columns)
    for source in sources:
        amounts = (source.get(key) for key in ("served", "fetched", "saved"))
        table.add(source["name"], *("–" if amount is None else human_bytes(amount) for amount in amounts))
    write_table(table)


def _write_making(jobs: list[dict[str, Any]]) -> None:
    """Write what is being made: nothing if nothing is."""
    if not jobs:
        return
    _heading("Being made")
    for job in jobs:
        share = human_percent(job["done"], job["total"])
        what = f"{' and '.join(job['files'])} of {job['key']}"
        _line(
            (what, "cyan"), (f"  {share} of {human_bytes(job['total'])} read, {human_duration(job['seconds'])}", "")
        )


def _write_users(users: list[dict[str, Any]]) -> None:
    if not users:
        return
    _heading("Users")
    table = Table(
        (Column("USER", style="cyan"), *(Column(name, right=True) for name in ("READS", "SERVED", "FETCHED")))
    )
    for user in users[:_USERS]:
        served, fetched = human_bytes(user["served"]), human_bytes(user["fetched"])
        table.add(user_name(user["uid"]), f"{user['reads']:,}", served, fetched)
    write_table(table)
    if len(users) > _USERS:
        _line((f"and {len(users) - _USERS} more: --json has them", "dim"))


def user_name(uid: int | None) -> str:
    """Return a user's name, the number of one that has none; None stands for all whom there were too many of."""
    return "(others)" if uid is None else users.user_name(uid)


def _write_errors(errors: list[dict[str, Any]], now: float) -> None:
    if not errors:
        return
    _heading("Recent errors")
    counts = Counter(str(error["what"]) for error in errors)
    latest = {str(error["what"]): error["when"] for error in errors}  # of those that say the same
    for what, when in sorted(latest.items(), key=lambda item: item[1])[-_ERRORS:]:
        times = f" ({counts[what]} times)" if counts[what] > 1 else ""
        _line((f"{human_age(now - when)}  ", "dim"), (f"{what}{times}", "red"))
