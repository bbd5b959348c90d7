"""A split whose images are stored on disk; worker processes decode them each time they are used."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Protocol, Self, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.utils import data

from attnbench.base.errors import DataError
from attnbench.data import sampling
from attnbench.data.dataset import Draw
from attnbench.data.image_folders.folder import Side
from attnbench.data.images import jpeg, pillow
from attnbench.data.images.crops import Crops, View
from attnbench.data.images.formats import facts

B = TypeVar("B")


class Records(Protocol):
    """Stored images: ``Loose`` files or ``Shards``.

    Attributes:
        labels: int64 (N,).
        place: the folder that contains them.
    """

    labels: np.ndarray
    place: Path

    def __len__(self) -> int: ...

    def read(self, index: int) -> bytes:
        """The encoded bytes of an image.

        Raises:
            DataError: they cannot be read or are damaged.
        """
        ...

    def where(self, index: int) -> str:
        """The name of an image for error messages."""
        ...

    def name(self, index: int) -> str:
        """``class/name`` of an image, the same for a folder and for shards of it."""
        ...


class Chosen:
    """Some of the stored images, with other labels.

    Args:
        records: all of them.
        numbers: int64 (N,), the numbers of those that are chosen.
        labels: int64 (N,), their labels.
    """

    def __init__(self, records: Records, numbers: np.ndarray, labels: np.ndarray) -> None:
        self.records, self.numbers, self.labels, self.place = records, numbers, labels, records.place

    def __len__(self) -> int:
        return len(self.numbers)

    def read(self, index: int) -> bytes:
        """See ``Records.read``."""
        return self.records.read(int(self.numbers[index]))

    def where(self, index: int) -> str:
        """See ``Records.where``."""
        return self.records.where(int(self.numbers[index]))

    def name(self, index: int) -> str:
        """See ``Records.name``."""
        return self.records.name(int(self.numbers[index]))


class Loose:
    """Images that are single files."""

    def __init__(self, side: Side) -> None:
        self.place = side.folder
        # One array, not a list of strings: reference counts would make each worker copy a million of them.
        self.names = np.array([os.fsencode(name) for name in side.files])
        self.places = np.array([os.fsencode(place) for place in side.places]) if side.places else self.names
        self.labels = np.array(side.labels)

    def __len__(self) -> int:
        return len(self.names)

    def read(self, index: int) -> bytes:
        """See ``Records.read``."""
        return pillow.read_file(self.where(index))

    def where(self, index: int) -> str:
        """The file of an image."""
        return os.path.join(self.place, os.fsdecode(self.places[index]))

    def name(self, index: int) -> str:
        """See ``Records.name``."""
        return os.fsdecode(self.names[index])


class Files:
    """Stored images, cropped and mirrored at random for training.

    Args:
        records: the bytes and labels of the images.
        crops: how images are cropped to the network's size.
        upright: whether to apply the orientation in their EXIF data.
    """

    def __init__(self, records: Records, crops: Crops, upright: bool = False) -> None:
        self.records, self.crops, self.upright = records, crops, upright
        self.pin_memory = False
        jpeg.running()  # compile it here, not in every worker

    def __len__(self) -> int:
        return len(self.records)

    def name(self, index: int) -> str:
        """``class/name`` of a sample."""
        return self.records.name(index)

    def relabelled(self, table: np.ndarray) -> Files:
        """The samples whose class has a number of at least 0 in ``table``, int64 (classes,), with that number."""
        labels = table[self.records.labels]
        kept = (labels >= 0).nonzero()[0]
        return Files(Chosen(self.records, kept, labels[kept]), self.crops, self.upright)

    def to(self, device: torch.device | str) -> Self:
        """Put batches into pinned memory if ``device`` is a GPU. Images are always decoded on the CPU."""
        self.pin_memory = torch.device(device).type == "cuda"
        return self

    def read(self, index: int, draw: Draw | None) -> np.ndarray:
        """Decode a sample: a random crop with the key ``draw``, or the centre if it is None; uint8 (size, size, 3).

        Args:
            index: the sample; from ``len(self)`` on, the samples again with other crops (see ``sampling.balanced``).

        Raises:
            DataError: the image cannot be read.
        """
        stored = index % len(self.records)
        encoded = self.records.read(stored)

        def choose(width: int, height: int) -> View:
            if draw is None:
                return self.crops.evaluate(width, height)
            return self.crops.train(width, height, sampling.stream("crop", *draw, index))

        turns = self.upright and facts(encoded).orientation > 1
        drawn = None if turns else jpeg.draw(encoded, choose)
        if drawn is None:
            image = pillow.read_rgb(encoded, self.records.where(stored), upright=self.upright)
            drawn = pillow.draw(image, choose(*image.size))
        return drawn

    def batches(
        self, steps: Sequence[Tensor], draw: Draw | None, *, workers: int, timeout: float
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """See ``Split.batches``. Each call starts its own workers; they end with the iterator."""
        batch = partial(self._batch, draw=draw)
        place = self.records.place
        return decoded(batch, steps, workers=workers, timeout=timeout, pin_memory=self.pin_memory, place=place)

    def _batch(self, step: np.ndarray, draw: Draw | None) -> tuple[Tensor, Tensor]:
        """Images, uint8 (N, 3, H, W), channels_last, and targets, int64 (N,)."""
        pixels = torch.from_numpy(np.stack([self.read(int(index), draw) for index in step]))
        return pixels.permute(0, 3, 1, 2), torch.from_numpy(self.records.labels[step % len(self.records)])


def decoded(
    batch: Callable[[np.ndarray], B],
    steps: Sequence[Tensor],
    *,
    workers: int,
    timeout: float,
    pin_memory: bool,
    place: str | Path,
) -> Iterator[B]:
    """Batches that worker processes make; ``batch`` makes one from its samples' indices.

    Raises:
        DataError: a sample cannot be read, or a worker died.
    """
    loader: data.DataLoader[Any] = data.DataLoader(
        _Steps(batch, steps),
        batch_size=None,
        num_workers=workers,
        timeout=timeout if workers else 0,
        pin_memory=pin_memory,
        generator=torch.Generator(),  # by default, it would draw from the global one and change dropout
    )
    try:
        for made in loader:
            if isinstance(made, DataError):
                raise made
            yield made
    except RuntimeError as error:
        what = f"a data worker failed: {str(error).splitlines()[0]}"
        todo = f"make sure that memory and /dev/shm are large enough for {workers} workers, or use fewer"
        raise DataError(what, place, todo) from error


class _Steps(data.Dataset[Any]):
    """The batches of an epoch, by number.

    An error is returned, not raised: DataLoader would rewrite the message of one that a worker raises.
    """

    def __init__(self, batch: Callable[[np.ndarray], Any], steps: Sequence[Tensor]) -> None:
        self.batch = batch
        self.steps = [step.numpy() for step in steps]

    def __len__(self) -> int:
        return len(self.steps)

    def __getitem__(self, number: int) -> Any:
        try:
            return self.batch(self.steps[number])
        except DataError as error:
            return error
