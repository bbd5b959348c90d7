"""Images with objects in them: what a detector learns from and is measured on.

A ``Source`` knows images and what is in them; ``Scenes`` is the split that draws batches from one. A target is a
dictionary of tensors, as torchvision's detectors read it:

    boxes      float32 (n, 4): left, top, right, bottom in pixels, right and bottom exclusive
    labels     int64 (n,): 1 for the first class; 0 is the background
    areas      float32 (n,): by which COCO calls an object small, medium or large
    difficult  bool (n,): VOC's; found or not, it counts for nothing
    crowd      bool (n,): COCO's; a region with any number of objects, whose detections count for nothing
    image      int64 (): the sample's number
    masks      uint8 (n, H, W), where the source has them

Training never sees difficult objects and crowds; evaluation sees all.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from random import Random
from typing import Protocol, Self

import numpy as np
import torch
from torch import Tensor

from attnbench.base.errors import DataError
from attnbench.data import sampling
from attnbench.data.dataset import Dataset, Draw, Target
from attnbench.data.images.files import decoded


@dataclass(frozen=True)
class Objects:
    """What is in one image; see the module for the meanings. ``labels`` count from 0 here, ``masks`` are of n."""

    boxes: np.ndarray
    labels: np.ndarray
    areas: np.ndarray
    difficult: np.ndarray
    crowd: np.ndarray
    masks: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.boxes)

    def __getitem__(self, chosen: np.ndarray) -> Objects:
        """The chosen objects, by index or by a mask of booleans."""
        masks = None if self.masks is None else self.masks[chosen]
        of_each = (self.boxes, self.labels, self.areas, self.difficult, self.crowd)
        boxes, labels, areas, difficult, crowd = (part[chosen] for part in of_each)
        return Objects(boxes, labels, areas, difficult, crowd, masks)


class Source(Protocol):
    """Annotated images."""

    in_memory: bool

    def __len__(self) -> int: ...

    def image(self, index: int) -> np.ndarray:
        """uint8 (H, W, 3)."""
        ...

    def objects(self, index: int, masks: bool = True) -> Objects:
        """What is in that image, in its pixels; ``masks``: with masks, if there are any."""
        ...

    def unmasked(self) -> object | None:
        """Where the first image is that has no masks for its objects; None if there is none."""
        ...


Augment = Callable[[np.ndarray, Objects, Random], tuple[np.ndarray, Objects]]


class Scenes:
    """A split of annotated images.

    Args:
        source: where they come from.
        augment: what training does to an image with its objects; None for nothing.
        keep_empty: whether training sees images without an object.

    Attributes:
        masks: whether targets have masks, where the source has them.
    """

    def __init__(self, source: Source, augment: Augment | None = None, keep_empty: bool = True) -> None:
        self.source, self.augment = source, augment
        numbers = range(len(source))
        kept = numbers if keep_empty else [i for i in numbers if _learned(source.objects(i, masks=False)).any()]
        self.numbers = np.array(kept, dtype=np.int64)
        self.masks = True
        self.pin_memory = False

    def __len__(self) -> int:
        return len(self.numbers)

    def to(self, device: torch.device | str) -> Self:
        """Put batches into pinned memory if ``device`` is a GPU; images are made on the CPU."""
        self.pin_memory = torch.device(device).type == "cuda"
        return self

    def read(self, index: int, draw: Draw | None) -> tuple[Tensor, Target]:
        """One image, uint8 (3, H, W), and its target: augmented for the epoch ``draw``, as it is for None.

        Raises:
            DataError: its file cannot be read.
        """
        number = int(self.numbers[index])
        image, objects = self.source.image(number), self.source.objects(number, masks=self.masks)
        if draw is not None:
            objects = objects[_learned(objects)]
            if self.augment:
                image, objects = self.augment(image, objects, sampling.stream("scene", *draw, index))
        return torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1))), target(objects, number)

    def batches(
        self, steps: Sequence[Tensor], draw: Draw | None, *, workers: int, timeout: float
    ) -> Iterator[tuple[list[Tensor], list[Target]]]:
        """See ``Split.batches``: lists, for images differ in size and in what is in them."""
        batch = partial(self._batch, draw=draw)
        workers = 0 if self.source.in_memory else workers
        return decoded(batch, steps, workers=workers, timeout=timeout, pin_memory=self.pin_memory, place="dataset")

    def _batch(self, step: np.ndarray, draw: Draw | None) -> tuple[list[Tensor], list[Target]]:
        images, targets = zip(*(self.read(int(index), draw) for index in step), strict=True)
        return list(images), list(targets)


def _learned(objects: Objects) -> np.ndarray:
    return ~(objects.difficult | objects.crowd)


def target(objects: Objects, number: int) -> Target:
    """What is in an image as tensors."""
    tensors = {
        "boxes": torch.from_numpy(objects.boxes.astype(np.float32).reshape(-1, 4)),
        "labels": torch.from_numpy(objects.labels.astype(np.int64) + 1),
        "areas": torch.from_numpy(objects.areas.astype(np.float32)),
        "difficult": torch.from_numpy(objects.difficult.astype(bool)),
        "crowd": torch.from_numpy(objects.crowd.astype(bool)),
        "image": torch.tensor(number),
    }
    if objects.masks is not None:
        tensors["masks"] = torch.from_numpy(np.ascontiguousarray(objects.masks))
    return tensors


def boxed(boxes: Sequence[Sequence[float]], labels: Sequence[int], **given: np.ndarray) -> Objects:
    """Objects by their boxes and labels; areas are the boxes' and nothing is difficult or a crowd unless given."""
    corners = np.asarray(boxes, dtype=np.float64).reshape(-1, 4)
    areas = (corners[:, 2:] - corners[:, :2]).prod(1)
    none = np.zeros(len(corners), dtype=bool)
    facts = {"areas": areas, "difficult": none, "crowd": none, **given}
    return Objects(corners, np.asarray(labels, dtype=np.int64), **facts)


