"""Given runs as the runs of a figure's rows.

A row says what it is by what tells the figure's rows apart, such as an attention and a width. A run is a row's if it
agrees in that; in all else, its data or schedule, it may differ, and then every title says so.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from attnbench.base.errors import ConfigError, StorageError
from attnbench.config import stored
from attnbench.config.configuration import Config
from attnbench.reports.comparison import text
from attnbench.reports.paper_tables import Row, Table
from attnbench.reports.rows import Chosen, Composer
from attnbench.runs import results
from attnbench.runs.results import ABSENT, Run, Values


def matched(table: Table, runs: Sequence[Run], composer: Composer) -> Chosen:
    """The rows of a table with those of the given runs that are theirs.

    Raises:
        ConfigError: no run is a row's, or runs of several configurations are the same row's.
        StorageError: a run's folder is not named after its configuration.
    """
    wanted = {row.label: results.told(composer(row.overrides)) for row in table.rows if row.overrides}
    keys = _telling(wanted)
    found = {label: _only(label, values, keys, runs) for label, values in wanted.items()}
    taken = {label: members for label, members in found.items() if members}
    if not taken:
        kinds = "; ".join(dict.fromkeys(_listed(run.values, keys) for run in runs)) or "none"
        what = f"none of {len(runs)} runs fits a row of {table.id}"
        raise ConfigError(what, "--runs", f"its rows are told apart by {', '.join(keys)}; these runs are {kinds}")
    rows: list[tuple[Row, Config | None]] = [
        (row, relocated(taken[row.label][0]) if row.label in taken else None) for row in table.rows
    ]
    seeds = sorted({run.seed for members in taken.values() for run in members})
    changed = differences([(wanted[label], members[0]) for label, members in taken.items()], keys)
    return Chosen(table, rows, {}, seeds, True, changed)


def _telling(wanted: Mapping[str, Values]) -> list[str]:
    """The fewest keys that tell rows apart."""
    return results.differing([Run(Path(label), 0, values) for label, values in wanted.items()])[0]


def _only(label: str, values: Values, keys: Iterable[str], runs: Iterable[Run]) -> list[Run]:
    """The runs of a row: the seeds of one configuration."""
    fitting = [run for run in runs if all(text(run.value(key)) == text(values.get(key, ABSENT)) for key in keys)]
    if len({run.identity for run in fitting}) > 1:
        differ = ", ".join(results.differing(fitting)[0])
        raise ConfigError(f"{label} fits several configurations", "--runs", f"they differ by {differ}: give one")
    return fitting


def _listed(values: Values, keys: Iterable[str]) -> str:
    return ", ".join(f"{key}={text(values[key])}" for key in keys if key in values) or "of another kind"


def relocated(run: Run) -> Config:
    """A run's configuration, with its outputs where they are now.

    Raises:
        StorageError: its folder is not named after its configuration.
    """
    config, folder = stored.read(run.folder), run.folder.resolve()
    groups = [group.relative_to(config.tree["paths"]["outputs"]).parts for group in config.group_folders]
    names = [(*group, f"seed{config.seed}") for group in groups]
    fitting = [name for name in names if folder.parts[-len(name) :] == name]
    if not fitting:
        todo = f"call it .../{'/'.join(names[0])}"
        raise StorageError("this folder is not named after its configuration", folder, todo)
    outputs = str(Path(*folder.parts[: -len(fitting[0])]))
    return replace(config, tree=config.tree | {"paths": {"outputs": outputs}})


def differences(pairs: Iterable[tuple[Values, Run]], apart: Sequence[str] = ()) -> str:
    """What runs have other than their rows, as text; empty if nothing.

    Args:
        apart: keys that tell the rows apart, in which runs and rows agree.
    """
    found: dict[str, dict[str, None]] = {}
    for wanted, run in pairs:
        for key, value in run.values.items():
            if key not in apart and text(value) != text(wanted.get(key, ABSENT)):
                found.setdefault(key, {})[text(value)] = None
    return ", ".join(f"{key}={'/'.join(values)}" for key, values in found.items())
