"""A table's rows by parameters (x) and accuracy (y), as circles whose area is proportional to the operations."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from attnbench.reports.figures.canvas import Style, canvas, colour, crosses, key, legend, placeholder, plain
from attnbench.reports.figures.notes import notes
from attnbench.reports.figures.paper_figures import Figure
from attnbench.reports.report import Cell, Line, Report

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Picture
    from matplotlib.lines import Line2D

NEAR = 0.03  # of the range of parameters: crosses that are nearer overlap
LARGEST = 900.0  # area of the largest circle in square points


@dataclass(frozen=True)
class Circle:
    """A row: parameters and operations in plain units, top-1 and its deviation in percent."""

    series: int
    text: str
    params: float
    operations: float
    top1: float | None
    std: float | None


def draw(figure: Figure, made: Report) -> Picture:
    """Draw the printed numbers beside ours, on one scale unless the protocol was changed."""
    changed = made.chosen.changed
    below = notes(made, figure.column)
    share: Style = {} if changed else {"sharex": True, "sharey": True}
    picture, [[left, right]] = canvas(1, 2, (12, 4.6), made.title, below, warned=bool(changed), **share)
    grounds = {"printed": left, "ours": right}
    circles = {name: _circles(figure, made, name == "printed") for name in grounds}
    largest = {name: max((circle.operations for circle in some), default=1.0) for name, some in circles.items()}
    if not changed:
        largest = dict.fromkeys(grounds, max(largest.values()))
    for name, axes in grounds.items():
        _circles_on(axes, circles[name], largest[name], f"not {'printed' if name == 'printed' else 'run'}")
        axes.set_xlabel("parameters (10⁶)", fontsize=9)
        axes.set_ylabel("top-1 accuracy (%)", fontsize=9)
    plain(left, "printed in the paper", printed=True)
    plain(right, "ours")
    lacking = any(circle.top1 is None for circle in circles["ours"])
    sizes = [line for name, most in largest.items() for line in _sizes(most, f"{name}: " if changed else "")]
    keys = [*_colours(figure), *([_missing()] if lacking else []), *(sizes if changed else sizes[:2])]
    legend(picture, keys, labelspacing=1.9)
    return picture


def _colours(figure: Figure) -> list[Line2D]:
    style: Style = {"marker": "o", "ls": "none", "ms": 8, "alpha": 0.6}
    return [key(series.label, color=colour(i), **style) for i, series in enumerate(figure.series)]


def _circles(figure: Figure, made: Report, is_printed: bool) -> list[Circle]:
    lines = {line.label: line for line in made.lines}
    found = []
    for number, series in enumerate(figure.series):
        for label, text in series.rows.items():
            line = lines[label]
            params, operations = (_plain(line, name, is_printed) for name in (figure.across, figure.area))
            if params is not None and operations is not None:
                cell = line.cells[figure.column]
                top1 = (float(cell.printed) if cell.printed else None) if is_printed else cell.ours
                found.append(Circle(number, text, params, operations, top1, None if is_printed else cell.std))
    return found


def _plain(line: Line, name: str, is_printed: bool) -> float | None:
    """A count in plain units."""
    cell: Cell | None = line.cells.get(name)
    if cell is None:
        return None
    return float(cell.printed) * cell.per if is_printed else cell.ours


def _circles_on(axes: Axes, circles: list[Circle], most: float, nothing: str) -> None:
    there = [circle for circle in circles if circle.top1 is not None]
    for circle in there:
        style: Style = {"color": colour(circle.series), "alpha": 0.6}
        at, high = circle.params / 1e6, circle.top1 or 0.0
        axes.scatter([at], [high], s=area(circle.operations, most), edgecolors="white", **style)
        if circle.std is not None:
            axes.errorbar([at], [high], [circle.std], fmt="none", capsize=3, elinewidth=1, color=colour(circle.series))
        axes.annotate(circle.text, (at, high), ha="center", va="center", fontsize=7)
    at_all = [circle.params / 1e6 for circle in circles]
    near = NEAR * (max(at_all) - min(at_all)) if at_all else 0.0
    crosses(axes, [(c.params / 1e6, colour(c.series)) for c in circles if c.top1 is None], near)
    axes.margins(0.12, 0.14)
    if not there:
        placeholder(axes, nothing)


def area(operations: float, most: float) -> float:
    """The area of a circle in square points, proportional to the operations."""
    return LARGEST * operations / most


def _sizes(most: float, whose: str) -> list[Line2D]:
    """Legend entries for two numbers of operations, with circles as large as in the picture."""
    unit, power = (1e9, "⁹") if most >= 1e9 else (1e6, "⁶")
    style: Style = {"marker": "o", "ls": "none", "mfc": "none", "color": "#777777"}
    steps = [_rounded(most / unit * part) for part in (0.2, 0.6)]
    return [
        key(f"{whose}{step:g} · 10{power} operations", ms=area(step * unit, most) ** 0.5, **style) for step in steps
    ]


def _rounded(number: float) -> float:
    """Round to one significant digit."""
    return float(f"{number:.0e}")


def _missing() -> Line2D:
    return key("no result of ours", color="#777777", marker="x", ls="none")
