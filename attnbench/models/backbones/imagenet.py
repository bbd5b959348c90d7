"""torchvision's networks for 224x224 images, optionally with torchvision's pretrained weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from attnbench.base.errors import ConfigError, StorageError, listed, reason
from attnbench.config.options import Count, Fraction, Positive, checked


@checked
def resnet(
    *,
    depth: Literal[18, 34, 50, 101, 152, 200] = 50,
    last_stride: Literal[1, 2] = 2,
    pretrained: bool = False,
    num_classes: Count = 1000,
) -> nn.Module:
    """ResNet-18 to -200 (arXiv:1512.03385; ResNet-200: 1603.05027), with strides at 3x3 convolutions.

    Args:
        depth: the number of layers.
        last_stride: of stage 4. With 1, as in GSoP-Net, the last maps of a 224x224 image are 14x14 instead of 7x7.
        pretrained: torchvision's weights, which were trained with ``last_stride`` 2.
        num_classes: outputs of the classifier.
    """
    if depth == 200:
        _no_weights(pretrained, "ResNet-200")
        model = _bottlenecks((3, 24, 36, 3), num_classes)
    else:
        model = _torchvision(f"resnet{depth}", pretrained, num_classes)
    if last_stride == 1:
        _unstride(model.get_submodule("layer4"))
    return model


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
    rounding: Literal[8, 1] = 8,
    dropout: Fraction = 0.2,
    pretrained: bool = False,
    num_classes: Count = 1000,
) -> nn.Module:
    """MobileNetV2 (arXiv:1801.04381).

    Args:
        width: multiplies the numbers of channels; the last convolution has at least 1280.
        rounding: 8 rounds numbers of channels to multiples of 8. 1 cuts them to whole numbers, as pytorch-ssd does, for
            a width up to 1.
        dropout: before the classifier.
        pretrained: torchvision's weights, which have width 1.
        num_classes: outputs of the classifier.

    Raises:
        ConfigError: ``rounding`` is 1 and ``width`` exceeds 1.
    """
    if rounding == 1:
        cut = _cut(width)
        return _torchvision("mobilenet_v2", pretrained, num_classes, dropout=dropout, **cut)
    return _torchvision("mobilenet_v2", pretrained, num_classes, width_mult=width, dropout=dropout)


# Of MobileNetV2: expansion, channels, blocks and stride of each stage; channels of the stem.
STAGES = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
STEM = 32


def _cut(width: float) -> dict[str, Any]:
    """torchvision's arguments for a MobileNetV2 with int(width c) channels.

    torchvision can only round to the nearest number, so it gets multiples of its own factor.

    Raises:
        ConfigError: the width exceeds 1.
    """
    if width > 1:
        raise ConfigError(f"channels are not cut at width {width}", "backbone.rounding", "use 8, or a width up to 1")
    factor = max(1, int(STEM * width)) / STEM
    stages = [[t, max(1, int(c * width)) / factor, n, s] for t, c, n, s in STAGES]
    return {"width_mult": factor, "inverted_residual_setting": stages, "round_nearest": 1}


@checked
def shufflenetv2(*, width: Positive = 1.0, pretrained: bool = False, num_classes: Count = 1000) -> nn.Module:
    """ShuffleNetV2 (arXiv:1807.11164) at width 0.5, 1.0, 1.5 or 2.0."""
    return _torchvision(f"shufflenet_v2_x{_width_name(width, (0.5, 1.0, 1.5, 2.0))}", pretrained, num_classes)


@checked
def mnasnet(
    *, width: Positive = 1.0, dropout: Fraction = 0.2, pretrained: bool = False, num_classes: Count = 1000
) -> nn.Module:
    """MnasNet-B1 (arXiv:1807.11626) at width 0.5, 0.75, 1.0 or 1.3; ``dropout`` is applied before the classifier."""
    name = f"mnasnet{_width_name(width, (0.5, 0.75, 1.0, 1.3))}"
    return _torchvision(name, pretrained, num_classes, dropout=dropout)


def _width_name(width: float, widths: tuple[float, ...]) -> str:
    """A width as it appears in torchvision's names, such as ``0_5``.

    Raises:
        ConfigError: torchvision has no network of this width.
    """
    if width not in widths:
        what = f"torchvision has no network of width {width}"
        raise ConfigError(what, "backbone.width", f"use {', '.join(map(str, widths))}")
    return str(width).replace(".", "_")


def _no_weights(pretrained: bool, name: str) -> None:
    if pretrained:
        raise ConfigError(f"torchvision has no weights for {name}", "backbone.pretrained", "set it to false")


def _bottlenecks(blocks: tuple[int, ...], num_classes: int, **options: int) -> nn.Module:
    from torchvision.models import resnet as resnets

    return resnets.ResNet(resnets.Bottleneck, list(blocks), num_classes=num_classes, **options)


def _unstride(stage: nn.Module) -> None:
    """Give every convolution of a stage stride 1: in its first block, one of the branch and the shortcut's."""
    for module in stage.modules():
        if isinstance(module, nn.Conv2d):
            module.stride = (1, 1)


def _torchvision(name: str, pretrained: bool, num_classes: int, **options: Any) -> nn.Module:
    """A torchvision network; if it has other classes than ImageNet's 1000, its classifier is not pretrained."""
    from torchvision import models

    model = models.get_model(name, num_classes=num_classes, **options)
    if pretrained:
        _load(model, *_weights(name))
    return model


TODO = "put the file into $TORCH_HOME/hub/checkpoints, or set backbone.pretrained=false"
AGAIN = "remove the file, so that it is downloaded again"


def _weights(name: str) -> tuple[dict[str, torch.Tensor], Path]:
    """torchvision's weights for a network, and the file in torch's cache that they come from.

    Raises:
        StorageError: they cannot be loaded: there is no connection, or the file is damaged or is not of weights.
    """
    from torchvision import models

    offered = models.get_model_weights(name)["IMAGENET1K_V1"]
    path = Path(torch.hub.get_dir()) / "checkpoints" / offered.url.rpartition("/")[2]
    try:
        found = offered.get_state_dict(check_hash=True)
    except Exception as error:  # URLError, a full disk, and the many types that torch raises for a damaged file
        there = path.is_file()
        why = "the file is empty" if there and not path.stat().st_size else reason(error)
        what = f"torchvision's weights for {name} cannot be loaded: {why}"
        raise StorageError(what, *((path, AGAIN) if there else ("backbone.pretrained", TODO))) from error
    return dict(found), path


def _load(model: nn.Module, weights: dict[str, torch.Tensor], path: Path) -> None:
    """Load stock weights; a classifier of other classes keeps its own.

    Raises:
        StorageError: they belong to another network.
    """
    own = model.state_dict()
    if differ := sorted(own.keys() ^ weights.keys()):
        what = f"these are the weights of another network: {listed(differ)} only in one of them"
        raise StorageError(what, path, AGAIN)
    for key in (key for key, value in weights.items() if own[key].shape != value.shape):
        if not key.startswith(("fc.", "classifier.")):
            raise StorageError(f"stock weights do not fit at {key}", "backbone.pretrained", "use the stock width")
        weights[key] = own[key]
    model.load_state_dict(weights)
