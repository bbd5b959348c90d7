"""Attention gets into a network here: a `Site` is a place in a backbone, `insert` puts a module there.

A backbone is never rewritten. A placement names sites in a stock network, an attention's builder says what shall
live at each of them, and `insert` makes the exchange. What usually lives there is `Attended`,

    y = combine(T(x), A(x or T(x)))

with the stock module T as trunk and an attention A that returns its *signal* a, (N, C, 1, 1) or (N, C, H, W).
SE and ECA multiply a gate of the trunk's output; SB adds a shift read from the trunk's input.
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
    """A resolved place in one backbone.

    Attributes:
        path: the module's dotted name, such as ``layer3.4.bn3``.
        trunk: T, the module that lives there now.
        in_channels, out_channels: of the trunk.
        role: what the place is in its block, such as ``conv2``, ``depthwise`` or ``block``.
        stage, stages: the block's stage, from 1, and how many the backbone has.
        width: channels of the block's inner layers (64 to 512 in ResNet-50), the output's if it has none.
        expansion: how far the block's family widens its inner layers by design (6 in MobileNetV2), else 1.
        absorbs: names of modules that the trunk took in and that shall pass their input on.
        block: the dotted name of the block that the site is in.
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
    """y = combine(T(x), A(x or T(x))), as it is written; ``attnbench.models.fused`` has what is equal and faster."""
    y = site.trunk(x)
    signal = site.attention(x if site.reads == "input" else y)
    return COMBINE[site.combine](y, signal)


Backend = Callable[["Attended", Tensor], Tensor]


class Attended(nn.Module):
    """y = combine(T(x), A(x)) or combine(T(x), A(T(x))).

    Args:
        trunk: T, (N, C_in, H, W) to (N, C, H', W').
        attention: A, returning the signal, (N, C, 1, 1) or (N, C, H', W').
        reads: whether A reads the trunk's ``input`` or its ``output``.
        combine: ``mul`` y = T(x) a, ``add`` y = T(x) + a, ``replace`` y = a.

    Attributes:
        backend: how it is computed; no part of the state.
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

    def forward(self, x: Tensor) -> Tensor:
        """The attended output y, (N, C_in, H, W) to (N, C, H', W')."""
        return self.backend(self, x)

    def extra_repr(self) -> str:
        """What ``print(model)`` shows beside trunk and attention."""
        return f"reads={self.reads}, combine={self.combine}"


def insert(model: nn.Module, placement: Placement, attention: Attention) -> list[Site]:
    """Put an attention at every site of a placement, in place.

    All sites are resolved before the first one is edited, so that a placement never meets what it inserted.

    Args:
        model: a stock backbone, with stock weights if it shall have them.
        placement: the backbone's sites.
        attention: a site to the module that shall live there.

    Returns:
        The sites, in the backbone's order, as they were.

    Raises:
        ConfigError: the placement finds no site, or two of its sites overlap.
    """
    sites = list(placement(model))
    if not sites:
        raise ConfigError(f"no site in {type(model).__name__}", "placement", "choose other roles or stages")
    taken = [path for site in sites for path in (site.path, *site.absorbs)]
    if overlap := {path for path in taken if taken.count(path) > 1}:
        raise ConfigError(f"two sites share {min(overlap)}", "placement.roles", "drop one of the roles")
    modules = [attention(site) for site in sites]
    for site, module in zip(sites, modules, strict=True):
        model.set_submodule(site.path, module)
        for path in site.absorbs:
            model.set_submodule(path, nn.Identity())
    return sites
