"""Tables in the terminal."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich.console import Console
from rich.table import Table

_WIDE = 160  # columns, where no terminal says how many there are


def show_table(columns: Sequence[str], rows: Iterable[Sequence[str]], after: Sequence[str], caption: str = "") -> None:
    """Prints the table and the lines `after` it to stdout."""
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = _WIDE
    table = Table(*columns, caption=caption or None)
    for row in rows:
        table.add_row(*row)
    console.print(table)
    for line in after:
        console.print(line, markup=False, soft_wrap=True)
