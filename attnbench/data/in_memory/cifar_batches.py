"""Reads the official CIFAR files. They are pickles: their hashes are checked first, and they can run no code."""

from __future__ import annotations

import hashlib
import io
import pickle
import tarfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from attnbench.base.errors import DataError
from attnbench.data.dataset import RGB
from attnbench.data.in_memory.resident import Pixels

SIDE = 32
AGAIN = "download CIFAR again"
CIFAR10_ARCHIVE, CIFAR100_ARCHIVE = "cifar-10-python.tar.gz", "cifar-100-python.tar.gz"


@dataclass(frozen=True)
class Release:
    """A data set as its authors published it, https://www.cs.toronto.edu/~kriz/cifar.html.

    Attributes:
        name: the name of the data set.
        classes: the number of classes.
        mean: mean per channel of the training pixels in [0, 1].
        std: standard deviation per channel of the same pixels.
        archive: name of the tar file.
        folder: the only folder in the tar file.
        train: names of the files with training images.
        test: names of the files with test images.
        meta: name of the file with the class names.
        names_key: the key of the class names in that file.
        labels_key: the key of the labels in an image file.
        sha256: hashes of the archive and of each file.
    """

    name: str
    classes: int
    mean: RGB
    std: RGB
    archive: str
    folder: str
    train: tuple[str, ...]
    test: tuple[str, ...]
    meta: str
    names_key: bytes
    labels_key: bytes
    sha256: dict[str, str]

    @property
    def files(self) -> tuple[str, ...]:
        """The names of all files that are read."""
        return (*self.train, *self.test, self.meta)


# The archives' hashes are widely published. Each file's hash was found in at least three independent public projects.
# The hashes of the two meta files were also computed, from copies with the MD5 that torchvision checks.
CIFAR10 = Release(
    name="CIFAR-10",
    classes=10,
    mean=(0.4914, 0.4822, 0.4465),
    # Many repositories use (.2023, .1994, .2010), which is the mean of each image's own std.
    std=(0.2470, 0.2435, 0.2616),
    archive=CIFAR10_ARCHIVE,
    folder="cifar-10-batches-py",
    train=("data_batch_1", "data_batch_2", "data_batch_3", "data_batch_4", "data_batch_5"),
    test=("test_batch",),
    meta="batches.meta",
    names_key=b"label_names",
    labels_key=b"labels",
    sha256={
        CIFAR10_ARCHIVE: "6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce",
        "data_batch_1": "54636561a3ce25bd3e19253c6b0d8538147b0ae398331ac4a2d86c6d987368cd",
        "data_batch_2": "766b2cef9fbc745cf056b3152224f7cf77163b330ea9a15f9392beb8b89bc5a8",
        "data_batch_3": "0f00d98ebfb30b3ec0ad19f9756dc2630b89003e10525f5e148445e82aa6a1f9",
        "data_batch_4": "3f7bb240661948b8f4d53e36ec720d8306f5668bd0071dcb4e6c947f78e9682b",
        "data_batch_5": "d91802434d8376bbaeeadf58a737e3a1b12ac839077e931237e0dcd43adcb154",
        "test_batch": "f53d8d457504f7cff4ea9e021afcf0e0ad8e24a91f3fc42091b8adef61157831",
        "batches.meta": "f962466ef690d46b226450fb9aadc74ba4bc64a76aa526b5827fe4bc5c7125cb",
    },
)
CIFAR100 = Release(
    name="CIFAR-100",
    classes=100,
    mean=(0.5071, 0.4865, 0.4409),
    std=(0.2673, 0.2564, 0.2762),
    archive=CIFAR100_ARCHIVE,
    folder="cifar-100-python",
    train=("train",),
    test=("test",),
    meta="meta",
    names_key=b"fine_label_names",
    labels_key=b"fine_labels",
    sha256={
        CIFAR100_ARCHIVE: "85cd44d02ba6437773c5bbd22e183051d648de2e7d6b014e1ef29b855ba677a7",
        "train": "735e79b04f092ca3d2e6d07f368c0a7d70d48c48d28865950cc24454cf45129b",
        "test": "4b67687d9933c4db8f0831104447f15b93774f4f464bd0516f0f0f2ac83b7864",
        "meta": "a5d4786345c961390f865e93b434dbd5c6904ce880667e0cb888c97d449f28b9",
    },
)


def find_files(release: Release, root: Path) -> Path | None:
    """The extracted folder (``root`` or a folder in it), else the archive in ``root``, else None."""
    for folder in (root, root / release.folder):
        # An image folder also has entries called "train" and "test", so the meta file is required too.
        if (folder / release.meta).is_file() and (folder / release.train[0]).is_file():
            return folder
    archive = root / release.archive
    return archive if archive.is_file() else None


