"""What is wrong with the JSON files of a run's folder, so that a report can name a damaged one and go on."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from attnbench.base import files
from attnbench.training.metrics.titles import TITLES

NUMBERS = (
    *(*TITLES, *(f"best_{name}" for name in TITLES)),
    *("params", "frozen_params", "macs", "images_per_s", "val_images_per_s", "written_images_per_s", "seconds"),
    *("peak_memory_bytes", "epochs", "best_epoch", "world_size", "norm_images", "resumed_from_step", "seed", "packed"),
)
# Of result.json, with the keys in them whose values are text.
MAPPINGS: dict[str, tuple[str, ...]] = {
    "choices": (),
    "data": ("source", "fingerprint"),
    "weights": ("from", "sha256"),
}
LONGEST = 60  # characters of a wrong value that are shown


def fault_of_file(path: Path) -> str:
    """Why a file does not hold a JSON object; empty if it does, or if there is no such file."""
    if not path.exists() or isinstance(files.read_json(path), dict):
        return ""
    return f"{path.name} holds no JSON object"


def fault_of_result(result: Mapping[str, Any]) -> str:
    """The first value of a result that is not what a run writes, as text; empty if there is none."""
    for key in NUMBERS:
        value = result.get(key)
        if value is not None and not _is_finite(value):
            return f"result.json: {key} is {_shown(value)}, not a number"
    for key, texts in MAPPINGS.items():
        if key not in result:
            continue
        about = result[key]
        if not isinstance(about, Mapping):
            return f"result.json: {key} is {_shown(about)}, not a mapping"
        for name in texts:
            if not isinstance(about.get(name, ""), str):
                return f"result.json: {key}.{name} is {_shown(about[name])}, not text"
    return ""


def _is_finite(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _shown(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 1]}…"


def environment(folder: Path) -> dict[str, Any]:
    """The versions, device and commit that made a run, from env.json; empty if it cannot be read."""
    found = files.read_json(folder / "env.json")
    return found if isinstance(found, dict) else {}


def text_of(found: Mapping[str, Any], key: str) -> str | None:
    """A value of env.json as text; None without one."""
    value = found.get(key)
    return None if value is None else str(value)
