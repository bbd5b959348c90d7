"""The small ResNets of He et al. (arXiv:1512.03385, section 4.2): 6n + 2 layers for 32x32 images."""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from attnbench.config.options import Count, checked


class BasicBlock(nn.Module):
    """y = relu(BN(conv(relu(BN(conv(x))))) + shortcut(x)), (N, C_in, H, W) to (N, C, H/s, W/s)."""

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.stride, self.padding = stride, channels - in_channels

    def forward(self, x: Tensor) -> Tensor:
        """The residual block, (N, C_in, H, W) to (N, C, H', W')."""
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        return self.relu(y + self.shortcut(x))

    def shortcut(self, x: Tensor) -> Tensor:
        """The paper's option A, without parameters: subsample, and pad the channels with zeros."""
        if self.stride > 1:
            x = x[:, :, :: self.stride, :: self.stride]
        if self.padding:
            x = F.pad(x, (0, 0, 0, 0, self.padding // 2, self.padding - self.padding // 2))
        return x


class ResNet(nn.Module):
    """Three stages of n blocks with 16, 32 and 64 channels at strides 1, 2, 2.

    Args:
        n: blocks per stage.
        num_classes: outputs of the classifier.
    """

    def __init__(self, n: int, num_classes: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.relu = nn.ReLU(inplace=True)
        self.layer1 = self._stage(16, 16, n, stride=1)
        self.layer2 = self._stage(16, 32, n, stride=2)
        self.layer3 = self._stage(32, 64, n, stride=2)
        self.fc = nn.Linear(64, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    @staticmethod
    def _stage(in_channels: int, channels: int, n: int, stride: int) -> nn.Sequential:
        first = BasicBlock(in_channels, channels, stride)
        return nn.Sequential(first, *(BasicBlock(channels, channels, 1) for _ in range(n - 1)))

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, num_classes) of images (N, 3, H, W)."""
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.fc(x.mean((2, 3)))


@checked
def resnet_cifar(*, depth: Literal[8, 20, 32, 56] = 20, num_classes: Count = 10) -> nn.Module:
    """ResNet-20, -32 or -56 with 0.27, 0.46 or 0.85 M parameters; ResNet-8 (0.08 M) is for quick trials."""
    return ResNet((depth - 2) // 6, num_classes)
