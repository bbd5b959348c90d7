"""COCO (Lin et al., arXiv:1405.0312) and data sets in its format: ``<root>/annotations/instances_<split>.json``."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pycocotools import mask as rle

from attnbench.base.errors import DataError
from attnbench.config.options import BoxAugment, Count, DataName, checked
from attnbench.data.dataset import Dataset
from attnbench.data.detection.annotated import Annotated, Record, findings, pictures_digest, sound
from attnbench.data.detection.box_augment import augmentation
from attnbench.data.detection.scenes import NoArea, Objects, boxed, checked_box, scene_dataset
from attnbench.data.image_folders.folder import contents
from attnbench.data.images.checking import Finding, Seen


@checked
def coco(
    *,
    root: str,
    train: str = "train2017",
    val: str = "val2017",
    augment: BoxAugment = "mirror",
    crop: Count = 300,
    without_area: Literal["refuse", "drop"] = "refuse",
    keep_empty: bool = True,
    name: DataName | None = None,
) -> Dataset:
    """COCO images with boxes and masks. Crowds are not used for training, and detections in them are ignored.

    Args:
        root: the folder that holds ``annotations/`` and one folder of images for each split.
        train, val: the names of the splits.
        augment: the augmentation of training images: ``mirror`` only, ``ssd`` or ``pytorch_ssd`` as SSD does it,
            or ``none``.
        crop: side of a training image with ``augment=ssd`` or ``pytorch_ssd``.
        without_area: whether to refuse or drop boxes without area; COCO's training split has a few.
        keep_empty: whether training uses images without an object to learn.
        name: the name of the data if they are not COCO itself; part of a run's name.

    Raises:
        DataError: a file is missing, a split is empty, or an annotation is invalid; it names the file and the record.
    """
    base = Path(root).expanduser()
    sides = [_side(base, split, without_area == "drop") for split in (train, val)]
    if sides[0].classes != sides[1].classes:
        what = f"{train} and {val} have different categories"
        raise DataError(what, base / "annotations", "make them equal")
    counts = " + ".join(str(len(side)) for side in sides)
    return scene_dataset(
        *sides,
        classes=tuple(sides[0].classes.values()),
        augment=augmentation(augment, crop),
        size=crop,
        source=f"{name or 'COCO'}, {train} and {val}: {counts} images",
        facts=[side.fact for side in sides],
        keep_empty=keep_empty,
        contents=cache(partial(pictures_digest, sides)),
    )


@dataclass(frozen=True)
class Outlined(Record):
    """A record whose segmentations are kept as JSON, to save memory; None if the annotations have none."""

    outlines: bytes | None


class Instances(Annotated):
    """Image files with COCO's annotations.

    Attributes:
        classes: category names by id, in the order of ids; a label is a position in this order.
        fact: the bytes that the fingerprint is computed over.
    """

    records: Sequence[Outlined]

    def __init__(self, records: Sequence[Outlined], classes: dict[int, str], fact: bytes) -> None:
        super().__init__(records)
        self.classes, self.fact = classes, fact

    def objects(self, index: int, masks: bool = True) -> Objects:
        """The objects of an image, with masks if ``masks`` is true and the annotations have segmentations."""
        record = self.records[index]
        if record.outlines is None or not masks:
            return record.objects
        drawn = [_mask(outline, record.height, record.width) for outline in json.loads(record.outlines)]
        empty = np.zeros((0, record.height, record.width), dtype=np.uint8)
        return replace(record.objects, masks=np.stack(drawn) if drawn else empty)

    def unmasked(self) -> Path | None:
        """The first image whose annotations have no segmentation; None if there is none."""
        return next((record.image for record in self.records if record.outlines is None), None)


def _mask(outline: Any, height: int, width: int) -> np.ndarray:
    """A segmentation (polygons or run lengths) as a mask, uint8 (H, W)."""
    return rle.decode(run_lengths(outline, height, width))


def run_lengths(outline: Any, height: int, width: int) -> dict[str, Any]:
    """A segmentation in COCO's compressed format."""
    if isinstance(outline, list):
        return rle.merge(rle.frPyObjects(outline, height, width))
    if isinstance(outline["counts"], list):
        return rle.frPyObjects(outline, height, width)
    return {"size": outline["size"], "counts": outline["counts"].encode()}


def _side(base: Path, split: str, drop: bool) -> Instances:
    path, content, parsed = _parsed(base, split)
    classes = _classes(parsed, path)
    return Instances(sound(_each(base, split, parsed, classes, drop)), classes, content)


def check(root: Path, seen: Seen, threads: int) -> Iterator[Finding]:
    """All problems in a COCO folder: in its instances files, their annotations and images."""
    names = splits(root)
    if not names:
        yield Finding("annotations", f"no instances_*.json here: {contents(root / 'annotations')}")
    yield from findings(root, {name: _items(root, name) for name in names}, seen, threads)


def count(root: Path) -> int:
    """The number of files in the splits' image folders."""
    return sum(len(os.listdir(root / name)) for name in splits(root) if (root / name).is_dir())


def splits(root: Path) -> list[str]:
    """The splits that have an instances file."""
    return sorted(path.stem.removeprefix("instances_") for path in (root / "annotations").glob("instances_*.json"))


def _items(base: Path, split: str) -> Iterator[Outlined | DataError]:
    try:
        path, _, parsed = _parsed(base, split)
        classes = _classes(parsed, path)
    except DataError as error:
        yield error
        return
    yield from _each(base, split, parsed, classes, drop=False)


