"""Saturation and hue of float images, changed as by OpenCV: ``cvtColor`` to HSV in float32, and back.

OpenCV documents its formulas for pixels from 0 to 1, and computes them for any others. The value v is the largest
channel, and the saturation is (v - the smallest channel) / |v|. Back from HSV, a channel that was d below v is
v - v s d / (v - the smallest channel), which is v - sign(v) d. So pixels whose largest channel is below 0 do not come
back as they were: (-10, -20, -30) comes back as (-10, 0, 10). Nothing is clipped.
"""

from __future__ import annotations

import numpy as np


def recoloured(pixels: np.ndarray, saturation: float, degrees: float) -> np.ndarray:
    """Pixels, float32 (H, W, 3) of any range, with their saturation multiplied and their hue turned by degrees.

    With ``saturation`` 1 and 0 degrees, they are converted to HSV and back, nothing else.
    """
    value = pixels.max(2)
    below = value[..., None] - pixels
    if degrees:
        below = _turned(pixels, value, below.max(2), degrees)
    return value[..., None] - (np.float32(saturation) * np.sign(value))[..., None] * below


def _turned(pixels: np.ndarray, value: np.ndarray, spread: np.ndarray, degrees: float) -> np.ndarray:
    """How far each channel is below the value, (H, W, 3), after the hue has been turned by less than 60 degrees."""
    red, green, blue = np.moveaxis(pixels, 2, 0)
    share = 1 / np.maximum(spread, np.finfo(np.float32).tiny)
    hue = np.where(value == green, 2 + (blue - red) * share, 4 + (red - green) * share)  # in sixths of the circle
    hue = np.where(value == red, (green - blue) * share, hue) + np.float32(degrees / 60)
    hue[hue < 0] += 6
    shares = [1 - (np.abs(hue - 3) - 1).clip(0, 1), *(1 - (2 - np.abs(hue - at)).clip(0, 1) for at in (2, 4))]
    return np.stack([spread * one for one in shares], 2)
