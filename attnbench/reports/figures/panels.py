"""Divides the groups of a comparison into panels, each with few enough for its legend and for the eye."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import batched
from typing import Any

from attnbench.reports.comparison import METHOD, Comparison, Group, label, rank
from attnbench.runs.results import ABSENT

CURVES = 14  # at most in one panel: twice the number of colours
PANELS = 24  # at most in one picture
LINE = 46  # characters of a line in a legend


@dataclass(frozen=True)
class Panel:
    """A part of a picture.

    Attributes:
        title: the values that its groups share and other panels do not have; empty for the only panel.
        curves: its groups by curve; the names hold what differs within the panel.
    """

    title: str
    curves: dict[str, list[Group]]


def panels(comparison: Comparison, axis: str = "") -> list[Panel]:
    """The panels of all groups: one for each setting, divided further if it has too many curves.

    Args:
        axis: the key on the x axis, which distinguishes no curves; empty if every group is a curve.
    """
    if len(_curves(comparison.groups, axis)) <= CURVES:
        return [Panel("", _named(comparison.groups, comparison.keys, axis))]
    setting = [key for key in comparison.keys if key.split(".")[0] not in METHOD and key != axis]
    parts: dict[tuple[str, ...], list[Group]] = {}
    for group in sorted(comparison.groups, key=lambda group: [rank(group.values[key]) for key in setting]):
        parts.setdefault(tuple(str(group.values[key]) for key in setting), []).append(group)
    made = []
    for groups in parts.values():
        shared = {key: groups[0].values[key] for key in setting}
        chunks = [[g for curve in some for g in curve] for some in batched(_curves(groups, axis).values(), CURVES)]
        for number, chunk in enumerate(chunks, 1):
            of = f"  ({number} of {len(chunks)})" if len(chunks) > 1 else ""
            differ = [key for key in comparison.keys if key not in shared]
            made.append(Panel(label(shared) + of if shared else of.strip(), _named(chunk, differ, axis)))
    return made


def left_out(comparison: Comparison, axis: str = "") -> str:
    """A line on the configurations that a picture cannot hold; empty if it shows all."""
    beyond = panels(comparison, axis)[PANELS:]
    number = sum(len(groups) for panel in beyond for groups in panel.curves.values())
    return f"the picture leaves out {number} of {len(comparison.groups)} configurations; the table has all" * bool(beyond)


def _curves(groups: Sequence[Group], axis: str) -> dict[tuple[Any, ...], list[Group]]:
    """Groups by the values of all keys but the axis's, in order."""
    curves: dict[tuple[Any, ...], list[Group]] = {}
    for group in groups:
        curves.setdefault(tuple(str(value) for key, value in group.values.items() if key != axis), []).append(group)
    return curves


def _named(groups: Sequence[Group], keys: Sequence[str], axis: str) -> dict[str, list[Group]]:
    """Curves by name: the values under those keys that differ between them."""
    varied = [key for key in keys if key != axis and len({str(group.values[key]) for group in groups}) > 1]
    return {name_of(members[0], varied, axis): members for members in _curves(groups, axis).values()}


def name_of(group: Group, keys: Sequence[str], axis: str = "") -> str:
    """A curve's name in a legend, in lines of bounded width."""
    values = {key: group.values[key] for key in keys}
    if all(value == ABSENT for value in values.values()):
        values = {"attention": group.at("attention")} if values else {}
    text = label(values) if values else ""
    marked = f"{text} (baseline)".strip() if group.is_baseline and not axis_of(group, axis) else text
    return "\n".join(textwrap.wrap(marked, LINE, subsequent_indent="  "))


def axis_of(group: Group, axis: str) -> bool:
    """Whether a group has a place of its own on the axis, so that its curve is more than the baseline."""
    return bool(axis) and group.values.get(axis, ABSENT) != ABSENT
