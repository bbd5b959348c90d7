"""Hydra's global state, and its reading of option files."""

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
    """Hydra's global state: the running command's own, or one that all compositions inside share."""
    if GlobalHydra.instance().is_initialized():
        _remember_options()
        yield
        return
    with initialize_config_dir(str(folder()), version_base="1.3"):
        _remember_options()
        yield


def load_option(path: str) -> Any:
    """An option file such as ``attention/eca`` as Hydra reads it, from wherever Hydra looks; None if there is none.

    It holds ``config``, ``header`` and ``defaults_list``. Hydra's state must be ``prepared``.
    """
    return _repository().load_config(path)


def _repository() -> Any:
    return typing.cast(Any, GlobalHydra.instance().config_loader()).repository


def _remember_options() -> None:
    repository = _repository()
    if not hasattr(repository.load_config, "read"):
        repository.load_config = _remembered(repository.load_config)


def _remembered(load: Callable[..., Any]) -> Callable[..., Any]:
    """Hydra's reading of an option file, done once: most of the time of many compositions is spent on it."""
    read: dict[str, Any] = {}

    def remembered(config_path: str) -> Any:
        if read.get(config_path) is None:
            read[config_path] = load(config_path=config_path)
        return copy.deepcopy(read[config_path])

    remembered.read = read  # type: ignore[attr-defined]
    return remembered
