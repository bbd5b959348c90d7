"""The layouts of annotation tools, recognised by their files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from attnbench.base.errors import DataError
from attnbench.data.exports import coco, voc, yolo
from attnbench.data.exports.export import SPLITS, Export


def recognised(root: Path) -> Callable[[Path], Export] | None:
    """The reader of a tool's layout, or None if it is none of those that have to be converted."""
    if any((root / name / coco.ROBOFLOW).is_file() for name in SPLITS):
        return coco.roboflow
    if any((root / name).is_file() for name in yolo.YOLO) and any(yolo.images_of(root, name) for name in SPLITS):
        return yolo.yolo
    if any(voc.pairs(root / name) for name in SPLITS if (root / name).is_dir()) or voc.pairs(root):
        return voc.beside
    return None


def known(root: Path) -> Callable[[Path], Export]:
    """The reader of a folder that is to be converted.

    Raises:
        DataError: the layout is none that is known.
    """
    if reader := recognised(root):
        return reader
    if (root / "annotations").is_dir() and any((root / "annotations").glob("*.json")):
        return coco.cvat
    if (root / "ImageSets" / "Main").is_dir() or ((root / "Annotations").is_dir() and (root / "JPEGImages").is_dir()):
        return voc.cvat
    todo = "known are COCO and VOC by Roboflow and CVAT, pictures with an .xml beside each, and YOLO with data.yaml"
    raise DataError("no export of a known tool", root, todo)


def how_to_convert(root: Path) -> str:
    """What to do about a folder that has to be converted; empty for all others."""
    return f"attnbench data convert {root} DST writes it as a data set" if root.is_dir() and recognised(root) else ""
