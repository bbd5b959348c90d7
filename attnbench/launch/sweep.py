"""A sweep over any options, with ``-m``. If one member fails, the others still run."""

from __future__ import annotations

import sys
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.utils import JobReturn
from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from attnbench.base import console, secrets
from attnbench.base.errors import Failure
from attnbench.config import composition as configuration
from attnbench.config import hydra_state
from attnbench.runs.attempt import Outcome
from attnbench.training.metrics.titles import headline_text


class Sweep(Callback):
    """A Hydra callback that checks all members before the first one starts, and prints a table at the end."""

    def __init__(self) -> None:
        self.members: list[tuple[list[str], Outcome]] = []

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Compose and check every member, so that a typo in the last is found before the first one runs."""
        for overrides in expand(list(config.hydra.overrides.task)):
            try:
                configuration.compose(overrides)
            except Failure as failure:
                print(f"error: {failure}", file=sys.stderr)
                sys.exit(failure.code)

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **kwargs: Any) -> None:
        """Store a member's overrides and outcome for the table."""
        self.members.append((list(job_return.overrides or []), job_return.return_value))

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Print the table; exit with code 1 if any member failed or was stopped."""
        print_table(self.members)
        if any(outcome.state in ("failed", "stopped") for _, outcome in self.members):
            sys.exit(1)


def expand(overrides: list[str]) -> list[list[str]]:
    """The overrides of each member of a sweep."""
    parsed = OverridesParser.create(config_loader=hydra_state.loader()).parse_overrides(overrides)
    return [list(member) for batch in BasicSweeper.split_arguments(parsed, None) for member in batch]


def print_table(members: list[tuple[list[str], Outcome]]) -> None:
    """Print a row for each member: its distinguishing overrides, state, result, and its folder or failure."""
    from rich.table import Table

    common = set.intersection(*(set(overrides) for overrides, _ in members)) if len(members) > 1 else set()
    table = Table(
        "member", "state", "result %", "folder or reason", title=" ".join(secrets.redacted_words(sorted(common)))
    )
    for overrides, outcome in members:
        name = " ".join(secrets.redacted_words(o for o in overrides if o not in common))
        table.add_row(name, outcome.state, headline_text(outcome.result), str(outcome.failure or outcome.folder))
    counts = {state: sum(o.state == state for _, o in members) for state in ("done", "skipped", "failed", "stopped")}
    console.show(table, ", ".join(f"{n} {state}" for state, n in counts.items() if n or state != "stopped"))
