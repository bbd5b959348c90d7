"""The names of runs, made from the options taken and from the values that differ from what these options declare.

The name does not depend on module paths, nor on a default that is written out. A new key with a default changes no
name. If an option's default changes on purpose, the option declares a ``_revision_``; it is part of the name, so that
old and new results never mix.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Any

from attnbench.base.moved import present
from attnbench.config import first_release
from attnbench.config.options import SHARED
from attnbench.config.renamed import first_key, first_option

TARGET, REVISION = "_target_", "_revision_"

REMOVED = "~"  # the value, in a name, of a declared key that a command line removed

# Groups of the first release: their options are part of every name. An option of a later group is part of a name only
# if it is not the group's default.
FIRST_GROUPS = ("dataset", "backbone", "attention", "placement", "schedule", "detector", "task", "runtime")

# Keys that do not change a run's result and so are not part of its name.
NEUTRAL = {
    "seed",
    "resume",
    "debug",
    "paths",
    "dataset.root",
    "runtime.device",
    "runtime.processes",
    "runtime.workers",
    "runtime.norm_batch",  # as runtime.processes, which it stands for
    "runtime.tail",
    "runtime.graph",
    "runtime.checkpoint_minutes",
    "runtime.checkpoint_steps",
}


def is_neutral(key: str) -> bool:
    """Whether a dotted key does not change a run's result."""
    return key in NEUTRAL or key.split(".")[0] in NEUTRAL


def override_key(override: str) -> str:
    """The dotted key of an override: ``dataset.root`` of ``+dataset.root=/data``, ``attention`` of ``~attention``."""
    return override.lstrip("+~").split("=")[0].split("@")[0]


def is_ours(target: object) -> bool:
    """Whether a builder is part of attnbench, not of a user's package."""
    return str(target).startswith("attnbench.")


def flatten(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The dotted keys and leaf values of a nested dictionary; lists are leaves."""
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def deciding(tree: Mapping[str, Any], declared: Mapping[str, Any]) -> dict[str, Any]:
    """The dotted keys and values that decide a run's result, except its seed; of builders only exchanged ones."""
    values = {key: value for key, value in flatten(tree) if not is_neutral(key)}
    builders = {key: present(str(value)) for key, value in declared.items() if key.endswith(TARGET)}
    return {key: value for key, value in values.items() if not key.endswith(TARGET) or builders.get(key) != value}


def deviating(values: Mapping[str, Any], declared: Mapping[str, Any]) -> dict[str, Any]:
    """The values that differ from the declared ones, by dotted key."""
    return {key: value for key, value in values.items() if key not in declared or declared[key] != value}


def removed(tree: Mapping[str, Any], declared: Mapping[str, Any]) -> dict[str, str]:
    """The declared keys that a configuration lacks, as after ``~attention.tie``; the builder's own default decides."""
    parts = ((key, *key.partition(".")[::2]) for key in declared)
    lacking = (key for key, group, name in parts if isinstance(tree.get(group), dict) and name not in tree[group])
    return {key: REMOVED for key in lacking if not key.endswith((TARGET, REVISION))}


def revisions(declared: Mapping[str, Any]) -> dict[str, int]:
    """The revision of each option that has been revised, by group; ``train`` is the group of the root file."""
    found = {key: value for key, value in declared.items() if key.rpartition(".")[2] == REVISION}
    return {key.rpartition(".")[0] or "train": int(value) for key, value in found.items() if value != 1}


def hash8(
    choices: Mapping[str, str], values: Mapping[str, Any], revised: Mapping[str, int], usual: Mapping[str, str]
) -> str:
    """Eight hexadecimal digits that distinguish a run from others of its data set, backbone, attention and placement.

    Args:
        choices: the option taken from each group.
        values: the values that differ from what the options declare, by dotted key.
        revised: the options' revisions above 1, by group.
        usual: the default option of each group.
    """
    options = {
        group: first_option(group, option)
        for group, option in choices.items()
        if group in FIRST_GROUPS or option != usual.get(group)
    }
    named = {
        "options": options,
        "values": {first_key(key): value for key, value in values.items()},
        "revisions": dict(revised),
    }
    return _digest(named)


def first_release_hash(
    tree: Mapping[str, Any],
    choices: Mapping[str, str],
    deviations: Mapping[str, Any],
    revised: Mapping[str, int],
    usual: Mapping[str, str] | None = None,
) -> str | None:
    """The hash that release 0.1.0 gave a run; it was computed from all values and from module paths.

    None for a run that 0.1.0 could not have made, because of an option, a key or a revision that came later.
    """
    later_root_keys = {key for key in deviations if "." not in key} - {"batch_size"}
    if revised or later_root_keys or not _is_first_groups(choices, deviations, usual or choices):
        return None
    identity: dict[str, Any] = {"batch_size": tree["batch_size"]}
    targets = {
        group: _first_target(
            f"{group}/{first_option(group, choices[group])}", node[TARGET], f"{group}.{TARGET}" in deviations
        )
        for group, node in tree.items()
        if group in FIRST_GROUPS
    }
    known = {
        f"{group}.{key}" for group, one in targets.items() for key in first_release.KEYS.get(one or "", "").split()
    }
    for group, target in targets.items():
        if target is None:
            return None
        node = tree[group]
        later = _later_keys(group, node, target, known)
        if any(f"{group}.{key}" in deviations for key in later):
            return None
        identity |= {first_key(f"{group}.{key}"): value for key, value in node.items() if key not in later}
        identity[f"{group}.{TARGET}"] = target
    return _digest({key: value for key, value in identity.items() if not is_neutral(key)})


def _is_first_groups(choices: Mapping[str, str], deviations: Mapping[str, Any], usual: Mapping[str, str]) -> bool:
    """Whether groups that 0.1.0 did not have are left as they are by default."""
    later = [group for group in choices if group not in (*FIRST_GROUPS, "experiment") and "/" not in group]
    exchanged = (key for key in deviations if key.partition(".")[0] in later)
    return not any(exchanged) and all(choices[group] == usual.get(group) for group in later)


def _later_keys(group: str, node: Mapping[str, Any], target: str, known: set[str]) -> set[str]:
    """The keys of an option that are not among those known to 0.1.0; a user's own builder has only shared ones."""
    keys = node if target in first_release.KEYS else (key for key in node if key in SHARED.get(group, ()))
    return {key for key in keys if key != TARGET and first_key(f"{group}.{key}") not in known}


def _first_target(option: str, target: str, exchanged: bool) -> str | None:
    """The builder of an option under its name in 0.1.0; None if 0.1.0 did not have it. A user's own is unchanged."""
    if not is_ours(target):
        return target
    if not exchanged and option in first_release.OPTIONS:
        return first_release.OPTIONS[option]
    return next((former for former in first_release.KEYS if present(former) == target), None)


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:8]
