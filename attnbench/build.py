"""The composition root: a configuration becomes a network with its sites, a task, data and a training state."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from attnbench import config as configuration
from attnbench import stored
from attnbench.complexity import Size
from attnbench.config import Config
from attnbench.data.dataset import Batch, Dataset
from attnbench.data.loader import Loader
from attnbench.feed import Feed
from attnbench.insertion import Site, insert
from attnbench.optim import Schedule
from attnbench.runtime import Process
from attnbench.state import TrainState, moving_average

if TYPE_CHECKING:
    from attnbench.detection.detector import Detector


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
        stored.load_backbone(body, Path(options.backbone_from), config)
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
        stored.refuse_other_backbone(Path(source), config)


def without_weights(config: Config) -> Config:
    """The configuration with a backbone that loads nothing."""
    none = {"backbone": ("pretrained", False), "detector": ("backbone_from", None)}
    nodes = {
        group: config.tree[group] | {key: value}
        for group, (key, value) in none.items()
        if key in config.tree.get(group, {})
    }
    return Config(config.tree | nodes, config.choices)


# What is known of a data set without its files: classes (of others: their option ``classes``); training and validation
# images.
CLASSES = {"digits": 10, "cifar10": 10, "cifar100": 100, "imagenet": 1000, "digits_det": 10, "voc": 20, "coco": 80}
IMAGES = {
    "digits": (1438, 359),
    "cifar10": (50_000, 10_000),
    "cifar100": (50_000, 10_000),
    "imagenet": (1_281_167, 50_000),
    "digits_det": (512, 128),
    "voc": (16_551, 4_952),
    "coco": (118_287, 5_000),
}


def setting(config: Config, overrides: Sequence[str]) -> tuple[int, Size]:
    """The number of classes and the image's side, or height and width, that a network is counted at.

    Those of the data set if the command line names one, itself or by an experiment; else those that the backbone
    is made for, 1000 classes at 224 pixels or 10 at 32. A detector has its own size.
    """
    if "detector" in config.tree:
        return CLASSES[config.choices["dataset"]], config.build("detector").canvas
    if any(o.startswith(("dataset=", "dataset.", "experiment=")) for o in overrides):
        data = config.tree["dataset"]
        return data.get("classes") or CLASSES[config.choices["dataset"]], data.get("size", 32)
    small = "cifar" in config.tree["backbone"]["_target_"]
    return (10, 32) if small else (1000, 224)


def counted_size(config: Config, data: Dataset) -> Size:
    """The image's side, or height and width, that a run's network is counted at."""
    return config.build("detector").canvas if "detector" in config.tree else data.size


def noise(config: Config, batch: int, device: torch.device, overrides: Sequence[str] = ("dataset=",)) -> Batch:
    """Images of noise with any targets, as they come to the network's feed, in the size of ``setting``."""
    classes, size = setting(config, overrides)
    height, width = (size, size) if isinstance(size, int) else size
    images = torch.randint(0, 256, (batch, 3, height, width), dtype=torch.uint8, device=device)
    labels = torch.randint(0, classes, (batch,), device=device)
    if "detector" not in config.tree:
        return Batch(images, labels, 1.0)
    box = torch.tensor([[width / 4, height / 4, width / 2, height / 2]], device=device)
    mask = torch.zeros(1, height, width, dtype=torch.uint8, device=device)
    mask[:, height // 4 : height // 2, width // 4 : width // 2] = 1
    targets = [{"boxes": box, "labels": label[None] + 1, "masks": mask} for label in labels]
    return Batch(list(images), targets, 1.0)


def counting_sketch(config: Config) -> tuple[nn.Module, Size]:
    """The network that a table's row is counted by, on the meta device, and its images' side."""
    classes, size = setting(config, ["dataset="])
    return sketch(config, classes)[0], size


def feeds(config: Config, data: Dataset, process: Process) -> tuple[Feed, Feed]:
    """Training and validation batches on the process's device."""
    common: dict[str, Any] = {
        "batch_size": config.tree["batch_size"],
        "seed": config.seed,
        "rank": process.rank,
        "world_size": process.world_size,
        "workers": process.workers,
    }
    train = Loader(data.train.to(process.device), train=True, **common)
    val = Loader(data.val.to(process.device), train=False, **common)
    return Feed(train, process, data.mean, data.std), Feed(val, process, data.mean, data.std)


def train_state(model: nn.Module, schedule: Schedule, process: Process) -> TrainState:
    """A state before its first step, for a model that is on its device."""
    return TrainState(
        model=model,
        optimizer=schedule.optimizer(model),
        scaler=process.scaler(),
        average=moving_average(model, schedule.ema_decay),
        loss_sum=torch.zeros((), device=process.device),
    )


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
    return [name for name in configuration.names("backbone") if fnmatch(name, pattern)]


def list_attentions(pattern: str = "*") -> list[str]:
    """The attentions' names that match a shell pattern such as ``se*``."""
    return [name for name in configuration.names("attention") if fnmatch(name, pattern)]
