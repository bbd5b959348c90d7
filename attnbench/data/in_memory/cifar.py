"""CIFAR-10 and CIFAR-100, held in memory.

A. Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009.
"""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np

from attnbench.base.errors import DataError
from attnbench.config.options import DataName, Index, checked
from attnbench.data.dataset import Dataset
from attnbench.data.image_folders.folder import Side, contents, left_out_line, read_sides
from attnbench.data.in_memory.cifar_batches import CIFAR10, CIFAR100, SIDE, Release, find_files, read_files
from attnbench.data.in_memory.resident import Pixels, resident_dataset

log = logging.getLogger("attnbench")


@checked
def cifar10(
    *, root: str, pad: Index = 4, flip: bool = True, verify: bool = True, name: DataName | None = None
) -> Dataset:
    """CIFAR-10: 50,000 training and 10,000 test images, 32x32 RGB, 10 classes.

    Args:
        root: the folder with ``cifar-10-python.tar.gz`` or its extracted files, or an image folder with
            ``train/<class>/*.jpg`` and ``test/<class>/*.jpg`` (or ``val/``).
        pad: zeros added on every side before a training crop.
        flip: whether to mirror half of the training images.
        verify: whether to accept only the published files, by SHA-256. It has no effect on an image folder.
        name: the name of the data if they are not the published ones; part of a run's name.

    Raises:
        DataError: the data are missing, or they are not the published ones.
    """
    return _cifar(CIFAR10, root, pad, flip, verify, name)


@checked
def cifar100(
    *, root: str, pad: Index = 4, flip: bool = True, verify: bool = True, name: DataName | None = None
) -> Dataset:
    """CIFAR-100: 50,000 training and 10,000 test images, 32x32 RGB, 100 fine classes.

    Args:
        root: the folder with ``cifar-100-python.tar.gz`` or its extracted files, or an image folder with
            ``train/<class>/*.jpg`` and ``test/<class>/*.jpg`` (or ``val/``).
        pad: zeros added on every side before a training crop.
        flip: whether to mirror half of the training images.
        verify: whether to accept only the published files, by SHA-256. It has no effect on an image folder.
        name: the name of the data if they are not the published ones; part of a run's name.

    Raises:
        DataError: the data are missing, or they are not the published ones.
    """
    return _cifar(CIFAR100, root, pad, flip, verify, name)


def _cifar(release: Release, root: str, pad: int, flip: bool, verify: bool, name: str | None) -> Dataset:
    folder = Path(root).expanduser()
    if found := find_files(release, folder):
        names, train, test = read_files(release, found, verify)
        source = f"{release.name}, {'official files' if verify else 'unverified files'}"
    else:
        names, train, test, source = _from_images(release, folder)
    if len(names) != release.classes:
        what = f"{len(names)} classes instead of the {release.classes} of {release.name}"
        raise DataError(what, folder, "set dataset and dataset.root to the same data set")
    return resident_dataset(
        train,
        test,
        classes=names,
        pad=pad,
        flip=flip,
        mean=release.mean,
        std=release.std,
        source=f"{name}: {source}" if name else source,
    )


def _from_images(release: Release, root: Path) -> tuple[tuple[str, ...], Pixels, Pixels, str]:
    """The class names, both splits and the source line of an image folder."""
    if not (root / "train").is_dir():
        looked_for = f"{release.archive}, {release.folder}/ or train/<class>/*.jpg"
        todo = f"put {looked_for} there, or set dataset.root"
        raise DataError(f"no {release.name} here: {contents(root)}", root, todo)
    names, train, test = read_sides(root, ("test", "val"))
    if line := left_out_line(train.left_out + test.left_out):
        log.info("%s", line)
    lossy = any(not file.lower().endswith(".png") for file in train.files)
    kind = "JPEG: lossy, not the official pixels" if lossy else "PNG, unverified"
    return names, _decoded(train), _decoded(test), f"{release.name}, image folder ({kind})"


def _decoded(side: Side) -> Pixels:
    """Decode every image of a split, without threads: with images this small, threads are slower."""
    log.info("decoding %d images of %s", len(side.files), side.folder)
    images = [_read_tiny(side.folder / file) for file in side.files]
    return Pixels(np.stack(images), np.array(side.labels))


def _read_tiny(path: Path) -> np.ndarray:
    """One image, uint8 (32, 32, 3)."""
    from attnbench.data.images.pillow import read_file, read_rgb  # imports PIL, which the official files do not need

    pixels = np.asarray(read_rgb(read_file(path), path))
    if pixels.shape != (SIDE, SIDE, 3):
        what = f"{pixels.shape[1]}x{pixels.shape[0]} pixels instead of {SIDE}x{SIDE}"
        raise DataError(what, path, "use the original images")
    return pixels
