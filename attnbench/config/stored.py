"""Reads the stored configuration of a run, from config.yaml or exported weights, as data and under present names."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from attnbench.base import files, plain_yaml, secrets
from attnbench.base.errors import ConfigError, StorageError, reason
from attnbench.base.moved import present
from attnbench.config import initial_weights
from attnbench.config.composition import declarations
from attnbench.config.configuration import DETECTION, FORMAT, GROUPS, WEIGHTS, Config
from attnbench.config.hydra_state import load_option, prepared
from attnbench.config.naming import TARGET, flatten, revisions
from attnbench.config.option_files import resolved
from attnbench.config.renamed import present_key, present_option

ABOUT = ("format", "hash", "choices", "revisions", "removed", "weights")  # the keys of a record that are not values


def read(run: Path) -> Config:
    """The configuration in a run's folder, as it was when the run was made.

    Raises:
        StorageError: it is not a run's folder, or its configuration cannot be read.
    """
    path = run / "config.yaml"
    if not path.is_file():
        seeds = sorted(run.glob("seed*/config.yaml"))
        todo = f"did you mean {seeds[0].parent}?" if seeds else "give outputs/runs/<dataset>/<backbone>/<name>/seed<k>"
        raise StorageError("not a run's folder: it has no config.yaml", run, todo)
    try:
        record = plain_yaml.load(files.read_text(path))
    except (OSError, ValueError) as error:
        raise StorageError(f"cannot read: {reason(error)}", path, "restore or remove it") from error
    return from_record(record, path)


def from_record(record: Any, where: Path) -> Config:
    """A configuration from a record that ``Config.record`` made, in this release or an earlier one.

    Keys that were added later get the values that their options declare.

    Raises:
        StorageError: the record is not a configuration, or a later release made it.
    """
    parts = _parts(record, where)
    with prepared():
        choices = {group: present_option(group, option) for group, option in parts["choices"].items()}
        known = declarations(choices)
        tree = _present_tree({key: value for key, value in parts.items() if key not in ABOUT})
        for group in (*GROUPS, *DETECTION):
            if group in tree:
                tree[group][TARGET] = _builder(group, choices.get(group, ""), tree[group], known["declared"], where)
        revised = parts.get("revisions", {})
        unknown = any(load_option(f"{group}/{option}") is None for group, option in choices.items() if group in tree)
        unknown = unknown or any(value == secrets.HIDDEN for _, value in flatten(tree))
        named = str(parts.get("hash")) if unknown or revised != revisions(known["declared"]) else None
        gone = set(map(present_key, parts.get("removed", [])))
        kept = {key: value for key, value in known["declared"].items() if key not in gone}
        tree["backbone"].setdefault("weights", None)
        given = tree["backbone"]["weights"]
        if not isinstance(given, str | None):
            what = f"not the configuration of a run: {WEIGHTS} is no text"
            raise StorageError(what, where, "restore or remove it")
        weights = parts.get("weights") or (initial_weights.name(given) if given else "")
        return Config(_completed(tree, kept), choices, **known, revised=revised, named=named, weights=weights)


def checked(config: Config, where: Path) -> Config:
    """Check a configuration that was read from a file, in the same way as one from the command line.

    Raises:
        StorageError: the configuration is not valid.
    """
    try:
        return config.updated({group: {} for group in (*GROUPS, *DETECTION) if group in config.tree})
    except ConfigError as error:
        what = f"its configuration is not valid: {error.what}"
        todo = error.todo if error.where.endswith(TARGET) else "restore the file"
        raise StorageError(what, f"{where}: {error.where}", todo) from error


def differences(config: Config, kept: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """The differences between a configuration and the values in a checkpoint: key -> (value there, value here).

    A key that was added after the checkpoint counts only if its value differs from the one that its option declares.
    """
    there = {present_key(key): _present_value(key, value) for key, value in kept.items() if key != "data"}
    usual = resolved(config.declared, config.tree)
    nodes = {group: node for group, node in config.tree.items() if isinstance(node, dict)}
    builders = {f"{group}.{TARGET}": node.get(TARGET) for group, node in nodes.items()}
    here = config.identity
    found = {}
    for key in there.keys() | here.keys():
        if secrets.is_secret(key):  # records do not have them
            same = True
        elif key.endswith(TARGET):
            declared = there.get(key, config.declared.get(key))  # None without the option file of a user's own option
            same = declared is None or present(str(declared)) == builders.get(key)
        elif key in there:
            same = here.get(key, ...) == there[key]
        else:
            same = key in config.choices or usual.get(key, ...) == here[key]
        if not same:
            found[key] = (there.get(key), here.get(key))
    return dict(sorted(found.items()))


def _present_value(key: str, value: Any) -> Any:
    """A value in a checkpoint; options and initial weights under their present names."""
    if present_key(key) == WEIGHTS and value:
        return initial_weights.name(value)
    return present_option(key, value) if "." not in key and isinstance(value, str) else value


def _parts(record: Any, where: Path) -> dict[str, Any]:
    """The record as a dictionary, after checking that its entries have the types of a configuration."""
    parts: dict[str, Any] = dict(record) if isinstance(record, dict) else {}
    form = parts.get("format", 1)
    if not isinstance(form, int) or form > FORMAT:
        what = f"a configuration of format {form}, made by a later attnbench"
        raise StorageError(what, where, "use that version of attnbench, or a newer one")
    choices: Any = parts.get("choices")
    lacking = [group for group in GROUPS if not isinstance(parts.get(group), dict)]
    lacking += ["choices"] if not _is_names(choices) or "attention" not in choices else []
    lacking += ["seed"] if not isinstance(parts.get("seed"), int) else []
    lacking += ["paths"] if not isinstance(parts.get("paths"), dict) or "outputs" not in parts["paths"] else []
    if lacking:
        what = f"not the configuration of a run: it lacks {', '.join(lacking)}"
        raise StorageError(what, where, "restore or remove it")
    if not isinstance(parts.get("removed", []), list):
        raise StorageError(
            "not the configuration of a run: its removed keys are no list", where, "restore or remove it"
        )
    if not isinstance(parts.get("weights", ""), str):
        what = "not the configuration of a run: the name of its weights is no text"
        raise StorageError(what, where, "restore or remove it")
    revised = parts.get("revisions", {})
    if not isinstance(revised, dict) or not all(isinstance(one, int) for one in revised.values()):
        what = "not the configuration of a run: its revisions are not numbers"
        raise StorageError(what, where, "restore or remove it")
    return parts


def _is_names(choices: Any) -> bool:
    return isinstance(choices, dict) and all(isinstance(name, str) for pair in choices.items() for name in pair)


def _present_tree(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Values under the present names of their keys."""
    made: dict[str, Any] = {}
    for key, value in tree.items():
        for name, one in value.items() if isinstance(value, dict) else ((None, value),):
            group, _, last = present_key(f"{key}.{name}" if name else key).rpartition(".")
            home = made.setdefault(group, {}) if group else made
            home[last] = one
        if isinstance(value, dict):
            made.setdefault(key, {})
    return made


def _builder(group: str, option: str, node: Mapping[str, Any], declared: Mapping[str, Any], where: Path) -> str:
    """The builder of an option: the recorded one, else the one that the option declares.

    Calling it checks whether it may be called.
    """
    named = node.get(TARGET, declared.get(f"{group}.{TARGET}"))
    if not isinstance(named, str):
        what = f"{group}={option} does not come with attnbench, and the record names no builder"
        raise StorageError(f"its configuration is not valid: {what}", where, "restore the file")
    return present(named)


def _completed(tree: dict[str, Any], declared: Mapping[str, Any]) -> dict[str, Any]:
    """The tree, with declared values for keys that it lacks, except where the builder was exchanged."""
    builders = {group: present(str(declared.get(f"{group}.{TARGET}"))) for group in tree}
    groups = {group for group, node in tree.items() if isinstance(node, dict) and node.get(TARGET) == builders[group]}
    later: dict[str, dict[str, Any]] = {}
    for key, value in resolved(declared, tree).items():
        group, _, name = key.partition(".")
        if group in groups and name and "." not in name and not name.startswith("_") and name not in tree[group]:
            later.setdefault(group, {})[name] = value
    return tree | {group: tree[group] | values for group, values in later.items()}
