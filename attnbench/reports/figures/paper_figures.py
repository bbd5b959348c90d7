"""The papers' figures, read from configs/figure: which rows of which tables they show, and how.

A figure names rows by their labels in configs/table, and defines rows that no table has. It contains no numbers:
printed cells and runs come from its rows.
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

NETWORK_KINDS = ("squeezes", "weights")  # kinds that show the inside of trained networks


@dataclass(frozen=True)
class Axis:
    """The x axis of curves.

    Attributes:
        label: the text below it.
        ticks: the values, as written in the rows' labels.
        scale: ``even`` for equal distances, ``log`` for a logarithmic axis.
    """

    label: str
    ticks: list[str]
    scale: str = "even"


@dataclass(frozen=True)
class Series:
    """Rows drawn in the same colour.

    Attributes:
        label: its text in the legend.
        row: the labels of its rows, with ``{panel}`` and ``{tick}`` as placeholders; without ``{tick}``, its row is
            drawn as a horizontal line.
        ticks: the ticks where it has a row; None for all of the axis.
        rows: in a figure of kind ``plane``, the text in each circle by the row's label.
    """

    label: str
    row: str = ""
    ticks: list[str] | None = None
    rows: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Place:
    """Where a row is drawn. Without a tick, it is a horizontal line across the panel."""

    series: int
    panel: str
    tick: str | None
    row: str


@dataclass(frozen=True)
class Figure:
    """A figure; ``id`` is ``<paper>/<number>``.

    Attributes:
        kind: the key of its drawing function in ``drawing.KINDS``.
        tables: ids of the tables that have its rows.
        rows: rows that no table has.
        shown: labels of the rows whose networks are shown from inside.
        column: the column on the y axis.
        across, area: in a figure of kind ``plane``, the columns on the x axis and of the circles' areas.
        blocks: names of the blocks to show, such as ``3_2``, the second block of the third stage, where the stem is
            the first stage; all blocks if empty.
        images: how many images are shown.
        classes: classes to show if the data have them: labels by name.
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
        """Where each row of a figure of kind ``curves`` is drawn."""
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
        """The labels of all its rows, each once."""
        circles = [label for series in self.series for label in series.rows]
        curves = [place.row for place in self.places() if place.row]
        return list(dict.fromkeys([*self.shown, *circles, *curves]))

    @cached_property
    def table(self) -> Table:
        """Its rows as a table, which can be composed, run and reported like any other."""
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
        """The wanted seeds; by default seed 0 for a figure that shows the inside of networks."""
        return [0] if wanted is None and self.kind in NETWORK_KINDS else wanted

    def narrowed(self, panels: list[str]) -> Figure:
        """The same figure with only some of its panels.

        Raises:
            ConfigError: the figure has no such panel.
        """
        for panel in panels:
            if panel not in self.panels or self.panels == [""]:
                have = ", ".join(filter(None, self.panels))
                raise ConfigError(f"{self.id} has no panel {panel}", "--panels", f"it has {have or 'only one'}")
        return replace(self, panels=panels)


def _column(name: str, sources: list[Table]) -> Column:
    return next(source.columns[name] for source in sources if name in source.columns)


def ids() -> list[str]:
    """The ids of all figures, those of the ECA paper first."""
    found = sorted(str(path.relative_to(folder()).with_suffix("")) for path in folder().rglob("*.yaml"))
    return sorted(found, key=lambda name: (("eca", "sb", "runs").index(name.split("/")[0]), name))


def load(figure: str) -> Figure:
    """Read a figure.

    Raises:
        ConfigError: no figure has this id.
    """
    return parsed(figure, paper_tables.contents("figure", figure, ids()))


def parsed(figure: str, content: Mapping[str, Any]) -> Figure:
    """Build a figure from the contents of its file."""
    made = dict(content)
    made["rows"] = [_row(**row) for row in content.get("rows", [])]
    made["series"] = [Series(**series) for series in content.get("series", [])]
    if "axis" in made:
        made["axis"] = Axis(**made["axis"])
    return Figure(figure, **made)


def _row(label: str, overrides: list[str], printed_in: str = "", note: str = "") -> Row:
    """Build a row that no table has.

    Args:
        printed_in: the table and row that print its numbers, such as ``eca/2 ECA-Net ResNet-50``.
    """
    name, _, other = printed_in.partition(" ")
    printed = next(row.printed for row in paper_tables.load(name).rows if row.label == other) if printed_in else {}
    return Row(label, overrides, dict(printed), note={"*": note} if note else {})


def folder() -> Path:
    """The folder of the figures' files, ``configs/figure``."""
    return option_files.folder() / "figure"
