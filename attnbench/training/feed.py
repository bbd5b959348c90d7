"""Moves batches to the device and normalises them."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Protocol

import torch
from torch import Tensor

from attnbench.base.errors import Stopped
from attnbench.data.dataset import Batch, Images, Targets
from attnbench.data.loader import Loader
from attnbench.training.runtime import Process


class Batches(Protocol):
    """A source of batches; see ``attnbench.data.loader.Loader``."""

    samples: int

    def __len__(self) -> int: ...
    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """The batches of an epoch (counted from 0), beginning with step ``start``."""
        ...


class Feed:
    """Batches as the network reads them: on the device, normalised, float32.

    Images are one tensor (N, 3, H, W), or a list of N tensors (3, H, W) that may differ in size.

    Args:
        loader: yields batches of images, uint8 or float32 in the same units.
        mean, std: of pixel values in [0, 1], one number per channel.
    """

    def __init__(self, loader: Batches, process: Process, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        self.loader, self.process = loader, process
        self.mean = 255 * torch.tensor(mean, device=process.device)
        self.scale = 1 / (255 * torch.tensor(std, device=process.device))
        self.seconds_waiting = 0.0

    def __len__(self) -> int:
        return len(self.loader)

    @property
    def samples(self) -> int:
        """The number of samples in an epoch, over all processes."""
        return self.loader.samples

    @property
    def evaluated(self) -> Tensor:
        """The numbers of the samples that this process evaluates, int64 (N,), in their order."""
        assert isinstance(self.loader, Loader)  # noise, which only speed is measured with, has no numbers
        return self.loader.evaluated

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """The batches of an epoch (counted from 0), beginning with step ``start``.

        Raises:
            Stopped: a signal arrived and this is the only process. Several processes agree after each step instead.
        """
        batches = self.loader.epoch(epoch, start)
        while (batch := self._next(batches)) is not None:
            if self.process.stop_requested and self.process.control is None:
                raise Stopped("stopped by a signal", todo="run the same command to continue")
            yield batch._replace(images=self._images(batch.images), targets=self._targets(batch.targets))

    def _next(self, batches: Iterator[Batch]) -> Batch | None:
        began = time.perf_counter()
        batch = next(batches, None)
        self.seconds_waiting += time.perf_counter() - began
        return batch

    def _images(self, images: Images) -> Images:
        if isinstance(images, Tensor):
            return self.normalised(images)
        return [self.normalised(image[None])[0] for image in images]

    def _targets(self, targets: Targets) -> Targets:
        if isinstance(targets, Tensor):
            return self._moved(targets)
        return [{name: self._moved(tensor) for name, tensor in target.items()} for target in targets]

    def _moved(self, tensor: Tensor) -> Tensor:
        return tensor.to(self.process.device, non_blocking=True)

    def normalised(self, images: Tensor) -> Tensor:
        """(x / 255 - mean) / std for images x, in the process's memory format."""
        images = self._moved(images)
        if self.process.memory_format != torch.channels_last:
            floats = images.contiguous().to(torch.float32, copy=True)  # a float image is not ours to change
            return floats.sub_(self.mean.view(-1, 1, 1)).mul_(self.scale.view(-1, 1, 1))
        n, channels, height, width = images.shape
        # Row by row: with three channels as the last dimension, the CPU takes four times as long.
        rows = images.permute(0, 2, 3, 1).reshape(n, height, width * channels).to(torch.float32, copy=True)
        rows.sub_(self.mean.repeat(width)).mul_(self.scale.repeat(width))
        return rows.view(n, height, width, channels).permute(0, 3, 1, 2)
