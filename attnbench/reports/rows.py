"""From a table's rows to runs: what is asked for, in which folders it lies and how it stands.

A run is a row with a seed. Rows that compose to the same configuration, in one table or in two, are the same run.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path

from attnbench.base.errors import ConfigError
from attnbench.config import composition
from attnbench.config.configuration import Config
from attnbench.config.naming import is_neutral, override_key
from attnbench.reports.paper_tables import Row, Table
from attnbench.runs.data import Look
from attnbench.runs.status import standing_of

SHORT = {"epochs": "schedule.epochs"}  # short names of keys, for --scale


class Composer:
    """Composes rows, each list of overrides once, with overrides that hold for all of them.

    Args:
        extra: ``dataset=digits``, ``epochs=2``; they win over a row's own.
        outputs: where runs lie, if not where the configuration says.

    Attributes:
        left_out: keys that an experiment sets for another option of a group than the one in ``extra``.
    """

    def __init__(self, extra: Sequence[str] = (), outputs: str | None = None) -> None:
        self.extra = [_long(override) for override in extra] + ([f"paths.outputs={outputs}"] if outputs else [])
        self.left_out: dict[str, None] = {}
        self.made: dict[tuple[str, ...], Config] = {}

    def __call__(self, overrides: Sequence[str]) -> Config:
        """The configuration of a row.

        Raises:
            ConfigError: one line with the dotted key and the nearest valid one.
        """
        key = tuple(overrides)
        if key not in self.made:
            given = {override_key(override) for override in self.extra}
            own = [override for override in key if override_key(override) not in given]
            self.made[key] = self._compose([*own, *self.extra])
        return self.made[key]

    def changed(self, rows: Iterable[Row]) -> str:
        """The overrides that make runs of rows other than the paper's; empty if none does."""
        overrides = [override for override in self.extra if not is_neutral(override_key(override))]
        lists = [row.overrides for row in rows if row.overrides]
        if not overrides or not any(self(given).hash != composition.compose(given).hash for given in lists):
            return ""
        return ", ".join([*overrides, *(f"without {key}" for key in self.left_out)])

    def _compose(self, overrides: list[str]) -> Config:
        """An experiment may set what ``extra``'s option of a group does not have: that is left out."""
        try:
            return composition.compose(overrides)
        except ConfigError as error:
            key = error.where
            group = key.split(".")[0]
            named = any(override_key(override) == key for override in overrides)
            chosen = any(override.startswith(f"{group}=") for override in self.extra)
            if error.what != "unknown key" or named or not chosen:
                raise
            composed = self._compose([*overrides, f"~{key}"])
            self.left_out[key] = None
            return composed


def _long(override: str) -> str:
    """An override as Hydra takes it.

    Raises:
        ConfigError: it is none, or it sets the seed.
    """
    key, equals, value = override.partition("=")
    if not (key and equals) and not override.startswith("~"):
        raise ConfigError(f"{override} is no override", "command line", "write key=value, such as epochs=2")
    if key == "seed":
        raise ConfigError("a table has its own seeds", "seed", f"use --seeds {value}")
    return f"{SHORT[key]}={value}" if key in SHORT else override


@dataclass(frozen=True)
class RowRun:
    """A row with a seed.

    Attributes:
        label: the row's.
        config: with the seed in it.
    """

    label: str
    config: Config

    @property
    def seed(self) -> int:
        """The run's seed."""
        return self.config.seed

    @property
    def path(self) -> Path:
        """The run's folder, which may not exist yet."""
        return self.config.run_folder


@dataclass(frozen=True)
class Chosen:
    """What is asked for of a table.

    Attributes:
        rows: those that the patterns match, with their configurations; None for a row that is only quoted.
        baselines: the configuration of every row that one of them is compared with, by label.
        seeds: those that there should be.
        exact: whether they were asked for by ``--seeds``; else what lies there besides counts too.
        changed: what makes these runs other than the paper's, as text; empty for the paper's setting.
    """

    table: Table
    rows: list[tuple[Row, Config | None]]
    baselines: dict[str, Config]
    seeds: list[int]
    exact: bool
    changed: str

    def runs(self) -> Iterator[RowRun]:
        """The runs that there should be, row by row."""
        for row, composed in self.rows:
            if composed:
                yield from (RowRun(row.label, seeded(composed, seed)) for seed in self.seeds)

    @property
    def title(self) -> str:
        """Of every output: nothing changed can be taken for the paper's."""
        text = f"{self.table.id}: {self.table.title} ({self.table.source})"
        return f"{text}. {warning(self.changed)}" if self.changed else text


