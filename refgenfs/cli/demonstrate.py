"""`demo`: a whole run on a server of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from refgenfs.cli.options import AsJson

Workdir = Annotated[
    Path | None,
    typer.Option(
        metavar="DIR",
        help="Where to work: a new, an empty or an earlier demo's directory. Without it: a temporary one.",
        show_default=False,
    ),
]


def demo(
    workdir: Workdir = None,
    keep: Annotated[
        bool,
        typer.Option(
            "--keep",
            metavar="",
            help="Leave the temporary directory there afterwards; --workdir's always stays.",
        ),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Build a small genome, serve it, mount it, align reads against the mount, and show what was fetched."""
    from refgenfs.demo.run import run_demo

    raise typer.Exit(run_demo(workdir=workdir, keep=keep, json_output=as_json))
