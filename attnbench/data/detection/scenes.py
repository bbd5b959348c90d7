"""Images with objects in them, to train and evaluate detectors.

A ``Source`` has images and the objects in them. ``Scenes`` is the split that draws batches from a source. A target is a
dictionary of tensors, as torchvision's detectors expect it:

    boxes      float32 (n, 4): left, top, right, bottom in pixels, right and bottom exclusive
    labels     int64 (n,): 1 for the first class; 0 is the background
    areas      float32 (n,): COCO uses them to call an object small, medium or large
    difficult  bool (n,): VOC's difficult objects, which evaluation ignores
    crowd      bool (n,): COCO's regions with any number of objects; evaluation ignores detections in them
    image      int64 (): the sample's number
    masks      uint8 (n, H, W), if the source has them

Training leaves out difficult objects and crowds; evaluation gets all objects.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
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
    """The n objects in an image, with the fields of a target (see the module). Here, ``labels`` count from 0."""

    boxes: np.ndarray
    labels: np.ndarray
    areas: np.ndarray
    difficult: np.ndarray
    crowd: np.ndarray
    masks: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.boxes)

    def __getitem__(self, chosen: np.ndarray) -> Objects:
        """The objects that an array of indices or booleans selects."""
        masks = None if self.masks is None else self.masks[chosen]
        of_each = (self.boxes, self.labels, self.areas, self.difficult, self.crowd)
        boxes, labels, areas, difficult, crowd = (part[chosen] for part in of_each)
        return Objects(boxes, labels, areas, difficult, crowd, masks)


class Source(Protocol):
    """Annotated images."""

    in_memory: bool

    def __len__(self) -> int: ...

    def image(self, index: int) -> np.ndarray:
        """An image, uint8 (H, W, 3)."""
        ...

    def objects(self, index: int, masks: bool = True) -> Objects:
        """The objects in an image, in its pixel coordinates; with their masks if ``masks`` and if there are any."""
        ...

    def unmasked(self) -> object | None:
        """The first image without masks for its objects, for an error message; None if there is none."""
        ...


Augment = Callable[[np.ndarray, Objects, Random], tuple[np.ndarray, Objects]]


class Scenes:
    """A split of annotated images.

    Args:
        source: the images and their objects.
        augment: the augmentation of training images with their objects; None for none.
        keep_empty: whether training uses images without an object.

    Attributes:
        masks: whether targets have masks, if the source has them.
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

    def name(self, index: int) -> str:
        """The file of a sample's image; empty if it has none."""
        named = getattr(self.source, "name", None)
        return named(int(self.numbers[index])) if named else ""

    def relabelled(self, table: np.ndarray) -> Scenes:
        """All samples, with the objects whose class has a number of at least 0 in ``table``, int64 (classes,)."""
        return Scenes(Relabelled(self.source, table))

    def to(self, device: torch.device | str) -> Self:
        """Put batches into pinned memory if ``device`` is a GPU. Images are always prepared on the CPU."""
        self.pin_memory = torch.device(device).type == "cuda"
        return self

    def read(self, index: int, draw: Draw | None) -> tuple[Tensor, Target]:
        """An image (3, H, W) and its target: augmented with the key ``draw``, or unchanged if it is None.

        The image is uint8, or float32 in the same units if the augmentation makes it so.

        Raises:
            DataError: the image file cannot be read.
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
        """See ``Split.batches``. They are lists, because sizes and numbers of objects differ between images."""
        batch = partial(self._batch, draw=draw)
        workers = 0 if self.source.in_memory else workers
        return decoded(batch, steps, workers=workers, timeout=timeout, pin_memory=self.pin_memory, place="dataset")

    def _batch(self, step: np.ndarray, draw: Draw | None) -> tuple[list[Tensor], list[Target]]:
        images, targets = zip(*(self.read(int(index), draw) for index in step), strict=True)
        return list(images), list(targets)


class Relabelled:
    """A source whose objects have other labels; objects without one are left out."""

    def __init__(self, source: Source, table: np.ndarray) -> None:
        self.source, self.table, self.in_memory = source, table, source.in_memory

    def __len__(self) -> int:
        return len(self.source)

    def image(self, index: int) -> np.ndarray:
        """See ``Source``."""
        return self.source.image(index)

    def objects(self, index: int, masks: bool = True) -> Objects:
        """See ``Source``."""
        objects = self.source.objects(index, masks)
        objects = objects[self.table[objects.labels] >= 0]
        return replace(objects, labels=self.table[objects.labels])

    def unmasked(self) -> object | None:
        """See ``Source``."""
        return self.source.unmasked()

    def name(self, index: int) -> str:
        """See ``Scenes.name``."""
        named = getattr(self.source, "name", None)
        return named(index) if named else ""


def _learned(objects: Objects) -> np.ndarray:
    return ~(objects.difficult | objects.crowd)


def target(objects: Objects, number: int) -> Target:
    """The objects in an image as tensors."""
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
    """Objects with these boxes and labels. By default, areas are the boxes', and none is difficult or a crowd."""
    corners = np.asarray(boxes, dtype=np.float64).reshape(-1, 4)
    areas = (corners[:, 2:] - corners[:, :2]).prod(1)
    none = np.zeros(len(corners), dtype=bool)
    facts = {"areas": areas, "difficult": none, "crowd": none, **given}
    return Objects(corners, np.asarray(labels, dtype=np.int64), **facts)


