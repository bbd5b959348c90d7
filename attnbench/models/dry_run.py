"""Sites by patterns of module names, in any network; their channels are found by a dry run on one image."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from attnbench.base.errors import ConfigError, first_line, listed
from attnbench.models.insertion import Site

KEY = "placement.paths"
SIDES = (64, 224)  # of the image of the dry run, unless the network says which size it needs
FEWEST = 2  # more modules than one with the same last name show how the network names its parts

Shapes = dict[str, list[tuple[torch.Size, torch.Size]]]  # of input and output, for each call of a module


def sites(model: nn.Module, patterns: Sequence[str], stages: Mapping[str, int]) -> Iterator[Site]:
    """A site at each module whose name matches a pattern, in the network's order.

    Args:
        model: a network for images that takes (N, 3, H, W).
        patterns: dotted names, with ``*`` for any text.
        stages: the stage of each known block, by its name. If a site is in none of them, the stages are counted by the
            resolution of the sites' maps, the finest first.

    Raises:
        ConfigError: a pattern matches nothing, sites contain each other, or a module is not used exactly once in a
            forward pass, or does not map (N, C, H, W) to (N, C', H', W').
    """
    paths = _matching(model, patterns)
    shapes = _measured(model, paths)
    maps = {path: _maps(model, path, shapes.get(path, [])) for path in paths}
    stage = _stages(maps, stages)
    for path, (entering, leaving) in maps.items():
        yield Site(
            path,
            model.get_submodule(path),
            in_channels=entering[1],
            out_channels=leaving[1],
            role=path.rpartition(".")[2],
            stage=stage[path],
            stages=max(*stage.values(), *stages.values()) if stages else max(stage.values()),
            width=leaving[1],
            block=path.rpartition(".")[0] or path,
        )


def _matching(model: nn.Module, patterns: Sequence[str]) -> list[str]:
    names = [name for name, _ in model.named_modules() if name]
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in names):
            lasts = [name.rpartition(".")[2] for name in names]
            known = dict.fromkeys(last for last in lasts if not last.isdigit() and lasts.count(last) >= FEWEST)
            todo = f"use names such as {names[len(names) // 2]}; parts are called {listed(known)}"
            raise ConfigError(f"no module of {type(model).__name__} is named {pattern}", KEY, todo)
    found = [name for name in names if any(fnmatchcase(name, pattern) for pattern in patterns)]
    for outer, inner in pairwise(found):  # in the network's order, so the parts of a module follow it
        if inner.startswith(f"{outer}."):
            raise ConfigError(f"{outer} contains {inner}, and both would have attention", KEY, "use narrower patterns")
    return found


def _measured(model: nn.Module, paths: Sequence[str]) -> Shapes:
    """The shapes of what modules take and return in a forward pass over one image.

    Raises:
        ConfigError: the network cannot process an image.
    """
    fixed = (getattr(model, "pretrained_cfg", None) or {}).get("input_size")
    sides = (int(fixed[-1]),) if fixed else SIDES
    for side in sides:
        shapes: Shapes = {}
        hooks = [model.get_submodule(path).register_forward_hook(partial(_keep, shapes, path)) for path in paths]
        training = {module: module.training for module in model.modules()}
        try:
            with torch.no_grad(), torch.random.fork_rng([]):
                model.eval()(next(model.parameters()).new_zeros(1, 3, side, side))
            return shapes
        except (RuntimeError, ValueError, TypeError, AssertionError) as error:
            failure = error
        finally:
            for hook in hooks:
                hook.remove()
            for module, mode in training.items():
                module.training = mode
    what = f"a dry run of {type(model).__name__} on an image of {sides[-1]} pixels failed: {first_line(failure)}"
    raise ConfigError(what, KEY, "use placement.roles, with the roles of its blocks in ANATOMY") from failure


def _keep(shapes: Shapes, path: str, module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
    entering, leaving = (x.shape if isinstance(x, Tensor) else torch.Size() for x in (*inputs[:1], output))
    shapes.setdefault(path, []).append((entering, leaving))


def _maps(model: nn.Module, path: str, calls: list[tuple[torch.Size, torch.Size]]) -> tuple[torch.Size, torch.Size]:
    """The shapes at a module that is called once, with maps.

    Raises:
        ConfigError: it is not.
    """
    kind = type(model.get_submodule(path)).__name__
    if len(calls) != 1:
        what = f"{path}, a {kind}, is used {len(calls)} times in a forward pass"
        raise ConfigError(what, KEY, "choose modules that are used once")
    (entering, leaving), *_ = calls
    if len(entering) != 4 or len(leaving) != 4:
        shown = " -> ".join(str(tuple(shape)) if shape else "not a tensor" for shape in calls[0])
        what = f"{path}, a {kind}, does not map (N, C, H, W) to (N, C', H', W'): {shown}"
        raise ConfigError(what, KEY, "choose modules that return feature maps")
    return entering, leaving


def _stages(maps: Mapping[str, tuple[torch.Size, torch.Size]], known: Mapping[str, int]) -> dict[str, int]:
    """The stage of each site."""
    inside = {path: [stage for block, stage in known.items() if f"{path}.".startswith(f"{block}.")] for path in maps}
    if all(inside.values()):
        return {path: stages[-1] for path, stages in inside.items()}
    sides = sorted({leaving[-1] for _, leaving in maps.values()}, reverse=True)
    return {path: sides.index(leaving[-1]) + 1 for path, (_, leaving) in maps.items()}
