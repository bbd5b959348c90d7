"""Exports in YOLO's format."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml
from PIL import Image

from attnbench.base.errors import DataError
from attnbench.data.exports.export import SPLITS, Export, images_below
from attnbench.data.images.formats import facts, turned_size

YOLO = ("data.yaml", "dataset.yaml", "data.yml")


def yolo(root: Path) -> Export:
    """``data.yaml`` with names of classes, and a text file of objects for each picture."""
    export = Export("YOLO", "coco")
    path = next(root / name for name in YOLO if (root / name).is_file())
    names = _yolo_names(path)
    for name, split in SPLITS.items():
        folder = images_of(root, name)
        if folder and split not in export.pictures:
            labels = Path(str(folder)[::-1].replace("segami", "slebal", 1)[::-1])
            _add_yolo(export, split, folder, labels, names)
    if not export.pictures:
        raise DataError("no train/images/ or images/train/ here", root, "put data.yaml beside them")
    return export


def images_of(root: Path, split: str) -> Path | None:
    """The folder of a split's pictures; None if there is none."""
    return next((one for one in (root / split / "images", root / "images" / split) if one.is_dir()), None)


def _yolo_names(path: Path) -> list[str]:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise DataError(f"this file cannot be read: {str(error).splitlines()[0]}", path, "restore it") from error
    names = content.get("names") if isinstance(content, dict) else None
    if isinstance(names, dict):
        names = [names[key] for key in sorted(names)]
    if not isinstance(names, list) or not names:
        raise DataError("it has no list of names", path, "add names: [...]")
    return list(map(str, names))


def _add_yolo(export: Export, split: str, folder: Path, labels: Path, names: Sequence[str]) -> None:
    images: list[dict[str, Any]] = []
    objects: list[dict[str, Any]] = []
    pictures: dict[str, Path] = {}
    for number, file in enumerate(images_below(folder), start=1):
        name = str(file.relative_to(folder))
        width, height = _size(file)
        images.append({"id": number, "file_name": name, "width": width, "height": height})
        pictures[name] = file
        for item in _yolo_objects(labels / f"{os.path.splitext(name)[0]}.txt", width, height, len(names)):
            objects.append({"id": len(objects) + 1, "image_id": number, "iscrowd": 0, **item})
    categories = [{"id": number, "name": name} for number, name in enumerate(names, start=1)]
    export.pictures[split] = pictures
    export.instances[split] = {"images": images, "annotations": objects, "categories": categories}


def _size(file: Path) -> tuple[int, int]:
    """Width and height of the upright picture, to which YOLO's annotations belong."""
    try:
        data = file.read_bytes()
        with Image.open(file) as image:
            return turned_size(image.size, facts(data))
    except Exception as error:  # damage raises many types
        raise DataError(f"this image cannot be read: {error}", file, "restore or remove it") from error


def _yolo_objects(path: Path, width: int, height: int, classes: int) -> Iterator[dict[str, Any]]:
    """The objects in a label file: a class, then centre and sides, or corners of an outline, as shares of the image."""
    if not path.is_file():
        return
    for n, line in enumerate(path.read_text(encoding="utf-8-sig").splitlines(), start=1):
        where = f"{path}: line {n}"
        if not line.strip():
            continue
        try:
            label, *numbers = map(float, line.split())
        except ValueError:
            raise DataError(f"not numbers: {line:.40}", where, "repair it") from None
        if label not in range(classes) or not (len(numbers) == 4 or (len(numbers) >= 6 and len(numbers) % 2 == 0)):
            raise DataError("neither a class with a box nor one with an outline", where, "repair it")
        item: dict[str, Any] = {"category_id": int(label) + 1}
        if len(numbers) == 4:
            x, y, w, h = numbers
            box = [(x - w / 2) * width, (y - h / 2) * height, w * width, h * height]
        else:
            corners = [n * (height if k % 2 else width) for k, n in enumerate(numbers)]
            item["segmentation"] = [corners]
            left, top = min(corners[::2]), min(corners[1::2])
            box = [left, top, max(corners[::2]) - left, max(corners[1::2]) - top]
        yield {**item, "bbox": box, **({} if "segmentation" in item else {"area": box[2] * box[3]})}
