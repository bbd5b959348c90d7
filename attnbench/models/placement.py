"""Placements: roles and stages of a stock backbone, resolved to sites.

A role is the part that a module has in its block, such as ``conv2``. ``ANATOMY`` lists the roles of every block class
that attnbench supports; to support another class, add a line there. These names can be used, too:

    block       in every backbone, the block's output: its last norm, before the shortcut sum
    layer       in every backbone, every convolution of the block
    C1, C2, C3  the SB paper's names for expand, depthwise and project

In any other network, ``paths`` names modules instead of roles; see ``dry_run``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

from torch import nn

from attnbench.base.errors import ConfigError, nearest
from attnbench.config.options import Blocks, Names, Stages, Wrap, checked
from attnbench.models import dry_run
from attnbench.models.insertion import Placement, Site
from attnbench.models.ops.fused_norm import is_plain

BLOCKS = {"all": slice(None), "first": slice(1), "last": slice(-1, None), "even": slice(1, None, 2)}

ALIASES = {"C1": "expand", "C2": "depthwise", "C3": "project", "output": "block"}


@dataclass(frozen=True)
class Layer:
    """A convolution of a block with the norm and activation that follow it directly, by their names in the block.

    A name is None if there is no such module, or if several layers share it, so that it cannot be moved.
    """

    conv: str
    norm: str | None = None
    act: str | None = None


@dataclass(frozen=True)
class Anatomy:
    """The roles in one block.

    Attributes:
        layers: the block's convolutions by role.
        output: the module that gives the block's output before a shortcut sum: the last norm, if there is one.
        width: channels inside the block.
        expansion: factor by which this kind of block widens its inner layers.
    """

    layers: dict[str, Layer]
    output: str
    width: int
    expansion: int = 1


def _channels(block: nn.Module, name: str) -> int:
    """Output channels of a block's norm or convolution."""
    module = block.get_submodule(name)
    return int(getattr(module, "num_features", None) or module.out_channels)  # type: ignore[arg-type]


