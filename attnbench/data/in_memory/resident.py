"""A split that is held in memory as one tensor, on the CPU or a GPU; a batch is one gather from it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from copy import copy
from typing import NamedTuple, Self

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad as zero_pad

from attnbench.data import sampling
from attnbench.data.dataset import RGB, Dataset, Draw


class Pixels(NamedTuple):
    """Decoded images, uint8 (N, S, S, 3), and their labels, int64 (N,)."""

    images: np.ndarray
    labels: np.ndarray


class Resident:
    """Images in memory, augmented by a random crop of the zero-padded image and an optional mirror.

    Args:
        pixels: square images and their labels.
        pad: zeros added on every side; a training crop may be anywhere in the padded image.
        flip: whether to mirror half of the training images left to right.

    Attributes:
        images: uint8 (N, S + 2 pad, S + 2 pad, 3), padded once.
        labels: int64 (N,).
    """

    def __init__(self, pixels: Pixels, *, pad: int, flip: bool) -> None:
        images = torch.from_numpy(pixels.images)
        assert images.dtype == torch.uint8 and images.shape[1:] == (images.shape[1],) * 2 + (3,)
        self.images = zero_pad(images, (0, 0, pad, pad, pad, pad))
        self.labels = torch.from_numpy(pixels.labels).long()
        self.size, self.pad, self.flip = images.shape[1], pad, flip

    def __len__(self) -> int:
        return len(self.labels)

    def relabelled(self, table: np.ndarray) -> Resident:
        """The samples whose class has a number of at least 0 in ``table``, int64 (classes,), with that number."""
        labels = torch.from_numpy(table).to(self.labels.device)[self.labels]
        chosen = copy(self)
        chosen.images, chosen.labels = self.images[labels >= 0], labels[labels >= 0]
        return chosen

    def to(self, device: torch.device | str) -> Self:
        """Move the pixels to ``device``; batches are then made there."""
        self.images, self.labels = self.images.to(device), self.labels.to(device)
        return self

    def batches(
        self, steps: Sequence[Tensor], draw: Draw | None, *, workers: int, timeout: float
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """See ``Split.batches``. No worker is used: passing a batch between processes would take longer."""
        device = self.images.device
        # Tables and indices are copied once per epoch: a copy in each step would make the device wait.
        top, left, mirrored = (table.to(device) for table in self._placements(draw))
        for index in [step.to(device) for step in steps]:
            yield self._gather(index, top[index], left[index], mirrored[index]), self.labels[index]

    def _placements(self, draw: Draw | None) -> tuple[Tensor, Tensor, Tensor]:
        """The top and left of each sample's crop, int64 (N,), and whether it is mirrored, bool (N,)."""
        if draw is None:
            centre = torch.full((len(self),), self.pad)
            return centre, centre, torch.zeros(len(self), dtype=torch.bool)
        generator = sampling.generator("augment", *draw)
        top, left = torch.randint(2 * self.pad + 1, (2, len(self)), generator=generator)
        mirrored = torch.rand(len(self), generator=generator) < 0.5
        return top, left, mirrored & self.flip

    def _gather(self, index: Tensor, top: Tensor, left: Tensor, mirrored: Tensor) -> Tensor:
        """Crop and mirror: uint8 (N, 3, S, S), a channels_last view. The CPU and GPU versions give the same bytes."""
        gather = self._by_windows if index.device.type == "cpu" else self._by_pixels
        return gather(index, top, left, mirrored).permute(0, 3, 1, 2)

    def _by_pixels(self, index: Tensor, top: Tensor, left: Tensor, mirrored: Tensor) -> Tensor:
        """One indexing operation of fixed shape, so that a CUDA graph can capture it: (N, S, S, 3)."""
        along = torch.arange(self.size, device=index.device)
        rows = along + top[:, None]
        columns = torch.where(mirrored[:, None], self.size - 1 - along, along) + left[:, None]
        return self.images[index[:, None, None], rows[:, :, None], columns[:, None, :]]

    def _by_windows(self, index: Tensor, top: Tensor, left: Tensor, mirrored: Tensor) -> Tensor:
        """Copy whole rows of pixels, which is twelve times as fast on a CPU as single pixels: (N, S, S, 3)."""
        side = self.images.shape[1]
        starts = (index * side + top) * side + left
        crops = self._windows().index_select(0, starts).view(-1, self.size, self.size, 3)
        turned = crops.index_select(0, mirrored.nonzero().flatten()).flip(2)
        place = torch.where(mirrored, mirrored.cumsum(0) - 1 + len(index), torch.arange(len(index)))
        return torch.cat([crops, turned]).index_select(0, place)

    def _windows(self) -> Tensor:
        """A view of all overlapping windows of S x S pixels, indexed by their first pixel: (pixels, S, 3 S)."""
        n, side = self.images.shape[:2]
        last = (n - 1) * side**2 + (side - self.size) * (side + 1)
        return self.images.as_strided((last + 1, self.size, 3 * self.size), (3, 3 * side, 1))


def resident_dataset(
    train: Pixels,
    val: Pixels,
    *,
    classes: tuple[str, ...],
    pad: int,
    flip: bool,
    mean: RGB,
    std: RGB,
    source: str,
) -> Dataset:
    """A data set held in memory; ``pad`` and ``flip`` augment only the training split."""
    return Dataset(
        classes=classes,
        train=Resident(train, pad=pad, flip=flip),
        val=Resident(val, pad=0, flip=False),
        size=train.images.shape[1],
        mean=mean,
        std=std,
        source=source,
        fingerprint=_fingerprint(*train, *val),
    )


def _fingerprint(*arrays: np.ndarray) -> str:
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(f"{array.dtype.str}{array.shape}".encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()
