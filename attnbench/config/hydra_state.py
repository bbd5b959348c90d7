"""Hydra's global state, and the reading of option files with Hydra."""

from __future__ import annotations

import copy
import typing
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra

from attnbench.config.option_files import folder


@contextmanager
def prepared() -> Iterator[None]:
    """Use Hydra's global state: the existing one, or a new one that all compositions inside this context share."""
    if GlobalHydra.instance().is_initialized():
        _remember_options()
        yield
        return
    with initialize_config_dir(str(folder()), version_base="1.3"):
        _remember_options()
        yield


def load_option(path: str) -> Any:
    """An option file such as ``attention/eca``, found on Hydra's search path and read by Hydra; None if there is none.

    It has ``config``, ``header`` and ``defaults_list``. Call this inside ``prepared()``.
    """
    return _repository().load_config(path)


def _repository() -> Any:
    return typing.cast(Any, GlobalHydra.instance().config_loader()).repository


def _remember_options() -> None:
    repository = _repository()
    if not hasattr(repository.load_config, "read"):
        repository.load_config = _remembered(repository.load_config)


def _remembered(load: Callable[..., Any]) -> Callable[..., Any]:
    """Cache Hydra's function that reads option files: repeated reads take most of the time of many compositions."""
    read: dict[str, Any] = {}

    def remembered(config_path: str) -> Any:
        if read.get(config_path) is None:
            read[config_path] = load(config_path=config_path)
        return copy.deepcopy(read[config_path])

    remembered.read = read  # type: ignore[attr-defined]
    return remembered
