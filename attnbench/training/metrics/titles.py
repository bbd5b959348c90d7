"""The metrics of runs, in percent: their names in result.json, and their titles."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_COCO = ("AP", "AP50", "AP75", "APS", "APM", "APL")

# In the order of display; the first one that a run has is its headline.
TITLES = {
    "mAP": "mAP",
    "mAP_area": "mAP by area",
    **{name: name for name in _COCO},
    **{f"mask_{name}": f"mask {name}" for name in _COCO},
    "top1": "top-1",
    "top5": "top-5",
}


def headline(values: Mapping[str, Any] | None) -> tuple[str, float] | None:
    """The name and value of a run's main metric, if it has one.

    Args:
        values: a result, or a line of metrics.jsonl.
    """
    found = values or {}
    return next(((name, float(found[name])) for name in TITLES if isinstance(found.get(name), int | float)), None)


def headline_text(values: Mapping[str, Any] | None) -> str:
    """The main metric as text, such as ``top-1 91.22``; empty if there is none."""
    found = headline(values)
    return f"{TITLES[found[0]]} {found[1]:.2f}" if found else ""
