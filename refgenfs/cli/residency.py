"""`pull`, `pin`, `unpin` and `evict`: what is on this machine, and what stays."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from typing import TYPE_CHECKING, Annotated, Any

import typer

from refgenfs.cli.connection import choose, mountpoint_of_daemon
from refgenfs.cli.options import KEY_HELP, AsJson, ConfigFile, Keys, Mountpoint, complete_key
from refgenfs.cli.output import DASH, Column, Table, clean, console, note, write_json, write_table
from refgenfs.control_client import ControlClient, Progress, Result
from refgenfs.core.errors import ControlError
from refgenfs.core.keys import AssetKey
from refgenfs.core.units import human_bytes, human_duration, human_rate, parse_duration

if TYPE_CHECKING:
    from rich.progress import Progress as Bars
    from rich.progress import ProgressColumn, Task, TaskID

Pin = Annotated[bool, typer.Option("--pin", metavar="", help="Keep them: what is pinned is never evicted.")]
For = Annotated[
    str | None,
    typer.Option(
        "--for",
        metavar="NAME",
        help="Pin for a name, as a job's: what several names pin stays until the last lets go of it.",
    ),
]
Lease = Annotated[
    str | None,
    typer.Option("--lease", metavar="TIME", help="Pin for this long, 12h or 2d; again, and it counts from then."),
]
AllOf = Annotated[
    str | None,
    typer.Option(
        "--for", metavar="NAME", help="Let go of what was pinned for this name; all of it, if no KEY is named."
    ),
]
SomeKeys = Annotated[
    list[str] | None,
    typer.Argument(metavar="[KEY…]", help=KEY_HELP, autocompletion=complete_key, show_default=False),
]


def pull(
    keys: Keys,
    pin: Pin = False,
    for_: For = None,
    lease: Lease = None,
    mountpoint: Mountpoint = None,
    config: ConfigFile = None,
    as_json: AsJson = False,
) -> None:
    """Fetch assets, or single files by their seek key, before they are read."""
    if not pin and (for_ is not None or lease is not None):
        raise ControlError("--for and --lease say for whom and how long to pin: give --pin, too")
    parsed, claim = _parse(keys), _claim(for_, lease)
    client = choose(mountpoint, config, os.environ, os.geteuid())
    answer = follow(client, "pull", keys=parsed, pin=pin, **claim)
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


def pin(
    keys: Keys,
    for_: For = None,
    lease: Lease = None,
    mountpoint: Mountpoint = None,
    config: ConfigFile = None,
    as_json: AsJson = False,
) -> None:
    """Keep assets on this machine: what is pinned is never evicted."""
    _ask("pin", "PINNED", {"keys": _parse(keys), **_claim(for_, lease)}, mountpoint, config, as_json)


def unpin(
    keys: SomeKeys = None,
    for_: AllOf = None,
    mountpoint: Mountpoint = None,
    config: ConfigFile = None,
    as_json: AsJson = False,
) -> None:
    """Let assets go when their space is needed."""
    if not keys and for_ is None:
        raise ControlError("name the keys to unpin, or --for NAME; `refgenfs pins` lists what is pinned")
    _ask("unpin", "UNPINNED", {"keys": _parse(keys or []), **_claim(for_, None)}, mountpoint, config, as_json)


def pins(mountpoint: Mountpoint = None, config: ConfigFile = None, as_json: AsJson = False) -> None:
    """List what is pinned, for whom, and for how long."""
    answer = choose(mountpoint, config, os.environ, os.geteuid()).call("pins")
    if as_json:
        write_json(answer)
        return
    now = time.time()
    table = Table(
        (Column("KEY", style="cyan"), Column("RESIDENT", right=True), Column("FOR", fold=True), Column("TIME LEFT"))
    )
    for item in answer["keys"]:
        for claim in item["for"]:
            left = DASH if claim["until"] is None else human_duration(max(0.0, claim["until"] - now))
            table.add(item["key"], human_bytes(item["bytes"]), claim["name"] or DASH, left)
    write_table(table, empty="nothing is pinned")


def evict(keys: Keys, mountpoint: Mountpoint = None, config: ConfigFile = None, as_json: AsJson = False) -> None:
    """Remove assets from this machine now; they are fetched again when they are read."""
    _ask("evict", "FREED", {"keys": _parse(keys)}, mountpoint, config, as_json)


def _parse(keys: list[str]) -> list[str]:
    return [str(AssetKey.parse(key)) for key in dict.fromkeys(keys)]


def _claim(for_: str | None, lease: str | None) -> dict[str, Any]:
    """Return for whom and for how many seconds, as the daemon takes it; nothing where neither is said."""
    claim: dict[str, Any] = {} if for_ is None else {"for": for_}
    try:
        return claim if lease is None else {**claim, "lease": parse_duration(lease)}
    except ValueError as exc:
        raise ControlError(f"--lease: {exc}") from exc


def _ask(
    op: str, title: str, arguments: dict[str, Any], mountpoint: str | None, config: ConfigFile, as_json: bool
) -> None:
    client = choose(mountpoint, config, os.environ, os.geteuid())
    answer = client.call(op, **arguments)
    if as_json:
        write_json(answer)
        return
    where = [mountpoint_of_daemon(client)] if op == "evict" else []
    columns = [Column("KEY", style="cyan"), Column(title, right=True), Column("MOUNT", fold=True)]
    table = Table(columns[: 2 + len(where)])
    for item in answer["keys"]:
        table.add(item["key"], human_bytes(item["bytes"]), *where)
    write_table(table, empty="nothing is pinned for it")
    for item in answer["keys"]:
        if item.get("held_by"):
            need = "needs" if len(item["held_by"]) == 1 else "need"
            note(f"some of {item['key']} stays pinned: {', '.join(item['held_by'])} {need} it, too")
        if item.get("held_for"):
            names = ", ".join(one or "whoever gave no name" for one in item["held_for"])
            note(f"{item['key']} stays pinned for {names}")


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
