"""Output of commands: tables, which fit the terminal and are never truncated in files, and progress displays."""

from __future__ import annotations

import logging
import math
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, closing, contextmanager
from typing import TYPE_CHECKING, Any

from attnbench.base import escape

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.live import Live
    from rich.table import Table

WIDEST = 10_000  # maximum columns in a file
LINE_SECONDS = 15.0  # between two progress lines, without a terminal
BAR = 40  # columns of a progress bar; fewer on a narrow terminal


def plain_console(**options: Any) -> Console:
    """A console that prints text unchanged: it does not interpret ``[bold]`` or ``:smile:`` or colour numbers.

    Args:
        options: other options of ``rich.console.Console``, such as ``file`` and ``width``.
    """
    from rich.console import Console

    return Console(highlight=False, markup=False, emoji=False, **options)


def show(table: Table, *below: str) -> None:
    """Print a table and lines below it. Square brackets are printed, not interpreted as markup.

    On a terminal, long text is wrapped inside its cell. In a file or a pipe, a row is always one line, regardless of
    ``COLUMNS``.
    """
    for column in table.columns:
        column.overflow = "fold"
        column._cells = [escape.visible(cell, "\n") if isinstance(cell, str) else cell for cell in column._cells]
    if isinstance(table.title, str):
        table.title = escape.visible(table.title, "\n")
    console = plain_console()
    if not console.is_terminal:
        console.width = console.measure(table, options=console.options.update(max_width=WIDEST)).maximum
    console.print(table)
    for line in below:
        console.print(escape.visible(line, "\n"), soft_wrap=True)


def say(text: object) -> None:
    """Print a line, such as a path, as it is: without markup, and with control characters made visible."""
    print(escape.visible(str(text), "\n"), flush=True)


def complain(text: object) -> None:
    """Print a line on stderr, with control characters made visible."""
    print(escape.visible(str(text), "\n"), file=sys.stderr)


class SafeFormatter(logging.Formatter):
    """A log's formatter that makes control characters visible, since file and class names are in messages."""

    def format(self, record: logging.LogRecord) -> str:
        """The record's line or lines."""
        return escape.visible(super().format(record), "\n\t")


def show_last_whole(table: Table, *below: str) -> None:
    """Print a table like ``show``. Where a terminal is too narrow, its last column becomes lines below it.

    Paths are in this column: a terminal wraps a line without a break inside it, so that it can be copied.
    """
    console = plain_console()
    needed = console.measure(table, options=console.options.update(max_width=WIDEST)).maximum
    if not console.is_terminal or needed <= console.width:
        show(table, *below)
        return
    first, last = list(table.columns[0].cells), list(table.columns.pop().cells)
    show(table, *(f"{name}: {cell}" if name else str(cell) for name, cell in zip(first, last, strict=True)), *below)


def waiting(what: str) -> AbstractContextManager[object]:
    """Show a message on a terminal while a long operation runs; without a terminal, show nothing."""
    from rich.console import Console

    return Console(stderr=True, markup=False, highlight=False, emoji=False).status(what)


class Display:
    """A progress display on stderr.

    On a terminal, it is a drawing below all printed lines. Each drawing replaces the one before; the final one is
    removed at the end. Without a terminal, the display is a line every 15 seconds.

    Args:
        redraw_seconds: minimum time between two drawings.
        print_line: prints a line if there is no terminal.
    """

    def __init__(self, redraw_seconds: float = 0.1, print_line: Callable[[str], object] = complain) -> None:
        self.live = _live() if sys.stderr.isatty() else None
        self.print_line = print_line
        self.seconds = redraw_seconds if self.live else LINE_SECONDS
        self.shown = -math.inf if self.live else time.monotonic()
        self.drawn: tuple[int, list[int]] = (0, [])  # the terminal's width, and those of the lines drawn on it

    def update(self, drawing: Callable[[], RenderableType], line: Callable[[], str] | None = None) -> None:
        """Update the display, unless the last update was a moment ago.

        Args:
            drawing: makes the drawing for a terminal.
            line: makes the line that is printed without a terminal; None to print nothing.
        """
        now = time.monotonic()
        if now - self.shown < self.seconds:
            return
        self.shown = now
        if self.live:
            self._draw(self.live, drawing())
        elif line:
            self.print_line(line())

    def _draw(self, live: Live, drawing: RenderableType) -> None:
        """Replace the drawing; if the terminal has become narrower, also the rows that its lines were wrapped into."""
        from rich.control import Control
        from rich.segment import ControlType, Segment

        width, (before, lines) = live.console.width, self.drawn
        if width < before:
            up = ((ControlType.ERASE_IN_LINE, 2), (ControlType.CURSOR_UP, 1))
            live.console.control(*([Control(*up)] * (wrapped_rows(lines, width) - len(lines))))
        rendered = live.console.render_lines(drawing, pad=False)
        self.drawn = width, [Segment.get_line_length(line) for line in rendered]
        live.update(drawing, refresh=True)

    def print(self, line: str) -> None:
        """Print a permanent line, above the drawing if there is one."""
        if self.live:
            self.live.console.print(escape.visible(line))
        else:
            self.shown = time.monotonic()
            self.print_line(line)

    def close(self) -> None:
        """Remove the drawing."""
        if self.live:
            self.live.stop()


def wrapped_rows(lines: Sequence[int], width: int) -> int:
    """The number of rows that lines of so many columns take on a terminal of that width."""
    return sum(max(1, -(-line // width)) for line in lines)


def _live() -> Live:
    from rich.live import Live

    # If stdout is a terminal too, its lines are printed above the drawing.
    shared = sys.stdout.isatty()
    live = Live(console=plain_console(stderr=True), auto_refresh=False, transient=True, redirect_stdout=shared)
    live.start()
    return live


def bar(before: str, done: float, total: float, after: str, seconds_left: float) -> RenderableType:
    """A progress bar between two texts, with the percentage done and the remaining time."""
    from rich.progress_bar import ProgressBar
    from rich.table import Table

    line = Table.grid(padding=(0, 1))
    for width in (None, BAR, None, None, None):
        line.add_column(no_wrap=width is None, max_width=width)
    share = f"{100 * done / total if total else 100:3.0f} %"
    line.add_row(before, ProgressBar(total=total, completed=done), share, after, clock(seconds_left))
    return line


@contextmanager
def counting(total: int, unit: str, what: str = "") -> Iterator[Callable[[int], None]]:
    """Show how many items are done; yields a function to call with the number of newly done items.

    Args:
        total: the number of items.
        unit: their name, such as ``images``.
        what: what is done with them, such as ``evaluating``.
    """
    began, done = time.monotonic(), 0

    def left() -> float:
        return (time.monotonic() - began) * (total - done) / max(1, done)

    def advance(new: int) -> None:
        nonlocal done
        done += new
        count = f"{done:,} of {total:,} {unit}"
        line = f"{what}: {count}" if what else count
        display.update(lambda: bar(what, done, total, count, left()), lambda: f"{line}, {left():.0f} s left")

    with closing(Display()) as display:
        yield advance


def clock(seconds: float) -> str:
    """Hours, minutes and seconds: ``1:02:03``."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}"
