"""Writing shards of an image folder, so that a kill at any moment costs one shard's work."""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from attnbench.base import files
from attnbench.base.errors import DataError, StorageError
from attnbench.data.image_folders.folder import Side, read_sides
from attnbench.data.image_folders.shards import FORMAT, INDEX, read_shard, write_shard
from attnbench.data.images.pillow import read_file, read_rgb
from attnbench.data.images.threads import in_order

TODO = "make space, or choose another folder"


@dataclass(frozen=True)
class Resizing:
    """How images are made smaller.

    Attributes:
        short_side: pixels of the shorter side; images that have no more keep their bytes.
        quality: of the JPEG images that the others become.
    """

    short_side: int
    quality: int

    def __str__(self) -> str:
        return f"resized to shorter side {self.short_side} (Lanczos), JPEG quality {self.quality}"

    def apply(self, data: bytes, where: Path) -> bytes:
        """The bytes of the smaller image.

        Raises:
            DataError: the image cannot be read.
        """
        image = read_rgb(data, where)
        scale = self.short_side / min(image.size)
        if scale >= 1:
            return data
        size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
        file = io.BytesIO()
        image.resize(size, Image.Resampling.LANCZOS).save(file, "JPEG", quality=self.quality)
        return file.getvalue()


@dataclass(frozen=True)
class Planned:
    """A shard to be written.

    Attributes:
        images: which ones of the side.
        made_of: SHA-256 of what decides its contents: names, sizes, resizing.
    """

    path: Path
    side: Side
    images: range
    made_of: str

    @property
    def bytes(self) -> int:
        """Of its images, before any resizing."""
        return sum(self.side.bytes[k] for k in self.images)


def plan(
    source: Path, target: Path, resizing: Resizing | None, shard_bytes: int
) -> tuple[tuple[str, ...], list[Planned]]:
    """The classes of an image folder and the shards that it becomes.

    Raises:
        DataError: it is no image folder.
    """
    classes, *sides = read_sides(source, ("val",))
    planned = []
    for side in sides:
        for number, images in enumerate(runs_of(side.bytes, shard_bytes)):
            path = target / f"{side.folder.name}-{number:05}.shard"
            planned.append(Planned(path, side, images, _made_of(side, images, resizing)))
    return classes, planned


def runs_of(sizes: Sequence[int], most: int) -> Iterator[range]:
    """Consecutive images whose bytes add up to no more than ``most``, but at least one a run."""
    begin, total = 0, 0
    for k, size in enumerate(sizes):
        if total + size > most and k > begin:
            yield range(begin, k)
            begin, total = k, 0
        total += size
    if begin < len(sizes):
        yield range(begin, len(sizes))


def _made_of(side: Side, images: range, resizing: Resizing | None) -> str:
    digest = hashlib.sha256(f"{FORMAT}\n{resizing or ''}\n".encode())
    for k in images:
        digest.update(os.fsencode(f"{side.files[k]}\0{side.bytes[k]}\n"))
    return digest.hexdigest()


def is_written(planned: Planned) -> bool:
    """Whether a shard is there already.

    Raises:
        DataError: there is one, and it is damaged.
        StorageError: there is one that was made of other images or otherwise.
    """
    if not planned.path.exists():
        return False
    if read_shard(planned.path).about["made_of"] != planned.made_of:
        what = "this shard was made of other images, or with other options"
        raise StorageError(what, planned.path, "give the first call's options, or an empty folder")
    return True


def write(planned: Planned, resizing: Resizing | None, threads: int, seen: Callable[[int], object]) -> None:
    """Write a shard, whole or not at all.

    Args:
        threads: that read and resize.
        seen: told the bytes of each image as it is written.

    Raises:
        DataError: an image cannot be read.
        StorageError: the shard cannot be written.
    """

    def record(k: int) -> tuple[str, bytes]:
        path = planned.side.folder / planned.side.files[k]
        data = read_file(path)
        if len(data) != planned.side.bytes[k]:
            raise DataError("this file changed while it was read", path, "run the same command again")
        return planned.side.files[k], resizing.apply(data, path) if resizing else data

    def records() -> Iterator[tuple[str, bytes]]:
        for k, made in zip(planned.images, in_order(record, planned.images, threads), strict=True):
            yield made
            seen(planned.side.bytes[k])

    about = {"made_of": planned.made_of, "side": planned.side.folder.name}
    files.write(planned.path, lambda file: write_shard(file, about, records()), TODO)


def finish(target: Path, classes: tuple[str, ...], planned: Sequence[Planned], resizing: Resizing | None) -> None:
    """Write the index that makes a data set of the shards, and that nothing is read without."""
    sides: dict[str, list[dict[str, str]]] = {}
    for shard in planned:
        about = {"file": shard.path.name, "made_of": shard.made_of}
        sides.setdefault(shard.side.folder.name, []).append(about)
    changed = str(resizing) if resizing else ""
    files.write_json(target / INDEX, {"format": FORMAT, "changed": changed, "classes": classes, "sides": sides})
