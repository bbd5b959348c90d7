"""The former names of options and keys, so that runs made under former names are found under the present ones.

The names of runs use the first names of options and keys, so renaming an option renames no run. Entries are added and
never removed, and a former name must not be used for anything else.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

# Present name -> former names, the oldest one first.
KEYS: dict[str, tuple[str, ...]] = {"backbone.weights": ("detector.backbone_from",)}
OPTIONS: dict[str, tuple[str, ...]] = {}  # for example "attention/se_conv": ("attention/se_layer",)


def first_key(key: str) -> str:
    """The first name of a dotted key."""
    return KEYS.get(key, (key,))[0]


def first_option(group: str, option: str) -> str:
    """The first name of an option of a group."""
    return OPTIONS.get(f"{group}/{option}", (f"{group}/{option}",))[0].partition("/")[2]


def option_names(group: str, option: str) -> list[str]:
    """All names of an option, the present one first."""
    former = OPTIONS.get(f"{group}/{option}", ())
    return [option, *(name.partition("/")[2] for name in reversed(former))]


def present_key(key: str) -> str:
    """The present name of a dotted key."""
    return _present(key, KEYS)


def present_option(group: str, option: str) -> str:
    """The present name of an option of a group."""
    return _present(f"{group}/{option}", OPTIONS).partition("/")[2]


def present_values(values: Mapping[str, Any]) -> dict[str, Any]:
    """Values under the present names of their dotted keys."""
    return {present_key(key): value for key, value in values.items()}


def _present(name: str, table: Mapping[str, Iterable[str]]) -> str:
    return next((present for present, former in table.items() if name in former), name)
