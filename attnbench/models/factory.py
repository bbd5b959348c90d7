"""Builds the network that a configuration describes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from attnbench.config import catalog, initial_weights, option_files
from attnbench.config import composition as configuration
from attnbench.config.configuration import Config
from attnbench.models import checkpoint, warm_start
from attnbench.models.complexity import Size
from attnbench.models.insertion import Site, insert

if TYPE_CHECKING:
    from attnbench.models.detection.detector import Detector


def network(config: Config, num_classes: int) -> tuple[nn.Module, list[Site]]:
    """Build the network of a configuration; returns it with the sites of its attention.

    The backbone is built before attention is inserted, so with the same seed its weights do not depend on attention.

    Raises:
        ConfigError: the placement selects no site, or the attention cannot be used at one of them.
    """
    weights = config.tree["backbone"].get("weights")
    stock = without_weights(config) if weights else config
    model = stock.build("backbone", num_classes=num_classes)
    if "detector" in config.tree:
        return _detector(config, model, num_classes)
    sites = _attended(config, model)
    if weights:
        warm_start.start(model, config)
    return model, sites


def _attended(config: Config, model: nn.Module) -> list[Site]:
    """Insert the configured attention into a backbone; returns its sites."""
    if config.choices["attention"] == "none":
        return []
    return insert(model, config.build("placement"), lambda site: config.build("attention", site))


def _detector(config: Config, body: nn.Module, num_classes: int) -> tuple[nn.Module, list[Site]]:
    """A detector around a backbone, and the sites of its attention.

    The detector's layers are built before attention is inserted, so their weights do not depend on it either.
    """
    options: Detector = config.build("detector")
    model = options.network(body, num_classes)
    sites = _attended(config, body)
    if config.tree["backbone"].get("weights"):
        warm_start.start(body, config)
    options.settle(model)
    return model, [_inside(site, "backbone.body.") for site in sites]


def _inside(site: Site, prefix: str) -> Site:
    """A site with a prefix before its names, for a backbone that is now part of a larger network."""
    absorbs = tuple(prefix + path for path in site.absorbs)
    return replace(site, path=prefix + site.path, block=prefix + site.block, absorbs=absorbs)


def sketch(config: Config, num_classes: int) -> tuple[nn.Module, list[Site]]:
    """The network on the meta device, without weights: to count it, and to find errors before a run starts."""
    with torch.device("meta"):
        return network(without_weights(config), num_classes)


def fitted(config: Config, num_classes: int) -> warm_start.Loaded:
    """What becomes of the weights in ``backbone.weights``, tried on a network on the meta device.

    Raises:
        ConfigError, StorageError: they do not fit.
    """
    with torch.device("meta"):
        body = without_weights(config).build("backbone", num_classes=num_classes)
        _attended(config, body)
        return warm_start.start(body, config)


def refuse_other_backbone(config: Config) -> None:
    """Check that the run in ``backbone.weights``, if any, has the same backbone; builds nothing.

    Raises:
        ConfigError: the backbones differ; the message names the keys.
        StorageError: the run or file does not exist.
    """
    if given := config.tree["backbone"].get("weights"):
        source = initial_weights.locate(given, config.seed)
        if not source.is_file():
            checkpoint.refuse_other_backbone(source, config)


def without_weights(config: Config) -> Config:
    """The configuration, changed so that the network loads no weights."""
    none = {"pretrained": False, "weights": None}
    backbone = config.tree["backbone"]
    plain = backbone | {key: value for key, value in none.items() if key in backbone}
    return replace(config, tree=config.tree | {"backbone": plain})


def counting_sketch(config: Config) -> tuple[nn.Module, Size]:
    """The network with which a table's row is counted, on the meta device, and the size of its images."""
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
    config_dir: str | Path | None = None,
) -> nn.Module:
    """A backbone with attention; names and options are those of the command line.

    Args:
        name: a backbone from ``list_models``.
        attention: a name from ``list_attentions``.
        placement: a placement such as ``block`` or ``layer``; None for the attention's usual placement.
        num_classes: outputs of the classifier.
        pretrained: load pretrained weights, before attention is inserted.
        backbone_kwargs, attention_kwargs, placement_kwargs: options, such as ``{"kernel_size": 3}``.
        config_dir: a folder with your own option files; ``ATTNBENCH_CONFIG_DIR`` names folders for all calls.

    Raises:
        ConfigError: a ``ValueError``: a name or an option is unknown, has the wrong type or is out of range.
    """
    overrides = [f"backbone={name}", f"attention={attention}"]
    overrides += [f"placement={placement}"] if placement else []
    options = {"backbone": dict(backbone_kwargs or {}), "attention": dict(attention_kwargs or {})}
    options["placement"] = dict(placement_kwargs or {})
    if pretrained:
        options["backbone"]["pretrained"] = True
    with option_files.added([config_dir] if config_dir else [], "config_dir"):
        config = configuration.compose(overrides).updated(options)
        return network(config, num_classes)[0]


def list_models(pattern: str = "*", config_dir: str | Path | None = None) -> list[str]:
    """The names of the backbones that match a shell pattern such as ``resnet*``, also those in a folder of yours."""
    return _names("backbone", pattern, config_dir)


def list_attentions(pattern: str = "*", config_dir: str | Path | None = None) -> list[str]:
    """The names of the attentions that match a shell pattern such as ``se*``, also those in a folder of yours."""
    return _names("attention", pattern, config_dir)


def _names(group: str, pattern: str, config_dir: str | Path | None) -> list[str]:
    with option_files.added([config_dir] if config_dir else [], "config_dir"):
        return [name for name in option_files.names(group) if fnmatch(name, pattern)]
