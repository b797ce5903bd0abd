"""`metrics` and `trace`: what a running daemon counts, and what it does."""

from __future__ import annotations

import json
import os
import sys
import time
from contextlib import closing
from typing import Annotated, Any

import typer

from refgenfs.cli.connection import choose
from refgenfs.cli.options import AsJson, ConfigFile, Mountpoint
from refgenfs.cli.output import clean, note
from refgenfs.cli.state import user_name
from refgenfs.control_client import Progress
from refgenfs.core.units import human_bytes


def metrics(mountpoint: Mountpoint = None, config: ConfigFile = None) -> None:
    """Print the metrics as Prometheus reads them, also where the daemon serves none."""
    sys.stdout.write(choose(mountpoint, config, os.environ, os.geteuid()).call("metrics")["text"])


def trace(
    waits: Annotated[bool, typer.Option("--waits", metavar="", help="Only what had to wait, or failed.")] = False,
    seconds: Annotated[
        float | None,
        typer.Option(
            "--for", metavar="SECONDS", min=0, help="End after so long. Without it: until Ctrl-C.", show_default=False
        ),
    ] = None,
    mountpoint: Mountpoint = None,
    config: ConfigFile = None,
    as_json: AsJson = False,
) -> None:
    """Show live which process reads what, how long it took, and what it waits for.

    A line for each open and each read that reaches the daemon; what the kernel has in its own pages does not. A wait
    is told of after a second, again while it lasts, and when it ends.
    """
    client = choose(mountpoint, config, os.environ, os.geteuid())
    try:
        with closing(client.stream("trace", seconds=seconds)) as steps:
            for step in steps:
                if isinstance(step, Progress):
                    _tell(step, waits=waits, as_json=as_json)
    except KeyboardInterrupt:  # how it ends
        return


def _tell(step: Progress, *, waits: bool, as_json: bool) -> None:
    for event in step.fields["events"]:
        if waits and not event["waits_for"] and not event["error"]:
            continue
        sys.stdout.write(f"{json.dumps(event) if as_json else _line(event)}\n")
    sys.stdout.flush()
    if step.fields["dropped"]:
        note(f"{step.fields['dropped']:,} more are not shown: they came quicker than they could be")


def _line(event: dict[str, Any]) -> str:
    moment = time.strftime("%H:%M:%S", time.localtime(event["when"])) + f"{event['when'] % 1:.3f}"[1:]
    user = "" if event["uid"] is None else f" {user_name(event['uid'])}"
    words = [f"{moment} {event['pid']} {event['command']}{user}", event["operation"], event["path"]]
    if event["size"] is not None:
        words.append(f"{human_bytes(event['size'])} at {event['offset']:,}")
    if not event["over"]:
        words.append(f"waits for {event['waits_for']}, {event['seconds']:.1f} s so far")
        words.append(event.get("trouble", ""))
    else:
        words.append(f"{event['seconds'] * 1000:.1f} ms")
        words.append(f"after a wait for {event['waits_for']}" if event["waits_for"] else "")
        if event["operation"] == "read" and not event["waits_for"]:
            words.append("warm")
    if event["error"]:
        words.append(f"failed: {event['error']}")
    return clean("  ".join(word for word in words if word))
