"""The crops of ImageNet training and evaluation, as numbers: the part of an image that the network gets.

They are the crops of torchvision's transforms. Only the random numbers differ: each (seed, epoch, sample) has its own
random stream, where torchvision uses torch's global generator.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from random import Random
from typing import Literal

Box = tuple[int, int, int, int]  # left, top, width, height in pixels


@dataclass(frozen=True)
class View:
    """A square crop: a part of an image is resized, and a square is cut out of the result.

    Attributes:
        part: the part of the image.
        resized: width and height to which the part is resized (bilinear, antialiased).
        corner: left and top of the square in the resized part.
        side: side of the square in pixels.
        mirrored: whether the square is then mirrored left to right.
    """

    part: Box
    resized: tuple[int, int]
    corner: tuple[int, int]
    side: int
    mirrored: bool = False


@dataclass(frozen=True)
class Crops:
    """How an image of any size is cropped to the square that the network gets.

    Attributes:
        size: side of that square in pixels.
        resize: pixels to which an evaluation image is resized before its centre is cropped.
        resize_mode: ``shorter`` resizes the shorter side to ``resize`` pixels and keeps the aspect ratio; ``square``
            resizes both sides to it.
        min_area: smallest fraction of the image's area that a training crop covers.
    """

    size: int
    resize: int
    resize_mode: Literal["shorter", "square"]
    min_area: float

    def train(self, width: int, height: int, random: Random) -> View:
        """A random part of the image, mirrored with probability 1/2."""
        part = random_box(width, height, self.min_area, random)
        return View(part, (self.size, self.size), (0, 0), self.size, random.random() < 0.5)

    def evaluate(self, width: int, height: int) -> View:
        """The centre of the resized image."""
        resized = self._resized(width, height)
        corner = round((resized[0] - self.size) / 2), round((resized[1] - self.size) / 2)
        return View((0, 0, width, height), resized, corner, self.size)

    def _resized(self, width: int, height: int) -> tuple[int, int]:
        if self.resize_mode == "square":
            return self.resize, self.resize
        if width <= height:
            return self.resize, int(self.resize * height / width)
        return int(self.resize * width / height), self.resize


def random_box(width: int, height: int, min_area: float, random: Random) -> Box:
    """The part of an image for a training crop, drawn as by torchvision's RandomResizedCrop.

    Its area is uniform in [min_area, 1] of the image's area, and its aspect ratio log-uniform in [3/4, 4/3]. If ten
    draws do not fit into the image, it is the largest central box whose aspect ratio is in that range.
    """
    narrowest, widest = 3 / 4, 4 / 3
    for _ in range(10):
        area = width * height * (min_area + (1 - min_area) * random.random())
        aspect = math.exp(math.log(narrowest) + math.log(widest / narrowest) * random.random())
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            left = int((width - w + 1) * random.random())
            top = int((height - h + 1) * random.random())
            return left, top, w, h
    w, h = min(width, round(height * widest)), min(height, round(width / narrowest))
    return (width - w) // 2, (height - h) // 2, w, h
