"""What a data set is to the rest of the program: two splits and a few facts about their pixels."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol, Self

import torch
from torch import Tensor

RGB = tuple[float, float, float]
Draw = tuple[int, int]  # (seed, epoch): the key of an epoch's random choices

CHANGED = "changed protocol: "  # in a source, before what was done to the images that a paper's setting does not do


Target = dict[str, Tensor]  # what is in an image, for a detector: see ``attnbench.data.detection.scenes``
Images = Tensor | list[Tensor]
Targets = Tensor | list[Target]


class Batch(NamedTuple):
    """The samples that one process sees in one step.

    Attributes:
        images: uint8 (N, 3, H, W), in any memory format; for a detector a list of N images (3, H, W).
        targets: int64 (N,), indices into ``Dataset.classes``; for a detector a list of N targets.
        weight: N * world_size / global batch size, 1.0 in one process. A loss averaged over N and
            multiplied by it is, after DDP's mean over processes, the mean over the global batch.
    """

    images: Images
    targets: Targets
    weight: float

    @property
    def smallest(self) -> int:
        """The samples of the process that has the fewest in this step: the same number in every process.

        N / weight is the mean over processes, and the shares of processes differ by one sample at most.
        """
        return int(len(self.targets) / self.weight)

    def parts(self, count: int) -> list[Batch]:
        """The batch in ``count`` parts of nearly equal size, none of them empty, whose losses add up to the batch's."""
        total = len(self.targets)
        assert 1 <= count <= total
        size, longer = divmod(total, count)
        ends = [i * size + min(i, longer) for i in range(count + 1)]
        return [
            Batch(self.images[start:end], self.targets[start:end], self.weight * (end - start) / total)
            for start, end in itertools.pairwise(ends)
        ]


class Split(Protocol):
    """One side of a data set, before sampling: ``Resident`` in memory or ``Files`` on disk."""

    def __len__(self) -> int:
        """The number of samples."""
        ...

    def to(self, device: torch.device | str) -> Self:
        """Prepare, in place, for batches used on ``device``; returns itself."""
        ...

    def batches(
        self, steps: Sequence[Tensor], draw: Draw | None, *, workers: int, timeout: float
    ) -> Iterator[tuple[Images, Targets]]:
        """The images and targets of each step, in order.

        Args:
            steps: for each step the int64 (N,) indices of its samples.
            draw: the key of the augmentation; None for the evaluation view of the images.
            workers: processes that may decode images; 0 for none.
            timeout: seconds to wait for a worker before calling it lost.

        Raises:
            DataError: a sample cannot be read, or a worker died.
        """
        ...


@dataclass(frozen=True)
class Dataset:
    """A data set.

    Attributes:
        classes: the name of each class, by target.
        train: the split to learn from.
        val: the split to report results on.
        size: side in pixels of an image as the network sees it.
        mean: per channel, of pixels in [0, 1].
        std: per channel, of pixels in [0, 1].
        source: one line for reports on what these pixels are.
        fingerprint: SHA-256 in hex that changes when the data change.
        contents: gives a SHA-256 over the bytes of the pictures where the fingerprint is taken over less, else "".
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
