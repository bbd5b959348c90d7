"""torchvision's ResNets and MobileNetV2, with torchvision's weights when asked for."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import nn

from attnbench.errors import StorageError
from attnbench.options import Count, Fraction, Positive, checked


@checked
def resnet(
    *, depth: Literal[18, 34, 50, 101, 152] = 50, pretrained: bool = False, num_classes: Count = 1000
) -> nn.Module:
    """ResNet-18 to -152 (arXiv:1512.03385; stride on the 3x3 convolution)."""
    return _torchvision(f"resnet{depth}", pretrained, num_classes)


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