def checked_box(box: Sequence[float], width: int, height: int, where: str) -> tuple[float, float, float, float]:
    """A box, clipped to its image.

    Up to one pixel beyond the edge is rounding, as both VOC and COCO have it.

    Raises:
        DataError: it is not finite, has no area or lies outside the image.
    """
    left, top, right, bottom = box
    if not all(np.isfinite(box)) or right <= left or bottom <= top:
        raise NoArea(f"a box without area: {_words(box)}", where, "repair or remove it")
    if left < -1 or top < -1 or right > width + 1 or bottom > height + 1:
        what = f"a box outside its image of {width}x{height}: {_words(box)}"
        raise DataError(what, where, "repair or remove it")
    clipped = max(0.0, left), max(0.0, top), min(float(width), right), min(float(height), bottom)
    if clipped[2] <= clipped[0] or clipped[3] <= clipped[1]:
        raise DataError(f"a box outside its image of {width}x{height}: {_words(box)}", where, "repair or remove it")
    return clipped


class NoArea(DataError):
    """A box without area, which a data set may be allowed to have."""


def _words(box: Sequence[float]) -> str:
    return "left {:g}, top {:g}, right {:g}, bottom {:g}".format(*box)


def scene_dataset(
    train: Source,
    val: Source,
    *,
    classes: tuple[str, ...],
    augment: Augment | None,
    size: int,
    source: str,
    facts: Sequence[bytes],
    keep_empty: bool = True,
    contents: Callable[[], str] = str,
) -> Dataset:
    """A data set of annotated images; its pixels reach the detector in [0, 1], which normalises them itself.

    Args:
        facts: what the fingerprint is taken over.
        contents: see ``Dataset``.

    Raises:
        DataError: a split has no image, or validation no object that counts.
    """
    for name, side in (("training", train), ("validation", val)):
        if not len(side):
            raise DataError(f"the {name} split is empty", source, "give it images")
    if not any(_learned(val.objects(i, masks=False)).any() for i in range(len(val))):
        raise DataError("validation has no object to find", source, "give it annotated images")
    return Dataset(
        classes=classes,
        train=Scenes(train, augment, keep_empty),
        val=Scenes(val),
        size=size,
        mean=(0.0,) * 3,
        std=(1.0,) * 3,
        source=source,
        fingerprint=_fingerprint(facts),
        contents=contents,
    )


def _fingerprint(facts: Sequence[bytes]) -> str:
    digest = hashlib.sha256()
    for fact in facts:
        digest.update(hashlib.sha256(fact).digest())
    return digest.hexdigest()
