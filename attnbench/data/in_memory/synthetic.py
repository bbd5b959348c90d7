"""Images of noise, for measuring speed without a data set. Accuracy on them means nothing."""

from __future__ import annotations

import hashlib

import numpy as np

from attnbench.config.options import Count, Several, checked
from attnbench.data.dataset import Dataset
from attnbench.data.in_memory.resident import Pixels, resident_dataset


@checked
def synthetic(*, size: Count = 224, classes: Several = 1000, train: Several = 512, val: Count = 64) -> Dataset:
    """Random images held in memory, the same on every machine; labels repeat 0, 1, ..., ``classes`` - 1.

    Args:
        size: side of an image in pixels.
        train, val: number of images in each split; 512 images of 224 pixels take 77 MB.
    """
    return resident_dataset(
        _noise("train", train, size, classes),
        _noise("val", val, size, classes),
        classes=tuple(map(str, range(classes))),
        pad=0,
        flip=False,
        mean=(0.5,) * 3,
        std=(0.289,) * 3,  # of a uniform distribution on [0, 1]
        source=f"SYNTHETIC: {train} + {val} images of noise, {size}x{size}, {classes} classes; accuracy means nothing",
    )


def _noise(name: str, images: int, size: int, classes: int) -> Pixels:
    """Pixels from SHAKE-128: a standard defines every bit, unlike those of a library's random generator."""
    shape = (images, size, size, 3)
    drawn = hashlib.shake_128(f"{name} {shape}".encode()).digest(int(np.prod(shape)))
    return Pixels(np.frombuffer(bytearray(drawn), np.uint8).reshape(shape), np.arange(images) % classes)
