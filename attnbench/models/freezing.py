"""Freezing of parts of a network: their parameters get no gradient, and their batch norms keep their statistics."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from torch import nn

from attnbench.base.errors import ConfigError
from attnbench.models import regions

KEY = "schedule.freeze"


def find(model: nn.Module, names: Sequence[str]) -> list[str]:
    """The modules to freeze, by the names of regions or modules; see ``regions``.

    Raises:
        ConfigError: a name is unknown, or nothing would be left to train.
    """
    paths = list(dict.fromkeys(path for name in names for path in regions.find(model, name, KEY)))
    frozen = regions.parameters(model, paths)
    if names and all(name in frozen for name, _ in model.named_parameters()):
        raise ConfigError("nothing is left to train", KEY, "freeze fewer parts")
    return paths


def freeze(model: nn.Module, paths: Iterable[str]) -> None:
    """Give the parameters of modules no gradient, and set the modules to evaluation mode.

    Args:
        paths: dotted names; a module stands for its own parameters, not for those of its children.
    """
    paths = list(paths)
    for path in paths:
        for parameter in model.get_submodule(path).parameters(recurse=False):
            parameter.requires_grad_(False)
    hold(model, paths)


def params(model: nn.Module) -> int:
    """The number of frozen parameters."""
    return sum(parameter.numel() for parameter in model.parameters() if not parameter.requires_grad)


def summary(model: nn.Module) -> str:
    """How many of a network's parameters are frozen, as text."""
    sizes = [(parameter.numel(), parameter.requires_grad) for parameter in model.parameters()]
    frozen = [size for size, trained in sizes if not trained]
    tensors = f"{len(frozen)} of {len(sizes)} tensors"
    return f"{tensors} with {sum(frozen):,} of {sum(size for size, _ in sizes):,} parameters are frozen"


def hold(model: nn.Module, paths: Iterable[str]) -> None:
    """Set frozen modules to evaluation mode; to call after ``model.train()``."""
    for path in paths:
        model.get_submodule(path).training = False