def read_files(release: Release, found: Path, verify: bool) -> tuple[tuple[str, ...], Pixels, Pixels]:
    """The class names, the training and the test images of an archive or extracted folder.

    Raises:
        DataError: a file is missing, has other contents than expected or, with ``verify``, is not the published one.
    """
    if found.is_dir():
        files = {name: _read(found / name) for name in release.files}
    else:
        files = _unpacked(release, found, verify)
    if verify:
        for name in release.files:
            _verify(release, name, files[name], found / name)
    classes = _class_names(release, files[release.meta], found / release.meta)
    train, test = (
        _concatenate([_pixels(release, files[name], found / name) for name in names])
        for names in (release.train, release.test)
    )
    return classes, train, test


def _unpacked(release: Release, archive: Path, verify: bool) -> dict[str, bytes]:
    """The contents of the archive's files, read into memory; nothing is extracted to disk."""
    content = _read(archive)
    if verify:
        _verify(release, archive.name, content, archive)
    members = {f"{release.folder}/{name}": name for name in release.files}
    files = {}
    try:
        with tarfile.open(fileobj=io.BytesIO(content), mode="r:gz") as tar:
            for member in tar:
                stored = tar.extractfile(member) if member.name in members else None
                if stored is not None:
                    files[members[member.name]] = stored.read()
    except (tarfile.TarError, zlib.error, OSError, EOFError) as error:
        raise DataError(f"this archive is damaged: {error}", archive, AGAIN) from error
    if missing := [name for name in release.files if name not in files]:
        raise DataError(f"{', '.join(missing)} missing from this archive", archive, AGAIN)
    return files


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"this file cannot be read: {error.strerror}", path, AGAIN) from error


def _verify(release: Release, name: str, content: bytes, path: Path) -> None:
    """Compare the hash of the bytes that will be unpickled with the published one."""
    found, published = hashlib.sha256(content).hexdigest(), release.sha256[name]
    if found != published:
        what = f"its SHA-256 begins with {found[:12]}, that of the published file with {published[:12]}"
        todo = f"{AGAIN}, or set dataset.verify=false for a copy you trust"
        raise DataError(f"this is not the {name} of {release.name}: {what}", path, todo)


def _class_names(release: Release, content: bytes, path: Path) -> tuple[str, ...]:
    names = _unpickle(content, path).get(release.names_key)
    if not isinstance(names, list) or not all(isinstance(name, bytes) for name in names):
        raise DataError("no class names in this file", path, AGAIN)
    return tuple(name.decode(errors="replace") for name in names)


def _pixels(release: Release, content: bytes, path: Path) -> Pixels:
    """The images and labels of a file. It stores an image as 1024 red, 1024 green and 1024 blue values."""
    table = _unpickle(content, path)
    rows, labels = table.get(b"data"), table.get(release.labels_key)
    if not (
        isinstance(rows, np.ndarray)
        and rows.dtype == np.uint8
        and rows.shape[1:] == (3 * SIDE * SIDE,)
        and isinstance(labels, list)
        and len(labels) == len(rows)
        and all(isinstance(label, int) and 0 <= label < release.classes for label in labels)
    ):
        raise DataError("no 32x32 images with labels in this file", path, AGAIN)
    images = rows.reshape(-1, 3, SIDE, SIDE).transpose(0, 2, 3, 1)
    return Pixels(images, np.array(labels, dtype=np.int64))


def _concatenate(parts: list[Pixels]) -> Pixels:
    images = np.concatenate([part.images for part in parts])
    return Pixels(np.ascontiguousarray(images), np.concatenate([part.labels for part in parts]))


def _unpickle(content: bytes, path: Path) -> dict[bytes, Any]:
    """Read a pickled dictionary of numbers, strings and arrays.

    Raises:
        DataError: the pickle is damaged or refers to any other class or function.
    """
    try:
        table = _ArraysOnly(io.BytesIO(content), encoding="bytes").load()
    except Exception as error:  # a damaged pickle can raise any exception
        raise DataError(f"this pickle cannot be trusted: {error}", path, AGAIN) from error
    if not isinstance(table, dict):
        raise DataError("no dictionary in this file", path, AGAIN)
    return table


def _encode(text: str, encoding: str) -> bytes:
    """A replacement for ``_codecs.encode``, which Python 3 pickles call for bytes; it only encodes text."""
    return text.encode(encoding)


_reconstruct: Any = np.empty(0).__reduce__()[0]  # the function that every pickled array calls first
ALLOWED = {
    ("numpy.core.multiarray", "_reconstruct"): _reconstruct,  # its name in numpy 1
    ("numpy._core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("_codecs", "encode"): _encode,
}


class _ArraysOnly(pickle.Unpickler):
    """An unpickler that builds numpy arrays only; it refuses any other name before looking it up."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in ALLOWED:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        return ALLOWED[module, name]
