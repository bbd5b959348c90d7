"""A split whose images are decoded from files, by worker processes, each time they are used."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import Self

import numpy as np
import torch
from torch import Tensor
from torch.utils import data

from attnbench.data import sampling
from attnbench.data.dataset import Draw
from attnbench.data.folder import Side
from attnbench.data.images import Crops, read_rgb
from attnbench.errors import DataError

Sample = tuple[Tensor, int]  # uint8 (size, size, 3) and its target


class Files:
    """Images on disk, cropped and mirrored at random for training.

    Args:
        side: which files, and their labels.
        crops: how each becomes a square of the network's size.
    """

    def __init__(self, side: Side, crops: Crops) -> None:
        self.folder, self.crops = str(side.folder), crops
        # One array: a worker would come to copy a million strings by counting references to them.
        self.names = np.array([os.fsencode(name) for name in side.files])
        self.labels = np.array(side.labels)
        self.pin_memory = False

    def __len__(self) -> int:
        return len(self.names)

    def to(self, device: torch.device | str) -> Self:
        """Put batches into pinned memory if ``device`` is a GPU; they are decoded on the CPU."""
        self.pin_memory = torch.device(device).type == "cuda"
        return self

    def path(self, index: int) -> str:
        """The file of a sample."""
        return os.path.join(self.folder, os.fsdecode(self.names[index]))

    def read(self, index: int, draw: Draw | None) -> Sample:
        """Decode one sample: a random crop for the epoch ``draw``, the centre for None.

        Raises:
            DataError: its file cannot be read.
        """
        image = read_rgb(self.path(index))
        if draw is None:
            pixels = self.crops.evaluate(image)
        else:
            pixels = self.crops.train(image, sampling.stream("crop", *draw, index))
        return torch.from_numpy(pixels), int(self.labels[index])

    def batches(
        self, steps: Sequence[Tensor], draw: Draw | None, *, workers: int, timeout: float
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """See ``Split.batches``; each call starts its own workers, gone when the iterator is."""
        loader: data.DataLoader[_Read] = data.DataLoader(
            _Epoch(self, draw),
            batch_sampler=[step.tolist() for step in steps],
            collate_fn=_collate,
            num_workers=workers,
            timeout=timeout if workers else 0,
            pin_memory=self.pin_memory,
            generator=torch.Generator(),  # or it would draw from the global one, as dropout does
        )
        try:
            for batch in loader:
                if isinstance(batch, DataError):
                    raise batch
                yield batch
        except RuntimeError as error:
            what = f"a data worker failed: {str(error).splitlines()[0]}"
            todo = f"see that memory and /dev/shm suffice for {workers} workers, or use fewer"
            raise DataError(what, self.folder, todo) from error


# An error travels from a worker as a value: DataLoader rewrites the message of one that is raised.
_Read = Sample | DataError


class _Epoch(data.Dataset[_Read]):
    """The samples of a split as one epoch sees them: a sample's number to its pixels."""

    def __init__(self, split: Files, draw: Draw | None) -> None:
        self.split, self.draw = split, draw

    def __getitem__(self, index: int) -> _Read:
        try:
            return self.split.read(index, self.draw)
        except DataError as error:
            return error


def _collate(samples: list[_Read]) -> tuple[Tensor, Tensor] | DataError:
    """Images uint8 (N, 3, H, W), channels_last, and targets int64 (N,); or the first error."""
    images, targets = [], []
    for sample in samples:
        if isinstance(sample, DataError):
            return sample
        images.append(sample[0])
        targets.append(sample[1])
    return torch.stack(images).permute(0, 3, 1, 2), torch.tensor(targets)
