"""Group the members of a sweep into packs, which are trained at once in one process."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path

from attnbench.config.configuration import Config
from attnbench.config.naming import flatten
from attnbench.launch.executor import Member

# Runs of a pack may differ in these keys, which change no shape, and in their schedules, except for the number of parts
# into which a batch is split and for what is frozen.
FREE = {"seed", "attention.lambda_init", "attention.gate", "attention.dropout"}
SHARED = {"schedule.accumulate", "schedule.freeze"}


def packs(
    members: Sequence[Member], places: int, most: int | None, limits: Mapping[Member, int] | None = None
) -> list[list[Member]]:
    """Group members into as few packs as keep all places busy, in order.

    Args:
        members: the members of a sweep.
        places: how many packs can be trained at the same time.
        most: the largest size of a pack; None for no limit.
        limits: the largest pack size of members that failed in a larger pack.
    """
    if not members:
        return []
    size = min(most or len(members), math.ceil(len(members) / places))
    groups: dict[tuple[str, int, int], list[Member]] = {}
    there: Counter[Path] = Counter()
    for member in members:
        folder = member.config.run_folder
        limit = min(size, (limits or {}).get(member, size))
        groups.setdefault((_shape(member.config), there[folder], limit), []).append(member)
        there[folder] += 1  # keep a repeated run out of the pack of the first, which holds the same folder
    return [part for (*_, limit), group in groups.items() for part in _even(group, math.ceil(len(group) / limit))]


def _even(members: Sequence[Member], parts: int) -> list[list[Member]]:
    """Split members into parts of nearly equal size."""
    size, larger = divmod(len(members), parts)
    starts = [part * size + min(part, larger) for part in range(parts + 1)]
    return [list(members[a:b]) for a, b in pairwise(starts)]


def objection(config: Config) -> str:
    """Why a run must be trained alone; "" if it can be packed."""
    if config.choices["task"] != "classification":
        return f"a batch of task={config.choices['task']} is not one tensor"
    processes = config.tree["runtime"]["processes"] or 1
    return f"each run has runtime.processes={processes}" if processes > 1 else ""


def _shape(config: Config) -> str:
    """A key that is equal for runs that can be packed together."""
    values = {k: v for k, v in flatten(config.tree) if k in SHARED or not _is_free(k)}
    own = str(config.run_folder) if objection(config) else ""
    return json.dumps([own, values], sort_keys=True)


def _is_free(key: str) -> bool:
    return key in FREE or key.startswith("schedule.")
