"""Match given runs to the rows of a figure.

The rows of a figure differ in some keys, such as attention and width. A run matches a row if it agrees with it in these
keys. It may differ in all others, such as data and schedule; the title then says so.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from attnbench.base.errors import ConfigError, StorageError
from attnbench.config import stored
from attnbench.config.configuration import Config
from attnbench.reports.comparison import text
from attnbench.reports.composer import Composer
from attnbench.reports.paper_tables import Row, Table
from attnbench.reports.rows import Chosen
from attnbench.runs import results
from attnbench.runs.results import ABSENT, Run, Values


def matched(table: Table, runs: Sequence[Run], composer: Composer) -> Chosen:
    """Choose the rows of a table with the given runs that match them.

    Raises:
        ConfigError: no run matches a row, or runs of several configurations match the same row.
        StorageError: a run's folder is not named after its configuration.
    """
    wanted = {row.label: results.values_of(composer(row.overrides)) for row in table.rows if row.overrides}
    keys = _distinguishing_keys(wanted)
    found = {label: _runs_of_row(label, values, keys, runs) for label, values in wanted.items()}
    taken = {label: members for label, members in found.items() if members}
    if not taken:
        kinds = "; ".join(dict.fromkeys(_listed(run.values, keys) for run in runs)) or "none"
        what = f"none of {len(runs)} runs matches a row of {table.id}"
        raise ConfigError(what, "--runs", f"its rows differ by {', '.join(keys)}; these runs have {kinds}")
    rows: list[tuple[Row, Config | None]] = [
        (row, relocated(taken[row.label][0]) if row.label in taken else None) for row in table.rows
    ]
    seeds = sorted({run.seed for members in taken.values() for run in members})
    changed = differences([(wanted[label], members[0]) for label, members in taken.items()], keys)
    return Chosen(table, rows, {}, seeds, True, changed)


def _distinguishing_keys(wanted: Mapping[str, Values]) -> list[str]:
    """The fewest keys that distinguish the rows."""
    return results.differing([Run(Path(label), 0, values) for label, values in wanted.items()])[0]


def _runs_of_row(label: str, values: Values, keys: Iterable[str], runs: Iterable[Run]) -> list[Run]:
    """The runs that match a row, all of one configuration."""
    fitting = [run for run in runs if all(text(run.value(key)) == text(values.get(key, ABSENT)) for key in keys)]
    if len({run.identity for run in fitting}) > 1:
        differ = ", ".join(results.differing(fitting)[0])
        raise ConfigError(f"several configurations match {label}", "--runs", f"they differ by {differ}: give one")
    return fitting


def _listed(values: Values, keys: Iterable[str]) -> str:
    return ", ".join(f"{key}={text(values[key])}" for key in keys if key in values) or "none of these keys"


def relocated(run: Run) -> Config:
    """A run's configuration, with ``paths.outputs`` set to where the run lies now.

    Raises:
        StorageError: the run's folder is not named after its configuration.
    """
    config, folder = stored.read(run.folder), run.folder.resolve()
    groups = [group.relative_to(config.tree["paths"]["outputs"]).parts for group in config.group_folders]
    names = [(*group, f"seed{config.seed}") for group in groups]
    fitting = [name for name in names if folder.parts[-len(name) :] == name]
    if not fitting:
        todo = f"rename it to .../{'/'.join(names[0])}"
        raise StorageError("this folder is not named after its configuration", folder, todo)
    outputs = str(Path(*folder.parts[: -len(fitting[0])]))
    return replace(config, tree=config.tree | {"paths": {"outputs": outputs}})


def differences(pairs: Iterable[tuple[Values, Run]], apart: Sequence[str] = ()) -> str:
    """The keys and values in which runs differ from their rows, as text; empty if there are none.

    Args:
        pairs: the values of a row, and a run that matches it.
        apart: keys to ignore, since runs and rows were matched by them.
    """
    found: dict[str, dict[str, None]] = {}
    for wanted, run in pairs:
        for key, value in run.values.items():
            if key not in apart and text(value) != text(wanted.get(key, ABSENT)):
                found.setdefault(key, {})[text(value)] = None
    return ", ".join(f"{key}={'/'.join(values)}" for key, values in found.items())
