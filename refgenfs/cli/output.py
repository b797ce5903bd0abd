"""What commands print: tables, key-value blocks, JSON, lines.

A terminal gets colour and a table that fits its width, or, where it is too narrow, a few lines for each row; what a
row is known by (its first cell) stands whole in one line, to be copied. A pipe gets the whole text, one row a line
with aligned columns, and never a wrapped or shortened path; there rich isn't even imported. Text that came from a
server never gets a control character through.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from textwrap import wrap
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

_CONTROL = dict.fromkeys((*range(32), *range(127, 160)))
DASH = "–"  # stands for what isn't known
GAP = 2  # blanks between columns
FOLDED = 16  # characters that a text gets at least which goes on in the next line


@dataclass(frozen=True, slots=True)
class Column:
    """A column: its title, where its text stands, and how it gives way on a narrow terminal.

    `spare` leaves the column out, `shorten` leaves a digest's first and last digits, `fold` lets a long text go
    on in the next line; others keep their width, and so does the first.
    """

    title: str
    right: bool = False
    style: str = ""
    fold: bool = False
    shorten: bool = False
    spare: bool = False


@dataclass(slots=True)
class Table:
    """Columns, and rows of text."""

    columns: Sequence[Column]
    rows: list[Sequence[str]] = field(default_factory=list)

    def add(self, *cells: str) -> None:
        """Append a row."""
        self.rows.append([clean(cell) for cell in cells])


def clean(text: str) -> str:
    """Return `text` on one line and without control characters."""
    return text.replace("\n", " ").replace("\t", " ").translate(_CONTROL)


def shortened(digest: str) -> str:
    """Return a digest as people write it: its first and last digits."""
    return digest if len(digest) <= 16 else f"{digest[:8]}…{digest[-6:]}"


def on_terminal() -> bool:
    """Say whether standard output is a terminal."""
    return sys.stdout.isatty()


def console(*, stderr: bool = False) -> Console:
    """Return rich's console on standard output (or error), with nothing in a text taken for markup."""
    from rich.console import Console

    return Console(stderr=stderr, highlight=False, markup=False, emoji=False)


def write(text: str = "") -> None:
    """Write a line to standard output, as it is."""
    sys.stdout.write(f"{text}\n")


def note(text: str) -> None:
    """Write a line for people to standard error."""
    sys.stderr.write(f"refgenfs: {text}\n")


def write_json(value: Any) -> None:
    """Write a JSON document to standard output."""
    write(json.dumps(value, indent=2, ensure_ascii=False))


def write_table(table: Table, *, empty: str = "") -> None:
    """Write a table, or the line `empty` on standard error where it has no rows."""
    if not table.rows:
        if empty:
            note(empty)
    elif on_terminal():
        _write_rich(table)
    else:
        for line in plain_lines([[column.title for column in table.columns], *table.rows], table.columns):
            write(line)


def write_pairs(pairs: Iterable[tuple[str, str]]) -> None:
    """Write names with their values, one a line, the values aligned."""
    rows = [(name, clean(value)) for name, value in pairs if value]
    if not on_terminal():
        for line in plain_lines(rows, (Column(""), Column(""))):
            write(line)
        return
    from rich.table import Table as Grid

    grid = Grid.grid(padding=(0, 2))
    grid.add_column(style="dim", no_wrap=True)
    grid.add_column(overflow="fold")
    for name, value in rows:
        grid.add_row(name, value)
    console().print(grid)


def plain_lines(rows: Sequence[Sequence[str]], columns: Sequence[Column]) -> list[str]:
    """Return a line for each row, columns two blanks apart and as wide as their longest text."""
    widths = [max(len(row[index]) for row in rows) if rows else 0 for index in range(len(columns))]
    lines = []
    for row in rows:
        cells = (
            text.rjust(width) if column.right else text.ljust(width)
            for text, width, column in zip(row, widths, columns, strict=True)
        )
        lines.append("  ".join(cells).rstrip())
    return lines


def _only(table: Table, kept: Sequence[bool]) -> Table:
    """Return the table with only some of its columns."""
    columns = [column for column, keep in zip(table.columns, kept, strict=True) if keep]
    return Table(columns, [[cell for cell, keep in zip(row, kept, strict=True) if keep] for row in table.rows])


def _write_rich(table: Table) -> None:
    out = console()
    table = _only(table, [any(row[i] != DASH for row in table.rows) for i in range(len(table.columns))])
    narrow = sum(_widths(table)) > out.width
    table = _only(table, [not (narrow and column.spare) for column in table.columns])
    if narrow:
        table = Table(table.columns, [_shorten(row, table.columns) for row in table.rows])
    if _least(table) > out.width:
        _write_stacked(table, out)
    else:
        _write_grid(table, out)


def _widths(table: Table) -> list[int]:
    """Return how wide each column is with the blanks behind it, and nothing folded."""
    rows = [[column.title for column in table.columns], *table.rows]
    return [max(len(row[index]) for row in rows) + GAP for index in range(len(table.columns))]


def _least(table: Table) -> int:
    """Return the width below which a column would be too narrow, or a text cut."""
    folds = [column.fold and index > 0 for index, column in enumerate(table.columns)]
    return sum(min(width, FOLDED + GAP) if fold else width for fold, width in zip(folds, _widths(table), strict=True))


def _shorten(row: Sequence[str], columns: Sequence[Column]) -> list[str]:
    return [shortened(text) if column.shorten else text for text, column in zip(row, columns, strict=True)]


def _write_grid(table: Table, out: Console) -> None:
    from rich.table import Table as RichTable

    shown = RichTable(box=None, pad_edge=False, padding=(0, GAP, 0, 0), header_style="bold")
    for index, column in enumerate(table.columns):
        shown.add_column(
            column.title,
            justify="right" if column.right else "left",
            style=column.style,
            no_wrap=index == 0 or not column.fold,
            overflow="fold",
        )
    for row in table.rows:
        shown.add_row(*row)
    out.print(shown)


def _write_stacked(table: Table, out: Console) -> None:
    """Write each row as its first cell, in one line however long, and the others with their titles below it."""
    first, *others = table.columns
    out.print(first.title, style="bold")
    for key, *rest in table.rows:
        out.print(key, style=first.style, soft_wrap=True)
        cells = [
            f"{column.title} {text}" for column, text in zip(others, rest, strict=True) if text not in (DASH, "")
        ]
        for line in _packed(cells, out.width - GAP):
            out.print(f"{' ' * GAP}{line}", soft_wrap=True)


def _packed(texts: Iterable[str], width: int) -> Iterator[str]:
    """Return lines of texts, as many as fit; a longer one goes on in the next line, at its blanks."""
    line = ""
    for text in texts:
        if line and len(line) + GAP + len(text) > width:
            yield line
            line = ""
        whole = f"{line}{' ' * GAP}{text}" if line else text
        *lines, line = wrap(whole, max(1, width), break_long_words=False, break_on_hyphens=False)
        yield from lines
    if line:
        yield line
