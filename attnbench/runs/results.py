"""Reads runs from their folders: their configuration and result, and what differs between several runs."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from attnbench.base.errors import DataError, StorageError
from attnbench.config import stored
from attnbench.config.configuration import DETECTION, Config
from attnbench.runs import record_faults
from attnbench.runs.status import folder_status

NAMED = ("dataset", "backbone", "attention")  # groups whose chosen option is one of the values
ABSENT = "-"  # the value of a key that a run does not have

Values = dict[str, Any]


@dataclass(frozen=True)
class Run:
    """A run, read from its folder.

    Attributes:
        values: the dotted keys and values that affect the result, without the seed, and the names of the chosen data
            set, backbone and attention.
        result: the contents of result.json; empty unless the run is done.
        state: ``done``, or why there is no result.
    """

    folder: Path
    seed: int
    values: Values
    result: Values = field(default_factory=dict)
    state: str = "done"

    @cached_property
    def environment(self) -> Values:
        """The versions, device and commit that made the run, from env.json."""
        return record_faults.environment(self.folder)

    def value(self, key: str) -> Any:
        """A value of the configuration by its dotted key; ``ABSENT`` if the run does not have the key."""
        return self.values.get(key, ABSENT)

    @cached_property
    def identity(self) -> tuple[tuple[str, str], ...]:
        """The values in a comparable form, equal for all seeds of one configuration."""
        return tuple(sorted((key, str(value)) for key, value in self.values.items()))


def outputs() -> Path:
    """The folder where runs are written by default."""
    return Path(os.environ.get("ATTNBENCH_OUTPUTS", "outputs"))


def find(patterns: Iterable[str]) -> list[Run]:
    """The runs at or below the given folders.

    Args:
        patterns: folders of runs, folders above them, or patterns such as ``outputs/runs/*/*/eca-*``.

    A run whose config.yaml cannot be read has the reason as its state, and no values.

    Raises:
        DataError: no run exists at or below a pattern; names the pattern.
        StorageError: the config.yaml of every run cannot be read.
    """
    folders: dict[Path, Path] = {}
    for pattern in patterns:
        found = [folder for path in sorted(glob.glob(pattern, recursive=True)) for folder in _folders(Path(path))]
        if not found:
            raise DataError("no run here", pattern, "give a run's folder, a folder above it, or a quoted pattern")
        folders |= {folder.resolve(): folder for folder in found}
    runs, errors = [], []
    for folder in sorted(folders.values()):
        try:
            runs.append(read(folder))
        except StorageError as error:
            runs.append(Run(folder, -1, {}, state=f"unreadable: {error.what}"))
            errors.append(error)
    if len(errors) == len(runs):
        raise errors[0]
    return runs


def _folders(path: Path) -> list[Path]:
    """The folders of runs at or below a path; a file in a run's folder means that run."""
    if path.is_file():
        path = path.parent
    if (path / "config.yaml").is_file():
        return [path]
    return sorted(config.parent for config in path.rglob("config.yaml"))


def read(folder: Path) -> Run:
    """Read the run in a folder.

    Raises:
        StorageError: its config.yaml cannot be read.
    """
    config = stored.read(folder)
    status = folder_status(folder)
    state = f"{status.state}: {status.reason}" if status.reason else status.state
    return Run(folder, config.seed, values_of(config), status.result, state)


def values_of(config: Config) -> Values:
    """The ``values`` of a configuration's run; without attention, the placement's options are left out."""
    unplaced = config.choices.get("placement") == "none"
    values = {
        key: value
        for key, value in config.values.items()
        if not key.endswith("_target_") and not (unplaced and key.startswith("placement.")) and key != "dataset.name"
    }
    named = (*NAMED, *(group for group in DETECTION if group in config.choices))
    return {group: config.choices.get(group, ABSENT) for group in named} | {"dataset": config.dataset_name} | values


def differing(runs: Sequence[Run]) -> tuple[list[str], list[str]]:
    """The keys that distinguish runs.

    Returns:
        Keys, chosen in order, whose values are enough to distinguish all configurations; and further keys that differ,
        but only together with those. Options that only one attention has are ignored where the attention differs.
    """
    names = dict.fromkeys([*NAMED, *(key for run in runs for key in run.values)])
    varied = [key for key in names if len({str(run.value(key)) for run in runs}) > 1]
    kept: list[str] = []
    for key in varied:
        if _parts(runs, [*kept, key]) > _parts(runs, kept):
            kept.append(key)
    along = [key for key in varied if key not in kept and _changes(runs, key)]
    return kept, along


def _parts(runs: Sequence[Run], keys: Sequence[str]) -> int:
    """How many different combinations of values the runs have under some keys."""
    return len({tuple(str(run.value(key)) for key in keys) for run in runs})


def _changes(runs: Sequence[Run], key: str) -> bool:
    """Whether a key differs among the runs that have it."""
    return len({str(run.values[key]) for run in runs if key in run.values and run.values[key] not in (None, [])}) > 1


def refuse_other_metric(runs: Sequence[Run], metric: str) -> None:
    """Refuse a metric that no result has.

    Raises:
        DataError: names the metrics that the results have.
    """
    numbers = {key for run in runs for key, value in run.result.items() if is_number(value)}
    if runs and metric not in numbers:
        raise DataError(f"no result has {metric}", "--metric", f"there are {', '.join(sorted(numbers))}")


def is_number(value: Any) -> bool:
    """Whether a value is a number; true and false do not count as numbers."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)
