"""Reads YAML that somebody may have tampered with, in bounded time and memory."""

from __future__ import annotations

from typing import Any

import yaml

LONGEST = 2**20  # characters
MOST = 50_000  # values, each counted as often as aliases repeat it
DEEPEST = 50  # levels

LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def load(text: str) -> Any:
    """The value of a YAML document.

    Raises:
        ValueError: it is not valid, longer than 1 MiB, nested more than 50 levels deep, or has more than 50,000 values,
            with those that aliases repeat.
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
    """Count values and levels, with what aliases repeat; an alias inside its own value counts as too deep."""
    sizes: dict[str, tuple[int, int]] = {}  # of anchors: values and levels
    open_nodes: list[tuple[str | None, int, int]] = []  # anchor, values and levels inside so far
    total = 0
    for event in yaml.parse(text, LOADER):
        if isinstance(event, (yaml.ScalarEvent, yaml.AliasEvent)):
            number, levels = (1, 0) if isinstance(event, yaml.ScalarEvent) else sizes.get(event.anchor, (MOST, DEEPEST))
            if isinstance(event, yaml.ScalarEvent) and event.anchor:
                sizes[event.anchor] = (1, 0)
        elif isinstance(event, (yaml.SequenceStartEvent, yaml.MappingStartEvent)):
            open_nodes.append((event.anchor, 1, 0))
            if event.anchor:
                sizes.pop(event.anchor, None)
            number, levels = 0, 0
        elif isinstance(event, (yaml.SequenceEndEvent, yaml.MappingEndEvent)):
            anchor, number, levels = open_nodes.pop()
            levels += 1
            if anchor:
                sizes[anchor] = (number, levels)
        else:
            continue
        if open_nodes:
            outer, inside, below = open_nodes[-1]
            open_nodes[-1] = (outer, inside + number, max(below, levels))
            total = max(total, inside + number)
        if total > MOST:
            raise ValueError(f"more than {MOST:,} values")
        if len(open_nodes) + levels > DEEPEST:
            raise ValueError(f"nested more than {DEEPEST} levels deep")
