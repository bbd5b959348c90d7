"""The progress of a sweep: a live table on a terminal, otherwise a line for each start and end of a member."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from attnbench.base import console
from attnbench.base.console import Display, clock
from attnbench.launch.executor import Member, Watcher
from attnbench.training.metrics.titles import headline_text
from attnbench.training.recorder import read_metrics

if TYPE_CHECKING:
    from rich.table import Table

REDRAW_SECONDS = 1.0
ROWS = 30  # at most, so that the table fits a screen


def watcher() -> Watcher:
    """The right watcher for stderr: a live table on a terminal, else lines."""
    return LiveTable() if sys.stderr.isatty() else Lines()


class Lines:
    """One line on stderr when a member starts and when it ends."""

    def __init__(self) -> None:
        self.started: set[str] = set()
        self.ended: set[str] = set()
        self.refused: set[str] | None = None  # those that had an outcome before any was started

    def update(self, members: Sequence[Member]) -> None:
        """Print a line for each member that started or ended since the last call."""
        if self.refused is None:
            self.refused = {member.name for member in members if member.outcome and member.began is None}
        for member in members:
            ended = member.outcome is not None and member.outcome.state != "skipped"
            if self._began(member) and member.name not in self.started:
                self.started.add(member.name)
                console.complain(f"started: {member.name}")
            if member.outcome and ended and member.name not in self.ended:
                self.ended.add(member.name)
                what = member.outcome.failure or headline_text(member.outcome.result)
                console.complain(f"{member.outcome.state}: {member.name}  {what}")

    def _began(self, member: Member) -> bool:
        """Whether a member's process began; one that ended between two looks shows it by its folder."""
        if member.outcome and member.name not in (self.refused or ()):
            member.check_begun()
        return member.began is not None

    def close(self) -> None:
        """Do nothing: all lines are already printed."""


class LiveTable:
    """A table of members with state, epoch, result so far and time left, redrawn every second."""

    def __init__(self) -> None:
        self.display = Display(REDRAW_SECONDS)

    def update(self, members: Sequence[Member]) -> None:
        """Redraw the table if the last drawing is old enough."""
        self.display.update(lambda: drawing(members, time.monotonic()))

    def close(self) -> None:
        """Remove the table from the terminal."""
        self.display.close()


def drawing(members: Sequence[Member], now: float) -> Table:
    """The table at one moment: running members first, then waiting ones, then ended ones."""
    from rich.table import Table

    ordered = sorted(members, key=lambda m: (m.outcome is not None, m.began is None))
    ended = sum(m.outcome is not None for m in members)
    table = Table("member", "state", "epoch", "result %", "left", title=f"{ended} of {len(members)} members ended")
    for member in ordered[:ROWS]:
        table.add_row(*row(member, now))
    if len(ordered) > ROWS:
        table.add_row(f"and {len(ordered) - ROWS} more")
    return table


def row(member: Member, now: float) -> tuple[str, str, str, str, str]:
    """A member's cells in the table."""
    if member.outcome:
        return member.name, member.outcome.state, "", headline_text(member.outcome.result), ""
    if member.began is None:
        return member.name, "waiting", "", "", ""
    lines = read_metrics(member.folder.path / "metrics.jsonl")
    epochs = member.config.tree["schedule"]["epochs"]
    left = clock((now - member.began) / len(lines) * (epochs - len(lines))) if lines else ""
    return member.name, "running", f"{len(lines)}/{epochs}", headline_text(lines[-1] if lines else None), left