def checked_box(box: Sequence[float], width: int, height: int, where: str) -> tuple[float, float, float, float]:
    """A box, clipped to its image.

    It may exceed the image by one pixel: in VOC and COCO, some boxes do because of rounding.

    Raises:
        DataError: the box is not finite, has no area or is outside the image.
    """
    left, top, right, bottom = box
    if not all(np.isfinite(box)) or right <= left or bottom <= top:
        raise NoArea(f"a box without area: {_text(box)}", where, "repair or remove it")
    if left < -1 or top < -1 or right > width + 1 or bottom > height + 1:
        what = f"a box outside its image of {width}x{height}: {_text(box)}"
        raise DataError(what, where, "repair or remove it")
    clipped = max(0.0, left), max(0.0, top), min(float(width), right), min(float(height), bottom)
    if clipped[2] <= clipped[0] or clipped[3] <= clipped[1]:
        raise DataError(f"a box outside its image of {width}x{height}: {_text(box)}", where, "repair or remove it")
    if any(np.float32(high) <= np.float32(low) for low, high in zip(clipped[:2], clipped[2:], strict=True)):
        raise NoArea(
            f"a box without area in the numbers that detectors use: {_text(box)}", where, "repair or remove it"
        )
    return clipped


class NoArea(DataError):
    """A box without area, which some data sets accept."""


def _text(box: Sequence[float]) -> str:
    return "left {:.9g}, top {:.9g}, right {:.9g}, bottom {:.9g}".format(*box)


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
    drawn: Callable[[], str] = str,
    notes: Callable[[], Sequence[str]] = tuple,
) -> Dataset:
    """A data set of annotated images. The detector gets pixels in [0, 1] and normalises them itself.

    Args:
        facts: the bytes that the fingerprint is computed over.
        contents, drawn, notes: see ``Dataset``.

    Raises:
        DataError: a split has no image, or validation has no object to detect.
    """
    for name, side in (("training", train), ("validation", val)):
        if not len(side):
            raise DataError(f"the {name} split is empty", source, "add images to it")
    if not any(_learned(val.objects(i, masks=False)).any() for i in range(len(val))):
        raise DataError("validation has no object to detect", source, "add annotated images to it")
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
        drawn=drawn,
        notes=notes,
    )


def _fingerprint(facts: Sequence[bytes]) -> str:
    digest = hashlib.sha256()
    for fact in facts:
        digest.update(hashlib.sha256(fact).digest())
    return digest.hexdigest()
