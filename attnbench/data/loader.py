"""The batches that one process draws from a split in an epoch."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from attnbench.base.errors import ConfigError, DataError
from attnbench.data import sampling
from attnbench.data.dataset import Batch, Draw, Split

FEWEST = 2  # samples that a process needs to train: batch norm cannot take the variance of one


class Loader:
    """Batches of a split, the same for any number of workers, processes and restarts.

    A global batch is ``batch_size`` consecutive samples of the epoch's order; process ``rank`` takes every
    ``world_size``-th of them. Training shuffles and augments; it skips a last batch of fewer than two samples per
    process. Evaluation keeps the order and uses every sample exactly once over all processes. It adds no padding: if
    the last batch has fewer samples than there are processes, some processes have one batch less.

    Args:
        split: the samples.
        batch_size: samples per step over all processes.
        seed: the order and the augmentation depend on it and on the epoch.
        train: whether to shuffle and augment.
        rank: the number of this process, from 0.
        world_size: the number of processes.
        workers: processes that decode images; a resident split needs none.
        timeout: seconds to wait for a worker before raising an error.
        balanced: see ``Dataset``; for training only.

    Attributes:
        samples: samples used in an epoch over all processes.

    Raises:
        ConfigError: ``batch_size`` gives a process fewer than two samples to train on.
        DataError: the split has too few samples for one batch.
    """

    def __init__(
        self,
        split: Split,
        *,
        batch_size: int,
        seed: int,
        train: bool,
        rank: int = 0,
        world_size: int = 1,
        workers: int = 0,
        timeout: float = 120.0,
        balanced: Tensor | None = None,
    ) -> None:
        assert 0 <= rank < world_size and timeout > 0
        fewest = FEWEST * world_size if train else 1
        if train:
            refuse_small(batch_size, world_size)
        if len(split) < fewest:
            raise DataError(f"only {len(split)} samples", "dataset", f"give at least {fewest}")
        self.split, self.batch_size, self.seed, self.train = split, batch_size, seed, train
        self.rank, self.world_size = rank, world_size
        self.workers, self.timeout, self.balanced = workers, timeout, balanced
        self.samples = sampling.usable(len(split), batch_size, fewest)

    def __len__(self) -> int:
        """The number of steps of this process in an epoch."""
        full, last = divmod(self.samples, self.batch_size)
        return full * (self.batch_size > self.rank) + (last > self.rank)

    @property
    def evaluated(self) -> Tensor:
        """The numbers of the samples that this process evaluates, int64 (N,), in their order."""
        return torch.cat([mine for mine, _ in self._shares(None)] or [torch.zeros(0, dtype=torch.int64)])

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """The batches of ``epoch``, from step ``start`` on.

        Raises:
            DataError: a sample cannot be read, or a worker died.
        """
        draw = (self.seed, epoch) if self.train else None
        shares = self._shares(draw)[start:]
        steps = [indices for indices, _ in shares]
        read = self.split.batches(steps, draw, workers=self.workers, timeout=self.timeout)
        for (_, weight), (images, targets) in zip(shares, read, strict=True):
            yield Batch(images, targets, weight)

    def _shares(self, draw: Draw | None) -> list[tuple[Tensor, float]]:
        """For each global batch: the indices that this process takes, and their weight."""
        if draw is not None and self.balanced is not None:
            order = sampling.balanced(self.balanced, draw)
        else:
            order = sampling.order(len(self.split), draw)
        order = order[: self.samples]
        shares = []
        for batch in order.split(self.batch_size):
            mine = batch[self.rank :: self.world_size]
            shares.append((mine, len(mine) * self.world_size / len(batch)))
        return [(mine, weight) for mine, weight in shares if len(mine)]


def refuse_small(batch_size: int, world_size: int) -> None:
    """Refuse a batch size that gives a process fewer than two samples to train on.

    Raises:
        ConfigError: the batch size is too small; the message gives the smallest valid one.
    """
    if batch_size < FEWEST * world_size:
        what = f"{batch_size}: batch norm needs {FEWEST} samples in every process"
        raise ConfigError(what, "batch_size", f"use at least {FEWEST * world_size}")
