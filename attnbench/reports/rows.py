"""From a table's rows to runs: choosing rows by label and seed, ordering and counting runs.

A run is a row with a seed. Rows that compose to the same configuration share their runs, also between tables.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from pathlib import Path

from attnbench.base.errors import ConfigError
from attnbench.config.configuration import Config
from attnbench.reports.composer import Composer, Fits, Source
from attnbench.reports.paper_tables import Row, Table
from attnbench.runs.data import DataCheck
from attnbench.runs.status import run_status


@dataclass(frozen=True)
class RowRun:
    """A row with a seed.

    Attributes:
        label: the row's label.
        config: the row's configuration with this seed.
        start: the run whose trained weights it starts from; None for other or no weights.
    """

    label: str
    config: Config
    start: RowRun | None = None

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
    """The rows and seeds chosen from a table.

    Attributes:
        rows: the chosen rows with their configurations; None for a row that is only quoted.
        baselines: the configurations of the rows that they are compared with, by label.
        seeds: the seeds of each row.
        exact: whether ``--seeds`` gave the seeds; if not, finished runs of other seeds count too.
        changed: how these runs change the paper's setting, as text; empty if they do not.
        sources: the networks whose weights the rows start from, by the rows' labels.
    """

    table: Table
    rows: list[tuple[Row, Config | None]]
    baselines: dict[str, Config]
    seeds: list[int]
    exact: bool
    changed: str
    sources: Mapping[str, Source] = field(default_factory=dict)

    def runs(self) -> Iterator[RowRun]:
        """A run for each chosen row and seed, row by row."""
        for row, composed in self.rows:
            if composed:
                yield from (
                    RowRun(row.label, seeded(composed, seed), self._start(row.label, seed)) for seed in self.seeds
                )

    def _start(self, label: str, seed: int) -> RowRun | None:
        source = self.sources.get(label)
        return None if source is None or source.given else RowRun(source.label, seeded(source.config, seed))

    @property
    def title(self) -> str:
        """The table's title. Every output shows it, so it names all changes to the paper's setting."""
        text = f"{self.table.id}: {self.table.title} ({self.table.source})"
        return f"{text}. {warning(self.changed)}" if self.changed else text


def warning(changed: str) -> str:
    """The part of a title that names the changes to the paper's setting."""
    return f"CHANGED PROTOCOL: {changed}; not the paper's setting"


def choose(
    table: Table,
    rows: Sequence[Row],
    seeds: Sequence[int] | None,
    composer: Composer,
    fits: Fits = lambda config: "",
) -> Chosen:
    """Choose and compose rows of a table.

    Args:
        seeds: None for as many as in the paper.
        fits: tells what a given file of weights lacks for a configuration's network.

    Raises:
        ConfigError: a row cannot be composed; the message names it.
        StorageError: given weights do not fit a row's network.
    """
    composed = [(row, _composed(table, row, composer)) for row in rows]
    wanted = dict.fromkeys(baseline(table, row) for row in rows)
    compared = {row.label: _composed(table, row, composer) for row in table.rows if row.label in wanted}
    sources = {row.label: composer.source(row) for row in rows if row.overrides}
    return Chosen(
        table,
        composed,
        {label: made for label, made in compared.items() if made},
        list(seeds if seeds is not None else range(table.seeds)),
        seeds is not None,
        composer.changed(rows, table.id, fits),
        {label: source for label, source in sources.items() if source},
    )


def _composed(table: Table, row: Row, composer: Composer) -> Config | None:
    try:
        return composer.row(row, table.id)
    except ConfigError as error:
        raise ConfigError(f"{row.label}: {error.what}", error.where, error.todo) from None


def baseline(table: Table, row: Row) -> str | None:
    """The label of the row that a row is compared with; None for the baseline itself."""
    label = row.baseline or table.baseline
    return None if label == row.label else label


def matching(tables: Sequence[Table], patterns: Sequence[str]) -> dict[str, list[Row]]:
    """The rows of each table, by its id, whose label matches a shell pattern; all rows without a pattern.

    A pattern is first matched with whole labels and, if none matches, with parts of labels. Case is ignored.

    Raises:
        ConfigError: a pattern matches no label.
    """
    labels = list(dict.fromkeys(row.label for table in tables for row in table.rows))
    wanted = {label for pattern in patterns for label in _labels_like(pattern, labels)} if patterns else set(labels)
    return {table.id: [row for row in table.rows if row.label in wanted] for table in tables}


def _labels_like(pattern: str, labels: list[str]) -> list[str]:
    small = pattern.lower()
    fitting = [label for label in labels if label.lower() == small or fnmatchcase(label.lower(), small)]
    fitting = fitting or [label for label in labels if fnmatchcase(label.lower(), f"*{small}*")]
    if not fitting:
        raise ConfigError(f"no row matches {pattern}", "--rows", f"choose from {', '.join(labels)}")
    return fitting


def seeded(composed: Config, seed: int) -> Config:
    """The configuration with another seed."""
    return replace(composed, tree=composed.tree | {"seed": seed})


def distinct(runs: Iterable[RowRun]) -> list[RowRun]:
    """Each run once, under its first label."""
    found: dict[Path, RowRun] = {}
    for run in runs:
        found.setdefault(run.path, run)
    return list(found.values())


def in_order(runs: Iterable[RowRun]) -> list[list[RowRun]]:
    """Runs and those that they start from, each once, in groups: each run is in a later group than its start."""
    groups: dict[int, list[RowRun]] = {}
    for one in distinct(part for run in runs for part in _chain(run)):
        groups.setdefault(len(_chain(one)), []).append(one)
    return [groups[length] for length in sorted(groups)]


def _chain(run: RowRun) -> list[RowRun]:
    """A run after those that it starts from."""
    return [*(_chain(run.start) if run.start else []), run]


@dataclass(frozen=True)
class Listed:
    """A table or a figure in a list, and how much of it is run.

    Attributes:
        rows: the number of rows, including those that are only quoted.
        cells_run, cells: finished and all cells. A cell is a row with all its seeds; rows that share runs count once.
        runs_done, runs: finished and all runs.
        needs: the task that is missing before its rows can be composed; empty if none is.
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


def listed(chosen: Chosen, done: dict[Path, bool], data_check: DataCheck) -> Listed:
    """Count the finished runs of chosen rows.

    Args:
        done: whether each run is done, by its folder, for runs checked before; runs checked now are added.
        data_check: compares data.
    """
    configs = {run.path: run.config for run in chosen.runs()}
    runs = set(configs)
    done |= {path: run_status(configs[path], data_check).state == "done" for path in runs - done.keys()}
    missing = {path for path in runs if not done[path]}
    groups = {path.parent for path in runs}
    whole = groups - {path.parent for path in missing}
    one = chosen.table
    return Listed(one.id, one.title, one.source, len(one.rows), len(whole), len(groups), len(runs - missing), len(runs))


def seeds_there(composed: Config) -> list[int]:
    """The seeds for which a configuration has run folders, in ascending order."""
    folders = (path for group in composed.group_folders for path in group.glob("seed*"))
    names = {path.name.removeprefix("seed") for path in folders}
    return sorted(int(name) for name in names if name.isdecimal())
