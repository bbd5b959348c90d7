"""Unpacks ImageNet's official archives as ``train/<wnid>/`` and ``val/<wnid>/``."""

from __future__ import annotations

import io
import os
import re
import shutil
import tarfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from attnbench.base import files
from attnbench.base.errors import DataError
from attnbench.data.fetching.unpack import SPACE, TODO, Member, members, reading, write

TRUTH = "data/ILSVRC2012_validation_ground_truth.txt"  # the number of each validation picture's class
META = "data/meta.mat"  # the wnid of each number


def unpack_train(archive: Path, target: Path, seen: Callable[[int], object]) -> None:
    """Unpack a tar file of tar files, one for each class; classes that are there are not unpacked again.

    Args:
        seen: called with the size in bytes of each tar file of a class.

    Raises:
        DataError: the archive is damaged or has another form.
        StorageError: a file cannot be written.
    """
    for one in members(archive):
        name, suffix = os.path.splitext(one.path)
        if suffix != ".tar" or "/" in name:
            raise DataError(f"it holds {one.path}, not one tar file for each class", archive, TODO)
        if not (target / name).exists():
            half = target / f".{name}.tmp"
            remove(half)
            with reading(archive), one.open() as inner:
                for picture in _pictures(inner, archive, one):
                    write(picture, half / picture.path, archive)
            with files.changing(half, SPACE):
                half.rename(target / name)
        seen(one.size)


def _pictures(inner: object, archive: Path, of: Member) -> Iterator[Member]:
    with tarfile.open(fileobj=inner, mode="r:") as tar:  # type: ignore[call-overload]
        for one in tar:
            if not one.isreg() or "/" in one.name or one.name.startswith(".") or one.size > of.size:
                raise DataError(f"{of.path} holds something other than pictures: {one.name}", archive, TODO)

            def opened(one: tarfile.TarInfo = one) -> object:
                return tar.extractfile(one)

            yield Member(one.name, one.size, opened)  # type: ignore[arg-type]


def unpack_val(archive: Path, kit: Path, target: Path, seen: Callable[[int], object]) -> None:
    """Unpack the validation pictures into folders of their classes, by the development kit's list.

    Raises:
        DataError: an archive is damaged, or the list does not fit the pictures.
        StorageError: a file cannot be written.
    """
    wnids = _wnids(kit)
    count = 0
    for one in members(archive):
        name = one.path.rpartition("/")[2]
        number = _number(name, archive)
        if not 1 <= number <= len(wnids):
            raise DataError(f"it holds {name}, but the list has {len(wnids):,} lines", archive, "use matching archives")
        write(one, target / wnids[number - 1] / name, archive)
        count += 1
        seen(one.size)
    if count != len(wnids):
        raise DataError(f"{count:,} pictures, but the list has {len(wnids):,} lines", archive, "use matching archives")


def _number(name: str, archive: Path) -> int:
    """The number in ``ILSVRC2012_val_00000001.JPEG``."""
    digits = os.path.splitext(name)[0].rpartition("_")[2]
    if not digits.isdecimal():
        raise DataError(f"it holds {name}, which has no number", archive, TODO)
    return int(digits)


def _wnids(kit: Path) -> Sequence[str]:
    """The wnid of each validation picture, by the development kit."""
    found: dict[str, bytes] = {}
    for one in members(kit):
        for wanted in (TRUTH, META):
            if one.path == wanted or one.path.endswith(f"/{wanted}"):
                with reading(kit), one.open() as file:
                    found[wanted] = file.read()
    if missing := [name for name in (TRUTH, META) if name not in found]:
        raise DataError(f"{missing[0]} is not in this archive", kit, "use ImageNet's development kit (Task 1 and 2)")
    from scipy.io import loadmat  # slow to import

    try:
        synsets = loadmat(io.BytesIO(found[META]), squeeze_me=True)["synsets"]
        name_of = {int(one["ILSVRC2012_ID"]): str(one["WNID"]) for one in np.atleast_1d(synsets)}
        wnids = [name_of[int(line)] for line in found[TRUTH].decode().split()]
        if odd := next((name for name in wnids if not re.fullmatch(r"\w+", name)), None):
            raise ValueError(odd)
        return wnids
    except (KeyError, ValueError, TypeError, IndexError) as error:
        raise DataError(f"this development kit cannot be read: {error!r}", kit, TODO) from error


def remove(folder: Path) -> None:
    """Remove a folder of an unpacking that was stopped.

    Raises:
        StorageError: it cannot be removed.
    """
    if folder.exists():
        with files.changing(folder, SPACE):
            shutil.rmtree(folder)
