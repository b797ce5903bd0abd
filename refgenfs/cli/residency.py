"""`pull`, `pin`, `unpin` and `evict`: what is on this machine, and what stays."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import closing
from typing import TYPE_CHECKING, Annotated, Any

import typer

from refgenfs.cli.connection import choose, mountpoint_of_daemon
from refgenfs.cli.options import AsJson, ConfigFile, Keys, Mountpoint
from refgenfs.cli.output import Column, Table, clean, console, note, write_json, write_table
from refgenfs.control_client import ControlClient, Progress, Result
from refgenfs.core.keys import AssetKey
from refgenfs.core.units import human_bytes, human_duration, human_rate

if TYPE_CHECKING:
    from rich.progress import Progress as Bars
    from rich.progress import ProgressColumn, Task, TaskID

Pin = Annotated[bool, typer.Option("--pin", metavar="", help="Keep them: what is pinned is never evicted.")]


def pull(
    keys: Keys,
    pin: Pin = False,
    mountpoint: Mountpoint = None,
    config: ConfigFile = None,
    as_json: AsJson = False,
) -> None:
    """Fetch assets, or single files by their seek key, before they are read."""
    parsed = _parse(keys)
    client = choose(mountpoint, config, os.environ, os.geteuid())
    answer = follow(client, "pull", keys=parsed, pin=pin)
    if as_json:
        write_json(answer)
        return
    table = Table(
        (
            Column("KEY", style="cyan"),
            Column("RESIDENT", right=True),
            Column("FETCHED", right=True),
            Column("TIME", right=True),
            Column("RATE", right=True),
        )
    )
    for item in answer["keys"]:
        seconds, fetched = item["seconds"], item["fetched"]
        rate = human_rate(fetched / seconds) if seconds > 0 and fetched else "–"
        table.add(item["key"], human_bytes(item["bytes"]), human_bytes(fetched), human_duration(seconds), rate)
    write_table(table)


def pin(keys: Keys, mountpoint: Mountpoint = None, config: ConfigFile = None, as_json: AsJson = False) -> None:
    """Keep assets on this machine: what is pinned is never evicted."""
    _ask("pin", "PINNED", keys, mountpoint, config, as_json)


def unpin(keys: Keys, mountpoint: Mountpoint = None, config: ConfigFile = None, as_json: AsJson = False) -> None:
    """Let assets go when their space is needed."""
    _ask("unpin", "UNPINNED", keys, mountpoint, config, as_json)


def evict(keys: Keys, mountpoint: Mountpoint = None, config: ConfigFile = None, as_json: AsJson = False) -> None:
    """Remove assets from this machine now; they are fetched again when they are read."""
    _ask("evict", "FREED", keys, mountpoint, config, as_json)


def _parse(keys: list[str]) -> list[str]:
    return [str(AssetKey.parse(key)) for key in dict.fromkeys(keys)]


def _ask(op: str, title: str, keys: list[str], mountpoint: str | None, config: ConfigFile, as_json: bool) -> None:
    parsed = _parse(keys)
    client = choose(mountpoint, config, os.environ, os.geteuid())
    answer = client.call(op, keys=parsed)
    if as_json:
        write_json(answer)
        return
    where = [mountpoint_of_daemon(client)] if op == "evict" else []
    columns = [Column("KEY", style="cyan"), Column(title, right=True), Column("MOUNT", fold=True)]
    table = Table(columns[: 2 + len(where)])
    for item in answer["keys"]:
        table.add(item["key"], human_bytes(item["bytes"]), *where)
    write_table(table)
    for item in answer["keys"]:
        if item.get("held_by"):
            need = "needs" if len(item["held_by"]) == 1 else "need"
            note(f"some of {item['key']} stays pinned: {', '.join(item['held_by'])} {need} it, too")


def follow(client: ControlClient, op: str, **args: Any) -> Any:
    """Return the result of a long operation; a bar on standard error shows how far it is, on a terminal."""
    with closing(client.stream(op, **args)) as events:
        if not sys.stderr.isatty():
            return _result(events)
        shown = bars()
        tasks: dict[str, TaskID] = {}
        with shown:
            for event in events:
                if isinstance(event, Result):
                    return event.value
                _move(shown, tasks, event, op)
    raise AssertionError("a stream ends with a result or an error")


def _result(events: Iterator[Progress | Result]) -> Any:
    for event in events:
        if isinstance(event, Result):
            return event.value
    raise AssertionError("a stream ends with a result or an error")


def _move(bars: Bars, tasks: dict[str, TaskID], event: Progress, op: str) -> None:
    """Bring the bar of the progress event's key (or of the whole operation) up to date."""
    name = clean(str(event.fields.get("key") or op))
    total = event.fields.get("total")
    if name not in tasks:
        tasks[name] = bars.add_task(name, total=total)
    bars.update(tasks[name], total=total, completed=event.fields.get("done", 0))


def bars() -> Bars:
    """Return bars on standard error that show bytes, rate and time left; they go when they are done."""
    from rich.progress import BarColumn, Progress, TextColumn
    from rich.table import Column as BarsColumn

    return Progress(
        TextColumn("{task.description}", style="cyan", markup=False, table_column=BarsColumn(no_wrap=True)),
        BarColumn(bar_width=None, table_column=BarsColumn(ratio=1, min_width=8)),
        _amount_column(),
        console=console(stderr=True),
        expand=True,
        transient=True,
        refresh_per_second=8,
    )


def _amount_column() -> ProgressColumn:
    from rich.progress import ProgressColumn
    from rich.table import Column as BarsColumn
    from rich.text import Text

    class AmountColumn(ProgressColumn):
        """Bytes so far and in all, rate, and time left."""

        def render(self, task: Task) -> Text:
            return Text(amount(task.completed, task.total, task.finished_speed or task.speed), no_wrap=True)

    return AmountColumn(table_column=BarsColumn(no_wrap=True))


def amount(done: float, total: float | None, speed: float | None) -> str:
    """Return how far a transfer is, for people: "1.20 of 2.94 GB  118 MB/s  15 s left"."""
    parts = [human_bytes(done) if total is None else f"{human_bytes(done)} of {human_bytes(total)}"]
    if speed:
        parts.append(human_rate(speed))
        if total is not None and total > done:
            left = max(1, round((total - done) / speed))
            parts.append(f"{f'{left} s' if left < 60 else human_duration(left)} left")
    return "  ".join(parts)
