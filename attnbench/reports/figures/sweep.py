"""Pictures of any runs: a metric over a key that differs between them, and accuracy over costs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from attnbench.reports.comparison import Comparison, Group, metric_name, text
from attnbench.reports.figures.canvas import (
    COLOURS,
    LEGEND_LINE,
    Grid,
    Style,
    bar,
    canvas,
    colour,
    key,
    legend_beside,
    marker,
    placeholder,
    plain,
)
from attnbench.reports.figures.panels import PANELS, Panel, left_out, panels
from attnbench.reports.figures.value_axis import ValueAxis, value_axis
from attnbench.reports.statistics import spread
from attnbench.runs import results

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Picture

NOTE = "Means and sample standard deviations over seeds"

# The costs on the x axes: the key in result.json, the axis label, and the size of its unit in plain units.
COSTS = {
    "params": ("parameters (10⁶)", 1e6),
    "macs": ("multiply-adds an image (10⁶)", 1e6),
    "images_per_s": ("training speed measured in the run (images/s)", 1.0),
}


DODGE = 0.06  # between two curves at one name, relative to the distance of names
DODGED = 0.6  # at most between the first curve and the last


def along(comparison: Comparison) -> Picture:
    """Draw each group's mean and deviation over the axis's key, and the single seeds as points."""
    shown = panels(comparison, comparison.axis)[:PANELS]
    axis = value_axis([group.at(comparison.axis) for group in comparison.groups] if comparison.axis else [""])
    notes = [f"{NOTE}; small points are single seeds.", left_out(comparison, comparison.axis)]
    picture, grid = _grid(shown, 1, (9, 3.0 if len(shown) > 1 else 4.5), comparison.common, filter(None, notes))
    for [axes], panel in zip(grid, shown, strict=True):
        for i, (name, groups) in enumerate(panel.curves.items()):
            _curve(axes, name, groups, comparison.axis, axis, i, _aside(i, len(panel.curves), axis))
        plain(axes)
        axes.set_title(panel.title, fontsize=9, loc="left")
        axis.set_on(axes)
        axes.set_ylabel(metric_name(comparison.metric).partition(",")[0], fontsize=9)
        if any(panel.curves):
            legend_beside(axes, axes.get_legend_handles_labels()[0])
    grid[-1][0].set_xlabel(comparison.axis or "all runs")
    return picture


def _grid(
    shown: Sequence[Panel], columns: int, size: tuple[float, float], title: str, notes: Iterable[str], **options: Any
) -> tuple[Picture, Grid]:
    """A canvas with a row for each panel, high enough for its legend.

    Args:
        size: the width of all, and the smallest height of a row, in inches.
    """
    width, least = size
    heights = [max(least, LEGEND_LINE * sum(name.count("\n") + 1 for name in panel.curves) + 0.5) for panel in shown]
    gridded: Style = {"gridspec_kw": {"height_ratios": heights}}
    return canvas(len(shown), columns, (width, sum(heights)), title, notes, **gridded, **options)


def _aside(number: int, curves: int, axis: ValueAxis) -> float:
    """How far a curve is beside its place: nothing at numbers, and never as far as half-way to the next name."""
    step = min(DODGE, DODGED / max(1, curves - 1)) if axis.scale == "names" else 0.0
    return (number - (curves - 1) / 2) * step


def _curve(axes: Axes, name: str, groups: list[Group], key: str, axis: ValueAxis, number: int, aside: float) -> None:
    """Draw groups along the axis; a group that lacks the axis's key is a horizontal line."""
    here = [g for g in groups if text(g.at(key)) in axis.places] if key else groups
    across = [g for g in groups if g not in here]
    style: Style = {"color": colour(number)}
    if here:
        x = [(axis.places[text(g.at(key))] if key else axis.places[""]) + aside for g in here]
        deviation = [bar(g.std) for g in here]
        line = "-" if len(here) > 1 and key not in results.NAMED else "none"
        order = sorted(range(len(here)), key=x.__getitem__)  # the baseline may not be the first along the axis
        taken: Style = {"fmt": marker(number), "ls": line, "capsize": 4, "label": name or None, **style}
        axes.errorbar([x[i] for i in order], [here[i].mean for i in order], [deviation[i] for i in order], **taken)
        for place, group in zip(x, here, strict=True):
            axes.plot([place] * len(group.scores), list(group.scores.values()), ".", ms=4, alpha=0.5, **style)
            if group.is_baseline and len(here) > 1:
                about: Style = {"xytext": (6, -9), "textcoords": "offset points", "fontsize": 7}
                axes.annotate("baseline", (place, group.mean), **about)
    for group in across:
        axes.axhline(group.mean, ls="--" if number < len(COLOURS) else ":", label=name if not here else None, **style)
        if group.std is not None:
            axes.axhspan(group.mean - group.std, group.mean + group.std, alpha=0.12, lw=0, **style)


def costs(comparison: Comparison, title: str, notes: Sequence[str]) -> Picture:
    """Draw accuracy over parameters, multiply-adds and training speed, with a point for each configuration."""
    shown = panels(comparison)[:PANELS]
    below = filter(None, [*notes, left_out(comparison), f"{NOTE}."])
    picture, grid = _grid(shown, len(COSTS), (13, 3.0 if len(shown) > 1 else 4.0), title, below, sharey="row")
    for line, panel in zip(grid, shown, strict=True):
        _costs(line, panel)
        line[0].set_title(panel.title, fontsize=9, loc="left")
        line[0].set_ylabel(metric_name(comparison.metric).partition(",")[0], fontsize=9)
    return picture


def _costs(line: Sequence[Axes], panel: Panel) -> None:
    """Draw a panel's configurations over each cost, with a legend beside the last."""
    groups = {name: group for name, [group] in panel.curves.items()}
    for axes, (metric, (title, per)) in zip(line, COSTS.items(), strict=True):
        plain(axes)
        axes.set_xlabel(title, fontsize=9)
        drawn = [_cost(axes, i, group, metric, per) for i, group in enumerate(groups.values())]
        if not any(drawn):
            placeholder(axes, "not measured")
    style: Style = {"ls": "none", "ms": 7}
    named = [key(name, color=colour(i), marker=marker(i), **style) for i, name in enumerate(groups)]
    legend_beside(line[-1], named if len(named) > 1 or any(groups) else [])


def _cost(axes: Axes, number: int, group: Group, metric: str, per: float) -> bool:
    """Draw a configuration's point; returns whether its cost is known."""
    cost = spread([run.result[metric] / per for run in group.runs if results.is_number(run.result.get(metric))])
    if cost is None:
        return False
    style: Style = {"color": colour(number), "fmt": marker(number), "ms": 7, "capsize": 3, "elinewidth": 1}
    axes.errorbar([cost.mean], [group.mean], [bar(group.std)], [bar(cost.std)], **style)
    return True
