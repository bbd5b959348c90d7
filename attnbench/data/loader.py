"""From a split to one process's batches of one epoch."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from attnbench.base.errors import ConfigError, DataError
from attnbench.data import sampling
from attnbench.data.dataset import Batch, Draw, Split

FEWEST = 2  # samples a process can train on: batch norm has no variance of one


class Loader:
    """Batches of a split, the same for any number of workers, processes and restarts.

    A global batch is ``batch_size`` consecutive samples of the epoch's order, and process ``rank``
    takes every ``world_size``-th of them. Training shuffles, augments, and leaves out a last batch
    of fewer than two samples a process. Evaluation goes in order and sees every sample exactly once
    over all processes, never padded: where the last batch has fewer samples than there are
    processes, some processes have one batch less.

    Args:
        split: where the samples come from.
        batch_size: samples a step over all processes.
        seed: with the epoch, the key of the order and the augmentation.
        train: whether to shuffle and augment.
        rank: this process, from 0.
        world_size: the number of processes.
        workers: processes that decode images; a resident split needs none.
        timeout: seconds to wait for a worker before giving up.

    Attributes:
        samples: samples seen in an epoch over all processes.

    Raises:
        ConfigError: ``batch_size`` leaves a process fewer than two samples to train on.
        DataError: the split is smaller than that.
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
    ) -> None:
        assert 0 <= rank < world_size and timeout > 0
        fewest = FEWEST * world_size if train else 1
        if train:
            refuse_small(batch_size, world_size)
        if len(split) < fewest:
            raise DataError(f"only {len(split)} samples", "dataset", f"give at least {fewest}")
        self.split, self.batch_size, self.seed, self.train = split, batch_size, seed, train
        self.rank, self.world_size = rank, world_size
        self.workers, self.timeout = workers, timeout
        self.samples = sampling.usable(len(split), batch_size, fewest)

    def __len__(self) -> int:
        """Steps of this process in an epoch."""
        full, last = divmod(self.samples, self.batch_size)
        return full * (self.batch_size > self.rank) + (last > self.rank)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """The batches of ``epoch`` from step ``start`` on.

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
        """This process's indices of every global batch, and their weight in it."""
        order = sampling.order(len(self.split), draw)[: self.samples]
        shares = []
        for batch in order.split(self.batch_size):
            mine = batch[self.rank :: self.world_size]
            shares.append((mine, len(mine) * self.world_size / len(batch)))
        return [(mine, weight) for mine, weight in shares if len(mine)]


def refuse_small(batch_size: int, world_size: int) -> None:
    """Refuse a batch that leaves a process fewer than two samples to train on.

    Raises:
        ConfigError: names the smallest one that does not.
    """
    if batch_size < FEWEST * world_size:
        what = f"{batch_size}: batch norm needs {FEWEST} samples in every process"
        raise ConfigError(what, "batch_size", f"use at least {FEWEST * world_size}")
