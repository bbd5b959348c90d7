"""The figures as they lie in configs/figure: which rows of which tables they show, and how.

A row is named by its label in a table of configs/table, or stands in the figure itself where no table has it. So a
figure has no number of its own: printed cells and runs are those of rows.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from attnbench.base.errors import ConfigError
from attnbench.config import option_files
from attnbench.reports import paper_tables
from attnbench.reports.paper_tables import Column, Row, Table

LOOKED_INTO = ("squeezes", "weights")  # kinds that show the inside of networks


@dataclass(frozen=True)
class Axis:
    """What a curve runs along.

    Attributes:
        ticks: the values, as they stand in rows' labels.
        scale: ``even`` puts them side by side, ``log`` where the numbers are.
    """

    label: str
    ticks: list[str]
    scale: str = "even"


@dataclass(frozen=True)
class Series:
    """What has a colour of its own.

    Attributes:
        row: the labels of its rows with ``{panel}`` and ``{tick}`` in them; without ``{tick}``, a line across.
        ticks: where it has a row, if not at all of the axis's.
        rows: of a plane, the labels of its rows and what stands in each circle.
    """

    label: str
    row: str = ""
    ticks: list[str] | None = None
    rows: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Place:
    """Where a row is drawn; without a tick it is a line across the panel."""

    series: int
    panel: str
    tick: str | None
    row: str


@dataclass(frozen=True)
class Figure:
    """A figure.

    Attributes:
        kind: which of ``KINDS`` in ``drawing.py`` draws it.
        tables: where its rows are looked for.
        rows: those that no table has; ``printed_in`` names the table and row that print their numbers.
        shown: the labels of rows whose runs are looked into.
        column: what is drawn upwards; ``across`` and ``area``: of a plane, what is drawn across and as circles.
        blocks: the blocks of a network that are shown, ``3_2`` the second of the third stage, the stem counted as
            the first; all of them if empty.
        images: how many images are shown.
        classes: names of the classes that are shown where the data have them.
    """

    id: str
    title: str
    source: str
    kind: str
    tables: list[str] = field(default_factory=list)
    rows: list[Row] = field(default_factory=list)
    shown: list[str] = field(default_factory=list)
    column: str = "top1"
    across: str = ""
    area: str = ""
    axis: Axis | None = None
    panels: list[str] = field(default_factory=lambda: [""])
    series: list[Series] = field(default_factory=list)
    blocks: list[str] = field(default_factory=list)
    images: int = 4
    classes: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def places(self) -> Iterator[Place]:
        """Where each row of a figure of curves is drawn."""
        for panel in self.panels:
            for i, series in enumerate(self.series):
                for tick in self._ticks(series):
                    yield Place(i, panel, tick, series.row.format(panel=panel, tick=tick))

    def _ticks(self, series: Series) -> Iterable[str | None]:
        if "{tick}" not in series.row:
            return [None]
        assert self.axis is not None
        return self.axis.ticks if series.ticks is None else series.ticks

    def labels(self) -> list[str]:
        """The labels of its rows, each once."""
        circles = [label for series in self.series for label in series.rows]
        curves = [place.row for place in self.places() if place.row]
        return list(dict.fromkeys([*self.shown, *circles, *curves]))

    @cached_property
    def table(self) -> Table:
        """Its rows as a table of their own, for composing, running and reporting as any other."""
        sources = [paper_tables.load(name) for name in self.tables]
        known = {row.label: row for source in sources for row in source.rows} | {row.label: row for row in self.rows}
        return Table(
            self.id,
            self.title,
            self.source,
            {name: _column(name, sources) for name in (self.across, self.area, self.column) if name and sources},
            [replace(known[label], baseline=None) for label in self.labels()],
            max((source.seeds for source in sources), default=1),
            notes=self.notes,
        )

    def seeds(self, wanted: list[int] | None) -> list[int] | None:
        """Those that are asked for; of a network that is looked into one, unless seeds are named."""
        return [0] if wanted is None and self.kind in LOOKED_INTO else wanted

    def narrowed(self, panels: list[str]) -> Figure:
        """The same with some of its panels.

        Raises:
            ConfigError: it has no such panel.
        """
        for panel in panels:
            if panel not in self.panels or self.panels == [""]:
                have = ", ".join(filter(None, self.panels))
                raise ConfigError(f"{self.id} has no panel {panel}", "--panels", f"it has {have or 'only one'}")
        return replace(self, panels=panels)


def _column(name: str, sources: list[Table]) -> Column:
    return next(source.columns[name] for source in sources if name in source.columns)


def ids() -> list[str]:
    """The figures there are, those of the ECA paper first."""
    found = sorted(str(path.relative_to(folder()).with_suffix("")) for path in folder().rglob("*.yaml"))
    return sorted(found, key=lambda name: (("eca", "sb", "runs").index(name.split("/")[0]), name))


def load(figure: str) -> Figure:
    """Read a figure.

    Raises:
        ConfigError: there is none of that name.
    """
    return parsed(figure, paper_tables.contents("figure", figure, ids()))


def parsed(figure: str, content: Mapping[str, Any]) -> Figure:
    """A figure from the contents of its file."""
    made = dict(content)
    made["rows"] = [_row(**row) for row in content.get("rows", [])]
    made["series"] = [Series(**series) for series in content.get("series", [])]
    if "axis" in made:
        made["axis"] = Axis(**made["axis"])
    return Figure(figure, **made)


def _row(label: str, overrides: list[str], printed_in: str = "", note: str = "") -> Row:
    """A row of a figure's own; ``printed_in`` is ``eca/2 ECA-Net ResNet-50``."""
    name, _, other = printed_in.partition(" ")
    printed = next(row.printed for row in paper_tables.load(name).rows if row.label == other) if printed_in else {}
    return Row(label, overrides, dict(printed), note={"*": note} if note else {})


def folder() -> Path:
    """Where the figures' files are: ``configs/figure``."""
    return option_files.folder() / "figure"
