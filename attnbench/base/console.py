"""What commands print: tables fitted to a terminal, as wide as they are anywhere else, and nothing of them is cut."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

WIDEST = 10_000  # columns of a file


def plain_console(**options: Any) -> Console:
    """A console that prints text as it is: ``[bold]`` and ``:smile:`` mean nothing, and numbers get no colour.

    Args:
        options: other ones of ``rich.console.Console``, such as ``file`` and ``width``.
    """
    from rich.console import Console

    return Console(highlight=False, markup=False, emoji=False, **options)


def show(table: Table, *below: str) -> None:
    """Print a table and lines below it, all words as they are: square brackets are no markup.

    On a terminal what is too long goes on in the next line of its cell. In a file or a pipe a row is one line, whatever
    ``COLUMNS`` says.
    """
    for column in table.columns:
        column.overflow = "fold"
    console = plain_console()
    if not console.is_terminal:
        console.width = console.measure(table, options=console.options.update(max_width=WIDEST)).maximum
    console.print(table)
    for line in below:
        console.print(line, soft_wrap=True)


def waiting(what: str) -> AbstractContextManager[object]:
    """Say on a terminal what takes its time; elsewhere nothing."""
    from rich.console import Console

    return Console(stderr=True).status(what)
