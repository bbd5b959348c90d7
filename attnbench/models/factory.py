"""A configuration becomes a network with its sites."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from attnbench.config import catalog, option_files
from attnbench.config import composition as configuration
from attnbench.config.configuration import Config
from attnbench.models import checkpoint
from attnbench.models.complexity import Size
from attnbench.models.insertion import Site, insert

if TYPE_CHECKING:
    from attnbench.models.detection.detector import Detector


def network(config: Config, num_classes: int) -> tuple[nn.Module, list[Site]]:
    """The backbone with its attention, and the sites where it stands.

    The backbone is made first, so that with the same seed its weights do not depend on the attention.

    Raises:
        ConfigError: the placement finds no site, or the attention cannot stand at one.
    """
    model = config.build("backbone", num_classes=num_classes)
    if "detector" in config.tree:
        return _detector(config, model, num_classes)
    return model, _attended(config, model)


def _attended(config: Config, model: nn.Module) -> list[Site]:
    """Put a configuration's attention into a backbone."""
    if config.choices["attention"] == "none":
        return []
    return insert(model, config.build("placement"), lambda site: config.build("attention", site))


def _detector(config: Config, body: nn.Module, num_classes: int) -> tuple[nn.Module, list[Site]]:
    """A detector around a backbone, and its sites.

    Its own parts are made before the attention is, so that their weights do not depend on the attention either.
    """
    options: Detector = config.build("detector")
    model = options.network(body, num_classes)
    sites = _attended(config, body)
    if options.backbone_from:
        checkpoint.load_backbone(body, Path(options.backbone_from), config)
    options.settle(model)
    return model, [_inside(site, "backbone.body.") for site in sites]


def _inside(site: Site, prefix: str) -> Site:
    """A site by its names in the network that its backbone has become a part of."""
    absorbs = tuple(prefix + path for path in site.absorbs)
    return replace(site, path=prefix + site.path, block=prefix + site.block, absorbs=absorbs)


def sketch(config: Config, num_classes: int) -> tuple[nn.Module, list[Site]]:
    """The network without its weights, on the meta device: for counting, and for refusing what cannot be built."""
    with torch.device("meta"):
        return network(without_weights(config), num_classes)


def refuse_other_backbone(config: Config) -> None:
    """Refuse a run to start from whose backbone is another, before anything is made.

    Raises:
        ConfigError: names the keys that differ.
        StorageError: there is no such run.
    """
    if source := config.tree.get("detector", {}).get("backbone_from"):
        checkpoint.refuse_other_backbone(Path(source), config)


def without_weights(config: Config) -> Config:
    """The configuration with a backbone that loads nothing."""
    none = {"backbone": ("pretrained", False), "detector": ("backbone_from", None)}
    nodes = {
        group: config.tree[group] | {key: value}
        for group, (key, value) in none.items()
        if key in config.tree.get(group, {})
    }
    return replace(config, tree=config.tree | nodes)


def counting_sketch(config: Config) -> tuple[nn.Module, Size]:
    """The network that a table's row is counted by, on the meta device, and its images' side."""
    classes, size = catalog.setting(config, ["dataset="])
    return sketch(config, classes)[0], size


def create_model(
    name: str,
    attention: str = "none",
    placement: str | None = None,
    num_classes: int = 1000,
    pretrained: bool = False,
    backbone_kwargs: Mapping[str, Any] | None = None,
    attention_kwargs: Mapping[str, Any] | None = None,
    placement_kwargs: Mapping[str, Any] | None = None,
) -> nn.Module:
    """A backbone with attention, as the same words on the command line make it.

    Args:
        name: a backbone of ``list_models``.
        attention: one of ``list_attentions``.
        placement: ``block``, ``layer``; None for the attention's usual one.
        num_classes: outputs of the classifier.
        pretrained: stock weights, loaded before the attention is inserted.
        backbone_kwargs, attention_kwargs, placement_kwargs: options, such as ``{"kernel_size": 3}``.

    Raises:
        ConfigError: a ``ValueError`` naming what is unknown, of the wrong type or out of range.
    """
    overrides = [f"backbone={name}", f"attention={attention}"]
    overrides += [f"placement={placement}"] if placement else []
    options = {"backbone": dict(backbone_kwargs or {}), "attention": dict(attention_kwargs or {})}
    options["placement"] = dict(placement_kwargs or {})
    if pretrained:
        options["backbone"]["pretrained"] = True
    config = configuration.compose(overrides).updated(options)
    return network(config, num_classes)[0]


def list_models(pattern: str = "*") -> list[str]:
    """The backbones' names that match a shell pattern such as ``resnet*``."""
    return [name for name in option_files.names("backbone") if fnmatch(name, pattern)]


def list_attentions(pattern: str = "*") -> list[str]:
    """The attentions' names that match a shell pattern such as ``se*``."""
    return [name for name in option_files.names("attention") if fnmatch(name, pattern)]
