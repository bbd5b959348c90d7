"""Runs as their folders tell of them: what was asked, how it ended, what differs between several of them."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from attnbench.base import files
from attnbench.base.errors import DataError
from attnbench.config import stored
from attnbench.config.configuration import DETECTION, Config
from attnbench.runs.folder import RunFolder
from attnbench.runs.status import standing

NAMED = ("dataset", "backbone", "attention")  # groups whose option's name is a value itself
ABSENT = "-"  # the value of a key that a run does not have

Values = dict[str, Any]


@dataclass(frozen=True)
class Run:
    """A run's folder.

    Attributes:
        values: the dotted keys and values that decide its result, its seed apart, and the names of the options taken
            for data set, backbone and attention.
        result: what result.json holds; empty unless the run is done.
        state: ``done``, or why there is no result.
    """

    folder: Path
    seed: int
    values: Values
    result: Values = field(default_factory=dict)
    state: str = "done"

    @cached_property
    def environment(self) -> Values:
        """Versions, device and commit that made it."""
        found = files.read_json(self.folder / "env.json")
        return found if isinstance(found, dict) else {}

    def value(self, key: str) -> Any:
        """A value of the run's configuration by its dotted key; ``ABSENT`` if it has none."""
        return self.values.get(key, ABSENT)

    @cached_property
    def identity(self) -> tuple[tuple[str, str], ...]:
        """Equal for the seeds of one configuration."""
        return tuple(sorted((key, str(value)) for key, value in self.values.items()))


def outputs() -> Path:
    """Where runs go when nothing else is said."""
    return Path(os.environ.get("ATTNBENCH_OUTPUTS", "outputs"))


def find(words: Iterable[str]) -> list[Run]:
    """The runs at or below the given folders.

    Args:
        words: folders of runs, folders above them, or patterns such as ``outputs/runs/*/*/eca-*``.

    Raises:
        DataError: a word has no run; it is named.
        StorageError: a run's config.yaml cannot be read.
    """
    folders: dict[Path, Path] = {}
    for word in words:
        found = [folder for path in sorted(glob.glob(word, recursive=True)) for folder in _folders(Path(path))]
        if not found:
            raise DataError("no run here", word, "give a run's folder, one above it, or a quoted pattern")
        folders |= {folder.resolve(): folder for folder in found}
    return [read(folder) for folder in sorted(folders.values())]


def _folders(path: Path) -> list[Path]:
    """The folders of runs at or below a path; a run's own files stand for the run."""
    if path.is_file():
        path = path.parent
    if (path / "config.yaml").is_file():
        return [path]
    return sorted(config.parent for config in path.rglob("config.yaml"))


def read(folder: Path) -> Run:
    """The run of a folder.

    Raises:
        StorageError: its config.yaml cannot be read.
    """
    config = stored.read(folder)
    result = RunFolder(folder).result()
    return Run(folder, config.seed, told(config), result or {}, "done" if result else _state(folder))


def told(config: Config) -> Values:
    """A configuration as a run's ``values``; where there is no attention, nothing is placed."""
    unplaced = config.choices.get("placement") == "none"
    values = {
        key: value
        for key, value in config.values.items()
        if not key.endswith("_target_") and not (unplaced and key.startswith("placement.")) and key != "dataset.name"
    }
    named = (*NAMED, *(group for group in DETECTION if group in config.choices))
    return {group: config.choices.get(group, ABSENT) for group in named} | {"dataset": config.dataset_name} | values


def _state(folder: Path) -> str:
    """Why a run has no result."""
    stands = standing(folder)
    return f"{stands.state}: {stands.reason}" if stands.reason else stands.state


def differing(runs: Sequence[Run]) -> tuple[list[str], list[str]]:
    """What tells runs apart.

    Returns:
        The fewest keys, taken in order, whose values tell all configurations apart; and the keys that differ too, but
        only along with those. A key that an attention has and another does not is no difference beside the attention.
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
    """How many kinds of runs there are by some keys."""
    return len({tuple(str(run.value(key)) for key in keys) for run in runs})


def _changes(runs: Sequence[Run], key: str) -> bool:
    """Whether a key differs among the runs that have it."""
    return len({str(run.values[key]) for run in runs if key in run.values and run.values[key] not in (None, [])}) > 1


def refuse_other_metric(runs: Sequence[Run], metric: str) -> None:
    """Refuse a metric that no result holds.

    Raises:
        DataError: names those that there are.
    """
    numbers = {key for run in runs for key, value in run.result.items() if is_number(value)}
    if runs and metric not in numbers:
        raise DataError(f"no result has {metric}", "--metric", f"there are {', '.join(sorted(numbers))}")


def is_number(value: Any) -> bool:
    """Whether a value is a number; true and false are not."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)
