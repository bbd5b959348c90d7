"""Augmentation of images with boxes: mirroring, or all that SSD does.

SSD (Liu et al., arXiv:1512.02325) augments by photometric distortion, expansion, random crop, mirroring and resizing to
a fixed size. ``ssd`` does so as in the paper, with pixels of 8 bits and Pillow's resizing. ``pytorch_ssd`` does what
the project pytorch-ssd really computes: float pixels that are never clipped, permuted channels, crops that need not
overlap an object, and OpenCV's resizing. Each step is a pure function of its random stream. If objects have masks, the
masks move with the pixels. A crop keeps or drops an object by its box, so nothing of its mask may remain.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from random import Random

import numpy as np
import torch
from PIL import Image
from torch.nn.functional import interpolate

from attnbench.config.options import BoxAugment
from attnbench.data.detection.hsv import recoloured
from attnbench.data.detection.scenes import Augment, Objects

FILL = 127  # grey value around an expanded image
LEAST_OVERLAPS = (None, 0.1, 0.3, 0.5, 0.7, 0.9, float("-inf"))  # None: the whole image; the last: any crop
CROPS = 50  # attempts for each overlap
CHOICES = 6  # of pytorch-ssd's crop: the whole image, or any of five least overlaps
PERMUTATIONS = ((0, 1, 2), (0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0))  # of the channels


def augmentation(kind: BoxAugment, size: int) -> Augment | None:
    """The augmentation with this name, or None for ``none``.

    Args:
        kind: see the module.
        size: the side of images after ``ssd`` and ``pytorch_ssd``.
    """
    steps: dict[str, list[Augment]] = {
        "ssd": [distort, expand, sample_crop, mirror, partial(resize, size=size)],
        "pytorch_ssd": [distort_floats, expand, any_crop, mirror, partial(resize_floats, size=size)],
        "mirror": [mirror],
        "none": [],
    }
    return Chain(steps[kind]) if steps[kind] else None


class Chain:
    """Augmentations that are applied one after the other."""

    def __init__(self, steps: list[Augment]) -> None:
        self.steps = steps

    def __call__(self, image: np.ndarray, objects: Objects, random: Random) -> tuple[np.ndarray, Objects]:
        """The changed image (H, W, 3) and its remaining objects; all steps draw from ``random``.

        The image is uint8, or float32 in the same units after ``pytorch_ssd``.
        """
        for step in self.steps:
            image, objects = step(image, objects, random)
        return image, objects


def mirror(image: np.ndarray, objects: Objects, random: Random) -> tuple[np.ndarray, Objects]:
    """Mirror left to right, with probability 1/2."""
    if random.random() < 0.5:
        return image, objects
    boxes = objects.boxes.copy()
    boxes[:, [0, 2]] = image.shape[1] - boxes[:, [2, 0]]
    return image[:, ::-1], _moved(objects, boxes, lambda masks: masks[:, :, ::-1])


def distort(image: np.ndarray, objects: Objects, random: Random) -> tuple[np.ndarray, Objects]:
    """Change brightness, contrast, saturation and hue, each with probability 1/2; contrast first or last."""
    pixels = image.astype(np.float32)
    if _half(random):
        pixels += 64 * random.random() - 32
    contrast_first = _half(random)
    if contrast_first:
        pixels = _contrast(pixels, random)
    pixels = _colours(pixels, random)
    if not contrast_first:
        pixels = _contrast(pixels, random)
    return pixels.clip(0, 255).round().astype(np.uint8), objects


def _contrast(pixels: np.ndarray, random: Random) -> np.ndarray:
    return pixels * (0.5 + random.random()) if _half(random) else pixels


def _colours(pixels: np.ndarray, random: Random) -> np.ndarray:
    """Multiply saturation by 0.5 to 1.5 and rotate hue by up to 18 degrees, each with probability 1/2."""
    saturation = 0.5 + random.random() if _half(random) else 1.0
    hue = 36 * random.random() - 18 if _half(random) else 0.0
    if saturation == 1.0 and hue == 0.0:
        return pixels
    hsv = np.array(Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).convert("HSV"), dtype=np.float32)
    hsv[:, :, 0] = (hsv[:, :, 0] + hue * 256 / 360) % 256
    hsv[:, :, 1] = (hsv[:, :, 1] * saturation).clip(0, 255)
    return np.array(Image.fromarray(hsv.astype(np.uint8), "HSV").convert("RGB"), dtype=np.float32)


def distort_floats(image: np.ndarray, objects: Objects, random: Random) -> tuple[np.ndarray, Objects]:
    """pytorch-ssd's distortion: float32 pixels, neither rounded nor clipped.

    Brightness, contrast, saturation and hue change as in ``distort``, and then, with probability 1/2, the channels get
    a random order, which may be the one they had.
    """
    pixels = image.astype(np.float32)
    if _half(random):
        pixels += np.float32(64 * random.random() - 32)
    contrast_first = _half(random)
    if contrast_first:
        pixels = _contrast(pixels, random)
    saturation = 0.5 + random.random() if _half(random) else 1.0
    degrees = 36 * random.random() - 18 if _half(random) else 0.0
    pixels = recoloured(pixels, saturation, degrees)
    if not contrast_first:
        pixels = _contrast(pixels, random)
    if _half(random):
        pixels = pixels[:, :, PERMUTATIONS[int(random.random() * len(PERMUTATIONS))]]
    return pixels, objects


def expand(image: np.ndarray, objects: Objects, random: Random) -> tuple[np.ndarray, Objects]:
    """Place the image on a grey canvas with sides up to four times as long, with probability 1/2."""
    if not _half(random):
        return image, objects
    height, width = image.shape[:2]
    ratio = 1 + 3 * random.random()
    left, top = (int(random.random() * (side * ratio - side)) for side in (width, height))
    size, place = (int(height * ratio), int(width * ratio)), np.s_[top : top + height, left : left + width]
    canvas = np.full((*size, 3), FILL, dtype=image.dtype)
    canvas[place] = image

    def expanded(masks: np.ndarray) -> np.ndarray:
        wide = np.zeros((len(masks), *size), dtype=masks.dtype)
        wide[:, *place] = masks
        return wide

    return canvas, _moved(objects, objects.boxes + np.array([left, top, left, top]), expanded)


def sample_crop(image: np.ndarray, objects: Objects, random: Random) -> tuple[np.ndarray, Objects]:
    """Crop the image so that the crop overlaps some object enough, or keep the whole image.

    A crop's sides are 0.3 to 1 times the image's, and its aspect ratio is 1/2 to 2. Objects whose centre is in the crop
    remain, with boxes clipped to it.
    """
    while len(objects):
        least = LEAST_OVERLAPS[int(random.random() * len(LEAST_OVERLAPS))]
        if least is None:
            return image, objects
        for _ in range(CROPS):
            crop = _crop(image.shape[1], image.shape[0], random)
            if crop is None or _overlaps(objects.boxes, crop).max() < least:
                continue
            if taken := _taken(image, objects, crop):
                return taken
    return image, objects


def _taken(image: np.ndarray, objects: Objects, crop: np.ndarray) -> tuple[np.ndarray, Objects] | None:
    """A crop with the objects whose centre is in it; None if there are none."""
    inside = _centred(objects.boxes, crop)
    if not inside.any():
        return None
    pixels, moved = _cropped(image, objects, crop)
    return pixels, moved[inside]


def _crop(width: int, height: int, random: Random) -> np.ndarray | None:
    w, h = (int(side * (0.3 + 0.7 * random.random())) for side in (width, height))
    if w == 0 or h == 0 or not 0.5 <= h / w <= 2:
        return None
    left, top = int(random.random() * (width - w)), int(random.random() * (height - h))
    return np.array([left, top, left + w, top + h])


def any_crop(image: np.ndarray, objects: Objects, random: Random) -> tuple[np.ndarray, Objects]:
    """pytorch-ssd's crop: the whole image with probability 1/6, else a crop that contains an object's centre.

    Sides, aspect ratio and the remaining objects are those of ``sample_crop``. After 50 attempts in vain, it is chosen
    again between the whole image and a crop. An image without objects stays whole; pytorch-ssd cannot train on one.
    """
    # In pytorch-ssd, a crop is tried again if ``overlap.min() < least and most < overlap.max()``. ``most`` is infinite
    # in all choices, so this is never true: the choices 0.1, 0.3, 0.7 and 0.9 all mean the same as "any crop".
    while len(objects) and int(random.random() * CHOICES):
        for _ in range(CROPS):
            crop = _float_crop(image.shape[1], image.shape[0], random)
            if crop is not None and (taken := _taken(image, objects, crop)):
                return taken
    return image, objects


def _float_crop(width: int, height: int, random: Random) -> np.ndarray | None:
    """A crop as pytorch-ssd draws it, rounded to pixels last; None if it is too wide or too high."""
    w, h = (side * (0.3 + 0.7 * random.random()) for side in (width, height))
    if not 0.5 <= h / w <= 2:
        return None
    # pytorch-ssd calls numpy's ``uniform(width - w)``. Its only argument is the lower end, and the upper end is 1. So
    # no crop begins in the first column or row, unless less than a pixel is cut off.
    left, top = (free + (1 - free) * random.random() for free in (width - w, height - h))
    return np.array([int(left), int(top), int(left + w), int(top + h)])


def _centred(boxes: np.ndarray, crop: np.ndarray) -> np.ndarray:
    """Whether the centre of each box is in a crop."""
    centres = (boxes[:, :2] + boxes[:, 2:]) / 2
    inside: np.ndarray = ((centres > crop[:2]) & (centres < crop[2:])).all(1)
    return inside


def _overlaps(boxes: np.ndarray, crop: np.ndarray) -> np.ndarray:
    """Intersection over union of each box with a crop."""
    sides = np.minimum(boxes[:, 2:], crop[2:]) - np.maximum(boxes[:, :2], crop[:2])
    shared = sides.clip(0).prod(1)
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(1)
    return shared / (areas + (crop[2:] - crop[:2]).prod() - shared)


def _cropped(image: np.ndarray, objects: Objects, crop: np.ndarray) -> tuple[np.ndarray, Objects]:
    left, top, right, bottom = crop
    boxes = objects.boxes.copy()
    boxes[:, :2] = np.maximum(boxes[:, :2], crop[:2]) - crop[:2]
    boxes[:, 2:] = np.minimum(boxes[:, 2:], crop[2:]) - crop[:2]
    return image[top:bottom, left:right], _moved(objects, boxes, lambda masks: masks[:, top:bottom, left:right])


def resize(image: np.ndarray, objects: Objects, random: Random, *, size: int) -> tuple[np.ndarray, Objects]:
    """Resize the image to ``size`` x ``size`` pixels; a mask takes the value at the centre of each new pixel."""
    resized = Image.fromarray(np.ascontiguousarray(image)).resize((size, size), Image.Resampling.BILINEAR)
    return np.array(resized), _resized(objects, image.shape[:2], size)


def resize_floats(image: np.ndarray, objects: Objects, random: Random, *, size: int) -> tuple[np.ndarray, Objects]:
    """Resize as OpenCV's INTER_LINEAR, and as the detectors resize in evaluation: bilinear and not antialiased."""
    channels = torch.from_numpy(np.ascontiguousarray(image, dtype=np.float32)).permute(2, 0, 1)
    resized = interpolate(channels[None], size=(size, size), mode="bilinear", align_corners=False)[0]
    return resized.permute(1, 2, 0).numpy(), _resized(objects, image.shape[:2], size)


def _resized(objects: Objects, sides: tuple[int, ...], size: int) -> Objects:
    """The objects of an image of this height and width, once it is ``size`` x ``size``."""
    height, width = sides
    boxes = objects.boxes * np.array([size / width, size / height] * 2)
    rows, columns = ((2 * np.arange(size) + 1) * side // (2 * size) for side in (height, width))
    return _moved(objects, boxes, lambda masks: masks[:, rows[:, None], columns])


def _moved(objects: Objects, boxes: np.ndarray, move: Callable[[np.ndarray], np.ndarray]) -> Objects:
    """Objects with other boxes, and with ``move`` applied to their masks (n, H, W), if they have any."""
    return replace(objects, boxes=boxes, masks=None if objects.masks is None else move(objects.masks))


def _half(random: Random) -> bool:
    return random.random() < 0.5
