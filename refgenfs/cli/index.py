"""`index`: write the seek indexes of archives, for whoever offers archives to others."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from refgenfs.cli.options import AsJson
from refgenfs.cli.output import Column, Table, clean, note, write_json, write_table
from refgenfs.cli.residency import bars
from refgenfs.core.units import MIB, format_size, human_bytes, parse_size

if TYPE_CHECKING:
    from refgenfs.fetch.indexing import Indexed

_LEAST, _MOST = MIB // 8, 16 * MIB  # a window costs up to 32 KiB a span; a span must fit into a reader's memory


def _spacing(text: str) -> int:
    try:
        size = parse_size(text)
    except ValueError as exc:
        raise typer.BadParameter(str(exc)) from exc
    if not _LEAST <= size <= _MOST:
        raise typer.BadParameter(f"it has to be from {format_size(_LEAST)} to {format_size(_MOST)}")
    return size


def index(
    archives: Annotated[
        list[Path], typer.Argument(metavar="ARCHIVE…", help="Archives of assets: .tgz files.", show_default=False)
    ],
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-O",
            metavar="FILE",
            help="Where to write the index of one archive. Without it: beside the archive, as ARCHIVE.seekidx.",
            show_default=False,
        ),
    ] = None,
    spacing: Annotated[
        int | None,
        typer.Option(
            metavar="SIZE",
            parser=_spacing,
            help="How far apart its points are, in unpacked bytes: 128KiB to 16MiB. Without it: 1MiB to 4MiB, by the "
            "archive's size.",
            show_default=False,
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Write the seek index of an archive, with which any part of it can be read without the rest."""
    from refgenfs.core.errors import RefgenfsError
    from refgenfs.fetch.indexing import index_archive

    if output is not None and len(archives) > 1:
        raise typer.BadParameter("--output is for one archive")
    done: list[Indexed] = []
    failed = 0
    for archive in archives:
        try:
            with _bar(archive) as progress:
                done.append(index_archive(archive, output, spacing, progress))
        except RefgenfsError as exc:
            note(clean(str(exc)))
            failed += 1
    if as_json:
        write_json({"archives": [_json(item) for item in done]})
    elif done:
        write_table(_table(done))
    if failed:
        raise typer.Exit(1)


@contextmanager
def _bar(archive: Path) -> Iterator[Callable[[int, int], None]]:
    """Show how much of the archive has been read, on a terminal."""
    if not sys.stderr.isatty():
        yield lambda *_: None
        return
    with bars() as shown:
        task = shown.add_task(clean(archive.name), total=None)
        yield lambda done, size: shown.update(task, completed=done, total=size)


def _json(item: Indexed) -> dict[str, Any]:
    return {name: str(value) if isinstance(value, Path) else value for name, value in asdict(item).items()}


def _table(done: Iterable[Indexed]) -> Table:
    table = Table(
        (
            Column("INDEX", style="cyan"),
            Column("MEMBERS", right=True),
            Column("SPANS", right=True),
            Column("SIZE", right=True),
            Column("OF THE ARCHIVE", right=True),
        )
    )
    for item in done:
        share = f"{100 * item.index_size / item.archive_size:.2f} %"
        table.add(str(item.index), f"{item.members:,}", f"{item.spans:,}", human_bytes(item.index_size), share)
    return table
