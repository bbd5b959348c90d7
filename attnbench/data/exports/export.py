"""What an annotation tool exported, and how it is written as a data set in COCO's or VOC's layout.

The input is only read, and the folder gets its name when it is complete.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from attnbench.base.errors import DataError, StorageError
from attnbench.data import sampling
from attnbench.data.images.suffixes import SUFFIXES

SPLITS = {"train": "train", "valid": "val", "val": "val", "validation": "val", "test": "test"}  # ours, by a tool's name
Kind = Literal["coco", "voc"]


@dataclass
class Export:
    """What a tool exported.

    Attributes:
        tool: the layout's name.
        kind: the layout that it becomes.
        pictures: for each split, the file of each picture by its new name.
        instances: for each split, the contents of its instances file; empty for VOC.
        annotations: for each split of VOC, the annotation of each picture, by the picture's new name.
        said: lines about what was changed.
    """

    tool: str
    kind: Kind
    pictures: dict[str, dict[str, Path]] = field(default_factory=dict)
    instances: dict[str, dict[str, Any]] = field(default_factory=dict)
    annotations: dict[str, dict[str, Path]] = field(default_factory=dict)
    said: list[str] = field(default_factory=list)

    @property
    def files(self) -> int:
        """The number of pictures."""
        return sum(map(len, self.pictures.values()))


def converted(export: Export, target: Path, seen: Callable[[], object]) -> None:
    """Write an export as a data set; the folder appears when it is complete.

    Args:
        seen: called once for each picture.

    Raises:
        StorageError: the folder exists already, or cannot be written.
        DataError: a picture cannot be read.
    """
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise StorageError("this folder exists already, and it is not empty", target, "give another one")
    part = target.with_name(f".{target.name}.part{os.getpid()}")
    try:
        part.mkdir(parents=True)
        _write(export, part, seen)
        if target.is_dir():
            target.rmdir()
        part.rename(target)
    except OSError as error:
        what = f"cannot write: {error.strerror or error}"
        raise StorageError(what, error.filename or target, "make space, or choose another folder") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _write(export: Export, part: Path, seen: Callable[[], object]) -> None:
    for split, pictures in export.pictures.items():
        folder = part / (split if export.kind == "coco" else "JPEGImages")
        for name, file in pictures.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            _copy(file, folder / name)
            seen()
    for split, content in export.instances.items():
        path = part / "annotations" / f"instances_{split}.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(content), encoding="utf-8")
    for split, files in export.annotations.items():
        names = [os.path.splitext(name)[0] for name in files]
        for name, file in zip(names, files.values(), strict=True):
            path = part / "Annotations" / f"{name}.xml"
            path.parent.mkdir(parents=True, exist_ok=True)
            _copy(file, path)
        listed = part / "ImageSets" / "Main" / f"{split}.txt"
        listed.parent.mkdir(parents=True, exist_ok=True)
        listed.write_text("".join(f"{name}\n" for name in names), encoding="utf-8")


def _copy(file: Path, path: Path) -> None:
    if path.exists():
        raise DataError(f"two pictures or annotations with the name {path.name}", file, "rename one of them")
    try:
        content = file.read_bytes()
    except OSError as error:
        raise DataError(f"this file cannot be read: {error.strerror}", file, "restore it") from error
    path.write_bytes(content)


def held_out(export: Export, share: float) -> Export:
    """An export of a single split, divided into train and val; the choice depends on the pictures' names only.

    Raises:
        DataError: there is more than one split, or too few pictures.
    """
    if len(export.pictures) != 1:
        raise DataError(f"it has the splits {', '.join(export.pictures)}", "--holdout", "leave it out")
    ((split, pictures),) = export.pictures.items()
    random = sampling.stream("conversion", 0)
    shuffled = sorted(sorted(pictures), key=lambda _: random.random())
    number = max(1, round(share * len(shuffled)))
    if number >= len(shuffled):
        raise DataError(f"{len(shuffled)} pictures are too few to hold some out", "--holdout", "add pictures")
    of = {"train": set(shuffled[number:]), "val": set(shuffled[:number])}
    divided = Export(export.tool, export.kind, said=export.said)
    for part, names in of.items():
        divided.pictures[part] = {name: file for name, file in pictures.items() if name in names}
        if export.instances:
            divided.instances[part] = _some(export.instances[split], names)
        if export.annotations:
            every = export.annotations[split]
            divided.annotations[part] = {name: file for name, file in every.items() if name in names}
    return divided


def _some(content: Mapping[str, Any], names: set[str]) -> dict[str, Any]:
    """The images with these names and their annotations."""
    images = [image for image in content["images"] if image["file_name"] in names]
    numbers = {image["id"] for image in images}
    kept = [item for item in content["annotations"] if item.get("image_id") in numbers]
    return {**content, "images": images, "annotations": kept}


def images_below(folder: Path) -> Iterator[Path]:
    """The pictures below a folder, sorted."""
    yield from sorted(path for path in folder.rglob("*") if path.name.lower().endswith(SUFFIXES["all"]))
