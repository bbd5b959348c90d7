"""A sweep over any options, with ``-m``. If one member fails, the others still run."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.utils import JobReturn
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig

from attnbench.base import console, escape, secrets
from attnbench.base.errors import Failure, Stopped
from attnbench.config import composition as configuration
from attnbench.config import hydra_state
from attnbench.runs.attempt import Outcome
from attnbench.training.metrics.titles import headline_text


class Sweep(Callback):
    """A Hydra callback that checks all members before the first one starts, and prints a table at the end."""

    def __init__(self) -> None:
        self.members: list[tuple[list[str], Outcome]] = []
        self.expanded: list[list[str]] = []
        self.basic = False

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Compose and check every member, so that a typo in the last is found before the first one runs."""
        self.expanded = expand(list(config.hydra.overrides.task))
        for overrides in self.expanded:
            try:
                configuration.compose(overrides)
            except Failure as failure:
                print(f"error: {failure}", file=sys.stderr)
                sys.exit(failure.code)

    def on_job_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Say which member runs now; only the launcher ``basic`` calls this."""
        self.basic = True
        number, names = len(self.members), distinct(self.expanded)
        if config.hydra.mode == RunMode.MULTIRUN and number < len(names):
            print(f"member {number + 1} of {len(names)}: {escape.visible(names[number])}", file=sys.stderr)

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **kwargs: Any) -> None:
        """Store a member's overrides and outcome for the table; a signal to one of ``basic`` stops the sweep."""
        outcome = job_return.return_value
        self.members.append((list(job_return.overrides or []), outcome))
        if self.basic and config.hydra.mode == RunMode.MULTIRUN and outcome.state == "stopped":
            print_table(self.members, self.expanded)
            sys.exit(Stopped.code)

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Print the table; exit with code 1 if any member failed or was stopped."""
        print_table(self.members, self.expanded)
        if any(outcome.state in ("failed", "stopped") for _, outcome in self.members):
            sys.exit(1)


def expand(overrides: list[str]) -> list[list[str]]:
    """The overrides of each member of a sweep."""
    parsed = OverridesParser.create(config_loader=hydra_state.loader()).parse_overrides(overrides)
    return [list(member) for batch in BasicSweeper.split_arguments(parsed, None) for member in batch]


def distinct(members: list[list[str]]) -> list[str]:
    """Names for members: the overrides that not all of them share."""
    common = set.intersection(*map(set, members)) if len(members) > 1 else set()
    return [" ".join(secrets.redacted_words(o for o in overrides if o not in common)) for overrides in members]


def print_table(members: list[tuple[list[str], Outcome]], every: Sequence[list[str]] = ()) -> None:
    """Print a row for each member: its distinguishing overrides, state, result, and its folder or failure.

    Args:
        every: the overrides of all members of the sweep, with those that were not started.
    """
    from rich.table import Table

    sets = [set(overrides) for overrides in (every or [overrides for overrides, _ in members])]
    common = set.intersection(*sets) if len(sets) > 1 else set()
    title = " ".join(secrets.redacted_words(sorted(common)))
    table = Table("member", "state", "result %", "folder or reason", title=title)
    for overrides, outcome in members:
        name = " ".join(secrets.redacted_words(o for o in overrides if o not in common))
        table.add_row(name, outcome.state, headline_text(outcome.result), str(outcome.failure or outcome.folder))
    counts = {state: sum(o.state == state for _, o in members) for state in ("done", "skipped", "failed", "stopped")}
    counts["not started"] = max(0, len(every) - len(members))
    always = ("done", "skipped", "failed")
    console.show_last_whole(table, ", ".join(f"{n} {state}" for state, n in counts.items() if n or state in always))
