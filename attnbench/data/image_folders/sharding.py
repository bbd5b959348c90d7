"""Writes an image folder as shards, or shards of an earlier release as new ones.

If the process is killed, only the work on the current shard is lost.
"""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

from PIL import Image

from attnbench.base import files
from attnbench.base.errors import ConfigError, DataError, StorageError
from attnbench.data.image_folders import parquet
from attnbench.data.image_folders.folder import Side, read_sides
from attnbench.data.image_folders.shards import INDEX, Shards, are_here, open_shards
from attnbench.data.image_folders.tar_shards import FORMAT, index_of, read_shard, write_shard
from attnbench.data.images.formats import ORIENTATION, facts
from attnbench.data.images.pillow import read_file, read_rgb
from attnbench.data.images.threads import in_order

TODO = "make space, or choose another folder"
TODO_AGAIN = "run the same command again"
TIMM = "_info.json"  # where timm's reader of WebDataset looks for the splits


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

    def apply(self, data: bytes, where: str | Path) -> bytes:
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
class Source:
    """One side of the data set that is written as shards.

    Attributes:
        side: its images.
        read: returns the bytes of an image, given its number in ``side``.
        where: the name of an image in messages.
        exact: whether the sizes in ``side`` are those of the images, and not their mean.
    """

    side: Side
    read: Callable[[int], bytes]
    where: Callable[[int], str | Path]
    exact: bool = True


@dataclass(frozen=True)
class Planned:
    """A shard that is to be written.

    Attributes:
        images: the indices of its images in ``source.side``.
        changed: how images are changed, now or in the shards that they come from; empty if they keep their bytes.
        made_of: SHA-256 over everything that decides its contents: names, sizes and changes.
    """

    path: Path
    source: Source
    images: range
    changed: str
    made_of: str

    @property
    def bytes(self) -> int:
        """The size of its images in bytes, before any resizing."""
        return sum(self.source.side.bytes[k] for k in self.images)


def plan(
    source: Path, target: Path, resizing: Resizing | None, shard_bytes: int
) -> tuple[tuple[str, ...], list[Planned]]:
    """The classes of an image folder, of shards of one or of parquet files, and the shards to write for it.

    Raises:
        DataError: ``source`` is none of these.
        ConfigError: images of shards would be resized a second time.
    """
    read = _of_shards if are_here(source) else _of_parquet if parquet.are_here(source) else _of_folder
    classes, sides, changed = read(source)
    if resizing and changed:
        raise ConfigError(f"the images of these shards were {changed}", source, "remove --short-side")
    changed = str(resizing or changed)
    planned = []
    for one in sides:
        for number, images in enumerate(runs_of(one.side.bytes, shard_bytes)):
            path = target / f"{one.side.name}-{number:06}.tar"
            planned.append(Planned(path, one, images, changed, _made_of(one.side, images, changed)))
    return classes, planned


def _of_folder(source: Path) -> tuple[tuple[str, ...], list[Source], str]:
    classes, *sides = read_sides(source, ("val",), "all")
    return classes, [_files(side) for side in sides], ""


def _files(side: Side) -> Source:
    def read(k: int) -> bytes:
        data = read_file(side.path(k))
        if len(data) != side.bytes[k]:
            raise DataError("this file changed while it was read", side.path(k), TODO_AGAIN)
        return data

    return Source(side, read, side.path)


def _of_shards(source: Path) -> tuple[tuple[str, ...], list[Source], str]:
    found = open_shards(source)
    records = [(sharded.side, Shards(sharded)) for sharded in (found.train, found.val)]
    return found.classes, [Source(side, one.read, one.where) for side, one in records], found.changed


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


def _of_parquet(source: Path) -> tuple[tuple[str, ...], list[Source], str]:
    found = parquet.open_parquet(source)
    train, val = found.both(source)
    sources = []
    for side, table in ((train.side, train), (replace(val.side, part="val"), val)):
        records = parquet.Parquet(table)
        sources.append(Source(side, records.read, records.where, exact=False))
    return found.classes, sources, ""


def _made_of(side: Side, images: range, changed: str) -> str:
    digest = hashlib.sha256(f"{FORMAT}\n{changed}\n{images.start}\n".encode())
    for k in images:
        digest.update(os.fsencode(f"{side.files[k]}\0{side.bytes[k]}\n"))
    return digest.hexdigest()


def is_written(planned: Planned) -> bool:
    """Whether a shard has been written already.

    Raises:
        DataError: the existing shard is damaged.
        StorageError: the existing shard was made from other images or with other options, or is none of ours.
    """
    path, index, side = planned.path, index_of(planned.path), planned.source.side
    if not path.exists():
        return False
    if not index.exists():
        raise StorageError("attnbench did not write this file", path, "choose an empty folder")
    shard = read_shard(path)
    if shard.made_of != planned.made_of:
        what = "this shard was made from other images or with other options"
        raise StorageError(what, path, "use the options of the first call, or an empty folder")
    exact = planned.source.exact and not planned.changed
    sizes, known = (shard.ends - shard.starts).tolist(), [side.bytes[k] for k in planned.images]
    if shard.names != [side.files[k] for k in planned.images] or (exact and sizes != known):
        raise DataError("the index of this shard is damaged", index, f"remove it and its tar file, and {TODO_AGAIN}")
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
    source, side = planned.source, planned.source.side

    def image(k: int) -> tuple[str, int, bytes]:
        data = source.read(k)
        return side.files[k], side.labels[k], resizing.apply(data, source.where(k)) if resizing else data

    def images() -> Iterator[tuple[str, int, bytes]]:
        for k, made in zip(planned.images, in_order(image, planned.images, threads), strict=True):
            yield made
            seen(side.bytes[k])

    about = {"made_of": planned.made_of, "side": side.name}

    def fill(file: IO[bytes]) -> None:
        index = write_shard(file, planned.path.name, about, planned.images.start, images())
        files.write(index_of(planned.path), lambda beside: beside.write(index), TODO)

    files.write(planned.path, fill, TODO)


def finish(target: Path, classes: tuple[str, ...], planned: Sequence[Planned]) -> None:
    """Write the indices. Without ``shards.json``, the shards are unfinished and nothing reads them."""
    sides: dict[str, list[dict[str, str]]] = {}
    splits: dict[str, dict[str, Any]] = {}
    for shard in planned:
        name, file = shard.source.side.name, shard.path.name
        about = {"file": file, "made_of": shard.made_of, "sha256": files.sha256(index_of(shard.path))}
        sides.setdefault(name, []).append(about)
        split = splits.setdefault(name, {"name": name, "num_samples": 0, "filenames": [], "shard_lengths": []})
        split["num_samples"] += len(shard.images)
        split["filenames"].append(file)
        split["shard_lengths"].append(len(shard.images))
    files.write_json(target / TIMM, {"splits": splits})
    index = {"format": FORMAT, "changed": planned[0].changed, "classes": classes, "sides": sides}
    files.write_json(target / INDEX, index)
