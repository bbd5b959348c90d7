"""What a run is called: the options that it takes, and the values in which it differs from what they declare.

So neither where code lives nor a default that is merely written out is part of a name, and a new key whose default
changes nothing renames no run. An option whose default is changed on purpose declares a ``_revision_``, which is part
of the name: old and new results never mix.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Any

from attnbench.base.moved import present
from attnbench.config import first_release
from attnbench.config.renamed import first_key, first_option

TARGET, REVISION = "_target_", "_revision_"

# Groups of the first release: their options are in every name; of a later group only one other than its default is.
FIRST_GROUPS = ("dataset", "backbone", "attention", "placement", "schedule", "detector", "task", "runtime")

# What does not change a run's result, and so is no part of its name.
NEUTRAL = {
    "seed",
    "resume",
    "debug",
    "paths",
    "dataset.root",
    "runtime.device",
    "runtime.processes",
    "runtime.workers",
    "runtime.tail",
    "runtime.graph",
    "runtime.checkpoint_minutes",
    "runtime.checkpoint_steps",
}


def is_neutral(key: str) -> bool:
    """Whether a dotted key leaves the result as it is."""
    return key in NEUTRAL or key.split(".")[0] in NEUTRAL


def override_key(override: str) -> str:
    """The dotted key of an override: ``dataset.root`` of ``+dataset.root=/data``, ``attention`` of ``~attention``."""
    return override.lstrip("+~").split("=")[0].split("@")[0]


def is_ours(target: object) -> bool:
    """Whether a builder is one of attnbench's, and not of a user's own package."""
    return str(target).startswith("attnbench.")


def flatten(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted keys and leaf values of a nested dictionary; lists are leaves."""
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def deciding(tree: Mapping[str, Any]) -> dict[str, Any]:
    """The dotted keys and values that decide a run's result, its seed apart; of builders only a user's own."""
    return {key: value for key, value in flatten(tree) if not is_neutral(key) and not _is_our_builder(key, value)}


def _is_our_builder(key: str, value: Any) -> bool:
    return key.endswith(TARGET) and is_ours(value)


def deviating(values: Mapping[str, Any], declared: Mapping[str, Any]) -> dict[str, Any]:
    """The values that are not what is declared, by dotted key; a builder is no value."""
    return {
        key: value
        for key, value in values.items()
        if not key.endswith(TARGET) and (key not in declared or declared[key] != value)
    }


def revisions(declared: Mapping[str, Any]) -> dict[str, int]:
    """The revision of each option that has been revised, by group; ``train`` is the root's."""
    found = {key: value for key, value in declared.items() if key.rpartition(".")[2] == REVISION}
    return {key.rpartition(".")[0] or "train": int(value) for key, value in found.items() if value != 1}


def hash8(
    choices: Mapping[str, str], values: Mapping[str, Any], revised: Mapping[str, int], usual: Mapping[str, str]
) -> str:
    """Eight hexadecimal digits that name a run among those of its data set, backbone, attention and placement.

    Args:
        choices: the option taken of each group.
        values: what differs from the options' declarations.
        revised: revisions above the first, by group.
        usual: the option that each group has by default.
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
    tree: Mapping[str, Any], choices: Mapping[str, str], deviations: Mapping[str, Any], revised: Mapping[str, int]
) -> str | None:
    """The hash that release 0.1.0 gave a run, over every value and where its code lived.

    None for a run that it could not have made: of an option, a key or a revision that came later.
    """
    if revised:
        return None
    identity: dict[str, Any] = {"batch_size": tree["batch_size"]}
    for group, node in tree.items():
        if not isinstance(node, dict) or group in NEUTRAL:
            continue
        target = _first_target(group, choices[group], node[TARGET])
        if target is None:
            return None
        later = set(node) - {TARGET} - set(first_release.KEYS[target].split() if target in first_release.KEYS else node)
        if any(f"{group}.{key}" in deviations for key in later):
            return None
        identity |= {first_key(f"{group}.{key}"): value for key, value in node.items() if key not in later}
        identity[f"{group}.{TARGET}"] = target
    return _digest({key: value for key, value in identity.items() if not is_neutral(key)})


def _first_target(group: str, option: str, target: str) -> str | None:
    """The builder of an option as 0.1.0 named it; a user's own is what it is; None if 0.1.0 did not have it."""
    named = first_release.OPTIONS.get(f"{group}/{first_option(group, option)}")
    if named or not is_ours(target):
        return named or target
    return next((former for former in first_release.KEYS if present(former) == target), None)


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:8]
