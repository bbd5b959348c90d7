"""A feature pyramid (Lin et al., arXiv:1612.03144) around any backbone."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

from torch import Tensor, nn
from torchvision.ops import MultiScaleRoIAlign
from torchvision.ops.feature_pyramid_network import ExtraFPNBlock, FeaturePyramidNetwork, LastLevelMaxPool

from attnbench.models.detection.features import MAX_LEVELS, Features

Extra = Callable[[int, int], ExtraFPNBlock]


def pooled(coarsest: int, channels: int) -> ExtraFPNBlock:
    """One extra map, which takes every second position of the last one."""
    return LastLevelMaxPool()


class Pyramid(Features):
    """Maps of the same width, each combined with the coarser ones, and extra coarse maps.

    Args:
        body: a stock classification network, before attention is inserted.
        channels: of each map.
        levels: the maximum number of the backbone's maps; the coarsest are used.
        extra: from the channels of the backbone's last map and of the pyramid, the layers that make the extra maps.
        extras: the number of extra maps; each has half the resolution of the one before.

    Attributes:
        levels: the number of the backbone's maps.
        out_channels: of each map.
        map_strides: of each map, extra ones included.
    """

    def __init__(
        self, body: nn.Module, channels: int, *, levels: int = MAX_LEVELS, extra: Extra = pooled, extras: int = 1
    ) -> None:
        super().__init__(body, levels)
        self.levels, self.out_channels = len(self.channels), channels
        self.map_strides = self.strides + [self.strides[-1] * 2**n for n in range(1, extras + 1)]
        self.fpn = FeaturePyramidNetwork(self.channels, channels, extra_blocks=extra(self.channels[-1], channels))

    def forward(self, images: Tensor) -> OrderedDict[str, Tensor]:
        """The pyramid's maps, (N, ``out_channels``, H_i, W_i) each, from fine to coarse."""
        maps: OrderedDict[str, Tensor] = self.fpn(super().forward(images))
        return maps

    def pooling(self, side: int) -> MultiScaleRoIAlign:
        """The layer that crops regions from the backbone's levels, each to ``side`` x ``side`` positions."""
        return MultiScaleRoIAlign([str(level) for level in range(self.levels)], side, 2)
