"""Curves of a table's cells: the printed ones on a tinted background, ours beside or below them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from attnbench.reports.comparison import metric_name
from attnbench.reports.figures.canvas import (
    Grid,
    Style,
    bar,
    canvas,
    colour,
    crosses,
    key,
    legend,
    marker,
    placeholder,
    plain,
)
from attnbench.reports.figures.notes import notes
from attnbench.reports.figures.paper_figures import Axis, Figure, Place
from attnbench.reports.report import Cell, Report

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Picture
    from matplotlib.lines import Line2D

SHIFT = 0.07  # offset between series at the same tick, relative to the distance of ticks
DECADE = 0.3  # the distance of ticks on a logarithmic axis, in decades


@dataclass(frozen=True)
class Value:
    """A printed or measured mean and its deviation; None if missing."""

    mean: float | None
    std: float | None


def printed(cell: Cell) -> Value:
    """The paper's value of a cell."""
    return Value(float(cell.printed) if cell.printed else None, float(cell.printed_std) if cell.printed_std else None)


def ours(cell: Cell) -> Value:
    """The value of our runs for a cell."""
    return Value(cell.ours, cell.std)


def draw(figure: Figure, made: Report) -> Picture:
    """Draw each panel as printed and as run, on one y scale unless the protocol was changed."""
    assert figure.axis is not None
    beside = len(figure.panels) == 1
    rows, columns = (1, 2) if beside else (2, len(figure.panels))
    share: Style = {"sharey": True} if not made.chosen.changed else {} if beside else {"sharey": "row"}
    size = (10.5, 3.6) if beside else (max(8.5, 3.2 * columns + 1.6), 5.8)
    below = notes(made, figure.column)
    picture, grid = canvas(rows, columns, size, made.title, below, warned=bool(made.chosen.changed), **share)
    cells = {line.label: line.cells[figure.column] for line in made.lines}
    for i, panel in enumerate(figure.panels):
        above, under = grid[0] if beside else (grid[0][i], grid[1][i])
        places = [place for place in figure.places() if place.panel == panel]
        _panel(above, figure, places, {label: printed(cell) for label, cell in cells.items()}, is_printed=True)
        _panel(under, figure, places, {label: ours(cell) for label, cell in cells.items()}, is_printed=False)
        plain(above, f"printed in the paper{_of(panel)}", printed=True)
        plain(under, f"ours{_of(panel)}")
    _label(grid, figure.axis, figure.column, beside)
    legend(picture, [*_keys(figure), *_missing_key(figure, cells)])
    return picture


def _of(panel: str) -> str:
    return f": {panel}" if panel else ""


def _label(grid: Grid, axis: Axis, column: str, beside: bool) -> None:
    for line in grid:
        line[0].set_ylabel(metric_name(column).partition(" after")[0] + " (%)", fontsize=9)
        for axes in line:
            _ticks(axes, axis)
            if beside or line is grid[-1]:
                axes.set_xlabel(axis.label, fontsize=9)


def _ticks(axes: Axes, axis: Axis) -> None:
    if axis.scale == "log":
        axes.set_xscale("log")
        axes.minorticks_off()
    else:
        axes.set_xlim(-0.5, len(axis.ticks) - 0.5)
    axes.set_xticks([position(axis, tick) for tick in axis.ticks], axis.ticks)


def position(axis: Axis, tick: str) -> float:
    """The position of a tick on the x axis."""
    return float(tick) if axis.scale == "log" else float(axis.ticks.index(tick))


def _panel(axes: Axes, figure: Figure, places: Iterable[Place], values: dict[str, Value], *, is_printed: bool) -> None:
    """Draw every series in one panel, or a placeholder if none of them has a value."""
    here = list(places)
    for number in range(len(figure.series)):
        mine = [place for place in here if place.series == number]
        _series(axes, figure, number, [(place, values[place.row]) for place in mine], is_printed)
    if not is_printed and figure.axis:
        missing = [place for place in here if values[place.row].mean is None and place.tick is not None]
        crosses(axes, [(position(figure.axis, place.tick or ""), colour(place.series)) for place in missing])
    if not any(values[place.row].mean is not None for place in here):
        placeholder(axes, "not printed" if is_printed else "not run")


def _series(axes: Axes, figure: Figure, number: int, values: list[tuple[Place, Value]], is_printed: bool) -> None:
    there = [(place, value) for place, value in values if value.mean is not None]
    style: Style = {"color": colour(number), "ls": "--" if is_printed else "-", "lw": 1.3}
    curve = [(_x(figure, place), value.mean, bar(value.std)) for place, value in there if place.tick is not None]
    if curve:
        x, mean, std = zip(*curve, strict=True)
        face = "white" if is_printed else colour(number)
        axes.errorbar(x, mean, std, marker=marker(number), mfc=face, ms=6, capsize=3, elinewidth=1, **style)
    for place, value in there:
        if place.tick is None and value.mean is not None:
            axes.axhline(value.mean, **style)
            if value.std:
                axes.axhspan(value.mean - value.std, value.mean + value.std, color=colour(number), alpha=0.1, lw=0)


def _x(figure: Figure, place: Place) -> float:
    """The x position of a row: at its tick, shifted so that the series do not cover each other."""
    assert figure.axis is not None and place.tick is not None
    there = [other.series for other in figure.places() if (other.panel, other.tick) == (place.panel, place.tick)]
    aside = SHIFT * (there.index(place.series) - (len(there) - 1) / 2)
    at = position(figure.axis, place.tick)
    return at * 10 ** (DECADE * aside) if figure.axis.scale == "log" else at + aside


def _keys(figure: Figure) -> list[Line2D]:
    across = [series.row and "{tick}" not in series.row for series in figure.series]
    return [
        key(series.label, color=colour(i), marker="" if across[i] else marker(i), ls="-", lw=1.3)
        for i, series in enumerate(figure.series)
    ]


def _missing_key(figure: Figure, cells: dict[str, Cell]) -> list[Line2D]:
    ticks = [place for place in figure.places() if place.tick is not None]
    lacking = any(cells[place.row].ours is None for place in ticks)
    return [key("no result of ours", color="#777777", marker="x", ls="none")] if lacking else []
