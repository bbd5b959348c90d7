"""Real handwritten digits on canvases, with exact boxes and masks, so that a detector can train without a download.

The digits are those of ``attnbench.data.in_memory.digits``. Every fifth one is held out and appears only on validation
canvases.
"""

from __future__ import annotations

from dataclasses import replace
from random import Random
from typing import Literal

import numpy as np
import torch
from torch.nn.functional import interpolate

from attnbench.base.errors import ConfigError
from attnbench.config.options import Count, checked
from attnbench.data.dataset import Dataset
from attnbench.data.detection.box_augment import augmentation
from attnbench.data.detection.scenes import Objects, boxed, scene_dataset
from attnbench.data.in_memory.digits import BRIGHTEST, DIGITS, SIDE
from attnbench.data.sampling import stream

INK = 64  # of 255; pixels at least as bright belong to a digit's mask
TRIES = 20  # attempts to find a free place for a digit


@checked
def digits_det(
    *,
    size: Count = 64,
    smallest: Count = 14,
    largest: Count = 28,
    most: Count = 4,
    train_images: Count = 512,
    val_images: Count = 128,
    augment: Literal["ssd", "pytorch_ssd", "none"] = "none",
) -> Dataset:
    """Canvases with one to ``most`` digits of 10 classes; they are the same every time.

    Args:
        size: side of a canvas in pixels.
        smallest, largest: range of sides in pixels to which the 8x8 originals are enlarged.
        most: maximum number of digits on a canvas.
        train_images, val_images: number of canvases in each split.
        augment: ``ssd`` and ``pytorch_ssd`` augment training canvases as SSD does, mirroring included.

    Raises:
        ConfigError: a digit could be larger than the canvas, or ``smallest`` is larger than ``largest``.
    """
    if not smallest <= largest <= size:
        what = f"digits of {smallest} to {largest} pixels on a canvas of {size}"
        raise ConfigError(what, "dataset.largest", "use smallest <= largest <= size")
    table = np.loadtxt(DIGITS, delimiter=",", dtype=np.int64)
    held_out = np.arange(len(table)) % 5 == 4
    options = (size, smallest, largest, most)
    train = Canvases(table[~held_out], "train", train_images, *options)
    val = Canvases(table[held_out], "val", val_images, *options)
    return scene_dataset(
        train,
        val,
        classes=tuple("0123456789"),
        augment=augmentation(augment, size),
        size=size,
        source=f"UCI handwritten digits on {size}x{size} canvases (E. Alpaydin, CC BY 4.0)",
        facts=[train.images.tobytes(), val.images.tobytes()],
    )


class Canvases:
    """Canvases in memory.

    Args:
        digits: rows of 64 grey values and the digit.
        name: the split's name; random numbers depend on it.
        count: number of canvases.
        size, smallest, largest, most: see ``digits_det``.

    Attributes:
        images: uint8 (N, size, size, 3).
        found: the digits on each canvas.
    """

    in_memory = True

    def __init__(
        self, digits: np.ndarray, name: str, count: int, size: int, smallest: int, largest: int, most: int
    ) -> None:
        self.digits, self.size, self.smallest, self.largest, self.most = digits, size, smallest, largest, most
        drawn = [self._canvas(stream("digits_det", name, n)) for n in range(count)]
        self.images = np.stack([image for image, _ in drawn])
        self.found = [objects for _, objects in drawn]

    def __len__(self) -> int:
        return len(self.found)

    def image(self, index: int) -> np.ndarray:
        """Canvas ``index``, uint8 (H, W, 3)."""
        return self.images[index]

    def objects(self, index: int, masks: bool = True) -> Objects:
        """The digits on canvas ``index``, with their masks if ``masks``."""
        return self.found[index] if masks else replace(self.found[index], masks=None)

    def unmasked(self) -> None:
        """Every digit has a mask."""

    def _canvas(self, random: Random) -> tuple[np.ndarray, Objects]:
        """Draw a canvas: a uniform dark grey background with digits that do not overlap."""
        canvas = np.full((self.size, self.size), _below(random, 49), dtype=np.uint8)
        boxes: list[tuple[int, int, int, int]] = []
        labels, masks = [], []
        for _ in range(1 + _below(random, self.most)):
            grey, label = self._digit(random)
            if (place := self._free(grey.shape[0], boxes, random)) is None:
                continue
            left, top = place
            side = grey.shape[0]
            mask = np.zeros_like(canvas)
            mask[top : top + side, left : left + side] = grey >= INK
            spot = canvas[top : top + side, left : left + side]
            np.maximum(spot, grey, out=spot)
            boxes.append(_extent(mask))
            labels.append(label)
            masks.append(mask)
        objects = boxed(boxes, labels, areas=np.array([mask.sum() for mask in masks]), masks=np.stack(masks))
        return np.repeat(canvas[:, :, None], 3, axis=2), objects

    def _digit(self, random: Random) -> tuple[np.ndarray, int]:
        """An enlarged random digit, uint8 (side, side), and its label."""
        row = self.digits[_below(random, len(self.digits))]
        side = self.smallest + _below(random, self.largest - self.smallest + 1)
        grey = torch.from_numpy(row[:-1]).float().view(1, 1, SIDE, SIDE) * (255 / BRIGHTEST)
        enlarged = interpolate(grey, size=(side, side), mode="bilinear", align_corners=False)
        return enlarged[0, 0].round().byte().numpy(), int(row[-1])

    def _free(self, side: int, boxes: list[tuple[int, int, int, int]], random: Random) -> tuple[int, int] | None:
        """The left and top of a square that overlaps no box, or None if none is found."""
        for _ in range(TRIES):
            left, top = (_below(random, self.size - side + 1) for _ in range(2))
            if all(left >= r or left + side <= x or top >= b or top + side <= y for x, y, r, b in boxes):
                return left, top
        return None


def _below(random: Random, end: int) -> int:
    """A random whole number from 0 to ``end`` - 1."""
    return int(random.random() * end)


def _extent(mask: np.ndarray) -> tuple[int, int, int, int]:
    """The smallest box around a mask."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1
