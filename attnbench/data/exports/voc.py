"""Exports in VOC's format: CVAT's, and pictures with an .xml file beside each."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from attnbench.base.errors import DataError
from attnbench.data.exports.export import SPLITS, Export, images_below
from attnbench.data.images.suffixes import SUFFIXES


def cvat(root: Path) -> Export:
    """``JPEGImages/``, ``Annotations/`` and lists in ``ImageSets/Main/``, without a year."""
    export = Export("CVAT's VOC export", "voc")
    below = {
        os.path.splitext(path.relative_to(root / "JPEGImages"))[0]: path for path in images_below(root / "JPEGImages")
    }
    lists = sorted((root / "ImageSets" / "Main").glob("*.txt"))
    lists = [path for path in lists if "_" not in path.stem] or lists
    for path in lists:
        lines = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
        _add_voc(export, path.stem.lower(), [_stem(line) for line in lines], below, root / "Annotations")
    if not lists:
        annotated = [name for name in below if (root / "Annotations" / f"{name}.xml").is_file()]
        _add_voc(export, "default", annotated, below, root / "Annotations")
    return export


def _stem(line: str) -> str:
    name = os.path.normpath(line.replace("\\", "/")).removeprefix("JPEGImages/")
    stem, ending = os.path.splitext(name)
    return stem if ending.lower() in SUFFIXES["all"] else name


def _add_voc(export: Export, split: str, names: Sequence[str], pictures: Mapping[str, Path], folder: Path) -> None:
    chosen: dict[str, Path] = {}
    files: dict[str, Path] = {}
    for name in names:
        if name not in pictures:
            raise DataError("this image is missing", name, "restore it, or take it from the list")
        new = f"{name}{pictures[name].suffix}"
        chosen[new], files[new] = pictures[name], folder / f"{name}.xml"
    export.pictures[split], export.annotations[split] = chosen, files


def pairs(folder: Path) -> bool:
    """Whether a folder has pictures with an .xml file of the same name beside them."""
    try:
        names = {entry.name for entry in os.scandir(folder)}
    except OSError:  # no such folder, or one that cannot be listed
        return False
    stems = {os.path.splitext(name)[0] for name in names if name.lower().endswith(SUFFIXES["all"])}
    return any(f"{stem}.xml" in names for stem in stems)


def beside(root: Path) -> Export:
    """Pictures with an .xml file beside each, as LabelImg leaves them and Roboflow exports them, in splits or not."""
    export = Export("pictures with VOC annotations beside them", "voc")
    folders = {SPLITS[name]: root / name for name in SPLITS if (root / name).is_dir() and pairs(root / name)}
    for split, folder in (folders or {"default": root}).items():
        pictures = {path.stem: path for path in images_below(folder) if path.parent == folder}
        annotated = [name for name in pictures if (folder / f"{name}.xml").is_file()]
        if without := len(pictures) - len(annotated):
            export.said.append(f"{split}: {without:,} pictures without an .xml file are left out")
        _add_voc(export, split, annotated, pictures, folder)
    return export
