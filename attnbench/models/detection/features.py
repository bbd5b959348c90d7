"""A classification backbone as a detector needs it: its feature maps at several strides instead of its logits.

The stock network stays what it is, under the name ``body``, so that a placement finds its blocks and weights keep their
names; its forward pass is listened to at the levels that ``LEVELS`` names. What no level depends on, such as the
classifier, is taken out.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from attnbench.base.errors import ConfigError
from attnbench.models.placement import known_blocks

Norm = Literal["trained", "frozen"]

# Where a network's feature maps are, finest first. In an inverted residual that strides it is behind the expansion, as
# SSD-Lite has it: the widest map of that resolution.
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
PROBE = 64  # side of the image by which levels are measured
MOST = 4  # levels of a pyramid


class Features(nn.Module):
    """A backbone's feature maps, (N, 3, H, W) to {"0": (N, C, H/s, W/s), ...}, finest first.

    Args:
        body: a stock classification network, before attention is put into it.
        levels: how many of the coarsest ones to use, at most; those at the image's own resolution are left out.

    Attributes:
        channels, strides: of each level.

    Raises:
        ConfigError: it is not known where this network has its feature maps, or it has too few.
    """

    def __init__(self, body: nn.Module, levels: int = MOST) -> None:
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
        """Channels and stride of each level, by an image that also tells what no level depends on: it is taken out."""
        training = self.body.training
        self.body.eval()  # no statistic moves
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
        """Train neither the stem nor the first stages, with the attention in them, and normalise by fixed statistics.

        Args:
            stages: how many; 0 trains the stem, too.
            norm: ``frozen`` keeps the running statistics of every batch norm; scale and shift are trained still.

        Raises:
            ConfigError: the backbone has fewer stages.
        """
        self.norm = norm
        if stages:
            self.frozen = list(_up_to(self.body, stages))
            for path in self.frozen:
                for parameter in self.body.get_submodule(path).parameters(recurse=False):
                    parameter.requires_grad_(False)
        self.train(self.training)

    def train(self, mode: bool = True) -> Features:
        """Training mode, but for what is frozen."""
        super().train(mode)
        if self.norm == "frozen":
            for module in self.body.modules():
                if isinstance(module, _BatchNorm):
                    module.eval()
        for path in self.frozen:
            self.body.get_submodule(path).training = False
        return self


def _paths(body: nn.Module) -> tuple[str, ...]:
    """Where a network has its feature maps.

    Raises:
        ConfigError: that is not known.
    """
    name = f"{type(body).__module__}.{type(body).__qualname__}"
    if name in LEVELS:
        return LEVELS[name]
    if info := getattr(body, "feature_info", None):  # timm's networks say it themselves
        return tuple(str(level["module"]) for level in info)
    known = ", ".join(key.rpartition(".")[2] for key in LEVELS)
    todo = f"use one of {known} or of timm's with feature_info; attnbench/models/detection/features.py names the levels"
    raise ConfigError(f"it is not known where {name} has its feature maps", "backbone", todo)


def _up_to(body: nn.Module, stages: int) -> Iterator[str]:
    """The modules, by path, that come before the first block behind the given stages."""
    blocks = known_blocks(body)
    total = max(stage for _, stage, _ in blocks)
    if stages > total:
        raise ConfigError(f"this backbone has no stage {stages}", "detector.frozen_stages", f"use 0 to {total}")
    first = next((path for path, stage, _ in blocks if stage > stages), None)
    for path, module in body.named_modules():
        if first is not None and path == first:
            return
        if not list(module.children()) or list(module.parameters(recurse=False)):
            yield path
