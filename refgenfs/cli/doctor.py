"""`doctor`: is this machine ready?"""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

import typer

from refgenfs.cli.connection import canonical, running
from refgenfs.cli.mounting import MountDir
from refgenfs.cli.options import AsJson, ConfigFile
from refgenfs.cli.output import clean, console, note, on_terminal, write, write_json
from refgenfs.control_client import ControlClient
from refgenfs.core.errors import ControlError
from refgenfs.paths import socket_of

_NAME_WIDTH = 12
_MARKS = {"ok": ("✓", "green"), "warn": ("!", "bold yellow"), "fail": ("✗", "bold red")}


def doctor(mountpoint: MountDir = None, config: ConfigFile = None, as_json: AsJson = False) -> None:
    """Check whether this machine can mount: FUSE, permissions, cache, disk, sources."""
    from refgenfs.cli.check import Check, Machine
    from refgenfs.cli.checks import run_checks
    from refgenfs.cli.served import run_served_checks
    from refgenfs.config import load_config

    loaded = load_config(config, {}, os.environ)
    if mountpoint is None and loaded.origins["mount.point"] == "default":
        clients = running(os.environ, os.geteuid())
        mountpoint = str(clients[0].mountpoint) if len(clients) == 1 and clients[0].mountpoint else None
    if mountpoint is not None:
        loaded = load_config(config, {"mount.point": str(canonical(mountpoint))}, os.environ)
    machine = Machine(loaded.config, os.environ, os.geteuid())
    status = _status_of(loaded.config.mount.point) if loaded.path is None else None
    checks: list[Check] = []
    for check in run_checks(machine) if status is None else run_served_checks(machine, status):
        checks.append(check)
        if not as_json:
            _write(check.name, check.state, check.found, check.advice)
    counts = Counter(check.state for check in checks)
    if as_json:
        write_json({"ok": not counts["fail"], "checks": [asdict(check) for check in checks]})
    if counts["fail"]:
        where = "below" if on_terminal() else "behind"
        note(f"{counts['fail']} of {len(checks)} checks failed: do what stands {where} each")
        raise typer.Exit(1)


def _status_of(point: Path) -> dict[str, Any] | None:
    """Return how the daemon at a mountpoint is; None where none answers, or it has no file of settings either."""
    client = ControlClient(socket_of(point, os.environ, os.geteuid()), mountpoint=point)
    try:
        status = client.call("status")
        return status if status["config"] else None
    except (ControlError, LookupError, TypeError):
        return None


def _write(name: str, state: str, found: str, advice: str) -> None:
    mark, style = _MARKS[state]
    found, advice = clean(found), clean(advice)
    if not on_terminal():
        write(f"{state:<4}  {name}: {found}{f' ({advice})' if advice else ''}")
        return
    from rich.padding import Padding
    from rich.table import Table
    from rich.text import Text

    line = Table.grid(padding=(0, 1))
    line.add_column(no_wrap=True)
    line.add_column(no_wrap=True, min_width=_NAME_WIDTH)
    line.add_column(overflow="fold")
    line.add_row(Text(mark, style=style), Text(name, style="bold"), Text(found))
    out = console()
    out.print(line)
    if advice:
        out.print(Padding(Text(f"→ {advice}", style="" if state == "fail" else "dim"), (0, 0, 0, _NAME_WIDTH + 3)))
