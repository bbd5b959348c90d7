"""A sweep as it goes: a live table on a terminal, a line for every end elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from attnbench.measures import in_words
from attnbench.pool import Member, Slot, Watcher
from attnbench.recorder import clock, read_metrics

if TYPE_CHECKING:
    from rich.table import Table

REFRESH_SECONDS = 1.0
ROWS = 30  # of a table that shall fit a screen


def watcher() -> Watcher:
    """The one that fits where stderr goes."""
    return LiveTable() if sys.stderr.isatty() else Lines()


class Lines:
    """One line on stderr when a member starts and when it ends."""

    def __init__(self) -> None:
        self.started: set[str] = set()
        self.ended: set[str] = set()

    def update(self, members: Sequence[Member], slots: Sequence[Slot]) -> None:
        for slot in slots:
            if slot.member and slot.member.name not in self.started:
                self.started.add(slot.member.name)
                print(f"started: {slot.member.name}", file=sys.stderr)
        for member in members:
            if member.outcome and member.name not in self.ended:
                self.ended.add(member.name)
                if member.outcome.state != "skipped":
                    what = member.outcome.failure or in_words(member.outcome.result)
                    print(f"{member.outcome.state}: {member.name}  {what}", file=sys.stderr)

    def close(self) -> None: ...


class LiveTable:
    """Members with their state, epoch, result so far and time left, redrawn every second."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.live import Live

        self.live = Live(console=Console(stderr=True), auto_refresh=False, transient=True)
        self.drawn = 0.0
        self.live.start()

    def update(self, members: Sequence[Member], slots: Sequence[Slot]) -> None:
        now = time.monotonic()
        if now - self.drawn >= REFRESH_SECONDS:
            self.drawn = now
            self.live.update(drawing(members, slots, now), refresh=True)

    def close(self) -> None:
        self.live.stop()


def drawing(members: Sequence[Member], slots: Sequence[Slot], now: float) -> Table:
    """The table of a moment: what runs first, then what waits, then what ended."""
    from rich.table import Table

    running = {id(slot.member): slot for slot in slots if slot.member}
    ordered = sorted(members, key=lambda m: (id(m) not in running, m.outcome is not None))
    ended = sum(m.outcome is not None for m in members)
    table = Table("member", "state", "epoch", "result %", "left", title=f"{ended} of {len(members)} members ended")
    for member in ordered[:ROWS]:
        table.add_row(*row(member, running.get(id(member)), now))
    if len(ordered) > ROWS:
        table.add_row(f"and {len(ordered) - ROWS} more")
    return table


def row(member: Member, slot: Slot | None, now: float) -> tuple[str, str, str, str, str]:
    """A member in five words."""
    if member.outcome:
        return member.name, member.outcome.state, "", in_words(member.outcome.result), ""
    if slot is None:
        return member.name, "waiting", "", "", ""
    lines = read_metrics(member.folder.path / "metrics.jsonl")
    epochs = member.config.tree["schedule"]["epochs"]
    left = clock((now - slot.since) / len(lines) * (epochs - len(lines))) if lines else ""
    return member.name, "running", f"{len(lines)}/{epochs}", in_words(lines[-1] if lines else None), left
