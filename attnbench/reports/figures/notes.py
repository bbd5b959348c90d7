"""The lines below a picture of rows: how much was run, on which devices and data, and what is missing."""

from __future__ import annotations

from collections.abc import Iterable

from attnbench.reports.report import STATISTICS, Report, coverage

LISTED = 6  # at most so many labels are listed for each state


def notes(made: Report, column: str) -> list[str]:
    """The lines below a picture of a report's column."""
    states: dict[str, list[str]] = {}
    for line in made.lines:
        cell = line.cells.get(column)
        if cell and cell.state != "done":
            states.setdefault(cell.state, []).append(line.label)
    missing = [f"{state}: {_some(labels)}" for state, labels in states.items()]
    return [
        *coverage(made),
        *missing,
        STATISTICS.partition(";")[0] + ", of the last epoch's accuracy",
        *made.chosen.table.notes,
    ]


def _some(labels: Iterable[str]) -> str:
    named = list(labels)
    more = f" and {len(named) - LISTED} more" if len(named) > LISTED else ""
    return ", ".join(named[:LISTED]) + more
