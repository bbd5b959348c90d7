"""Efficient channel attention: y = T(x) * sigmoid(conv1d_k(gap(T(x)))) (arXiv:1910.03151)."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn

from attnbench.base.errors import ConfigError
from attnbench.config.options import KernelSize, Positive, checked
from attnbench.models.attention.squeeze import PooledAttention
from attnbench.models.insertion import Attended, Site


class EfficientChannelAttention(PooledAttention):
    """a = sigmoid(w * gap(x)) with one 1-D convolution of k weights over the channels, no bias.

    (N, C, H, W) to a signal (N, C, 1, 1).
    """

    def __init__(self, kernel_size: int) -> None:
        super().__init__()
        self.conv = nn.Conv1d(1, 1, kernel_size, padding=kernel_size // 2, bias=False)

    def signal(self, pooled: Tensor) -> Tensor:
        """The gate of each channel from its k neighbours, (N, C) to (N, C) in [0, 1]."""
        return torch.sigmoid(self.conv(pooled.unsqueeze(1)).squeeze(1))


def adaptive_kernel_size(channels: int, gamma: float, b: float, tie: Literal["up", "down"]) -> int:
    """k = the odd number nearest to (log2(C) + b) / gamma (equation 9), at least 1.

    An even value is equally near to two odd numbers (C = 2048 gives 6.0); the released code takes the larger one.
    """
    t = (math.log2(channels) + b) / gamma
    below = 2 * math.floor((t - 1) / 2) + 1
    up = t - below > 1 or (t - below == 1 and tie == "up")
    return max(1, below + 2 * up)


@checked
def eca(
    site: Site,
    *,
    kernel_size: KernelSize = "adaptive",
    gamma: Positive = 2.0,
    b: float = 1.0,
    adaptive_on: Literal["output", "width"] = "output",
    tie: Literal["up", "down"] = "up",
) -> nn.Module:
    """ECA on the output of a site.

    Args:
        kernel_size: k: an odd number, a list with one per stage, or ``adaptive``. In ResNet-50, [3, 5, 5, 7] adds the
            paper's 80 parameters; the adaptive rule on output channels adds 86.
        gamma, b: of the adaptive rule.
        adaptive_on: whether C is the number of the site's output channels or the width inside its block.
        tie: whether the rule rounds an even value up or down.

    Raises:
        ConfigError: a list whose length is not the backbone's number of stages.
    """
    if isinstance(kernel_size, list):
        if len(kernel_size) != site.stages:
            wrong = f"kernel_size has {len(kernel_size)} values, but the backbone has {site.stages} stages"
            todo = f"give {site.stages} odd numbers, a single one, or adaptive"
            raise ConfigError(wrong, "attention.kernel_size", todo)
        k = kernel_size[site.stage - 1]
    elif kernel_size == "adaptive":
        channels = site.out_channels if adaptive_on == "output" else site.width
        k = adaptive_kernel_size(channels, gamma, b, tie)
    else:
        k = kernel_size
    return Attended(site.trunk, EfficientChannelAttention(k), reads="output", combine="mul")
