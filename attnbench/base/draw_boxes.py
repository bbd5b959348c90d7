"""Draws detections on an image: boxes, masks, classes and scores."""

from __future__ import annotations

import colorsys
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

LEAST_SIDE = 320  # pixels; smaller images are enlarged, since their labels would cover them
WIDE = 1000  # pixels of an image whose lines are drawn with the usual width; on larger ones they are wider
TINT = 0.45  # opacity of a mask's colour


class Part(Protocol):
    """A part of an image where a mask may be."""

    @property
    def left(self) -> int:
        """The first column."""
        ...

    @property
    def top(self) -> int:
        """The first row."""
        ...

    @property
    def inside(self) -> np.ndarray:
        """Whether each pixel belongs to the mask, bool (height, width)."""
        ...


def drawn(
    image: Tensor,
    answer: Mapping[str, Tensor],
    classes: Sequence[str],
    least: float = 0.5,
    truth: Tensor | None = None,
    mask: Callable[[int], Part] | None = None,
) -> np.ndarray:
    """The image, uint8 (H, W, 3), with every detection whose score is at least ``least``.

    Args:
        image: (3, H, W) in [0, 1].
        answer: boxes, labels from 1 and scores, as torchvision's detectors return them.
        classes: class names, by label - 1.
        least: minimum score of a detection that is drawn.
        truth: boxes (n, 4) of the annotated objects, drawn in white below the detections.
        mask: returns where the mask of a detection is, given its number; None without masks.
    """
    pixels = (image.detach().cpu().clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy().copy()
    kept = [int(i) for i in (answer["scores"] >= least).nonzero()[:, 0]]
    if mask is not None:
        for i in kept:
            _tint(pixels, mask(i), colour(int(answer["labels"][i])))
    enlarged, times = _enlarged(Image.fromarray(pixels))
    draw, pen = ImageDraw.Draw(enlarged), max(1, round(max(enlarged.size) / WIDE))
    for box in () if truth is None else truth:
        _frame(draw, [times * float(at) for at in box], (255, 255, 255), pen)
    for i in reversed(kept):  # the best detection on top
        label = int(answer["labels"][i])
        caption = f"{classes[label - 1]} {float(answer['scores'][i]):.2f}"
        _box(draw, [times * float(at) for at in answer["boxes"][i]], caption, colour(label), pen)
    return np.array(enlarged)


def _tint(pixels: np.ndarray, part: Part, hue: tuple[int, int, int]) -> None:
    """Mix the pixels of a mask with a colour, in place; row by row, so that a mask of a photo needs no second photo."""
    height, width = part.inside.shape
    place = pixels[part.top : part.top + height, part.left : part.left + width]
    for row, covered in zip(place, part.inside, strict=True):
        row[covered] = ((1 - TINT) * row[covered] + TINT * np.array(hue)).astype(np.uint8)


def colour(label: int) -> tuple[int, int, int]:
    """A colour for a label; neighbouring labels have clearly different colours."""
    red, green, blue = colorsys.hsv_to_rgb(label * 0.61803 % 1, 0.85, 1.0)
    return int(255 * red), int(255 * green), int(255 * blue)


def _enlarged(image: Image.Image) -> tuple[Image.Image, int]:
    times = -(-LEAST_SIDE // max(image.size))
    return image.resize((image.width * times, image.height * times), Image.Resampling.NEAREST), times


def _box(draw: ImageDraw.ImageDraw, box: Sequence[float], caption: str, hue: tuple[int, int, int], pen: int) -> None:
    """Draw a frame, and its caption in a filled rectangle above it or, at the image's edge, inside it."""
    left, top = box[:2]
    _frame(draw, box, hue, 2 * pen)
    font = ImageFont.load_default(size=12 * pen)
    width, height = draw.textbbox((0, 0), caption, font=font)[2:]
    y = top - height - 3 * pen if top >= height + 3 * pen else top
    draw.rectangle([left, y, left + width + 3 * pen, y + height + 3 * pen], fill=hue)
    draw.text((left + 2 * pen, y + pen), caption, fill=(0, 0, 0), font=font)


def _frame(draw: ImageDraw.ImageDraw, box: Sequence[float], hue: tuple[int, int, int], width: int) -> None:
    left, top, right, bottom = box
    draw.rectangle([left, top, max(left, right - 1), max(top, bottom - 1)], outline=hue, width=width)
