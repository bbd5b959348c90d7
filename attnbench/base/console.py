"""What commands print: tables that fit a terminal and are never cut elsewhere, and how far something long is."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.live import Live
    from rich.table import Table

WIDEST = 10_000  # columns of a file
LINE_SECONDS = 15.0  # between two lines of progress where there is no terminal
BAR = 40  # columns of a progress bar, fewer on a narrow terminal


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


def _print_to_stderr(line: str) -> None:
    print(line, file=sys.stderr)


class Display:
    """What stderr shows of something that goes on.

    On a terminal it is a drawing below everything that is printed; the next one takes its place, and in the end it is
    gone. Elsewhere it is a line every 15 seconds.

    Args:
        redraw_seconds: the least time between two drawings.
        say: prints a line where there is no terminal.
    """

    def __init__(self, redraw_seconds: float = 0.1, say: Callable[[str], object] = _print_to_stderr) -> None:
        self.live = _live() if sys.stderr.isatty() else None
        self.say = say
        self.seconds = redraw_seconds if self.live else LINE_SECONDS
        self.shown = -math.inf if self.live else time.monotonic()

    def update(self, drawing: Callable[[], RenderableType], line: Callable[[], str] | None = None) -> None:
        """Show what has changed, unless something was shown a moment ago.

        Args:
            drawing: what a terminal shows.
            line: what is printed elsewhere; None for nothing.
        """
        now = time.monotonic()
        if now - self.shown < self.seconds:
            return
        self.shown = now
        if self.live:
            self.live.update(drawing(), refresh=True)
        elif line:
            self.say(line())

    def print(self, line: str) -> None:
        """Print a line that stays, above the drawing if there is one."""
        if self.live:
            self.live.console.print(line)
        else:
            self.shown = time.monotonic()
            self.say(line)

    def close(self) -> None:
        """Remove the drawing."""
        if self.live:
            self.live.stop()


def _live() -> Live:
    from rich.live import Live

    # What is printed to stdout comes above the drawing, unless it goes elsewhere.
    shared = sys.stdout.isatty()
    live = Live(console=plain_console(stderr=True), auto_refresh=False, transient=True, redirect_stdout=shared)
    live.start()
    return live


def bar(before: str, done: float, total: float, after: str, seconds_left: float) -> RenderableType:
    """A bar between two texts, with the percentage that is done and the time that it will still take."""
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
    """Show how many of a number of things are done; yields what is to be called with the number of new ones.

    Args:
        total: how many things there are.
        unit: what they are called: ``images``.
        what: what is done with them.
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
