"""What commands print: tables fitted to a terminal, as wide as they are anywhere else, and nothing of them is cut."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.table import Table

WIDEST = 10_000  # columns of a file


def show(table: Table, *below: str) -> None:
    """Print a table and lines below it, all words as they are: square brackets are no markup.

    On a terminal what is too long goes on in the next line of its cell. In a file or a pipe a row is one line, whatever
    ``COLUMNS`` says.
    """
    from rich.console import Console

    for column in table.columns:
        column.overflow = "fold"
    console = Console(highlight=False, markup=False)
    if not console.is_terminal:
        console.width = console.measure(table, options=console.options.update(max_width=WIDEST)).maximum
    console.print(table)
    for line in below:
        console.print(line, soft_wrap=True)


def waiting(what: str) -> AbstractContextManager[object]:
    """Say on a terminal what takes its time; elsewhere nothing."""
    from rich.console import Console

    return Console(stderr=True).status(what)
