"""Measures how fast a configuration trains on this machine, by a few real steps of the training loop on noise."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from attnbench.config import catalog
from attnbench.config.configuration import Config
from attnbench.data.dataset import Batch
from attnbench.models import factory, fused
from attnbench.training import engine, setup
from attnbench.training.checkpoints import Checkpoints, Timer
from attnbench.training.feed import Feed
from attnbench.training.recorder import NullRecorder
from attnbench.training.runtime import Process

STEPS = 3  # that are measured, after one to warm up
SECONDS = 5.0  # after which no further step is measured
PIXELS = 2**17  # per step on a CPU: 128 images of 32x32


class Enough(Exception):
    """Ends the training loop after the last measured step."""


class Noise:
    """A source of batches that repeats one batch of noise."""

    def __init__(self, batch: Batch) -> None:
        self.batch = batch
        self.samples = len(batch.images) * len(self)

    def __len__(self) -> int:
        return 1000

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """The same batch, repeated without end."""
        while True:
            yield self.batch


class Stopwatch(engine.Saver):
    """Takes the place of the saver and records the time of each step instead of saving."""

    def __init__(self, process: Process) -> None:
        super().__init__(Checkpoints(Path(), {}), Timer(None, 1.0), process, "")  # never writes
        self.times: list[float] = []

    def after_step(self, state: Any) -> None:
        """Record when a step ended.

        Raises:
            Enough: that was the last step to measure.
        """
        if self.process.device.type == "cuda":
            torch.cuda.synchronize(self.process.device)
        self.times.append(time.perf_counter())
        if len(self.times) > STEPS or (len(self.times) > 1 and self.times[-1] - self.times[0] > SECONDS):
            raise Enough

    @property
    def seconds(self) -> float:
        """The median time of a step, without the first one."""
        steps = sorted(after - before for before, after in zip(self.times, self.times[1:], strict=False))
        return steps[len(steps) // 2]


def seconds_per_image(config: Config) -> tuple[float, int]:
    """The seconds per image in a training step, and the batch size at which they were measured.

    On a CPU the batch is reduced to save time; on a GPU it is reduced only if it does not fit into memory.
    """
    _, size = catalog.setting(config, ["dataset="])
    pixels = size**2 if isinstance(size, int) else size[0] * size[1]
    batch: int = config.tree["batch_size"]
    with config.build("runtime").start() as process:
        if process.device.type == "cpu":
            batch = max(2, min(batch, PIXELS // pixels))
        while True:
            try:
                return _timed(config, process, batch) / batch, batch
            except torch.OutOfMemoryError:
                if batch <= 2:
                    raise
                batch //= 2


def _timed(config: Config, process: Process, batch: int) -> float:
    """The seconds of a step."""
    torch.manual_seed(0)
    schedule, task = config.build("schedule"), config.build("task")
    classes, _ = catalog.setting(config, ["dataset="])
    model = process.place(factory.network(factory.without_weights(config), classes)[0])
    fused.choose(model, config.tree["runtime"]["tail"])
    feed = Feed(Noise(setup.noise(config, batch, process.device)), process, (0.5,) * 3, (0.25,) * 3)
    watch = Stopwatch(process)
    with suppress(Enough):
        engine.fit(
            setup.train_state(model, schedule, process),
            process.wrap(model),
            task,
            feed,
            dict,
            schedule=schedule,
            batch_size=batch,
            process=process,
            recorder=NullRecorder(),
            saver=watch,
        )
    return watch.seconds
