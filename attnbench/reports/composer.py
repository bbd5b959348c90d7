"""From a table's row to a configuration, with the changes that a command line makes to all rows.

A row may stand on another one: its runs start from the trained weights of that row's network, run by run with the same
seed, unless the command line gives other weights.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from attnbench.base.errors import ConfigError
from attnbench.config import composition, initial_weights, stored
from attnbench.config.configuration import BOXES, WEIGHTS, Config
from attnbench.config.naming import is_neutral, override_key
from attnbench.reports import paper_tables
from attnbench.reports.paper_tables import Row

SHORT = {"epochs": "schedule.epochs"}  # short keys for --scale
SCOPED = re.compile(r"(\w+/\w+):(.+)")  # an override for the rows of one table: eca/2:dataset=digits

Fits = Callable[[Config], str]  # what a file of weights lacks for a configuration's network; empty if it fits


@dataclass(frozen=True)
class Source:
    """The network whose trained weights a row starts from.

    Attributes:
        label: of its row, with the table's id.
        config: of its runs, for any seed.
        given: the run or file that the command line names instead; empty if these runs are the start.
    """

    label: str
    config: Config
    given: str = ""


class Composer:
    """Composes rows, with extra overrides for all of them. Each list of overrides is composed only once.

    Args:
        extra: overrides such as ``dataset=digits`` and ``epochs=2``, which take precedence over a row's own. With
            ``eca/2:`` before it, an override is only for the rows of that table.
        outputs: the folder of runs, if it differs from the configuration's.
        weights: runs or files to start from, by patterns of the labels of the rows that start from them, or of the rows
            that they replace.

    Attributes:
        left_out: keys that a row's experiment sets but that the options chosen in ``extra`` do not have.
        used: the patterns of ``weights`` that named a row so far.
    """

    def __init__(
        self, extra: Sequence[str] = (), outputs: str | None = None, weights: Mapping[str, str] | None = None
    ) -> None:
        scoped = [(match[1], match[2]) for one in extra if (match := SCOPED.fullmatch(one))]
        self.extra = [_long(one) for one in extra if not SCOPED.fullmatch(one)]
        self.extra += [f"paths.outputs={outputs}"] if outputs else []
        self.scoped = {table: [_long(one) for name, one in scoped if name == table] for table, _ in scoped}
        if unknown := self.scoped.keys() - set(paper_tables.ids()):
            raise ConfigError(f"there is no table {min(unknown)}", "--scale", "write a table's id before the colon")
        self.weights = dict(weights or {})
        self.left_out: dict[str, None] = {}
        self.used: dict[str, None] = {}
        self.made: dict[tuple[str, ...], Config] = {}

    def __call__(self, overrides: Sequence[str]) -> Config:
        """Compose a row's overrides.

        Raises:
            ConfigError: an override is invalid.
        """
        return self._composed(overrides, self._for_task(overrides))

    def row(self, row: Row, table: str = "") -> Config | None:
        """Compose a row, with the weights that its runs start from; None for a row that is only quoted.

        Args:
            table: the row's table, for overrides of that table alone.

        Raises:
            ConfigError: an override is invalid.
        """
        if row.overrides is None:
            return None
        config = self._composed(row.overrides, [*self._for_task(row.overrides), *self.scoped.get(table, ())])
        source = self.source(row)
        if source is None or config.weights:
            return config
        folders = source.config.group_folders
        start = source.given or str(next((folder for folder in folders if folder.is_dir()), folders[0]))
        return config.updated({"backbone": {"weights": start}})

    def source(self, row: Row) -> Source | None:
        """The network whose trained weights a row starts from; None if it starts from none.

        Raises:
            ConfigError: an override is invalid.
        """
        start = row.weights
        if start is None or any(override_key(one) == WEIGHTS for one in self.extra):
            return None
        label = " ".join([start.table, start.row, *(["with", *start.overrides] if start.overrides else [])])
        extra = [*self._for_source(), *self.scoped.get(start.table, ())]
        config = self._composed(_network(start), extra)
        matching = [pattern for pattern in self.weights if _names(pattern, (row.label, start.row, label))]
        self.used |= dict.fromkeys(matching)
        return Source(label, config, self.weights[matching[0]] if matching else "")

    def changed(self, rows: Iterable[Row], table: str = "", fits: Fits = lambda config: "") -> str:
        """What changes the paper's setting in some row, as text; empty if no run changes.

        Args:
            fits: tells what a given file of weights lacks for a configuration's network.

        Raises:
            ConfigError, StorageError: given weights do not fit.
        """
        lists = [row for row in rows if row.overrides]
        scoped = [(f"{name}:", one) for name, some in self.scoped.items() for one in some]
        given = [*(("", one) for one in self.extra), *scoped]
        overrides = [f"{name}{one}" for name, one in given if not is_neutral(override_key(one))]
        differ = any(self._differs(row, table) for row in lists)
        texts = [*overrides, *(f"without {key}" for key in self.left_out)] if overrides and differ else []
        return ", ".join([*texts, *dict.fromkeys(text for row in lists if (text := self._other_weights(row, fits)))])

    def _differs(self, row: Row, table: str) -> bool:
        """Whether a row's network or training, or that of its weights, is not the paper's."""
        assert row.overrides is not None
        extra = [*self._for_task(row.overrides), *self.scoped.get(table, ())]
        if self._composed(row.overrides, extra).hash != composition.compose(row.overrides).hash:
            return True
        source = self.source(row)
        if source is None or row.weights is None:
            return row.weights is not None  # the command line sets backbone.weights
        if source.given:
            return False
        return source.config.hash != composition.compose(_network(row.weights)).hash

    def _other_weights(self, row: Row, fits: Fits) -> str:
        """How the weights given for a row differ from those of the row that it stands on; empty if they do not."""
        source = self.source(row)
        if source is None or not source.given:
            return ""
        config, path = self.row(row), initial_weights.locate(source.given, source.config.seed)
        assert config is not None
        if path.is_file():
            lacking = fits(config)
        else:
            lacking = "" if stored.read(path).hash == source.config.hash else "another network or another training"
        return f"weights of {row.label} from {source.given} ({lacking})" if lacking else ""

    def _for_task(self, overrides: Sequence[str]) -> list[str]:
        """The extra overrides; of several data sets, those that fit the task of a row."""
        datasets = [one for one in self.extra if one.startswith("dataset=")]
        if len(datasets) < 2:
            return self.extra
        detects = "detector" in composition.compose(overrides).tree
        return [one for one in self.extra if one not in datasets or (one.partition("=")[2] in BOXES) == detects]

    def _for_source(self) -> list[str]:
        """The extra overrides that concern classification: no detector, and no data set with boxes."""
        kept = []
        for one in self.extra:
            group = override_key(one).partition(".")[0]
            boxes = group == "dataset" and (not one.startswith("dataset=") or one.partition("=")[2] in BOXES)
            kept += [] if boxes or group in ("detector", "task") else [one]
        return kept

    def _composed(self, overrides: Sequence[str], extra: Sequence[str]) -> Config:
        given = {override_key(override) for override in extra}
        own = [override for override in overrides if override_key(override) not in given]
        key = (*own, *extra)
        if key not in self.made:
            self.made[key] = self._compose([*key])
        return self.made[key]

    def _compose(self, overrides: list[str]) -> Config:
        """Compose overrides without the keys that an experiment sets but an option chosen in ``extra`` lacks."""
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


def _network(start: paper_tables.Start) -> list[str]:
    """The overrides of the network whose weights a row starts from.

    Raises:
        ConfigError: the table has no such row.
    """
    rows = {row.label: row for row in paper_tables.load(start.table).rows}
    if start.row not in rows:
        raise ConfigError(f"{start.table} has no row {start.row}", "weights", "name a row of that table")
    changed = {override_key(one) for one in start.overrides}
    return [one for one in rows[start.row].overrides or [] if override_key(one) not in changed] + start.overrides


def _names(pattern: str, labels: Iterable[str]) -> bool:
    """Whether a shell pattern matches a label, or else a part of one; case is ignored."""
    small, lower = pattern.lower(), [label.lower() for label in labels]
    return small in lower or any(fnmatchcase(label, small) for label in lower)


def _long(override: str) -> str:
    """Replace a short key in an override by its full one.

    Raises:
        ConfigError: this is not an override, or it sets the seed.
    """
    key, equals, value = override.partition("=")
    if not (key and equals) and not override.startswith("~"):
        raise ConfigError(f"{override} is not an override", "command line", "write key=value, such as epochs=2")
    if key == "seed":
        raise ConfigError("a table has its own seeds", "seed", f"use --seeds {value}")
    return f"{SHORT[key]}={value}" if key in SHORT else override
