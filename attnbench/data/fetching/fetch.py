"""Puts a published data set into a folder: its archives, verified and unpacked. Nothing is there half-written.

All work is done in ``DIR/.fetch``. What is complete is moved to its place by renaming, and what is there is kept.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable
from functools import partial
from pathlib import Path

from attnbench.base import console, files
from attnbench.base.errors import DataError
from attnbench.data.fetching.imagenet import remove, unpack_train, unpack_val
from attnbench.data.fetching.releases import Archive, Part, Release
from attnbench.data.fetching.transfer import SPACE, difference, transfer
from attnbench.data.fetching.unpack import unpack

WORK = ".fetch"
COMPLETE = ".complete"  # in a folder of unpacked files


def fetch(release: Release, target: Path, own: Path | None, keep: bool) -> list[str]:
    """Put a data set into ``target``.

    Args:
        own: a folder in which archives are looked for before they are transferred; they are only read.
        keep: whether transferred archives stay in ``target/.fetch``.

    Returns:
        Lines about what was done.

    Raises:
        DataError: an archive cannot be transferred, is another one than the published one, or is damaged.
        StorageError: a file cannot be written.
    """
    _refuse_missing(release, target, own)
    work = target / WORK
    files.make_folder(work, SPACE)
    said = [_part(number, release, target, own, keep) for number in range(len(release.parts))]
    if not keep:
        remove(work)
    return said


def _part(number: int, release: Release, target: Path, own: Path | None, keep: bool) -> str:
    part, unpacked = release.parts[number], target / WORK / f"part{number}"
    names = ", ".join(part.makes)
    if _is_there(part, target):
        for archive in () if part.unpack else part.archives:
            _refuse_other(archive, target / archive.name)
        return f"{names}: already there; attnbench data check {target} looks at it"
    paths = [] if (unpacked / COMPLETE).exists() else [_obtain(one, target, own) for one in part.archives]
    if part.unpack:
        if paths:
            try:
                _unpack(part, paths, unpacked)
            except DataError:
                _clear(target / WORK, [one for one in part.archives if not (one.sha256 or one.md5)])
                raise
        for name in part.makes:
            _put(unpacked / name, target / name)
        remove(unpacked)
    else:
        for path, name in zip(paths, part.makes, strict=True):
            _place(path, target / name, move=path.parent == target / WORK)
    if not keep:
        _clear(target / WORK, part.archives)
    return f"{names}: done"


def _is_there(part: Part, target: Path) -> bool:
    return all((target / name).exists() for name in part.makes)


def _refuse_missing(release: Release, target: Path, own: Path | None) -> None:
    """Refuse to begin without the archives that cannot be transferred."""
    needed = (one for part in release.parts if not _is_there(part, target) for one in part.archives if not one.urls)
    folders = [folder for folder in (own, target) if folder]
    missing = [one.name for one in needed if not any((folder / one.name).is_file() for folder in folders)]
    if missing:
        todo = f"get them at {release.page}, where one has to register, and name their folder with --from"
        raise DataError(f"these archives are not here: {', '.join(missing)}", own or target, todo)


def _obtain(archive: Archive, target: Path, own: Path | None) -> Path:
    """An archive that is the published one: the user's own, or transferred."""
    work = target / WORK
    for folder in filter(None, (own, target)):
        if (folder / archive.name).is_file():
            _refuse_other(archive, folder / archive.name)
            return folder / archive.name
    path = work / archive.name
    if path.exists():  # it was verified before it got this name
        return path
    with console.counting(archive.bytes or 0, "bytes", archive.name) as advance:
        transfer(archive, path, advance)
    return path


def _refuse_other(archive: Archive, path: Path) -> None:
    with console.counting(path.stat().st_size, "bytes", f"checking {archive.name}") as advance:
        if different := difference(archive, path, advance):
            raise DataError(f"this is not the published file: {different}", path, "remove it, or use another copy")


def _unpack(part: Part, paths: list[Path], target: Path) -> None:
    if part.layout != "imagenet_train":  # that one goes on class by class
        remove(target)
    files.make_folder(target, SPACE)
    total = sum(path.stat().st_size for path in paths)
    with console.counting(total, "bytes", f"unpacking {paths[0].name}") as advance:
        if part.layout == "imagenet_train":
            unpack_train(paths[0], target / part.makes[0], advance)
        elif part.layout == "imagenet_val":
            unpack_val(paths[0], paths[1], target / part.makes[0], advance)
        else:
            for path in paths:
                unpack(path, target, part.strip, advance)
    for name in part.makes:
        if not (target / name).exists():
            raise DataError(f"there is no {name} in it", paths[0], "use the published file")
    os.sync()  # a power failure must not leave empty files in a folder that counts as complete
    files.write(target / COMPLETE, lambda file: None, SPACE)


def _put(source: Path, target: Path) -> None:
    """Move a complete folder to its place, unless an earlier call has."""
    if target.exists():
        return
    files.make_folder(target.parent, SPACE)
    with files.changing(target, SPACE):
        source.rename(target)


def _place(source: Path, target: Path, *, move: bool) -> None:
    if move:
        _put(source, target)
    elif source.resolve() != target.resolve():
        with open(source, "rb") as file:
            files.write(target, partial(shutil.copyfileobj, file), SPACE)


def _clear(work: Path, archives: Iterable[Archive]) -> None:
    """Remove archives that were transferred."""
    for archive in archives:
        with files.changing(work, SPACE):
            (work / archive.name).unlink(missing_ok=True)
