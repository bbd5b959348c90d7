"""A data set as the rest of the program uses it: two splits, and a few facts about their pixels."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol, Self

import torch
from torch import Tensor

RGB = tuple[float, float, float]
Draw = tuple[int, int]  # (seed, epoch): the key of an epoch's random choices

CHANGED = "changed protocol: "  # in ``source``, before a change to the images that no paper's setting has


Target = dict[str, Tensor]  # the objects in an image, for a detector: see ``attnbench.data.detection.scenes``
Images = Tensor | list[Tensor]
Targets = Tensor | list[Target]


class Batch(NamedTuple):
    """The samples of one process in one step.

    Attributes:
        images: uint8 (N, 3, H, W), in any memory format; for a detector a list of N images (3, H, W), which an
            augmentation may have made float32, in the same units and with values below 0 and above 255.
        targets: int64 (N,), indices into ``Dataset.classes``; for a detector a list of N targets.
        weight: N * world_size / global batch size; 1.0 with one process. Multiply the mean loss over N by it: DDP's
            mean over processes is then the mean over the global batch.
    """

    images: Images
    targets: Targets
    weight: float

    @property
    def smallest(self) -> int:
        """The number of samples in the smallest share of this step; every process computes the same number.

        N / weight is the mean over processes, and the shares differ by at most one sample.
        """
        return int(len(self.targets) / self.weight)

    def parts(self, count: int) -> list[Batch]:
        """Split the batch into ``count`` non-empty parts of nearly equal size; their losses add up to the batch's."""
        total = len(self.targets)
        assert 1 <= count <= total
        size, longer = divmod(total, count)
        ends = [i * size + min(i, longer) for i in range(count + 1)]
        return [
            Batch(self.images[start:end], self.targets[start:end], self.weight * (end - start) / total)
            for start, end in itertools.pairwise(ends)
        ]


class Split(Protocol):
    """The training or validation samples of a data set: ``Resident`` in memory or ``Files`` on disk."""

    def __len__(self) -> int:
        """The number of samples."""
        ...

    def to(self, device: torch.device | str) -> Self:
        """Prepare in place for batches that are used on ``device``; returns itself."""
        ...

    def batches(
        self, steps: Sequence[Tensor], draw: Draw | None, *, workers: int, timeout: float
    ) -> Iterator[tuple[Images, Targets]]:
        """The images and targets of each step, in order.

        Args:
            steps: the int64 (N,) indices of each step's samples.
            draw: the key of the augmentation; None for the images as evaluation uses them.
            workers: maximum number of processes that decode images; 0 for none.
            timeout: seconds to wait for a worker before raising an error.

        Raises:
            DataError: a sample cannot be read, or a worker died.
        """
        ...


@dataclass(frozen=True)
class Dataset:
    """A data set.

    Attributes:
        classes: the name of each class, by target.
        train: the training split.
        val: the validation split.
        size: side in pixels of the network's input images.
        mean: mean per channel, of pixels in [0, 1].
        std: standard deviation per channel, of pixels in [0, 1].
        source: a line for reports that describes the data.
        fingerprint: SHA-256 in hex that changes when the data change.
        contents: returns a SHA-256 over the bytes of the image files, or "" if the fingerprint covers the pixels.
        drawn: returns how some pictures are drawn that are not drawn as stored in 8 bits; "" if there are none.
        notes: returns lines for the start of a run, such as the number of pictures of each class.
        balanced: the label of each training sample, int64 (N,), if an epoch draws equally many of each class.
    """

    classes: tuple[str, ...]
    train: Split
    val: Split
    size: int
    mean: RGB
    std: RGB
    source: str
    fingerprint: str
    contents: Callable[[], str] = str
    drawn: Callable[[], str] = str
    notes: Callable[[], Sequence[str]] = tuple
    balanced: Tensor | None = None
