"""The option files: their folder, the options of a group, and the values that an option declares."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from attnbench.config.naming import flatten, is_neutral

Load = Callable[[str], Any]  # reads an option file with Hydra: its content, header and defaults list


def folder() -> Path:
    """The folder of the option files: inside an installed package, or beside the package in a checkout."""
    package = Path(__file__).parents[1]
    inside = package / "configs"
    return inside if inside.is_dir() else package.parent / "configs"


def names(group: str) -> list[str]:
    """The options of a group, sorted."""
    return sorted(str(p.relative_to(folder() / group))[:-5] for p in (folder() / group).rglob("*.yaml"))


def is_shipped(group: str, option: str) -> bool:
    """Whether an option comes with attnbench."""
    return (folder() / group / f"{option}.yaml").is_file() or (group == "backbone" and option.startswith("timm/"))


def declared(load: Load, choices: Mapping[str, str]) -> dict[str, Any]:
    """The values that the root file and the options taken declare, by dotted key; interpolations are not resolved.

    Keys that are not part of a run's name are left out.
    """
    values = _declared_by(load, "", "train")
    for group, option in choices.items():
        values |= _declared_by(load, group, option)
    return {key: value for key, value in values.items() if not is_neutral(key) and not key.startswith("hydra.")}


def experiment_values(load: Load, experiment: str | None) -> dict[str, Any]:
    """The values that an experiment sets, by dotted key; empty without an experiment."""
    return _declared_by(load, "experiment", experiment) if experiment else {}


def usual_options(load: Load) -> dict[str, str]:
    """The default option of each group."""
    entries = load("train").defaults_list
    return {entry.group: str(entry.value) for entry in entries if getattr(entry, "group", None) and entry.value}


def resolved(declarations: Mapping[str, Any], tree: Mapping[str, Any]) -> dict[str, Any]:
    """Declared values, with interpolations resolved from the values of a run."""
    open_ended = [key for key, value in declarations.items() if "${" in str(value)]
    if not open_ended:
        return dict(declarations)
    values = OmegaConf.create({**tree, "declared": {key: declarations[key] for key in open_ended}})
    return {**declarations, **{key: _looked_up(values.declared, key) for key in open_ended}}


def _looked_up(declarations: DictConfig, key: str) -> Any:
    """A declared value with its interpolations resolved; unchanged if they cannot be resolved."""
    try:
        value = declarations[key]
    except OmegaConfBaseException:
        return OmegaConf.to_container(declarations, resolve=False)[key]  # type: ignore[index,call-overload]
    return OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value


def _declared_by(load: Load, group: str, option: str) -> dict[str, Any]:
    """The values that an option file declares, or inherits through its defaults list; empty if there is no file."""
    file = load(f"{group}/{option}".strip("/"))
    if file is None:
        return {}
    own = _own_values(file, group)
    entries = [entry for entry in file.defaults_list or () if getattr(entry, "path", None)]
    parts = [own if entry.is_self() else _declared_by(load, *_placed(group, entry.path)) for entry in entries]
    if not any(entry.is_self() for entry in entries):
        parts.append(own)  # as in Hydra, a file's own values take precedence
    return dict(item for part in parts for item in part.items())


def _placed(group: str, path: str) -> tuple[str, str]:
    """The group and option of an entry in a defaults list, such as ``eca`` or ``/attention/eca``."""
    if not path.startswith("/"):
        return group, path
    parent, _, option = path.strip("/").rpartition("/")
    return parent, option


def _own_values(file: Any, group: str) -> dict[str, Any]:
    """The dotted keys and values of a file; its header or its group gives the package of the keys."""
    content = OmegaConf.to_container(file.config, resolve=False)
    assert isinstance(content, dict)
    package = file.header.get("package") or group.replace("/", ".")
    prefix = "" if package in ("_global_", "") else f"{package}."
    return dict(flatten(content, prefix))  # type: ignore[arg-type]
