"""The option files: where they lie, which options a group has, and what an option declares."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from attnbench.config.naming import flatten, is_neutral

Load = Callable[[str], Any]  # Hydra's reading of an option file: its content, its header and its defaults list


def folder() -> Path:
    """Where the option files lie: inside an installed package, beside it in a checkout."""
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
    """What the root file and the options taken declare: dotted keys and values, interpolations as they are written.

    Without what is no part of a run's name.
    """
    values = _declared_by(load, "", "train")
    for group, option in choices.items():
        values |= _declared_by(load, group, option)
    return {key: value for key, value in values.items() if not is_neutral(key) and not key.startswith("hydra.")}


def experiment_values(load: Load, experiment: str | None) -> dict[str, Any]:
    """What an experiment sets, by dotted key; nothing without one."""
    return _declared_by(load, "experiment", experiment) if experiment else {}


def usual_options(load: Load) -> dict[str, str]:
    """The option that each group has by default."""
    entries = load("train").defaults_list
    return {entry.group: str(entry.value) for entry in entries if getattr(entry, "group", None) and entry.value}


def resolved(declarations: Mapping[str, Any], tree: Mapping[str, Any]) -> dict[str, Any]:
    """Declared values, with interpolations looked up in the values of a run."""
    open_ended = [key for key, value in declarations.items() if "${" in str(value)]
    if not open_ended:
        return dict(declarations)
    values = OmegaConf.create({**tree, "declared": {key: declarations[key] for key in open_ended}})
    return {**declarations, **{key: _looked_up(values.declared, key) for key in open_ended}}


def _looked_up(declarations: DictConfig, key: str) -> Any:
    """A declared value with its interpolations resolved; as it is written where they lead nowhere."""
    try:
        value = declarations[key]
    except OmegaConfBaseException:
        return OmegaConf.to_container(declarations, resolve=False)[key]  # type: ignore[index,call-overload]
    return OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value


def _declared_by(load: Load, group: str, option: str) -> dict[str, Any]:
    """What one option file declares, with what it inherits from others of its group; nothing if there is none."""
    file = load(f"{group}/{option}".strip("/"))
    if file is None:
        return {}
    own = _own_values(file, group)
    entries = [entry for entry in file.defaults_list or () if getattr(entry, "path", None)]
    parts = [own if entry.is_self() else _declared_by(load, *_placed(group, entry.path)) for entry in entries]
    if not any(entry.is_self() for entry in entries):
        parts.append(own)  # as Hydra does: a file's own values win
    return dict(item for part in parts for item in part.items())


def _placed(group: str, path: str) -> tuple[str, str]:
    """Group and option of an entry in an option's defaults list: ``eca``, or ``/attention/eca``."""
    if not path.startswith("/"):
        return group, path
    parent, _, option = path.strip("/").rpartition("/")
    return parent, option


def _own_values(file: Any, group: str) -> dict[str, Any]:
    """Dotted keys and values of a file, by the package that its header or its group gives it."""
    content = OmegaConf.to_container(file.config, resolve=False)
    assert isinstance(content, dict)
    package = file.header.get("package") or group.replace("/", ".")
    prefix = "" if package in ("_global_", "") else f"{package}."
    return dict(flatten(content, prefix))  # type: ignore[arg-type]
