"""Which members of a sweep are trained at once in one process, and in how many packs."""

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

# In what runs of a pack may differ: values that change no shape. The whole schedule is each run's own, but for the
# parts in which a batch comes.
FREE = {"seed", "attention.lambda_init", "attention.gate", "attention.dropout"}
SHARED = {"schedule.accumulate"}


def packs(
    members: Sequence[Member], places: int, most: int | None, limits: Mapping[Member, int] | None = None
) -> list[list[Member]]:
    """Members in packs, as few as keep ``places`` devices busy, in the order in which they come.

    Args:
        members: of a sweep.
        places: packs that can be trained at the same time.
        most: members of a pack; None for no limit.
        limits: members of a pack for those that came to grief in a larger one.
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
        there[folder] += 1  # a run that is there twice is not twice in one pack, which would hold its folder
    return [part for (*_, limit), group in groups.items() for part in _even(group, math.ceil(len(group) / limit))]


def _even(members: Sequence[Member], parts: int) -> list[list[Member]]:
    """Members in parts of nearly equal size."""
    size, larger = divmod(len(members), parts)
    starts = [part * size + min(part, larger) for part in range(parts + 1)]
    return [list(members[a:b]) for a, b in pairwise(starts)]


def objection(config: Config) -> str:
    """Why a run is trained alone, whatever others there are; "" if it need not be."""
    if config.choices["task"] != "classification":
        return f"task={config.choices['task']} has no batch of images in one tensor"
    processes = config.tree["runtime"]["processes"] or 1
    return f"runtime.processes={processes} gives a run processes of its own" if processes > 1 else ""


def _shape(config: Config) -> str:
    """What runs of one pack have in common."""
    values = {k: v for k, v in flatten(config.tree) if k in SHARED or not _is_free(k)}
    own = str(config.run_folder) if objection(config) else ""
    return json.dumps([own, values], sort_keys=True)


def _is_free(key: str) -> bool:
    return key in FREE or key.startswith("schedule.")
