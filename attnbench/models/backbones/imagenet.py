"""torchvision's networks for 224x224 images, with torchvision's weights when asked for."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import nn

from attnbench.base.errors import ConfigError, StorageError
from attnbench.config.options import Count, Fraction, Positive, checked


@checked
def resnet(
    *, depth: Literal[18, 34, 50, 101, 152, 200] = 50, pretrained: bool = False, num_classes: Count = 1000
) -> nn.Module:
    """ResNet-18 to -200 (arXiv:1512.03385, -200: 1603.05027; stride on the 3x3 convolution)."""
    if depth == 200:
        _no_weights(pretrained, "ResNet-200")
        return _bottlenecks((3, 24, 36, 3), num_classes)
    return _torchvision(f"resnet{depth}", pretrained, num_classes)


@checked
def resnext(
    *, groups: Count = 32, width_per_group: Count = 4, pretrained: bool = False, num_classes: Count = 1000
) -> nn.Module:
    """ResNeXt-101 (arXiv:1611.05431), 32x4d by default."""
    _no_weights(pretrained, "ResNeXt-101 32x4d")
    return _bottlenecks((3, 4, 23, 3), num_classes, groups=groups, width_per_group=width_per_group)


@checked
def densenet264(*, pretrained: bool = False, num_classes: Count = 1000) -> nn.Module:
    """DenseNet-264 (arXiv:1608.06993): growth 32, blocks of 6, 12, 64 and 48 layers."""
    from torchvision.models import DenseNet

    _no_weights(pretrained, "DenseNet-264")
    return DenseNet(32, (6, 12, 64, 48), 64, num_classes=num_classes)


@checked
def mobilenetv2(
    *,
    width: Positive = 1.0,
    dropout: Fraction = 0.2,
    pretrained: bool = False,
    num_classes: Count = 1000,
) -> nn.Module:
    """MobileNetV2 (arXiv:1801.04381); ``dropout`` stands before the classifier."""
    return _torchvision("mobilenet_v2", pretrained, num_classes, width_mult=width, dropout=dropout)


@checked
def shufflenetv2(*, width: Positive = 1.0, pretrained: bool = False, num_classes: Count = 1000) -> nn.Module:
    """ShuffleNetV2 (arXiv:1807.11164) at width 0.5, 1.0, 1.5 or 2.0."""
    return _torchvision(f"shufflenet_v2_x{_printed(width, (0.5, 1.0, 1.5, 2.0))}", pretrained, num_classes)


@checked
def mnasnet(
    *, width: Positive = 1.0, dropout: Fraction = 0.2, pretrained: bool = False, num_classes: Count = 1000
) -> nn.Module:
    """MnasNet-B1 (arXiv:1807.11626) at width 0.5, 0.75, 1.0 or 1.3; ``dropout`` stands before the classifier."""
    name = f"mnasnet{_printed(width, (0.5, 0.75, 1.0, 1.3))}"
    return _torchvision(name, pretrained, num_classes, dropout=dropout)


def _printed(width: float, widths: tuple[float, ...]) -> str:
    """A width as torchvision's names print it, ``0_5``.

    Raises:
        ConfigError: torchvision does not have the width.
    """
    if width not in widths:
        raise ConfigError(f"width={width} is not made", "backbone.width", f"use {', '.join(map(str, widths))}")
    return str(width).replace(".", "_")


def _no_weights(pretrained: bool, name: str) -> None:
    if pretrained:
        raise ConfigError(f"torchvision has no weights of {name}", "backbone.pretrained", "set it to false")


def _bottlenecks(blocks: tuple[int, ...], num_classes: int, **options: int) -> nn.Module:
    from torchvision.models import resnet as resnets

    return resnets.ResNet(resnets.Bottleneck, list(blocks), num_classes=num_classes, **options)


def _torchvision(name: str, pretrained: bool, num_classes: int, **options: Any) -> nn.Module:
    """A torchvision network; stock weights keep their trunk when the classes are not ImageNet's thousand."""
    from torchvision import models

    model = models.get_model(name, num_classes=num_classes, **options)
    if pretrained:
        _load(model, _weights(name))
    return model


def _weights(name: str) -> dict[str, torch.Tensor]:
    from torchvision import models

    try:
        return dict(models.get_model_weights(name)["IMAGENET1K_V1"].get_state_dict(check_hash=True))
    except OSError as error:  # URLError and a full disk alike
        raise StorageError(
            f"torchvision's weights of {name} cannot be had: {error}",
            "backbone.pretrained",
            "put the file into $TORCH_HOME/hub/checkpoints, or set backbone.pretrained=false",
        ) from None


def _load(model: nn.Module, weights: dict[str, torch.Tensor]) -> None:
    own = model.state_dict()
    other = [key for key, value in weights.items() if own[key].shape != value.shape]
    for key in other:
        if not key.startswith(("fc.", "classifier.")):
            raise StorageError(f"stock weights do not fit at {key}", "backbone.pretrained", "use the stock width")
        weights[key] = own[key]
    model.load_state_dict(weights)
