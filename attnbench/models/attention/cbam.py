"""Convolutional block attention: a channel gate, then a spatial one (CBAM, Woo et al., arXiv:1807.06521)."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from attnbench.config.options import Count, OddInt, checked
from attnbench.models.attention.squeeze import ChannelFirst
from attnbench.models.insertion import Attended, Site

SpatialNorm = bool | Literal["released"]


def _spatial_norm(norm: SpatialNorm) -> nn.Module:
    """The norm after the spatial convolution; the released one starts with a gate of 1/2 at every position."""
    if not norm:
        return nn.Identity()
    if norm is True:
        return nn.BatchNorm2d(1)
    released = nn.BatchNorm2d(1, momentum=0.01)
    nn.init.zeros_(released.weight)
    return released


class ChannelGate(nn.Module):
    """a = sigmoid(MLP(avg(x)) + MLP(max(x))), with avg and max over the map and the same MLP = W2 relu(W1 .) for both.

    (N, C) and (N, C) to (N, C).
    """

    def __init__(self, channels: int, hidden: int, *, bias: bool) -> None:
        super().__init__()
        self.mlp = nn.Sequential(
            nn.Linear(channels, hidden, bias=bias), nn.ReLU(), nn.Linear(hidden, channels, bias=bias)
        )

    def forward(self, pooled: Tensor, peak: Tensor) -> Tensor:
        """The gate of each channel from its mean and its maximum, (N, C) each, to (N, C) in [0, 1]."""
        return torch.sigmoid(self.mlp(pooled) + self.mlp(peak))


class SpatialGate(nn.Module):
    """a = sigmoid([BN](conv_k([max(x); avg(x)]))), maxima and averages over the channels.

    (N, C, H, W) to (N, 1, H, W).
    """

    def __init__(self, kernel_size: int, *, norm: SpatialNorm) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 1, kernel_size, padding=kernel_size // 2, bias=False)
        self.norm = _spatial_norm(norm)

    def forward(self, x: Tensor) -> Tensor:
        """The gate of each position, (N, C, H, W) to (N, 1, H, W) in [0, 1]."""
        pooled = torch.cat([x.amax(1, keepdim=True), x.mean(1, keepdim=True)], dim=1)
        return torch.sigmoid(self.norm(self.conv(pooled)))


class ConvolutionalBlockAttention(ChannelFirst):
    """x' = x * channel(x),  y = x' * spatial(x'); returns the refined map y, (N, C, H, W)."""

    def __init__(self, channels: int, hidden: int, kernel_size: int, *, bias: bool, norm: SpatialNorm) -> None:
        super().__init__()
        self.channel = ChannelGate(channels, hidden, bias=bias)
        self.spatial = SpatialGate(kernel_size, norm=norm)

    def signal(self, pooled: Tensor, peak: Tensor) -> Tensor:
        """The gate of each channel from its mean and its maximum, (N, C) each, to (N, C)."""
        return self.channel(pooled, peak)

    def rest(self, x: Tensor) -> Tensor:
        """The channel-gated map times its spatial gate, (N, C, H, W)."""
        return x * self.spatial(x).to(x.dtype)


@checked
def cbam(
    site: Site,
    *,
    reduction: Count = 16,
    kernel_size: OddInt = 7,
    bias: bool = False,
    norm: SpatialNorm = False,
) -> nn.Module:
    """CBAM on the output of a site.

    Without biases and norm, ResNet-50 has 28,073,544 parameters, the 26.77 x 2^20 of the ECA paper.

    Args:
        reduction: r; the MLP's hidden layer has C // r units.
        kernel_size: of the spatial gate's convolution.
        bias: biases in the MLP, as in the released code.
        norm: batch norm after the spatial convolution. ``released``: as in the released code, with weight 0 at the
            start and momentum 0.01.
    """
    channels = site.out_channels
    hidden = max(1, channels // reduction)
    refine = ConvolutionalBlockAttention(channels, hidden, kernel_size, bias=bias, norm=norm)
    return Attended(site.trunk, refine, reads="output", combine="replace")