def warning(changed: str) -> str:
    """The part of a title that says what was changed in the paper's setting."""
    return f"CHANGED PROTOCOL: {changed}; not the paper's setting"


def choose(table: Table, rows: Sequence[Row], seeds: Sequence[int] | None, composer: Composer) -> Chosen:
    """Rows of a table, composed.

    Raises:
        ConfigError: a row that cannot be composed, by its label.
    """
    composed = [(row, _composed(row, composer)) for row in rows]
    wanted = dict.fromkeys(baseline(table, row) for row in rows)
    compared = {row.label: _composed(row, composer) for row in table.rows if row.label in wanted}
    return Chosen(
        table,
        composed,
        {label: made for label, made in compared.items() if made},
        list(seeds if seeds is not None else range(table.seeds)),
        seeds is not None,
        composer.changed(rows),
    )


def _composed(row: Row, composer: Composer) -> Config | None:
    try:
        return composer(row.overrides) if row.overrides else None
    except ConfigError as error:
        raise ConfigError(f"{row.label}: {error.what}", error.where, error.todo) from None


def baseline(table: Table, row: Row) -> str | None:
    """The label of the row that a row is compared with."""
    label = row.baseline or table.baseline
    return None if label == row.label else label


def matching(tables: Sequence[Table], patterns: Sequence[str]) -> dict[str, list[Row]]:
    """The rows of each table that one of the shell patterns names; all of them without a pattern.

    A pattern that fits whole labels means those, any other one the labels that it is a part of; case does not count.

    Raises:
        ConfigError: a pattern fits no label.
    """
    labels = list(dict.fromkeys(row.label for table in tables for row in table.rows))
    wanted = {label for pattern in patterns for label in _fitting(pattern, labels)} if patterns else set(labels)
    return {table.id: [row for row in table.rows if row.label in wanted] for table in tables}


def _fitting(pattern: str, labels: list[str]) -> list[str]:
    small = pattern.lower()
    fitting = [label for label in labels if label.lower() == small or fnmatchcase(label.lower(), small)]
    fitting = fitting or [label for label in labels if fnmatchcase(label.lower(), f"*{small}*")]
    if not fitting:
        raise ConfigError(f"no row is called {pattern}", "--rows", f"there are {', '.join(labels)}")
    return fitting


def seeded(composed: Config, seed: int) -> Config:
    """The configuration with another seed."""
    return replace(composed, tree=composed.tree | {"seed": seed})


def distinct(runs: Iterable[RowRun]) -> list[RowRun]:
    """Each run once, under its first label."""
    return list({run.path: run for run in reversed(list(runs))}.values())[::-1]


@dataclass(frozen=True)
class Listed:
    """A table or a figure in a list, and how much of it is run.

    Attributes:
        rows: all of them, those that are only quoted too.
        cells_run, cells: a cell is a row with all of its seeds; rows that are one run are one.
        needs: what has to be there before it can be composed.
    """

    id: str
    title: str
    source: str
    rows: int
    cells_run: int = 0
    cells: int = 0
    runs_done: int = 0
    runs: int = 0
    needs: str = ""


def listed(chosen: Chosen, done: dict[Path, bool], look: Look) -> Listed:
    """How much of what is chosen is run; ``done`` says it of runs looked at before, and is told of new ones."""
    configs = {run.path: run.config for run in chosen.runs()}
    runs = set(configs)
    done |= {path: standing_of(configs[path], look).state == "done" for path in runs - done.keys()}
    missing = {path for path in runs if not done[path]}
    groups = {path.parent for path in runs}
    whole = groups - {path.parent for path in missing}
    one = chosen.table
    return Listed(one.id, one.title, one.source, len(one.rows), len(whole), len(groups), len(runs - missing), len(runs))


def seeds_there(composed: Config) -> list[int]:
    """The seeds that a configuration has folders of, in order."""
    folders = (path for group in composed.group_folders for path in group.glob("seed*"))
    names = {path.name.removeprefix("seed") for path in folders}
    return sorted(int(name) for name in names if name.isdecimal())
