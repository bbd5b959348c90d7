"""What all pictures share: colours, a canvas with title, notes and legend outside the axes.

Matplotlib is imported only when something is drawn. Pyplot is not used, so there is no global state.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Picture
    from matplotlib.lines import Line2D

# The colour-blind-safe palette of M. Okabe and K. Ito, without yellow, which is too pale for a line.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = "osD^vPX"  # series differ in shape as well as in colour
PRINTED = "#f3efe6"  # the background of axes with printed numbers
WARNING = "#A03000"
PER_INCH = 11.5  # characters of a title in an inch

CROSS = 0.045  # of the height of axes, between two crosses
LEGEND_LINE = 0.165  # inches of a line of a legend

Grid = list[list["Axes"]]
Style = dict[str, Any]  # keyword arguments of matplotlib


def colour(number: int) -> str:
    """The colour of a series in hex, by its number; colours repeat after the last."""
    return COLOURS[number % len(COLOURS)]


def marker(number: int) -> str:
    """The marker of a series, by its number; colour and marker together are unique for the first 49 series."""
    return MARKERS[(number + number // len(COLOURS)) % len(MARKERS)]


def canvas(
    rows: int,
    columns: int,
    size: tuple[float, float],
    title: str,
    notes: Iterable[str] = (),
    *,
    warned: bool = False,
    **options: Any,
) -> tuple[Picture, Grid]:
    """Make an empty picture and its grid of axes.

    Args:
        rows, columns: the size of the grid.
        size: width and height of all axes together, in inches; title and notes are added to the height.
        notes: lines of small text below the axes.
        warned: whether the title contains a warning and is coloured.
        options: keyword arguments for ``subplots``.
    """
    from matplotlib.figure import Figure

    width, height = size
    above = textwrap.fill(title, int(width * PER_INCH))
    below = "\n".join(textwrap.fill(note, int(width * PER_INCH * 1.35), subsequent_indent="   ") for note in notes)
    high = height + 0.2 * (above.count("\n") + 1) + 0.14 * (below.count("\n") + 1)
    picture = Figure(figsize=(width, high), layout="constrained")
    picture.suptitle(above, fontsize=10, x=0.01, ha="left", color=WARNING if warned else "black")
    if below:
        picture.supxlabel(below, fontsize=7, x=0.01, ha="left", color="#333333")
    axes: Grid = picture.subplots(rows, columns, squeeze=False, **options).tolist()
    return picture, axes


def plain(axes: Axes, title: str = "", printed: bool = False) -> None:
    """Set the background, grid and title of axes."""
    if printed:
        axes.set_facecolor(PRINTED)
    axes.grid(alpha=0.3, lw=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=8)
    axes.set_title(title, fontsize=9)


def legend(picture: Picture, handles: Sequence[Artist], title: str = "", **options: Any) -> None:
    """Add a legend to the right of the axes, where it covers nothing."""
    if handles:
        about: Style = {"fontsize": 8, "frameon": False, "title": title, "title_fontsize": 8}
        picture.legend(handles=list(handles), loc="outside right center", **about, **options)


def legend_beside(axes: Axes, handles: Sequence[Artist]) -> None:
    """Add a legend to the right of one of several axes, for what is drawn on them."""
    if handles:
        place: Style = {"loc": "upper left", "bbox_to_anchor": (1.01, 1.0), "borderaxespad": 0.0}
        axes.legend(handles=list(handles), fontsize=8, frameon=False, **place)


def key(label: str, **style: Any) -> Line2D:
    """An entry of a legend."""
    from matplotlib.lines import Line2D

    return Line2D([], [], label=label, **style)


def bar(deviation: float | None) -> float:
    """The length of an error bar; NaN, which draws no bar, if there is no deviation."""
    return math.nan if deviation is None else deviation


def crosses(axes: Axes, missing: Sequence[tuple[float, str]], near: float = 0.0) -> None:
    """Mark what has no value by crosses at the bottom of axes, one above the other where they would overlap.

    Args:
        missing: the x position and the colour of each.
        near: the distance in x below which two crosses overlap.
    """
    placed: list[tuple[float, int]] = []
    for x, drawn in missing:
        taken = {level for at, level in placed if abs(at - x) <= near}
        level = next(level for level in range(len(missing)) if level not in taken)
        placed.append((x, level))
        marks: Style = {"transform": axes.get_xaxis_transform(), "color": drawn, "clip_on": False, "zorder": 5}
        axes.plot([x], [CROSS * level], "x", ms=6, **marks)


def placeholder(axes: Axes, text: str) -> None:
    """Write a text in the middle of axes that have nothing else to show."""
    axes.text(0.5, 0.5, text, transform=axes.transAxes, ha="center", va="center", color="#777777", fontsize=9)