def _resnet(block: nn.Module) -> Anatomy:
    names = [n for n in ("1", "2", "3") if hasattr(block, f"conv{n}")]
    layers = {f"conv{n}": Layer(f"conv{n}", f"bn{n}") for n in names}
    last = f"bn{names[-1]}"
    return Anatomy(layers, last, _channels(block, last) // getattr(block, "expansion", 1))


def _inverted_residual(block: nn.Module) -> Anatomy:
    """torchvision's: conv = [expand triple,] depthwise triple, 1x1 convolution, norm."""
    triples = len(block.conv) - 2  # type: ignore[arg-type]
    roles = ("expand", "depthwise")[-triples:]
    layers = {r: Layer(f"conv.{i}.0", f"conv.{i}.1", f"conv.{i}.2") for i, r in enumerate(roles)}
    layers["project"] = Layer(f"conv.{triples}", f"conv.{triples + 1}")
    last = f"conv.{triples + 1}"
    return Anatomy(layers, last, _channels(block, last), expansion=6)


def _cifar_inverted_residual(block: nn.Module) -> Anatomy:
    roles = ("expand", "depthwise", "project")
    layers = {role: Layer(f"conv{n}", f"bn{n}") for n, role in enumerate(roles, start=1)}
    return Anatomy(layers, "bn3", _channels(block, "bn3"), expansion=6)


def _shuffle_unit(block: nn.Module) -> Anatomy:
    """Two concatenated branches; the first one has convolutions only if the unit downsamples."""
    layers = {
        "expand": Layer("branch2.0", "branch2.1", "branch2.2"),
        "depthwise": Layer("branch2.3", "branch2.4"),
        "project": Layer("branch2.5", "branch2.6", "branch2.7"),
    }
    if len(block.branch1):  # type: ignore[arg-type]
        layers["shortcut_depthwise"] = Layer("branch1.0", "branch1.1")
        layers["shortcut_project"] = Layer("branch1.2", "branch1.3", "branch1.4")
    return Anatomy(layers, "branch2.6", _channels(block, "branch2.6"))


def _mnas(block: nn.Module) -> Anatomy:
    layers = {
        "expand": Layer("layers.0", "layers.1", "layers.2"),
        "depthwise": Layer("layers.3", "layers.4", "layers.5"),
        "project": Layer("layers.6", "layers.7"),
    }
    return Anatomy(layers, "layers.7", _channels(block, "layers.7"), expansion=6)


def _dense_layer(block: nn.Module) -> Anatomy:
    """Norms come before convolutions here: norm2 follows conv1, and conv2's output is concatenated without a norm."""
    layers = {"conv1": Layer("conv1", "norm2", "relu2"), "conv2": Layer("conv2")}
    return Anatomy(layers, "conv2", _channels(block, "conv1"))


def _timm_inverted_residual(block: nn.Module) -> Anatomy:
    """timm's norms include the activation, so to wrap a layer with its norm also wraps its activation."""
    layers = {
        "expand": Layer("conv_pw", "bn1"),
        "depthwise": Layer("conv_dw", "bn2"),
        "project": Layer("conv_pwl", "bn3"),
    }
    return Anatomy(layers, "bn3", _channels(block, "bn3"), expansion=6)


def _timm_separable(block: nn.Module) -> Anatomy:
    layers = {"depthwise": Layer("conv_dw", "bn1"), "project": Layer("conv_pw", "bn2")}
    return Anatomy(layers, "bn2", _channels(block, "bn2"), expansion=6)


ANATOMY: dict[str, Callable[[nn.Module], Anatomy]] = {
    "torchvision.models.resnet.BasicBlock": _resnet,
    "torchvision.models.resnet.Bottleneck": _resnet,
    "torchvision.models.mobilenetv2.InvertedResidual": _inverted_residual,
    "torchvision.models.shufflenetv2.InvertedResidual": _shuffle_unit,
    "torchvision.models.mnasnet._InvertedResidual": _mnas,
    "torchvision.models.densenet._DenseLayer": _dense_layer,
    "timm.models.resnet.BasicBlock": _resnet,
    "timm.models.resnet.Bottleneck": _resnet,
    "timm.models._efficientnet_blocks.InvertedResidual": _timm_inverted_residual,
    "timm.models._efficientnet_blocks.DepthwiseSeparableConv": _timm_separable,
    "attnbench.models.backbones.resnet_cifar.BasicBlock": _resnet,
    "attnbench.models.backbones.mobilenetv2_cifar.InvertedResidual": _cifar_inverted_residual,
}

# Blocks per stage, for backbones whose module names do not show the stages.
STAGES = {
    "torchvision.models.mobilenetv2.MobileNetV2": (1, 2, 3, 4, 3, 3, 1),
    "attnbench.models.backbones.mobilenetv2_cifar.MobileNetV2": (1, 2, 3, 4, 3, 3, 1),
}


def _class_name(module: nn.Module) -> str:
    return f"{type(module).__module__}.{type(module).__qualname__}"


def known_blocks(model: nn.Module) -> list[tuple[str, int, nn.Module]]:
    """The supported blocks of a backbone in order: name, stage (from 1), block.

    Raises:
        ConfigError: the backbone has no supported block; lists the classes that look like blocks.
    """
    found = [(path, m) for path, m in model.named_modules() if _class_name(m) in ANATOMY]
    if not found:
        raise ConfigError(
            f"{type(model).__name__} has no supported block, only {', '.join(_repeated(model))}",
            "backbone",
            "give module names by placement.paths, or its block's roles in ANATOMY of attnbench/models/placement.py",
        )
    stages = _stages(model, [path for path, _ in found])
    return [(path, stage, m) for (path, m), stage in zip(found, stages, strict=True)]


def _repeated(model: nn.Module) -> list[str]:
    """The classes of composite modules that occur several times in sequences, as a backbone's blocks do."""
    rows = [m for m in model.modules() if isinstance(m, (nn.Sequential, nn.ModuleList)) and len(m) > 1]
    names = [_class_name(part) for row in rows for part in row if len(list(part.children())) > 1]
    return sorted({name for name in names if names.count(name) > 1 and not name.startswith("torch.nn.")})


def _stages(model: nn.Module, paths: list[str]) -> list[int]:
    """The stage of each block: from ``STAGES`` if it has the backbone, else one per group such as ``layer3``."""
    if counts := STAGES.get(_class_name(model)):
        ends = list(accumulate(counts))
        return [next(s for s, end in enumerate(ends, 1) if i < end) for i in range(len(paths))]
    groups = [(re.match(r"(.*?\D)?\d+", path) or re.match("", path)).group() for path in paths]  # type: ignore[union-attr]
    order = list(dict.fromkeys(groups))
    return [order.index(group) + 1 for group in groups]


@checked
def place(
    *,
    roles: Names | None = None,
    stages: Stages | None = None,
    blocks: Blocks = "all",
    wrap: Wrap = "conv",
    paths: Names | None = None,
) -> Placement:
    """A placement at the given roles in the given stages (in all stages if None).

    Args:
        roles: roles in ``ANATOMY``, or the names listed at the top of this module; None selects no site.
        stages: stages counted from 1.
        blocks: which blocks of a stage: ``all``, the ``first``, the ``last``, or the ``even`` ones (2nd, 4th, ...).
        wrap: what T is at a convolution: the convolution alone, with its norm, or with its norm and activation. At a
            block's output T is always the last norm.
        paths: patterns of module names, such as ``stages.*.blocks.*.conv2``, instead of roles: T is each module that
            one of them names, in any network.

    Raises:
        ConfigError: paths are given together with stages, blocks or wrap; or when applied to a backbone that lacks a
            role or a stage, or a norm or an activation to wrap.
    """
    if paths and (stages, blocks, wrap) != (None, "all", "conv"):
        what = "paths name the modules themselves, without stages, blocks and wrap"
        raise ConfigError(what, "placement.paths", "use placement=paths")

    def placement(model: nn.Module) -> Iterator[Site]:
        if paths:
            yield from dry_run.sites(model, paths, stages_of_blocks(model))
            return
        found = known_blocks(model)
        total = max(stage for _, stage, _ in found)
        _refuse_unknown(found, roles or [], stages or [], total)
        for stage in stages or range(1, total + 1):
            here = [(path, block) for path, at, block in found if at == stage]
            for path, block in here[BLOCKS[blocks]]:
                yield from _sites(path, block, roles or [], wrap, stage, total)

    return placement


def stages_of_blocks(model: nn.Module) -> dict[str, int]:
    """The stage of each supported block by its name; empty if there is none."""
    try:
        return {path: stage for path, stage, _ in known_blocks(model)}
    except ConfigError:
        return {}


def _refuse_unknown(found: list[tuple[str, int, nn.Module]], roles: list[str], stages: list[int], total: int) -> None:
    layers = {role for _, _, block in found for role in ANATOMY[_class_name(block)](block).layers}
    known = [*sorted(layers), "block", "layer"]
    for role in roles:
        if ALIASES.get(role, role) not in known:
            raise ConfigError(f"this backbone has no role {role}", "placement.roles", nearest(role, known))
    for stage in stages:
        if stage > total:
            raise ConfigError(f"this backbone has no stage {stage}", "placement.stages", f"use 1 to {total}")


def _sites(path: str, block: nn.Module, roles: list[str], wrap: Wrap, stage: int, stages: int) -> Iterator[Site]:
    anatomy = ANATOMY[_class_name(block)](block)
    wanted = {ALIASES.get(role, role) for role in roles}
    common: dict[str, Any] = {
        "stage": stage,
        "stages": stages,
        "width": anatomy.width,
        "expansion": anatomy.expansion,
        "block": path,
    }
    for role, layer in anatomy.layers.items():
        if role in wanted or "layer" in wanted:
            conv = block.get_submodule(layer.conv)
            trunk, absorbs = _wrapped(block, layer, wrap, role)
            paths = tuple(f"{path}.{name}" for name in absorbs)
            yield Site(
                f"{path}.{layer.conv}",
                trunk,
                conv.in_channels,  # type: ignore[arg-type]
                conv.out_channels,  # type: ignore[arg-type]
                role,
                absorbs=paths,
                inner=layer.norm != anatomy.output,
                before_norm=wrap == "conv" and layer.norm is not None and is_plain(block.get_submodule(layer.norm)),
                **common,
            )
    if "block" in wanted:
        channels = _channels(block, anatomy.output)
        norm = block.get_submodule(anatomy.output)
        yield Site(f"{path}.{anatomy.output}", norm, channels, channels, "block", **common)


def _wrapped(block: nn.Module, layer: Layer, wrap: Wrap, role: str) -> tuple[nn.Module, list[str]]:
    """The trunk that ``wrap`` makes of a layer, and the names of the modules that move into it."""
    names = [layer.conv, layer.norm, layer.act][: ("conv", "conv_norm", "conv_norm_act").index(wrap) + 1]
    if None in names:
        lacking = ("norm", "activation")[names.index(None) - 1]
        raise ConfigError(
            f"{role} of {type(block).__name__} has no {lacking} module that can be wrapped",
            "placement.wrap",
            "use " + " or ".join(("conv", "conv_norm")[: names.index(None)]),
        )
    parts = [block.get_submodule(name) for name in names if name]
    return (parts[0] if len(parts) == 1 else nn.Sequential(*parts)), [n for n in names[1:] if n]
