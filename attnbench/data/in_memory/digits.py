"""Real images of handwritten digits that come with the package, so that nothing has to be downloaded.

E. Alpaydin and C. Kaynak, "Optical Recognition of Handwritten Digits", UCI Machine Learning Repository, 1998,
https://doi.org/10.24432/C50P49, licensed CC BY 4.0. ``digits.csv.gz`` is an unchanged copy of the test set as
scikit-learn bundles it: 1797 rows, each with 64 pixels from 0 to 16 and the digit.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch.nn.functional import interpolate

from attnbench.config.options import Count, Index, checked
from attnbench.data.dataset import Dataset
from attnbench.data.in_memory.resident import Pixels, resident_dataset

DIGITS = Path(__file__).with_name("digits.csv.gz")
SIDE, BRIGHTEST = 8, 16
MEAN, STD = 0.3058, 0.3190  # of the training images at size 16; at smaller sizes the std is larger


@checked
def digits(*, size: Count = 16, pad: Index = 2) -> Dataset:
    """1797 handwritten digits of 10 classes; every fifth image is held out for validation.

    Args:
        size: side in pixels to which the 8x8 originals are resized, bilinearly.
        pad: maximum shift of a training crop in pixels, in each direction. Digits are never mirrored.
    """
    table = np.loadtxt(DIGITS, delimiter=",", dtype=np.int64)
    images, labels = _resized(table[:, :-1], size), table[:, -1]
    held_out = np.arange(len(table)) % 5 == 4
    return resident_dataset(
        Pixels(images[~held_out], labels[~held_out]),
        Pixels(images[held_out], labels[held_out]),
        classes=tuple("0123456789"),
        pad=pad,
        flip=False,
        mean=(MEAN,) * 3,
        std=(STD,) * 3,
        source=f"UCI handwritten digits, 8x8 resized to {size}x{size} (E. Alpaydin, CC BY 4.0)",
    )


def _resized(rows: np.ndarray, size: int) -> np.ndarray:
    """Convert rows of 64 grey values from 0 to 16 to RGB images, uint8 (N, size, size, 3)."""
    grey = torch.from_numpy(rows).float().view(-1, 1, SIDE, SIDE) * (255 / BRIGHTEST)
    grey = interpolate(grey, size=(size, size), mode="bilinear", align_corners=False)
    return grey.round().byte().expand(-1, 3, -1, -1).permute(0, 2, 3, 1).contiguous().numpy()
