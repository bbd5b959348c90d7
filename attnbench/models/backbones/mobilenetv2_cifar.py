"""MobileNetV2 for 32x32 images, as in the pytorch-cifar project, with a width multiplier.

This is the SB paper's CIFAR-10 backbone. The paper's parameter counts (Table 5) determine what its text leaves open:
the stem has 16 channels and the last 1x1 convolution 1280 at every width, block channels are rounded to multiples of 8,
every block has its expansion convolution, and a stride-1 block whose channels change has a 1x1 shortcut. Strides
are those of pytorch-cifar; the paper does not print them.
"""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from attnbench.config.options import Count, Positive, checked

# expansion, channels, blocks, stride of the first block: Table 2 of arXiv:1801.04381, pytorch-cifar's strides
STAGES = (
    (1, 16, 1, 1),
    (6, 24, 2, 1),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)
LAST = 1280
STRIDED = 1  # the index of the stage whose stride is an option


def round_channels(channels: float, divisor: int = 8) -> int:
    """The multiple of ``divisor`` nearest to ``channels``, never more than 10 % below it."""
    rounded = max(divisor, int(channels + divisor / 2) // divisor * divisor)
    return rounded if rounded >= 0.9 * channels else rounded + divisor


class InvertedResidual(nn.Module):
    """Expand (C1), depthwise (C2), project (C3); a shortcut if the stride is 1."""

    def __init__(self, in_channels: int, channels: int, expansion: int, stride: int) -> None:
        super().__init__()
        hidden = expansion * in_channels
        self.conv1 = nn.Conv2d(in_channels, hidden, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(hidden)
        self.conv2 = nn.Conv2d(hidden, hidden, 3, stride, padding=1, groups=hidden, bias=False)
        self.bn2 = nn.BatchNorm2d(hidden)
        self.conv3 = nn.Conv2d(hidden, channels, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(channels)
        self.residual = stride == 1
        self.shortcut: nn.Module = nn.Identity()
        if self.residual and in_channels != channels:
            conv = nn.Conv2d(in_channels, channels, 1, bias=False)
            self.shortcut = nn.Sequential(conv, nn.BatchNorm2d(channels))

    def forward(self, x: Tensor) -> Tensor:
        """Expand, filter, project and add the shortcut if there is one, (N, C_in, H, W) to (N, C, H', W')."""
        y = F.relu(self.bn1(self.conv1(x)))
        y = F.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        return y + self.shortcut(x) if self.residual else y


class MobileNetV2(nn.Module):
    """Seventeen inverted residuals in seven stages.

    Args:
        width: multiplies the blocks' channels.
        num_classes: outputs of the classifier.
        stem: channels of the first convolution, at every width.
        stem_stride: its stride.
        stage2_stride: stride of the first block of stage 2.
    """

    def __init__(self, width: float, num_classes: int, stem: int, stem_stride: int, stage2_stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, stem, 3, stem_stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(stem)
        self.layers = nn.Sequential(*self._blocks(width, stem, stage2_stride))
        self.conv2 = nn.Conv2d(round_channels(width * STAGES[-1][1]), LAST, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(LAST)
        self.linear = nn.Linear(LAST, num_classes)

    @staticmethod
    def _blocks(width: float, in_channels: int, stage2_stride: int) -> list[nn.Module]:
        blocks: list[nn.Module] = []
        for number, (expansion, base, count, usual) in enumerate(STAGES):
            channels = round_channels(width * base)
            stride = stage2_stride if number == STRIDED else usual
            for i in range(count):
                blocks.append(InvertedResidual(in_channels, channels, expansion, stride if i == 0 else 1))
                in_channels = channels
        return blocks

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, num_classes) of images (N, 3, H, W)."""
        x = F.relu(self.bn1(self.conv1(x)))
        x = F.relu(self.bn2(self.conv2(self.layers(x))))
        return self.linear(x.mean((2, 3)))


@checked
def mobilenetv2_cifar(
    *,
    width: Positive = 1.0,
    stem: Count = 16,
    stem_stride: Literal[1, 2] = 1,
    stage2_stride: Literal[1, 2] = 1,
    num_classes: Count = 10,
) -> nn.Module:
    """MobileNetV2: 416,698 parameters at width 0.35, 715,834 at 0.5, 1,401,386 at 0.75, 2,294,682 at 1.0.

    Both strides are 1 in pytorch-cifar and 2 in the network for 224x224.

    Args:
        width: multiplies the blocks' channels.
        stem: channels of the first convolution: 16 by the SB paper's counts, 32 in pytorch-cifar.
        stem_stride: 2 halves all maps.
        stage2_stride: 2 halves the maps from stage 2 on, and removes the shortcut of its first block.
        num_classes: outputs of the classifier.
    """
    return MobileNetV2(width, num_classes, stem, stem_stride, stage2_stride)
