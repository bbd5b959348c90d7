"""The x axis of a key's values: numbers at their true places, other values beside them."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from attnbench.base import escape
from attnbench.reports.comparison import rank, text
from attnbench.runs import results
from attnbench.runs.results import ABSENT

if TYPE_CHECKING:
    from matplotlib.axes import Axes

DECADES = 1.5  # numbers that span more are on a logarithmic axis
APART = 0.045  # of the axis's length: the distance between two labels


@dataclass(frozen=True)
class ValueAxis:
    """Where the values of a key are.

    Attributes:
        places: the x position of each value, by its text, in order.
        scale: ``log`` or ``linear`` for numbers, which are at their own values; ``names`` at equal distances.
    """

    places: dict[str, float]
    scale: str = "names"

    def set_on(self, axes: Axes) -> None:
        """Set the scale, limits and labels of axes."""
        if self.scale == "log":
            axes.set_xscale("log")
            axes.minorticks_off()
        at = [self._even(place) for place in self.places.values()]
        low, high = min(at, default=0.0), max(at, default=0.0)
        beside = 0.5 if self.scale == "names" else 0.06 * (high - low) or 0.5
        axes.set_xlim(self._odd(low - beside), self._odd(high + beside))
        long = max(map(len, self.places), default=0) > 12
        axes.set_xticks(list(self.places.values()), self._labels(at, high - low), rotation=30 if long else 0)

    def _labels(self, at: list[float], span: float) -> list[str]:
        """The values as text, without those that would cover the one before."""
        labels: list[str] = []
        last, width = -math.inf, 0
        for name, place in zip(self.places, at, strict=True):
            near = self.scale != "names" and place - last < APART * span * max(1.0, (width + len(name)) / 6)
            labels.append("" if near else escape.visible(name))
            last, width = (last, width) if near else (place, len(name))
        return labels

    def _even(self, place: float) -> float:
        return math.log10(place) if self.scale == "log" else place

    def _odd(self, place: float) -> float:
        return 10**place if self.scale == "log" else place


def value_axis(values: Iterable[Any]) -> ValueAxis:
    """The axis of some values. Values that are no numbers come after the numbers, at equal distances."""
    named = {text(value): value for value in sorted(values, key=rank) if value != ABSENT}
    numbers = {name: float(value) for name, value in named.items() if results.is_number(value)}
    others = [name for name in named if name not in numbers]
    if len(numbers) < 2:
        return ValueAxis({name: float(place) for place, name in enumerate(named)})
    low, high = min(numbers.values()), max(numbers.values())
    if low > 0 and math.log10(high / low) > DECADES:
        step = math.log10(high / low) / (len(numbers) - 1)
        return ValueAxis(numbers | {name: high * 10 ** (step * i) for i, name in enumerate(others, 1)}, "log")
    step = (high - low) / (len(numbers) - 1)
    return ValueAxis(numbers | {name: high + step * i for i, name in enumerate(others, 1)}, "linear")
