"""Inserting attention into a network: a `Site` is a place in a backbone, and `insert` puts a module there.

A backbone is never rewritten. A placement selects sites in a stock network, an attention's builder makes a module for
each site, and `insert` replaces the stock modules. The new module is usually an `Attended`,

    y = combine(T(x), A(x or T(x)))

where the trunk T is the stock module and the attention A returns its *signal* a, (N, C, 1, 1) or (N, C, H, W).
SE and ECA multiply the trunk's output by a gate computed from it; SB adds a shift computed from the trunk's input.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

from attnbench.base.errors import ConfigError


@dataclass(frozen=True)
class Site:
    """A place in one backbone where attention can be inserted.

    Attributes:
        path: dotted name of the module at this place, such as ``layer3.4.bn3``.
        trunk: T, the stock module, or a sequence of it and the modules in ``absorbs``.
        in_channels, out_channels: of the trunk.
        role: the part that the module has in its block, such as ``conv2``, ``depthwise`` or ``block``.
        stage, stages: the block's stage, counted from 1, and the number of stages in the backbone.
        width: channels of the block's inner layers (64 to 512 in ResNet-50), or of its output if it has none.
        expansion: factor by which this kind of block widens its inner layers (6 in MobileNetV2), else 1.
        absorbs: dotted names of the modules that move into the trunk; identities replace them.
        block: dotted name of the block that contains the site.
        before_norm: whether the trunk's output goes to a plain batch norm of the block, unchanged, and nowhere else.
        inner: whether the result of the norm behind the trunk stays within the block.
    """

    path: str
    trunk: nn.Module
    in_channels: int
    out_channels: int
    role: str
    stage: int
    stages: int
    width: int
    expansion: int = 1
    absorbs: tuple[str, ...] = ()
    block: str = ""
    before_norm: bool = False
    inner: bool = False


Placement = Callable[[nn.Module], Iterable[Site]]
Attention = Callable[[Site], nn.Module]


def _replace(trunk: Tensor, signal: Tensor) -> Tensor:
    return signal


COMBINE: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "mul": operator.mul,
    "add": operator.add,
    "replace": _replace,
}


def reference(site: Attended, x: Tensor) -> Tensor:
    """y = combine(T(x), A(x or T(x))), step by step; ``attnbench.models.fused`` has faster equivalents.

    The signal is rounded to the trunk's precision. Under autocast it may be float32, and would make all maps behind it
    float32.
    """
    y = site.trunk(x)
    signal = site.attention(x if site.reads == "input" else y)
    return COMBINE[site.combine](y, signal.to(y.dtype))


def combined(y: Tensor, s: Tensor, combine: str) -> Tensor:
    """A map (N, C, H, W) with a signal (N, C), in the map's precision."""
    return COMBINE[combine](y, s[:, :, None, None].to(y.dtype))


Backend = Callable[["Attended", Tensor], Tensor]


class Attended(nn.Module):
    """y = combine(T(x), A(x)) or combine(T(x), A(T(x))).

    Args:
        trunk: T, (N, C_in, H, W) to (N, C, H', W').
        attention: A, returning the signal, (N, C, 1, 1) or (N, C, H', W').
        reads: whether A reads the trunk's ``input`` or its ``output``.
        combine: ``mul`` y = T(x) a, ``add`` y = T(x) + a, ``replace`` y = a.

    Attributes:
        backend: the function that computes y; not part of the state dict.
        before_norm, inner: see ``Site``.
    """

    def __init__(
        self,
        trunk: nn.Module,
        attention: nn.Module,
        *,
        reads: Literal["input", "output"],
        combine: Literal["mul", "add", "replace"],
    ) -> None:
        super().__init__()
        self.trunk = trunk
        self.attention = attention
        self.reads = reads
        self.combine = combine
        self.backend: Backend = reference
        self.before_norm = False
        self.inner = False

    def forward(self, x: Tensor) -> Tensor:
        """The attended output y, (N, C_in, H, W) to (N, C, H', W')."""
        return self.backend(self, x)

    def extra_repr(self) -> str:
        """What ``print(model)`` shows in addition to trunk and attention."""
        return f"reads={self.reads}, combine={self.combine}"


class Replacement(nn.Module):
    """A module that takes the place of a convolution, such as DyConv.

    Attributes:
        before_norm, inner: see ``Site``.
        joined: whether its result may wait for the norm behind it; see ``attnbench.models.deferred``.
    """

    def __init__(self) -> None:
        super().__init__()
        self.before_norm = self.inner = self.joined = False


def is_attention(module: nn.Module) -> bool:
    """Whether a module was inserted that is attention as a whole, such as DyConv, instead of an ``Attended``."""
    return bool(getattr(module, "replaces_layer", False))


def insert(model: nn.Module, placement: Placement, attention: Attention) -> list[Site]:
    """Put attention at every site of a placement; changes the model in place.

    All sites are resolved and all modules are built before the model is changed. So a placement never sees inserted
    modules, and an error leaves the model unchanged.

    Args:
        model: a stock backbone, with pretrained weights already loaded if they are used.
        placement: selects the sites of a backbone.
        attention: builds the module for a site.

    Returns:
        The sites, in the backbone's order, as they were before the change.

    Raises:
        ConfigError: the placement selects no site, or two of its sites overlap.
    """
    sites = list(placement(model))
    if not sites:
        what = f"the placement selects no site in {type(model).__name__}"
        raise ConfigError(what, "placement", "choose other roles or stages")
    taken = [path for site in sites for path in (site.path, *site.absorbs)]
    if overlap := {path for path in taken if taken.count(path) > 1}:
        raise ConfigError(f"two sites share {min(overlap)}", "placement.roles", "drop one of the roles")
    modules = [attention(site) for site in sites]
    for site, module in zip(sites, modules, strict=True):
        if isinstance(module, (Attended, Replacement)):
            module.before_norm, module.inner = site.before_norm, site.inner
        if not isinstance(module, Attended):
            module.replaces_layer = True  # type: ignore[assignment]
        model.set_submodule(site.path, module)
        for path in site.absorbs:
            model.set_submodule(path, nn.Identity())
    return sites
