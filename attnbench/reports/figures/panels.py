"""Divides the groups of a comparison into panels, each with few enough for its legend and for the eye."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from attnbench.base import escape
from attnbench.reports.comparison import METHOD, Comparison, Group, label, rank

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
        shared = label({key: groups[0].values[key] for key in setting}) if setting else ""
        curves = list(_named(groups, [key for key in comparison.keys if key not in setting], axis).items())
        chunks = [dict(curves[start : start + CURVES]) for start in range(0, len(curves), CURVES)]
        for number, chunk in enumerate(chunks, 1):
            made.append(Panel(f"{shared}  ({number} of {len(chunks)})" if len(chunks) > 1 else shared, chunk))
    return made


def left_out(comparison: Comparison, axis: str = "") -> str:
    """A line on the configurations that a picture cannot hold; empty if it shows all."""
    beyond = panels(comparison, axis)[PANELS:]
    number = sum(len(groups) for panel in beyond for groups in panel.curves.values())
    line = f"the picture leaves out {number} of {len(comparison.groups)} configurations; the CSV file has all"
    return line if number else ""


def _curves(groups: Sequence[Group], axis: str) -> dict[tuple[Any, ...], list[Group]]:
    """Groups by the values of all keys but the axis's, in order."""
    curves: dict[tuple[Any, ...], list[Group]] = {}
    for group in groups:
        curves.setdefault(tuple(str(value) for key, value in group.values.items() if key != axis), []).append(group)
    return curves


def _named(groups: Sequence[Group], keys: Sequence[str], axis: str) -> dict[str, list[Group]]:
    """Curves by name: the values under those keys that differ between them."""
    curves = _curves(groups, axis)
    varied = [key for key in keys if key != axis and len({str(group.values[key]) for group in groups}) > 1]
    named: dict[str, list[Group]] = {}
    for members in curves.values():
        text = label({key: members[0].values[key] for key in varied}) if varied else ""
        if not text and "attention" in keys and axis != "attention":
            text = str(members[0].at("attention"))
        marked = f"{text} (baseline)" if text and any(group.is_baseline for group in members) else text
        named[_wrapped(marked)] = members
    return named


def _wrapped(name: str) -> str:
    """A name in lines of bounded width."""
    return "\n".join(textwrap.wrap(escape.visible(name), LINE, subsequent_indent="  "))