def _parsed(base: Path, split: str) -> tuple[Path, bytes, dict[str, Any]]:
    """An instances file: its path, its bytes and its parsed contents."""
    path = base / "annotations" / f"instances_{split}.json"
    try:
        content = path.read_bytes()
        parsed = json.loads(content)
    except OSError as error:
        what = f"the annotations cannot be read: {error.strerror}; {contents(base)}"
        raise DataError(what, path, "set dataset.root to the folder that holds annotations/") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"the annotations are not JSON: {error}", path, "restore the file") from error
    for key in ("images", "annotations", "categories"):
        entries = parsed.get(key) if isinstance(parsed, dict) else None
        if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
            raise DataError(f"the annotations have no list of {key}", path, "restore the file")
    return path, content, parsed


def _classes(parsed: dict[str, Any], path: Path) -> dict[int, str]:
    try:
        classes = {int(c["id"]): str(c["name"]) for c in sorted(parsed["categories"], key=lambda c: c["id"])}
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"a category without id or name: {error}", path, "repair it") from error
    if not classes:
        raise DataError("the annotations have no category", path, "restore the file")
    return classes


def _each(
    base: Path, split: str, parsed: dict[str, Any], classes: dict[int, str], drop: bool
) -> Iterator[Outlined | DataError]:
    """The record of each image, in the order of ids, or the error in it."""
    path = base / "annotations" / f"instances_{split}.json"
    try:
        files = {entry.name for entry in os.scandir(base / split)}
    except OSError as error:
        yield DataError(f"the images cannot be listed: {error.strerror}", base / split, "restore the folder")
        return
    images, grouped = _grouped(parsed, path)
    for item in grouped.pop(None, []):
        what = f"image {item.get('image_id')} of this annotation is not among the images"
        yield DataError(what, f"{path}: annotation {item.get('id')}", "restore the file")
    for number, image in images.items():
        try:
            yield _record(base / split, path, image, grouped.get(number, []), files, list(classes), drop)
        except DataError as error:
            yield error
        except (KeyError, TypeError, ValueError, IndexError) as error:
            yield DataError(f"this record is incomplete: {error!r}", f"{path}: image {number}", "repair it")


def _grouped(parsed: dict[str, Any], path: Path) -> tuple[dict[Any, Any], dict[Any, list[dict[str, Any]]]]:
    """Images by id, and annotations by image id; annotations without an image are under None."""
    try:
        images = {image["id"]: image for image in sorted(parsed["images"], key=lambda image: image["id"])}
    except (KeyError, TypeError) as error:
        raise DataError(f"an image without an id: {error!r}", path, "repair it") from error
    grouped: dict[Any, list[dict[str, Any]]] = {}
    for item in parsed["annotations"]:
        number = item.get("image_id")
        grouped.setdefault(number if number in images else None, []).append(item)
    return images, grouped


def _record(
    folder: Path,
    path: Path,
    image: Mapping[str, Any],
    items: list[dict[str, Any]],
    files: set[str],
    categories: list[int],
    drop: bool,
) -> Outlined:
    name = str(image["file_name"])
    if name not in files:
        raise DataError("this image is missing", folder / name, "restore it")
    width, height = int(image["width"]), int(image["height"])
    kept, boxes = [], []
    for item in items:
        where = f"{path}: annotation {item.get('id')}"
        try:
            left, top, w, h = map(float, item["bbox"])
            boxes.append(checked_box((left, top, left + w, top + h), width, height, where))
            kept.append(item)
        except NoArea as error:
            if not drop:
                raise DataError(error.what, error.where, "remove it, or use dataset.without_area=drop") from None
    labels = [_label(item, categories, path) for item in kept]
    areas = np.array([float(item["area"]) for item in kept])
    crowd = np.array([bool(item.get("iscrowd", 0)) for item in kept], dtype=bool)
    outlines = [_outline(item, width, height, path) for item in kept if item.get("segmentation")]
    if 0 < len(outlines) < len(kept):
        raise DataError("some annotations of this image have a mask, others none", f"{path}: image {image['id']}")
    masked = json.dumps(outlines).encode() if len(outlines) == len(kept) else None
    return Outlined(folder / name, width, height, boxed(boxes, labels, areas=areas, crowd=crowd), masked)


def _label(item: Mapping[str, Any], categories: list[int], path: Path) -> int:
    if item["category_id"] not in categories:
        what = f"category {item['category_id']} is not among the categories"
        raise DataError(what, f"{path}: annotation {item.get('id')}", "repair it")
    return categories.index(item["category_id"])


def _outline(item: Mapping[str, Any], width: int, height: int, path: Path) -> Any:
    """An annotation's segmentation, checked so that it can be drawn.

    Raises:
        DataError: it is not a segmentation, or its size differs from the image's.
    """
    outline, where = item["segmentation"], f"{path}: annotation {item.get('id')}"
    if isinstance(outline, list):
        if not all(isinstance(part, list) and len(part) >= 6 and len(part) % 2 == 0 for part in outline):
            raise DataError("a polygon with fewer than three corners", where, "repair or remove it")
        if not all(isinstance(n, (int, float)) and np.isfinite(n) for part in outline for n in part):
            raise DataError("a polygon with a corner that is not a number", where, "repair or remove it")
    elif list(outline["size"]) != [height, width]:
        raise DataError(f"run lengths of {outline['size']}, not of {[height, width]}", where, "repair or remove it")
    elif isinstance(outline["counts"], list) and sum(outline["counts"]) != width * height:
        raise DataError("run lengths that do not fill the image", where, "repair or remove it")
    return outline
