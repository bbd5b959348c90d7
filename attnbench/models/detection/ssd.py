"""SSD-Lite (Liu et al., arXiv:1512.02325; Sandler et al., arXiv:1801.04381), as in the pytorch-ssd project.

It has two feature maps from the backbone and four from extra blocks, six boxes at each position of a map, and heads of
separable convolutions. The SB paper trains it on VOC with MobileNetV2 at 300x300, with maps of side 19, 10, 5, 3, 2
and 1.
"""

from __future__ import annotations

from collections import OrderedDict
from functools import partial
from typing import Any, Literal

import torch
from pydantic import ConfigDict
from pydantic.dataclasses import dataclass
from torch import Tensor, nn
from torchvision.models.detection.anchor_utils import DefaultBoxGenerator
from torchvision.models.detection.ssd import SSD as TorchvisionSSD
from torchvision.models.detection.ssdlite import SSDLiteHead
from torchvision.models.mobilenetv2 import InvertedResidual

from attnbench.config.options import Count, Index
from attnbench.models.detection import pytorch_ssd
from attnbench.models.detection.detector import IMAGENET, Dense
from attnbench.models.detection.features import Features

EXTRAS = ((512, 0.2), (256, 0.25), (256, 0.5), (64, 0.25))  # channels and expansion of the extra blocks
STEPS = (16, 32, 64, 100, 150, 300)  # pixels between the positions of each map, for images of side SIZE
SIZE = 300
SCALES = tuple(at / SIZE for at in (60, 105, 150, 195, 240, 285, 330))  # sides of the boxes, relative to the image
RATIOS = (2, 3)
HALF = ([127 / 255] * 3, [128 / 255] * 3)


@dataclass(frozen=True, kw_only=True, config=ConfigDict(strict=True))
class SSD:
    """The options of ``detector=ssd``.

    Attributes:
        size: side of the square to which every image is resized.
        normalize: ``half`` is (x - 127) / 128, as in pytorch-ssd; ``imagenet`` is torchvision's normalisation, for
            weights that were trained with it.
        frozen_stages: number of backbone stages that are frozen together with the stem; 0 trains everything.
        norm: ``frozen`` fixes the statistics of the backbone's batch norms; scale and shift are still trained.
        protocol: the project whose training and testing is reproduced: ``torchvision``'s, or ``pytorch_ssd``; see
            ``attnbench.models.detection.pytorch_ssd``.
        init: of the extra blocks and the heads: ``xavier``, or PyTorch's ``default``. Biases are then PyTorch's too,
            except with ``xavier`` and ``torchvision``: there they are 0.
    """

    size: Count = SIZE
    normalize: Literal["half", "imagenet"] = "half"
    frozen_stages: Index = 0
    norm: Literal["trained", "frozen"] = "trained"
    protocol: Literal["torchvision", "pytorch_ssd"] = "torchvision"
    init: pytorch_ssd.Init = "xavier"

    masks = False

    @property
    def canvas(self) -> tuple[int, int]:
        """Height and width for counting: those to which every image is resized."""
        return self.size, self.size

    def network(self, body: nn.Module, num_classes: int) -> SingleShot:
        """The detector around a classification network; ``num_classes`` excludes the background."""
        backbone = Extended(body)
        mean, std = HALF if self.normalize == "half" else IMAGENET
        priors = Priors(backbone.strides, self.size)
        head = _head(backbone.out_channels, priors.num_anchors_per_location(), num_classes + 1)
        ours = self.protocol == "pytorch_ssd"
        if ours:
            pytorch_ssd.give_biases(head)
        if ours or self.init == "default":
            for part in (backbone.extra, head):
                pytorch_ssd.initialised(part, self.init)
        sides, kind = (self.size, self.size), SingleShotByPytorchSSD if ours else SingleShot
        return kind(backbone, priors, sides, num_classes + 1, image_mean=mean, image_std=std, head=head)

    def settle(self, network: nn.Module) -> None:
        """Freeze the first stages and, with ``norm=frozen``, the statistics of the backbone's batch norms.

        Raises:
            ConfigError: the backbone has fewer stages.
        """
        network.backbone.freeze(self.frozen_stages, self.norm)  # type: ignore[operator, union-attr]


class SingleShot(Dense, TorchvisionSSD):
    """torchvision's SSD, including its matching, losses and non-maximum suppression."""

    def dense(self, images: Tensor) -> dict[str, Tensor]:
        """Class logits (N, boxes, classes) and box offsets (N, boxes, 4)."""
        heads: dict[str, Tensor] = self.head(list(self.backbone(images).values()))
        return heads


class SingleShotByPytorchSSD(pytorch_ssd.Rules, SingleShot):
    """SSD with pytorch-ssd's assignment, losses and detections."""


class Extended(Features):
    """A backbone's two coarsest maps, and four more from extra blocks, each at half the resolution of the last."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__(body, levels=2)
        norm = partial(nn.BatchNorm2d)
        blocks, channels = [], self.channels[-1]
        for wide, expansion in EXTRAS:
            blocks.append(InvertedResidual(channels, wide, 2, expansion, norm_layer=norm))
            channels = wide
        self.extra = nn.ModuleList(blocks)
        _xavier(self.extra)
        self.out_channels = [*self.channels, *(wide for wide, _ in EXTRAS)]

    def forward(self, images: Tensor) -> OrderedDict[str, Tensor]:
        """The backbone's feature maps and those of the extra blocks, from fine to coarse."""
        maps = super().forward(images)
        last = maps[str(len(maps) - 1)]
        for block in self.extra:
            last = block(last)
            maps[str(len(maps))] = last
        return maps


class Priors(DefaultBoxGenerator):
    """The boxes of pytorch-ssd: two squares and four rectangles per position, centres and sides clamped to [0, 1].

    For images of 300 pixels, pytorch-ssd does not space positions evenly over the image: a map of side 19 has one every
    16 pixels. For other sizes and strides they are spaced evenly.
    """

    def __init__(self, strides: list[int], size: int) -> None:
        steps = list(STEPS) if size == SIZE and strides == [16, 32] else None
        super().__init__([list(RATIOS)] * len(STEPS), scales=list(SCALES), steps=steps)

    def _grid_default_boxes(self, *args: Any, **options: Any) -> Tensor:
        boxes: Tensor = super()._grid_default_boxes(*args, **options)
        return boxes.clamp(0, 1)


def _head(channels: list[int], boxes: list[int], classes: int) -> SSDLiteHead:
    """Separable convolutions for all maps but the last; that one has a single position and a 1x1 convolution."""
    head = SSDLiteHead(channels, boxes, classes, nn.BatchNorm2d)
    for part, columns in ((head.classification_head, classes), (head.regression_head, 4)):
        part.module_list[-1] = nn.Conv2d(channels[-1], boxes[-1] * columns, 1)
    _xavier(head)
    return head


def _xavier(module: nn.Module) -> None:
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            torch.nn.init.xavier_uniform_(layer.weight)
            if layer.bias is not None:
                torch.nn.init.zeros_(layer.bias)
