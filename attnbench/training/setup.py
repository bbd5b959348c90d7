"""What training starts from: batches of the data, and a training state before the first step."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from attnbench.base.errors import ConfigError
from attnbench.config.catalog import Size, setting
from attnbench.config.configuration import Config
from attnbench.data.dataset import Batch, Dataset
from attnbench.data.detection.scenes import Scenes
from attnbench.data.loader import Loader
from attnbench.models import freezing
from attnbench.training.feed import Feed
from attnbench.training.optim import Schedule
from attnbench.training.parts import Division, fewest, number
from attnbench.training.runtime import Process
from attnbench.training.state import TrainState, moving_average


def feeds(config: Config, data: Dataset, process: Process) -> tuple[Feed, Feed]:
    """Training and validation batches on the process's device; masks are read only if the detector learns them."""
    workers = process.workers
    train, val = (_feed(config, data, process, workers, train=train) for train in (True, False))
    return train, val


def validation(config: Config, data: Dataset, process: Process) -> Feed:
    """Validation batches on the process's device."""
    return _feed(config, data, process, process.workers, train=False)


def _feed(config: Config, data: Dataset, process: Process, workers: int, *, train: bool) -> Feed:
    split = data.train if train else data.val
    if isinstance(split, Scenes):
        split.masks = config.build("detector").masks
    loader = Loader(
        split.to(process.device),
        batch_size=config.tree["batch_size"],
        seed=config.seed,
        train=train,
        rank=process.rank,
        world_size=process.world_size,
        workers=workers,
        balanced=data.balanced if train else None,
    )
    return Feed(loader, process, data.mean, data.std)


def refuse_unmasked(config: Config, data: Dataset) -> None:
    """Refuse data without masks for a detector that learns them.

    Raises:
        ConfigError: names the first image without masks.
    """
    if not isinstance(data.train, Scenes) or not config.build("detector").masks:
        return
    for split in (data.train, data.val):
        if isinstance(split, Scenes) and (image := split.source.unmasked()):
            what, todo = f"an image without masks: {image}", "give every annotation a segmentation, or use faster_rcnn"
            raise ConfigError(what, "detector", todo)


def train_state(model: nn.Module, schedule: Schedule, process: Process, frozen: Sequence[str] = ()) -> TrainState:
    """The state before the first step, for a model that is already on its device.

    Args:
        frozen: the modules that are frozen.
    """
    return TrainState(
        model=model,
        optimizer=schedule.optimizer(model),
        scaler=process.scaler(),
        average=moving_average(model, schedule.ema_decay),
        loss_sum=torch.zeros((), device=process.device),
        frozen=frozen,
    )


def division(config: Config, model: nn.Module, processes: int, batch_size: int | None = None) -> Division:
    """How a run divides its batches.

    Args:
        model: the run's network, in training mode; its frozen parts are set to evaluation mode.
        batch_size: None for the configuration's.
    """
    batch_size = batch_size or config.tree["batch_size"]
    freezing.hold(model, freezing.find(model, config.tree["schedule"].get("freeze") or []))
    runtime = config.tree["runtime"]
    accumulate = config.tree["schedule"].get("accumulate", 1)
    parts = number(accumulate, runtime["norm_batch"], batch_size, processes)
    return Division(batch_size, processes, parts, fewest(model), processes if runtime["sync_bn"] else 1)


def noise(config: Config, batch: int, device: torch.device, overrides: Sequence[str] = ("dataset=",)) -> Batch:
    """A batch of uint8 noise with arbitrary targets, as a feed expects it; ``setting`` gives its size and classes."""
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


def counted_size(config: Config, data: Dataset) -> Size:
    """The image size at which a run's operations are counted: the side, or height and width."""
    return config.build("detector").canvas if "detector" in config.tree else data.size
