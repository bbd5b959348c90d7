"""Hydra's reading of option files, with a loader of attnbench's own.

The loader does not depend on Hydra's global state, so that a program or a notebook that uses Hydra itself keeps its
own. Every configuration that the loader composes is checked (``pinned``) before anything acts on it.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hydra import version
from hydra._internal import hydra
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.config_repository import ConfigRepository
from hydra._internal.config_search_path_impl import ConfigSearchPathImpl
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.object_type import ObjectType
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.plugins import Plugins
from hydra.plugins.config_source import ConfigResult, ConfigSource
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from attnbench.base import files, plain_yaml
from attnbench.base.errors import ConfigError, listed, reason
from attnbench.config import option_files, pinned
from attnbench.config.option_files import folder

VERSION_BASE = "1.3"  # of Hydra's behaviour


class Timm(ConfigSource):
    """The options ``backbone=timm/<name>``, which have no files."""

    PATH = re.compile(r"backbone/timm/([\w.\-]+?)(?:\.yaml)?")

    @staticmethod
    def scheme() -> str:
        """The scheme of the source's address."""
        return "timm"

    def load_config(self, config_path: str) -> ConfigResult:
        """The option of a network of timm."""
        match = self.PATH.fullmatch(config_path)
        assert match is not None
        node = {"_target_": "attnbench.models.backbones.timm.timm_model", "name": match[1], "pretrained": False}
        return ConfigResult(self.provider, "timm://", OmegaConf.create(node), header={"package": None})

    def is_group(self, config_path: str) -> bool:
        """Whether this is the group of timm's networks."""
        return config_path.rstrip("/") == "backbone/timm"

    def is_config(self, config_path: str) -> bool:
        """Whether this is the option of a network of timm, by its form."""
        return bool(self.PATH.fullmatch(config_path))

    def available(self) -> bool:
        """True: there is nothing to be found."""
        return True

    def list(self, config_path: str, results_filter: ObjectType | None) -> list[str]:
        """No names: timm lists its own."""
        return []


class OptionLoader(ConfigLoaderImpl):
    """A loader for the option files in all of ``option_files.folders()``, which reads each of them once.

    Args:
        search_path: ignored; Hydra passes its own.
    """

    def __init__(self, config_search_path: ConfigSearchPath | None = None) -> None:
        Plugins.instance()  # registers the kinds of addresses
        path = ConfigSearchPathImpl()
        path.append("hydra", "pkg://hydra.conf")
        for number, place in enumerate(_places()):
            path.append("added" if number else "main", f"file://{place}")
        path.append("schema", "structured://")
        super().__init__(config_search_path=path)
        self.repository.sources.insert(-1, Timm("attnbench", "timm://"))
        self.repository.load_config = _remembered(self._bounded)  # type: ignore[method-assign]

    def _bounded(self, config_path: str) -> ConfigResult | None:
        """Read an option file with Hydra, after a look at its size.

        Raises:
            ConfigError: it cannot be read, or it would need much time or memory.
        """
        name = config_path.removesuffix(".yaml")
        for place in _places():
            if (path := place / f"{name}.yaml").exists():
                try:
                    plain_yaml.refuse(files.read_text(path))
                except (OSError, ValueError) as error:
                    raise ConfigError(f"cannot read: {reason(error)}", path, "correct the option file") from error
                break
        return ConfigRepository.load_config(self.repository, config_path)

    def _process_config_searchpath(self, *ignored: Any) -> None:
        """Replaces Hydra's method: the search path is what the command line named (``option_files.folders``)."""

    def load_configuration(
        self,
        config_name: str | None,
        overrides: list[str],
        run_mode: RunMode,
        from_shell: bool = True,
        validate_sweep_overrides: bool = True,
    ) -> DictConfig:
        """Compose a command line.

        Raises:
            ConfigError: an option file sets what only attnbench or the command line may set.
        """
        _refuse_no_options(overrides)
        with _behaviour():
            try:
                composed = super().load_configuration(
                    config_name, overrides, run_mode, from_shell, validate_sweep_overrides
                )
            except KeyError as error:  # of a variable that hydra.job.env_copy names
                todo = "set variables in the shell"
                raise ConfigError(f"{error.args[0]} cannot be set", "hydra.job.env_copy", todo) from error
            pinned.pin(composed, overrides)
        return composed


