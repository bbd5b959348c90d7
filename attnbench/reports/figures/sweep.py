"""Pictures of any runs: a metric over a key that differs between them, and accuracy over costs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from attnbench.reports.comparison import Comparison, Group, label, metric_name, rank, text
from attnbench.reports.figures.canvas import Style, bar, canvas, colour, key, legend, marker, placeholder, plain
from attnbench.reports.statistics import spread
from attnbench.runs import results
from attnbench.runs.results import ABSENT

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


def along(comparison: Comparison) -> Picture:
    """Draw each group's mean and deviation over the axis's key, and the single seeds as points."""
    picture, [[axes]] = canvas(1, 1, (9, 4.5), comparison.common, [f"{NOTE}; small points are single seeds."])
    places = axis_places(comparison)
    curves: dict[str, list[Group]] = {}
    for group in comparison.groups:
        rest = {key: value for key, value in group.values.items() if key != comparison.axis}
        curves.setdefault(label(rest) if rest else "", []).append(group)
    for i, (name, members) in enumerate(curves.items()):
        _curve(axes, name, members, comparison.axis, places, i, (i - (len(curves) - 1) / 2) * 0.06)
    plain(axes)
    axes.set_xticks(list(places.values()), list(places), rotation=30 if max(map(len, places), default=0) > 12 else 0)
    axes.set_xlim(-0.5, max(places.values(), default=0) + 0.5)
    axes.set_xlabel(comparison.axis or "all runs")
    axes.set_ylabel(metric_name(comparison.metric).partition(",")[0])
    if any(curves):
        legend(picture, axes.get_legend_handles_labels()[0])
    return picture


def axis_places(comparison: Comparison) -> dict[str, float]:
    """The x positions of the values of the axis's key: in order, at equal distances."""
    values = {text(group.at(comparison.axis)): group.at(comparison.axis) for group in comparison.groups}
    shown = [name for name, value in sorted(values.items(), key=lambda item: rank(item[1])) if value != ABSENT]
    return {name: float(place) for place, name in enumerate(shown)} if comparison.axis else {"": 0.0}


def _curve(
    axes: Axes, name: str, groups: list[Group], axis: str, places: dict[str, float], number: int, shift: float
) -> None:
    """Draw groups along the axis; a group that lacks the axis's key is a horizontal line."""
    here = [g for g in groups if text(g.at(axis)) in places] if axis else groups
    across = [g for g in groups if g not in here]
    style: Style = {"color": colour(number)}
    if here:
        x = [places[text(g.at(axis)) if axis else ""] + shift for g in here]
        deviation = [bar(g.std) for g in here]
        line = "-" if len(here) > 1 and axis not in results.NAMED else "none"
        means = [g.mean for g in here]
        axes.errorbar(x, means, deviation, fmt=marker(number), ls=line, capsize=4, label=name or None, **style)
        for place, group in zip(x, here, strict=True):
            axes.plot([place + 0.03] * len(group.scores), list(group.scores.values()), ".", alpha=0.5, **style)
    for group in across:
        axes.axhline(group.mean, ls="--", label=group.label, **style)
        if group.std is not None:
            axes.axhspan(group.mean - group.std, group.mean + group.std, alpha=0.12, lw=0, **style)


def costs(comparison: Comparison, title: str, notes: Sequence[str]) -> Picture:
    """Draw accuracy over parameters, multiply-adds and training speed, with a point for each configuration."""
    picture, [line] = canvas(1, len(COSTS), (12, 4), title, [*notes, f"{NOTE}."], sharey=True)
    for axes, (metric, (title, per)) in zip(line, COSTS.items(), strict=True):
        plain(axes)
        axes.set_xlabel(title, fontsize=9)
        drawn = [_cost(axes, i, group, metric, per) for i, group in enumerate(comparison.groups)]
        if not any(drawn):
            placeholder(axes, "not measured")
    line[0].set_ylabel(metric_name(comparison.metric).partition(",")[0], fontsize=9)
    style: Style = {"ls": "none", "ms": 7}
    groups = enumerate(comparison.groups)
    legend(picture, [key(g.label, color=colour(i), marker=marker(i), **style) for i, g in groups])
    return picture


def _cost(axes: Axes, number: int, group: Group, metric: str, per: float) -> bool:
    """Draw a configuration's point; returns whether its cost is known."""
    cost = spread([run.result[metric] / per for run in group.runs if results.is_number(run.result.get(metric))])
    if cost is None:
        return False
    style: Style = {"color": colour(number), "fmt": marker(number), "ms": 7, "capsize": 3, "elinewidth": 1}
    axes.errorbar([cost.mean], [group.mean], [bar(group.std)], [bar(cost.std)], **style)
    return True
