"""The option files: their folders, the options of a group, and the values that an option declares.

A user's own option files are in folders that a command line (``--config-dir``, ``hydra.searchpath``), a call from
Python or the variable ``ATTNBENCH_CONFIG_DIR`` names. attnbench's own folder comes first, so its options keep their
meaning.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from attnbench.base.errors import ConfigError
from attnbench.config.annotations import folder_of
from attnbench.config.naming import flatten, is_neutral

Load = Callable[[str], Any]  # reads an option file with Hydra: its content, header and defaults list

VARIABLE = "ATTNBENCH_CONFIG_DIR"  # folders of option files, separated as in PATH

_added: list[Path] = []  # by the present command or call; not a context variable, as threads have to see them


def folder() -> Path:
    """The folder of the option files: inside an installed package, or beside the package in a checkout."""
    package = Path(__file__).parents[1]
    inside = package / "configs"
    return inside if inside.is_dir() else package.parent / "configs"


def folders() -> tuple[Path, ...]:
    """The folders of option files: attnbench's own, and the user's."""
    named = filter(None, os.environ.get(VARIABLE, "").split(os.pathsep))
    return tuple(dict.fromkeys((folder(), *_added, *(located(one, VARIABLE) for one in named))))


@contextmanager
def added(places: Iterable[str | Path], where: str = "--config-dir") -> Iterator[None]:
    """Inside this context, option files are also found in these folders.

    Raises:
        ConfigError: a folder does not exist.
    """
    before = list(_added)
    try:
        add(places, where)
        yield
    finally:
        _added[:] = before


def add(places: Iterable[str | Path], where: str = "--config-dir") -> None:
    """From now on, option files are also found in these folders; inside ``added``, until it ends.

    Raises:
        ConfigError: a folder does not exist.
    """
    _added.extend([located(str(place), where) for place in places])


def located(place: str, where: str) -> Path:
    """The folder that a path, ``file://path`` or ``pkg://package.folder`` names; no package is imported.

    Args:
        where: what names it, for error messages.

    Raises:
        ConfigError: there is no such folder.
    """
    scheme, colon, rest = place.partition("://")
    if colon and scheme not in ("file", "pkg"):
        raise ConfigError(f"{place} is not a folder of option files", where, "write file://FOLDER or pkg://PACKAGE")
    package = rest.replace("/", ".")
    found = folder_of(package) if scheme == "pkg" and colon else Path(rest if colon else place).expanduser()
    if found is None or not found.is_dir():
        todo = "give the folder that holds attention/, backbone/ or the like"
        raise ConfigError(f"there is no folder {place}", where, todo)
    return found.absolute()


def names(group: str) -> list[str]:
    """The options of a group, sorted; the user's own too."""
    return sorted({option for place in folders() for option in _names(place / group)})


def shipped_names(group: str) -> list[str]:
    """The options of a group that come with attnbench, sorted."""
    return sorted(_names(folder() / group))


def _names(place: Path) -> Iterator[str]:
    return (path.relative_to(place).with_suffix("").as_posix() for path in place.rglob("*.yaml"))


def is_group(name: str) -> bool:
    """Whether there is a group of options with this name."""
    return any((place / name).is_dir() for place in folders())


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
