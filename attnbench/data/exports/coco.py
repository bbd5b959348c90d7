"""Exports in COCO's format: Roboflow's and CVAT's."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from attnbench.base.errors import DataError
from attnbench.data.exports.export import SPLITS, Export

ROBOFLOW = "_annotations.coco.json"


def roboflow(root: Path) -> Export:
    """``train/``, ``valid/`` and ``test/`` with pictures and ``_annotations.coco.json``."""
    export = Export("Roboflow's COCO export", "coco")
    contents = {name: _json(root / name / ROBOFLOW) for name in SPLITS if (root / name / ROBOFLOW).is_file()}
    group = _unused_group(list(contents.values()))
    if group is not None:
        export.said.append(f"left out: the category {group}, which names the group of the others")
    for name, content in contents.items():
        kept = [one for one in content["categories"] if one["name"] != group]
        _add_coco(export, SPLITS[name], {**content, "categories": kept}, root / name)
    return export


def cvat(root: Path) -> Export:
    """``images/`` and ``annotations/instances_default.json``."""
    export = Export("CVAT's COCO export", "coco")
    for path in sorted((root / "annotations").glob("*.json")):
        split = path.stem.removeprefix("instances_")
        folders = (root / "images" / split, root / "images", root / split)
        folder = next((folder for folder in folders if folder.is_dir()), root)
        _add_coco(export, split.lower(), _json(path), folder)
    return export


def _add_coco(export: Export, split: str, content: dict[str, Any], folder: Path) -> None:
    if split in export.pictures:
        raise DataError(f"two folders for the split {split}", folder, "remove one of them")
    pictures: dict[str, Path] = {}
    images = []
    for image in content["images"]:
        name = _inside(str(image.get("file_name", "")), folder)
        if not (folder / name).is_file():
            raise DataError("this image is missing", folder / name, "restore it")
        pictures[name] = folder / name
        images.append({**image, "file_name": name})
    export.pictures[split], export.instances[split] = pictures, {**content, "images": images}


def _inside(name: str, folder: Path) -> str:
    path = os.path.normpath(name.replace("\\", "/"))
    if not name or os.path.isabs(path) or path.startswith(".."):
        raise DataError(f"a file name outside of the export: {name!r}", folder, "give a path below the folder")
    return path


def _unused_group(contents: Sequence[Mapping[str, Any]]) -> str | None:
    """The category that Roboflow adds as the group of all others, if no annotation has it."""
    categories = [one for content in contents for one in content["categories"]]
    groups = {one.get("supercategory") for one in categories}
    used = {(k, item.get("category_id")) for k, content in enumerate(contents) for item in content["annotations"]}
    named = {(k, one["id"]): one["name"] for k, content in enumerate(contents) for one in content["categories"]}
    unused = set(named.values()) - {named.get(key) for key in used}
    found = [one["name"] for one in categories if one["name"] in groups & unused and one.get("supercategory") == "none"]
    return found[0] if found else None


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except OSError as error:
        raise DataError(f"the annotations cannot be read: {error.strerror}", path, "restore the file") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"the annotations are not JSON: {error}", path, "restore the file") from error
    for key in ("images", "annotations", "categories"):
        entries = content.get(key) if isinstance(content, dict) else None
        if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
            raise DataError(f"the annotations have no list of {key}", path, "restore the file")
    if not all("id" in one and "name" in one for one in content["categories"]):
        raise DataError("a category without id or name", path, "repair it")
    if not all("id" in one for one in content["images"]):
        raise DataError("an image without an id", path, "repair it")
    return dict(content)
