"""Trained weights for the networks of timm and torchvision, where their attention has a slot there.

timm's ResNets have a slot at each block's output, for SE and ECA as timm defines them; torchvision's networks have
none. What is written was compared with the run's network: both give the same logits.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from attnbench.base.errors import ConfigError, Failure
from attnbench.models import weights
from attnbench.runs.load import Trained

log = logging.getLogger("attnbench")

TOLERANCE = 1e-4  # between the logits of both networks, relative to the largest

SLOTS = {"se": "se", "eca": "eca"}  # timm's names of attention; a run's may have other names, such as eca_paper
NAMES = {"resnext101": "resnext101_32x4d"}  # of backbones that timm calls otherwise
ELSE = "use pt2 or onnx, which hold the network itself"


@dataclass(frozen=True)
class TimmNetwork:
    """A timm network with a run's weights.

    Attributes:
        model: in evaluation mode.
        architecture: its name in timm.
        arguments: the further arguments of ``timm.create_model``, as values that JSON can hold.
    """

    model: nn.Module
    architecture: str
    arguments: dict[str, Any] = field(default_factory=dict)


def timm_network(trained: Trained, size: int) -> TimmNetwork:
    """A run's network as one of timm's.

    Args:
        size: the side of the images with which both are compared.

    Raises:
        ConfigError: timm has no such network, or no slot for its attention; says why.
    """
    import timm

    name, arguments = _architecture(trained), _arguments(trained)
    try:
        theirs = timm.create_model(name, num_classes=len(trained.classes), **arguments).eval()
        weights.to_timm(trained.model, theirs)
    except (Failure, RuntimeError, TypeError) as error:
        what = error.what if isinstance(error, Failure) else str(error).splitlines()[0]
        raise ConfigError(f"timm's {name} cannot hold this network: {what}", "--format", ELSE) from error
    _refuse_other_logits(trained.model, theirs, name, size)
    return TimmNetwork(theirs, name, arguments)


def _architecture(trained: Trained) -> str:
    """The name of a run's backbone in timm.

    Raises:
        ConfigError: timm does not have it.
    """
    import timm

    backbone = trained.config.tree["backbone"]
    choice = trained.config.choices["backbone"]
    name = str(backbone["name"]) if choice.startswith("timm/") else NAMES.get(choice, choice)
    if "detector" in trained.config.tree or not timm.is_model(name):
        what = choice if "detector" not in trained.config.tree else "detectors"
        raise ConfigError(f"timm does not have {what}", "--format", ELSE)
    return name


def _arguments(trained: Trained) -> dict[str, Any]:
    attention = trained.config.choices["attention"].partition("_")[0]
    return {"block_args": {"attn_layer": SLOTS[attention]}} if attention in SLOTS else {}


def _refuse_other_logits(ours: nn.Module, theirs: nn.Module, name: str, size: int) -> None:
    """Refuse a network that has the same weights and computes something else, because of a stride, for example.

    Raises:
        ConfigError: says by how much the logits differ.
    """
    images = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected, got = ours(images), theirs(images)
    error = float((expected - got).abs().max() / expected.abs().max().clamp(min=1e-6))
    if error > TOLERANCE:
        what = f"timm's {name} computes something else with these weights: logits differ by {100 * error:.2g} %"
        raise ConfigError(what, "--format", ELSE)


def torchvision_weights(trained: Trained) -> dict[str, Tensor]:
    """A run's weights under the names of the torchvision network.

    Raises:
        ConfigError: the network is not torchvision's, or has attention.
    """
    if "detector" in trained.config.tree or not type(trained.model).__module__.startswith("torchvision."):
        what = trained.config.choices.get("detector", trained.config.choices["backbone"])
        raise ConfigError(f"{what} is not one of torchvision's classification networks", "--format", ELSE)
    if trained.sites:
        what = f"torchvision's networks have no slot for attention={trained.config.choices['attention']}"
        raise ConfigError(what, "--format", f"use timm for SE and ECA in ResNets; for the rest {ELSE}")
    return dict(trained.model.state_dict())