def _refuse_no_options(overrides: Sequence[str]) -> None:
    """Refuse ``null`` or a number for a group, which Hydra reports as an error of its own.

    Raises:
        ConfigError: names the group, and its options.
    """
    for override in overrides:
        key, _, value = override.partition("=")
        group = key.lstrip("+").split("@")[0]
        number = re.fullmatch(r"null|true|false|[-+]?[\d.]+(?:e[-+]?\d+)?", value.strip(), re.I)
        if number and option_files.is_group(group) and group not in ("detector", "experiment"):
            there = listed(option_files.names(group))
            raise ConfigError(f"{value} is not an option", group, f"write {group}=NAME; there are {there}")


def _places() -> tuple[Path, ...]:
    return (folder(), *option_files.folders()[1:])


@contextmanager
def _behaviour() -> Iterator[None]:
    """Hydra's behaviour of our version; a program around ours may have chosen another."""
    before = version.VersionBase.instance().getbase()
    version.setbase(VERSION_BASE)
    try:
        yield
    finally:
        version.VersionBase.instance().version_base = before  # setbase refuses "not chosen yet"


# The loaders that compositions share inside ``prepared``, by the folders of their option files.
_shared: dict[tuple[Path, ...], OptionLoader] = {}
_depth = 0


@contextmanager
def prepared() -> Iterator[None]:
    """All compositions inside this context share one loader, which reads each option file once."""
    global _depth
    before = dict(_shared)
    _depth += 1
    try:
        yield
    finally:
        _depth -= 1
        _shared.clear()
        _shared.update(before)


def loader() -> OptionLoader:
    """The loader of option files."""
    places = _places()
    if places in _shared:
        return _shared[places]
    made = OptionLoader()
    if _depth:
        _shared[places] = made
    return made


@contextmanager
def lent_to_hydra() -> Iterator[None]:
    """Inside this context, ``hydra.main`` composes with our loader, so that everything it acts on has been checked."""

    def ours(config_search_path: ConfigSearchPath) -> OptionLoader:
        return copy.copy(loader())  # launchers replace a method of Hydra's loader

    before = vars(hydra)["ConfigLoaderImpl"]
    vars(hydra)["ConfigLoaderImpl"] = ours
    try:
        yield
    finally:
        vars(hydra)["ConfigLoaderImpl"] = before


def composed(overrides: Sequence[str]) -> DictConfig:
    """The configuration of a command line, as Hydra composes it, with its ``hydra`` node.

    Raises:
        ConfigError: an option file sets what only attnbench or the command line may set.
        HydraException: an override or an option file is wrong.
    """
    return loader().load_configuration("train", list(overrides), RunMode.RUN, from_shell=False)


def load_option(path: str) -> Any:
    """An option file such as ``attention/eca``, found on Hydra's search path and read by Hydra; None if there is none.

    It has ``config``, ``header`` and ``defaults_list``.
    """
    return loader().repository.load_config(path)


def search_path(overrides: Sequence[str]) -> tuple[list[str], list[str]]:
    """The folders that ``hydra.searchpath=[...]`` in a command line names, and the other overrides.

    Raises:
        HydraException: it is not an override.
        ConfigError: it is not a list of folders.
    """
    mine = [one for one in overrides if re.match(r"\+{0,2}hydra\.searchpath=", one)]
    places: list[str] = []
    for override in OverridesParser.create().parse_overrides(mine):
        value = override.value()
        places += [value] if isinstance(value, str) else [str(one) for one in value or ()]  # type: ignore[union-attr]
    return places, [one for one in overrides if one not in mine]


def _remembered(load: Callable[..., Any]) -> Callable[..., Any]:
    """Cache Hydra's function that reads option files: repeated reads take most of the time of many compositions."""
    read: dict[str, Any] = {}

    def remembered(config_path: str) -> Any:
        if read.get(config_path) is None:
            read[config_path] = load(config_path=config_path)
        return copy.deepcopy(read[config_path])

    return remembered
