"""Writes an image folder as shards. If the process is killed, only the work on the current shard is lost."""

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
from attnbench.data.images.formats import ORIENTATION, facts
from attnbench.data.images.pillow import read_file, read_rgb
from attnbench.data.images.threads import in_order

TODO = "make space, or choose another folder"


@dataclass(frozen=True)
class Resizing:
    """How images are made smaller.

    Attributes:
        short_side: the new length of the shorter side in pixels. Images that are no larger keep their bytes.
        quality: JPEG quality of the resized images.
    """

    short_side: int
    quality: int

    def __str__(self) -> str:
        return f"resized to shorter side {self.short_side} (Lanczos), JPEG quality {self.quality}"

    def apply(self, data: bytes, where: Path) -> bytes:
        """The encoded bytes of the resized image.

        Raises:
            DataError: the image cannot be read.
        """
        image, turn = read_rgb(data, where), facts(data).orientation
        scale = self.short_side / min(image.size)
        if scale >= 1:
            return data
        size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
        file = io.BytesIO()
        small = image.resize(size, Image.Resampling.LANCZOS)
        if turn == 1:
            small.save(file, "JPEG", quality=self.quality)
        else:  # whoever reads the shard decides whether to turn the picture
            exif = Image.Exif()
            exif[ORIENTATION] = turn
            small.save(file, "JPEG", quality=self.quality, exif=exif)
        return file.getvalue()


@dataclass(frozen=True)
class Planned:
    """A shard that is to be written.

    Attributes:
        images: the indices of its images in ``side``.
        made_of: SHA-256 over everything that decides its contents: names, sizes and resizing.
    """

    path: Path
    side: Side
    images: range
    made_of: str

    @property
    def bytes(self) -> int:
        """The size of its images in bytes, before any resizing."""
        return sum(self.side.bytes[k] for k in self.images)


def plan(
    source: Path, target: Path, resizing: Resizing | None, shard_bytes: int
) -> tuple[tuple[str, ...], list[Planned]]:
    """The classes of an image folder, and the shards to write for it.

    Raises:
        DataError: ``source`` is not an image folder.
    """
    classes, *sides = read_sides(source, ("val",), "all")
    planned = []
    for side in sides:
        for number, images in enumerate(runs_of(side.bytes, shard_bytes)):
            path = target / f"{side.name}-{number:05}.shard"
            planned.append(Planned(path, side, images, _made_of(side, images, resizing)))
    return classes, planned


def runs_of(sizes: Sequence[int], most: int) -> Iterator[range]:
    """Divide images into consecutive ranges of at most ``most`` bytes each, or of one image that is larger."""
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
    """Whether a shard has been written already.

    Raises:
        DataError: the existing shard is damaged.
        StorageError: the existing shard was made from other images or with other options.
    """
    if not planned.path.exists():
        return False
    if read_shard(planned.path).about["made_of"] != planned.made_of:
        what = "this shard was made from other images or with other options"
        raise StorageError(what, planned.path, "use the options of the first call, or an empty folder")
    return True


def write(planned: Planned, resizing: Resizing | None, threads: int, seen: Callable[[int], object]) -> None:
    """Write a shard, completely or not at all.

    Args:
        threads: number of threads that read and resize images.
        seen: called with the size in bytes of each image that is written.

    Raises:
        DataError: an image cannot be read.
        StorageError: the shard cannot be written.
    """

    def record(k: int) -> tuple[str, bytes]:
        path = planned.side.path(k)
        data = read_file(path)
        if len(data) != planned.side.bytes[k]:
            raise DataError("this file changed while it was read", path, "run the same command again")
        return planned.side.files[k], resizing.apply(data, path) if resizing else data

    def records() -> Iterator[tuple[str, bytes]]:
        for k, made in zip(planned.images, in_order(record, planned.images, threads), strict=True):
            yield made
            seen(planned.side.bytes[k])

    about = {"made_of": planned.made_of, "side": planned.side.name}
    files.write(planned.path, lambda file: write_shard(file, about, records()), TODO)


def finish(target: Path, classes: tuple[str, ...], planned: Sequence[Planned], resizing: Resizing | None) -> None:
    """Write the index. Without it, the shards are unfinished and nothing reads them."""
    sides: dict[str, list[dict[str, str]]] = {}
    for shard in planned:
        about = {"file": shard.path.name, "made_of": shard.made_of}
        sides.setdefault(shard.side.name, []).append(about)
    changed = str(resizing) if resizing else ""
    files.write_json(target / INDEX, {"format": FORMAT, "changed": changed, "classes": classes, "sides": sides})
