"""Reads YAML that somebody may have tampered with, in bounded time and memory."""

from __future__ import annotations

from typing import Any, NamedTuple

import yaml

LONGEST = 2**20  # characters
MOST = 50_000  # values, each counted as often as aliases repeat it
DEEPEST = 100  # levels

LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class Size(NamedTuple):
    """How large a value is: the values in it, with itself, and the levels of nesting."""

    values: int
    levels: int


def load(text: str) -> Any:
    """The value of a YAML document.

    Raises:
        ValueError: it is not valid, longer than 1 MiB, nested too deeply (about 50 levels), or has more than 50,000
            values, with those that aliases repeat.
    """
    refuse(text)
    try:
        return yaml.load(text, LOADER)
    except yaml.YAMLError as error:
        raise ValueError(" ".join(str(error).split())) from error


def refuse(text: str) -> None:
    """Refuse a document as ``load`` does, without making its values.

    Raises:
        ValueError: says what is wrong.
    """
    if len(text) > LONGEST:
        raise ValueError(f"longer than {LONGEST:,} characters")
    try:
        _count(text)
    except (yaml.YAMLError, RecursionError) as error:
        raise ValueError(" ".join(str(error).split())) from error


def _count(text: str) -> None:
    """Count values and levels, with what aliases repeat; an alias inside its own value counts as too many."""
    known: dict[str, Size] = {}  # the sizes of anchors
    inside: list[tuple[str | None, Size]] = []  # of the values that are open: anchor, and size so far
    for event in yaml.parse(text, LOADER):
        if isinstance(event, yaml.CollectionStartEvent):
            inside.append((event.anchor, Size(1, 1)))
            known.pop(event.anchor or "", None)
            size = Size(0, 0)
        elif isinstance(event, yaml.CollectionEndEvent):
            anchor, size = inside.pop()
            known[anchor or ""] = size
        elif isinstance(event, yaml.ScalarEvent):
            size = known[event.anchor or ""] = Size(1, 0)
        elif isinstance(event, yaml.AliasEvent):
            size = known.get(event.anchor or "", Size(MOST + 1, 0))
        else:
            continue
        if inside:
            anchor, around = inside[-1]
            size = Size(around.values + size.values, max(around.levels, size.levels + 1))
            inside[-1] = (anchor, size)
        if size.values > MOST:
            raise ValueError(f"more than {MOST:,} values")
        if len(inside) + size.levels > DEEPEST:
            raise ValueError("nested too deeply")
