"""What options and keys were called before, so that a run made under a former name is found under the present one.

Names of runs are made of the names that options and keys had first, so a renaming renames no run. An entry is only ever
added, and a former name is never given to anything else.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

# Present name -> former names, the first one first.
KEYS: dict[str, tuple[str, ...]] = {}  # "schedule.warmup": ("schedule.warmup_epochs",)
OPTIONS: dict[str, tuple[str, ...]] = {}  # "attention/se_conv": ("attention/se_layer",)


def first_key(key: str) -> str:
    """The name that a dotted key had first."""
    return KEYS.get(key, (key,))[0]


def first_option(group: str, option: str) -> str:
    """The name that an option of a group had first."""
    return OPTIONS.get(f"{group}/{option}", (f"{group}/{option}",))[0].partition("/")[2]


def option_names(group: str, option: str) -> list[str]:
    """All names that an option has had, the present one first."""
    former = OPTIONS.get(f"{group}/{option}", ())
    return [option, *(name.partition("/")[2] for name in reversed(former))]


def present_key(key: str) -> str:
    """The present name of a dotted key."""
    return _present(key, KEYS)


def present_option(group: str, option: str) -> str:
    """The present name of an option of a group."""
    return _present(f"{group}/{option}", OPTIONS).partition("/")[2]


def present_values(values: Mapping[str, Any]) -> dict[str, Any]:
    """Values by their dotted keys' present names."""
    return {present_key(key): value for key, value in values.items()}


def _present(name: str, table: Mapping[str, Iterable[str]]) -> str:
    return next((present for present, former in table.items() if name in former), name)
