"""Tables as values: what a report found, apart from how it is drawn."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

PLAIN_WIDTH = 10_000  # of a table that goes to a file: it is read by programs, which do not like wrapped lines


@dataclass(frozen=True)
class Table:
    """`columns` names them, with ">" in front where the column is aligned to the right; `rows` are cells as text.

    Rows in `marked` are shown in bold where the terminal can.
    """

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    marked: frozenset[int] = frozenset()


def table(columns: Sequence[str], rows: Iterable[Sequence[object]], *, marked: Iterable[int] = ()) -> Table:
    cells = tuple(tuple(clean(str(cell)) for cell in row) for row in rows)
    return Table(tuple(columns), cells, frozenset(marked))


def clean(text: str, *, keep: str = "") -> str:
    """`text` with what a terminal would obey written as an escape: names in models are anyone's."""
    return "".join(c if c.isprintable() or c in keep else c.encode("unicode_escape").decode() for c in text)


def draw(drawn: Table) -> str:
    """The table as text for stdout: in colour and as wide as the terminal, or plain and aligned."""
    from rich.console import Console
    from rich.table import Table as RichTable
    from rich.text import Text

    rich = RichTable(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for column in drawn.columns:
        rich.add_column(Text(column.removeprefix(">")), justify="right" if column[:1] == ">" else "left")
    for index, row in enumerate(drawn.rows):
        rich.add_row(*(Text(cell, overflow="fold") for cell in row), style="bold" if index in drawn.marked else None)
    terminal = sys.stdout.isatty()
    console = Console(width=None if terminal else PLAIN_WIDTH, no_color="NO_COLOR" in os.environ or None)
    with console.capture() as captured:
        console.print(rich)
    return "\n".join(line.rstrip() for line in captured.get().splitlines())


def bytes_text(count: float) -> str:
    """1536 -> 1.5 KiB"""
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.2f} GiB"


def us_text(us: float) -> str:
    """Three or four digits, whatever the size."""
    return f"{us:.0f}" if us >= 1000 else f"{us:.1f}" if us >= 10 else f"{us:.2f}"


def percent_text(fraction: float) -> str:
    return f"{100 * fraction:.1f} %"
