"""A classification backbone as a detector needs it: it returns feature maps at several strides instead of logits.

The stock network is kept under the name ``body``, so that placements find its blocks and weights keep their names.
Forward hooks collect the outputs of the modules in ``LEVELS``. Modules that no level depends on, such as the
classifier, are removed.
"""

from __future__ import annotations

from collections import OrderedDict
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from attnbench.base.errors import ConfigError
from attnbench.models import freezing, regions

Norm = Literal["trained", "frozen"]

# The modules whose outputs are a network's feature maps, finest first. In an inverted residual with a stride the map is
# taken after the expansion, as in SSD-Lite: it is the widest map of its resolution.
_RESNET = ("layer1", "layer2", "layer3", "layer4")
LEVELS = {
    "torchvision.models.resnet.ResNet": _RESNET,
    "timm.models.resnet.ResNet": _RESNET,
    "attnbench.models.backbones.resnet_cifar.ResNet": _RESNET[:3],
    "torchvision.models.mobilenetv2.MobileNetV2": (
        "features.4.conv.0",
        "features.7.conv.0",
        "features.14.conv.0",
        "features.18",
    ),
    "attnbench.models.backbones.mobilenetv2_cifar.MobileNetV2": ("layers.2", "layers.5", "layers.12", "layers.16"),
    "torchvision.models.shufflenetv2.ShuffleNetV2": ("maxpool", "stage2", "stage3", "conv5"),
    "torchvision.models.mnasnet.MNASNet": ("layers.8", "layers.9", "layers.11", "layers.16"),
    "torchvision.models.densenet.DenseNet": (
        *(f"features.denseblock{n}" for n in (1, 2, 3)),
        "features.norm5",
    ),
}
PROBE = 64  # side of the image with which levels are measured
MAX_LEVELS = 4  # of a pyramid


class Features(nn.Module):
    """A backbone's feature maps, (N, 3, H, W) to {"0": (N, C, H/s, W/s), ...}, finest first.

    Args:
        body: a stock classification network, before attention is inserted.
        levels: the maximum number of maps; the coarsest are used, and never those at the resolution of the image.

    Attributes:
        channels, strides: of each level.

    Raises:
        ConfigError: the feature maps of this network are not known, or there are too few.
    """

    def __init__(self, body: nn.Module, levels: int = MAX_LEVELS) -> None:
        super().__init__()
        self.body = body
        self.found: dict[str, Tensor] = {}
        paths = _paths(body)
        hooks = [body.get_submodule(path).register_forward_hook(partial(self._keep, path)) for path in paths]
        sizes = self._measured(paths)
        used = [path for path in paths if sizes[path][1] > 1][-levels:]
        if len(used) < 2:
            raise ConfigError(f"{type(body).__name__} has too few feature maps", "backbone", "use a deeper one")
        self.paths = used
        self.channels = [sizes[path][0] for path in used]
        self.strides = [sizes[path][1] for path in used]
        for path, hook in zip(paths, hooks, strict=True):
            if path not in used:
                hook.remove()
        self.frozen: list[str] = []
        self.norm: Norm = "trained"

    def _keep(self, path: str, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        self.found[path] = output

    def _measured(self, paths: tuple[str, ...]) -> dict[str, tuple[int, int]]:
        """Measure channels and stride of each level with an image; remove the modules that no level depends on."""
        training = self.body.training
        self.body.eval()  # keeps the running statistics as they are
        example = next(self.body.parameters())
        with torch.enable_grad():
            maps = self._maps(example.new_zeros(1, 3, PROBE, PROBE))
            torch.stack([found.sum() for found in maps.values()]).sum().backward()
        for name, child in list(self.body.named_children()):
            parameters = list(child.parameters())
            if parameters and all(p.grad is None for p in parameters):
                setattr(self.body, name, nn.Identity())
        self.body.zero_grad(set_to_none=True)
        self.body.train(training)
        return {path: (found.shape[1], PROBE // found.shape[-1]) for path, found in maps.items()}

    def _maps(self, images: Tensor) -> dict[str, Tensor]:
        self.found = {}
        self.body(images)
        maps, self.found = self.found, {}
        return maps

    def forward(self, images: Tensor) -> OrderedDict[str, Tensor]:
        """The feature maps, (N, C_i, H_i, W_i) each, under the keys "0", "1", ... from fine to coarse."""
        maps = self._maps(images)
        return OrderedDict((str(i), maps[path]) for i, path in enumerate(self.paths))

    def freeze(self, stages: int, norm: Norm) -> None:
        """Freeze the stem and the first stages, attention included, and optionally the statistics of batch norms.

        Args:
            stages: the number of stages to freeze; 0 freezes nothing, not even the stem.
            norm: ``frozen`` fixes the running statistics of every batch norm; scale and shift are still trained.

        Raises:
            ConfigError: the backbone has fewer stages.
        """
        self.norm = norm
        if stages:
            self.frozen = _up_to(self.body, stages)
            freezing.freeze(self.body, self.frozen)
        self.train(self.training)

    def train(self, mode: bool = True) -> Features:
        """Set training or evaluation mode; frozen parts stay in evaluation mode."""
        super().train(mode)
        if self.norm == "frozen":
            for module in self.body.modules():
                if isinstance(module, _BatchNorm):
                    module.eval()
        freezing.hold(self.body, self.frozen)
        return self


def _paths(body: nn.Module) -> tuple[str, ...]:
    """The modules whose outputs are a network's feature maps.

    Raises:
        ConfigError: they are not known.
    """
    name = f"{type(body).__module__}.{type(body).__qualname__}"
    if name in LEVELS:
        return LEVELS[name]
    if info := getattr(body, "feature_info", None):  # timm's networks list their feature maps
        return tuple(str(level["module"]) for level in info)
    known = ", ".join(key.rpartition(".")[2] for key in LEVELS)
    todo = f"use one of {known}, a timm network with feature_info, or add it to attnbench/models/detection/features.py"
    raise ConfigError(f"the feature maps of {name} are not known", "backbone", todo)


def _up_to(body: nn.Module, stages: int) -> list[str]:
    """The modules of the stem and of the given number of stages.

    Raises:
        ConfigError: the backbone has fewer stages.
    """
    known = regions.regions(body)
    total = sum(name.startswith("stage") for name in known)
    if stages > total:
        raise ConfigError(f"this backbone has no stage {stages}", "detector.frozen_stages", f"use 0 to {total}")
    names = ["stem", *(f"stage{number}" for number in range(1, stages + 1))]
    return [path for name in names for path in known.get(name, [])]
