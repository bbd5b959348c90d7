"""Decoding image files, and the crops of ImageNet training and evaluation, on PIL images.

The pixels equal those of torchvision's transforms on PIL images bit for bit. Only the random
numbers differ: they come from a stream of their own for each (seed, epoch, sample) instead of
torch's global generator.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Literal

import numpy as np
from PIL import Image

from attnbench.errors import DataError

FORMATS = ("JPEG", "PNG")
LARGEST = 89_478_485  # pixels: from here on PIL warns of a decompression bomb, but goes on

Box = tuple[int, int, int, int]  # left, top, width, height in pixels


def read_rgb(path: str | Path) -> Image.Image:
    """Decode a JPEG or PNG file, grey, palette or colour, as RGB.

    Raises:
        DataError: the file is missing, damaged, truncated, too large or of another format.
    """
    try:
        with Image.open(path, formats=FORMATS) as image:
            if image.width * image.height > LARGEST:
                raise ValueError(f"{image.width}x{image.height} pixels are too many")
            return image.convert("RGB")
    except Exception as error:  # damage surfaces as OSError, SyntaxError, struct.error and others
        todo = "restore the file, or remove it from the data set"
        raise DataError(f"this image cannot be read: {error}", path, todo) from error


@dataclass(frozen=True)
class Crops:
    """How an image of any size becomes the square that the network sees.

    Attributes:
        size: side of that square in pixels.
        resize: what the evaluation image is resized to before its centre is cropped.
        resize_mode: ``shorter`` makes the shorter side ``resize`` long and keeps the aspect;
            ``square`` makes both.
        min_area: smallest part of the image's area that a training crop covers.
    """

    size: int
    resize: int
    resize_mode: Literal["shorter", "square"]
    min_area: float

    def train(self, image: Image.Image, random: Random) -> np.ndarray:
        """A random part of the image, half of the time mirrored: uint8 (size, size, 3)."""
        left, top, width, height = random_box(image.width, image.height, self.min_area, random)
        crop = image.crop((left, top, left + width, top + height))
        crop = crop.resize((self.size, self.size), Image.Resampling.BILINEAR)
        if random.random() < 0.5:
            crop = crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        return np.array(crop)

    def evaluate(self, image: Image.Image) -> np.ndarray:
        """The centre of the resized image: uint8 (size, size, 3)."""
        image = image.resize(self._resized(image.width, image.height), Image.Resampling.BILINEAR)
        left, top = round((image.width - self.size) / 2), round((image.height - self.size) / 2)
        return np.array(image.crop((left, top, left + self.size, top + self.size)))

    def _resized(self, width: int, height: int) -> tuple[int, int]:
        if self.resize_mode == "square":
            return self.resize, self.resize
        if width <= height:
            return self.resize, int(self.resize * height / width)
        return int(self.resize * width / height), self.resize


def random_box(width: int, height: int, min_area: float, random: Random) -> Box:
    """The part of an image that a training crop shows, drawn as by torchvision's RandomResizedCrop.

    Its area is uniform in [min_area, 1] of the image's, its aspect log-uniform in [3/4, 4/3]. After
    ten draws that do not fit it is the largest central box whose aspect lies in that range.
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
