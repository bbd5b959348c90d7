"""A feature pyramid (Lin et al., arXiv:1612.03144) around any backbone."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Literal

from pydantic import ConfigDict
from pydantic.dataclasses import dataclass
from torch import Tensor, nn
from torchvision.ops import MultiScaleRoIAlign
from torchvision.ops.feature_pyramid_network import ExtraFPNBlock, FeaturePyramidNetwork, LastLevelMaxPool

from attnbench.config.options import Count, Index, Toolkit
from attnbench.models.detection.features import MAX_LEVELS, Features

Extra = Callable[[int, int], ExtraFPNBlock]


@dataclass(frozen=True, kw_only=True, config=ConfigDict(strict=True))
class PyramidOptions:
    """The options that all detectors with a feature pyramid have.

    Attributes:
        short_side, long_side: images are resized to this short side, or to this long side if that makes them smaller.
        anchor_size: side in pixels of the smallest square anchors on the finest map; it doubles from map to map.
        channels: of the pyramid, and of the heads that are convolutions.
        frozen_stages: number of backbone stages that are frozen together with the stem; 0 trains everything.
        norm: ``frozen`` fixes the statistics of the backbone's batch norms; scale and shift are still trained.
        protocol: the project whose training and testing is reproduced: ``torchvision``'s, or MMDetection 1.x's
            (``mmdet``); see ``attnbench.models.detection.mmdet``.
    """

    short_side: Count = 800
    long_side: Count = 1333
    anchor_size: Count = 32
    channels: Count = 256
    frozen_stages: Index = 1
    norm: Literal["trained", "frozen"] = "frozen"
    protocol: Toolkit = "torchvision"

    @property
    def canvas(self) -> tuple[int, int]:
        """Height and width for counting: 800 x 1280, as in the paper; the ratio 5:8 is close to that of most photos."""
        return self.short_side, self.short_side * 8 // 5

    def settle(self, network: nn.Module) -> None:
        """Freeze the first stages and, with ``norm=frozen``, the statistics of the backbone's batch norms.

        Raises:
            ConfigError: the backbone has fewer stages.
        """
        network.backbone.freeze(self.frozen_stages, self.norm)  # type: ignore[operator, union-attr]


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
