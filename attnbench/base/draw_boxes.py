"""Draws detections on an image: boxes, masks, classes and scores."""

from __future__ import annotations

import colorsys
from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

LEAST_SIDE = 320  # pixels; smaller images are enlarged, since their labels would cover them
TINT = 0.45  # opacity of a mask's colour


def drawn(
    image: Tensor,
    answer: Mapping[str, Tensor],
    classes: Sequence[str],
    least: float = 0.5,
    truth: Tensor | None = None,
) -> np.ndarray:
    """The image, uint8 (H, W, 3), with every detection whose score is at least ``least``.

    Args:
        image: (3, H, W) in [0, 1].
        answer: boxes, labels from 1, scores and, if there are any, masks, as torchvision's detectors return them.
        classes: class names, by label - 1.
        least: minimum score of a detection that is drawn.
        truth: boxes (n, 4) of the annotated objects, drawn in white below the detections.
    """
    pixels = (image.detach().cpu().clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy().copy()
    kept = [int(i) for i in (answer["scores"] >= least).nonzero()[:, 0]]
    for i in kept if "masks" in answer else ():
        covered = (answer["masks"][i, 0] > 0.5).cpu().numpy()
        tinted = (1 - TINT) * pixels[covered] + TINT * np.array(colour(int(answer["labels"][i])))
        pixels[covered] = tinted.astype(np.uint8)
    enlarged, times = _enlarged(Image.fromarray(pixels))
    draw = ImageDraw.Draw(enlarged)
    for box in () if truth is None else truth:
        _frame(draw, [times * float(at) for at in box], (255, 255, 255), 1)
    for i in reversed(kept):  # the best detection on top
        label = int(answer["labels"][i])
        caption = f"{classes[label - 1]} {float(answer['scores'][i]):.2f}"
        _box(draw, [times * float(at) for at in answer["boxes"][i]], caption, colour(label))
    return np.array(enlarged)


def colour(label: int) -> tuple[int, int, int]:
    """A colour for a label; neighbouring labels have clearly different colours."""
    red, green, blue = colorsys.hsv_to_rgb(label * 0.61803 % 1, 0.85, 1.0)
    return int(255 * red), int(255 * green), int(255 * blue)


def _enlarged(image: Image.Image) -> tuple[Image.Image, int]:
    times = -(-LEAST_SIDE // max(image.size))
    return image.resize((image.width * times, image.height * times), Image.Resampling.NEAREST), times


def _box(draw: ImageDraw.ImageDraw, box: Sequence[float], caption: str, hue: tuple[int, int, int]) -> None:
    """Draw a frame, and its caption in a filled rectangle above it or, at the image's edge, inside it."""
    left, top = box[:2]
    _frame(draw, box, hue, 2)
    font = ImageFont.load_default(size=12)
    width, height = draw.textbbox((0, 0), caption, font=font)[2:]
    y = top - height - 3 if top >= height + 3 else top
    draw.rectangle([left, y, left + width + 3, y + height + 3], fill=hue)
    draw.text((left + 2, y + 1), caption, fill=(0, 0, 0), font=font)


def _frame(draw: ImageDraw.ImageDraw, box: Sequence[float], hue: tuple[int, int, int], width: int) -> None:
    left, top, right, bottom = box
    draw.rectangle([left, top, max(left, right - 1), max(top, bottom - 1)], outline=hue, width=width)
