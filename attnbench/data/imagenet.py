"""ImageNet-1k (Russakovsky et al., arXiv:1409.0575), or any image folder in its layout."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from attnbench.data.dataset import Dataset
from attnbench.data.files import Files
from attnbench.data.folder import fingerprint, read_sides
from attnbench.data.images import Crops
from attnbench.errors import ConfigError
from attnbench.options import Count, Share, checked

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@checked
def imagenet(
    *,
    root: str,
    size: Count = 224,
    resize: Count = 256,
    resize_mode: Literal["shorter", "square"] = "shorter",
    min_area: Share = 0.08,
) -> Dataset:
    """Images from ``root/train/<wnid>/`` and ``root/val/<wnid>/``, decoded as they are used.

    Args:
        root: the folder that holds ``train/`` and ``val/``. Classes are the sorted folders of
            ``train/``.
        size: side in pixels of the crop the network sees.
        resize: pixels that a validation image is resized to before its centre is cropped.
        resize_mode: ``shorter`` resizes the shorter side, keeping the aspect; ``square`` resizes
            both.
        min_area: smallest part of an image's area that a training crop covers.

    Raises:
        DataError: a folder is missing or empty, or validation has a class that training has not.
        ConfigError: ``resize`` is less than ``size``.
    """
    if resize < size:
        what = f"resize={resize} is less than size={size}"
        raise ConfigError(what, "dataset.resize", f"use at least {size}")
    classes, train, val = read_sides(Path(root).expanduser(), ("val",))
    crops = Crops(size, resize, resize_mode, min_area)
    counts = f"{len(train.files)} + {len(val.files)} images"
    return Dataset(
        classes=classes,
        train=Files(train, crops),
        val=Files(val, crops),
        size=size,
        mean=MEAN,
        std=STD,
        source=f"image folder of {len(classes)} classes, {counts}",
        fingerprint=fingerprint(train, val),
    )
