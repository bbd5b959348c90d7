"""SE-GC: y = T(x) * sigmoid(GC_G(gap(T(x)))), GC a group convolution (ECA paper, arXiv:1910.03151)."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from attnbench.base.errors import ConfigError
from attnbench.config.options import Count, checked
from attnbench.models.attention.squeeze import PooledAttention
from attnbench.models.insertion import Attended, Site


class GroupGate(PooledAttention):
    """a = sigmoid(W_G gap(x)), where W_G is a block-diagonal C x C matrix of G blocks: C^2 / G weights, no bias.

    (N, C, H, W) to a signal (N, C, 1, 1).
    """

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.mix = nn.Conv1d(channels, channels, 1, groups=groups, bias=False)

    def signal(self, pooled: Tensor) -> Tensor:
        """The gate of each channel from its group, (N, C) to (N, C) in [0, 1]."""
        return torch.sigmoid(self.mix(pooled[:, :, None])[..., 0])


@checked
def se_gc(site: Site, *, size: Count = 16, unit: Literal["groups", "channels"] = "groups") -> nn.Module:
    """SE-GC on the output of a site.

    SE-GC1 has 16 groups, SE-GC2 C/16 groups (of 16 channels each), SE-GC3 C/8 groups (of 8 channels).

    Args:
        size: the number of groups, or of channels in each group.
        unit: what ``size`` counts.

    Raises:
        ConfigError: ``size`` does not divide the number of the site's channels.
    """
    channels = site.out_channels
    if channels % size:
        parts = f"{size} groups" if unit == "groups" else f"groups of {size}"
        raise ConfigError(
            f"the {channels} channels of {site.path} cannot be divided into {parts}",
            "attention.size",
            "use a divisor of all the sites' channels, such as 8, or another placement",
        )
    groups = size if unit == "groups" else channels // size
    return Attended(site.trunk, GroupGate(channels, groups), reads="output", combine="mul")
