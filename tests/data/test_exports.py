"""``attnbench data convert``: exports of annotation tools, written as data sets that runs read."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from attnbench.base.errors import DataError, StorageError
from attnbench.data.detection import coco, voc
from attnbench.data.exports import tools
from attnbench.data.exports.export import converted, held_out
from tests.conftest import Check, refused
from tests.data_fixtures import photo, source, voc_annotation

SIZE = (60, 40)
Command = Callable[..., subprocess.CompletedProcess[str]]


def roboflow(root: Path) -> Path:
    """Roboflow's COCO export: an unused category groups the others; areas and masks as they come."""
    for s, (split, number) in enumerate({"train": 3, "valid": 2, "test": 1}.items()):
        (root / split).mkdir(parents=True)
        images = [{"id": n, "file_name": f"{split}_{n}.jpg", "width": 60, "height": 40} for n in range(number)]
        boxes = [{"id": n, "image_id": n, "category_id": 1 + n % 2, "bbox": [5, 5, 20, 10]} for n in range(number)]
        content = {
            "images": images,
            "annotations": [{**box, "area": 200, "segmentation": [], "iscrowd": 0} for box in boxes],
            "categories": [
                {"id": 0, "name": "things", "supercategory": "none"},
                *({"id": n, "name": name, "supercategory": "things"} for n, name in ((1, "nut"), (2, "bolt"))),
            ],
        }
        (root / split / "_annotations.coco.json").write_text(json.dumps(content))
        for image in images:
            photo(10 * s + int(image["id"]), *SIZE).save(root / split / str(image["file_name"]))  # type: ignore[call-overload]
    return root


def cvat_coco(root: Path) -> Path:
    (root / "annotations").mkdir(parents=True)
    (root / "images" / "cam1").mkdir(parents=True)
    images = [{"id": n, "file_name": f"cam1/{n}.png", "width": 60, "height": 40} for n in range(5)]
    boxes: list[dict[str, Any]] = [{"id": n, "image_id": n, "category_id": 1, "bbox": [5, 5, 20, 10]} for n in range(5)]
    content = {"images": images, "annotations": boxes, "categories": [{"id": 1, "name": "nut"}]}
    (root / "annotations" / "instances_default.json").write_text(json.dumps(content))
    for n in range(5):
        photo(n, *SIZE).save(root / "images" / "cam1" / f"{n}.png")
    return root


def cvat_voc(root: Path) -> Path:
    for folder in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (root / folder).mkdir(parents=True)
    for n in range(5):
        photo(n, *SIZE).save(root / "JPEGImages" / f"shot {n}.PNG")
        xml = voc_annotation(name="nut").replace("<difficult>0<", "<difficult>False<")
        (root / "Annotations" / f"shot {n}.xml").write_text(xml)
    (root / "ImageSets/Main/default.txt").write_text("".join(f"shot {n}\n" for n in range(5)))
    return root


def labelimg(root: Path) -> Path:
    for s, split in enumerate(("train", "valid")):
        (root / split).mkdir(parents=True)
        for n in range(3):
            photo(10 * s + n, *SIZE).save(root / split / f"{split}{n}.jpg")
            if n or split == "valid":
                (root / split / f"{split}{n}.xml").write_text(voc_annotation(name="nut"))
    return root


def yolo(root: Path, order: str = "{split}/{what}") -> Path:
    for s, split in enumerate(("train", "val")):
        for what in ("images", "labels"):
            (root / order.format(split=split, what=what)).mkdir(parents=True)
        for n in range(3):
            photo(10 * s + n, *SIZE).save(root / order.format(split=split, what="images") / f"{split}{n}.jpg")
            lines = ["0 0.5 0.5 0.5 0.25\n\n1 0.1 0.1 0.9 0.1 0.9 0.5\n", "1 0.25 0.25 0.5 0.5", None][n]
            if lines:
                (root / order.format(split=split, what="labels") / f"{split}{n}.txt").write_text(lines)
    (root / "data.yaml").write_text("names:\n  0: nut\n  1: bolt\nnc: 2\n")
    return root


def listing(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def test_roboflows_export(tmp_path: Path, command: Command, check: Check) -> None:
    root = roboflow(tmp_path / "export")
    before = listing(root)
    with pytest.raises(DataError, match="attnbench data convert"):
        tools_are_named(root)
    done = command("data", "convert", str(root), str(tmp_path / "bolts"))
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == "Roboflow's COCO export: 6 images: train 3, val 2, test 1"
    assert "left out: the category things" in lines[1]
    assert lines[-1] == f"use it with dataset=coco dataset.root={tmp_path}/bolts dataset.train=train dataset.val=val"
    assert listing(root) == before
    refused(lambda: coco.coco(root=str(root), train="train"), DataError, "attnbench data convert")
    data = coco.coco(root=str(tmp_path / "bolts"), train="train", val="val")
    assert data.classes == ("nut", "bolt") and len(data.train) == 3 and len(data.val) == 2
    assert check(tmp_path / "bolts")[0] == 0
    again = command("data", "convert", str(root), str(tmp_path / "bolts"))
    assert again.returncode == 5 and "exists already" in again.stderr


def tools_are_named(root: Path) -> None:
    from attnbench.data.layouts import recognise

    recognise(root)


@pytest.mark.parametrize("make", [cvat_coco, cvat_voc])
def test_an_export_of_one_split_is_divided(tmp_path: Path, command: Command, make: Callable[[Path], Path]) -> None:
    root, target = make(tmp_path / "export"), tmp_path / "set"
    done = command("data", "convert", str(root), str(target), "--holdout", "0.4")
    assert done.returncode == 0, done.stderr
    if make is cvat_coco:
        data = coco.coco(root=str(target), train="train", val="val")
    else:
        data = voc.voc(root=str(target), train=["train"], val=["val"], classes="found", augment="none")
    assert data.classes == ("nut",) and len(data.train) == 3 and len(data.val) == 2
    sides = [{record.image.name for record in source(side).records} for side in (data.train, data.val)]
    assert not sides[0] & sides[1]
    assert [scenes_of(data.val, i) for i in range(2)] == [1, 1]
    assert not any(source(data.val).objects(i).difficult.any() for i in range(2))


def scenes_of(side: Any, index: int) -> int:
    return len(source(side).objects(index))


def test_cvats_export_is_read_as_it_is_too(tmp_path: Path) -> None:
    data = coco.coco(root=str(cvat_coco(tmp_path / "a")), train="default", val="default")
    assert len(data.train) == 5 and "5 pictures are in training and in validation" in data.notes()
    assert "default: 5 annotations have no area; computed" in data.notes()
    plain = voc.voc(root=str(cvat_voc(tmp_path / "b")), train=["default"], val=["default"])
    assert len(plain.val) == 5 and plain.classes == ("nut",)
    refused(lambda: voc.voc(root=str(tmp_path / "b"), train=["VOC2007/train"], val=["x"]), DataError, "default")


def test_annotations_beside_their_pictures(tmp_path: Path, command: Command) -> None:
    done = command("data", "convert", str(labelimg(tmp_path / "a")), str(tmp_path / "b"))
    assert "train: 1 pictures without an .xml file are left out" in done.stdout
    data = voc.voc(root=str(tmp_path / "b"), train=["train"], val=["val"], classes=["bolt", "nut"])
    assert len(data.train) == 2 and len(data.val) == 3 and data.classes == ("bolt", "nut")


@pytest.mark.parametrize("order", ["{split}/{what}", "{what}/{split}"])
def test_yolos_boxes_and_outlines(tmp_path: Path, check: Check, order: str) -> None:
    converted(tools.known(root := yolo(tmp_path / "a", order))(root), tmp_path / "b", lambda: None)
    data = coco.coco(root=str(tmp_path / "b"), train="train", val="val")
    assert data.classes == ("nut", "bolt")
    objects = source(data.train).objects(0, masks=False)
    assert objects.boxes.tolist() == [[15, 15, 45, 25], [6, 4, 54, 20]] and objects.labels.tolist() == [0, 1]
    assert [scenes_of(data.train, i) for i in range(3)] == [2, 1, 0]
    assert check(tmp_path / "b")[0] == 0


def test_yolos_boxes_belong_to_the_upright_picture(tmp_path: Path) -> None:
    root = yolo(tmp_path / "a")
    exif = Image.Exif()
    exif[0x0112] = 6
    for split in ("train", "val"):
        photo(7, 60, 40).save(root / split / "images" / f"{split}0.jpg", exif=exif)
    converted(tools.known(root)(root), tmp_path / "b", lambda: None)
    data = coco.coco(root=str(tmp_path / "b"), train="train", val="val")
    assert source(data.train).image(0).shape == (60, 40, 3)
    assert source(data.train).objects(0, masks=False).boxes[0].tolist() == [10, 22.5, 30, 37.5]


@pytest.mark.parametrize("line", ["0 0.5 0.5", "2 0.5 0.5 0.5 0.5", "one 0.5 0.5 0.5 0.5", "0.5 0.5 0.5 0.5 0.5"])
def test_a_bad_line_of_yolo_is_named(tmp_path: Path, line: str) -> None:
    root = yolo(tmp_path / "a")
    (root / "val/labels/val1.txt").write_text(f"0 0.5 0.5 0.5 0.5\n{line}\n")
    refused(lambda: tools.known(root)(root), DataError, "val1.txt: line 2")


def test_nothing_is_half_written(tmp_path: Path) -> None:
    root = roboflow(tmp_path / "a")
    export = tools.known(root)(root)
    calls = []

    def stop() -> None:
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        converted(export, tmp_path / "b", stop)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a"]
    (root / "train" / "train_1.jpg").unlink()
    refused(lambda: converted(export, tmp_path / "b", lambda: None), DataError, "train_1.jpg")
    refused(lambda: tools.known(root)(root), DataError, "this image is missing", "train_1.jpg")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a"]
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_text("x")
    refused(lambda: converted(export, tmp_path / "full", lambda: None), StorageError, "exists already")


def test_what_cannot_be_converted_is_refused(tmp_path: Path, command: Command) -> None:
    root = roboflow(tmp_path / "a")
    assert command("data", "convert", str(root), str(root / "train")).returncode == 2
    assert command("data", "convert", str(root), str(tmp_path / "b"), "--holdout", "2").returncode == 2
    refused(lambda: held_out(tools.known(root)(root), 0.5), DataError, "splits train, val, test")
    (tmp_path / "empty").mkdir()
    done = command("data", "convert", str(tmp_path / "empty"), str(tmp_path / "b"))
    assert done.returncode == 3 and "no export of a known tool" in done.stderr
    path = root / "train" / "_annotations.coco.json"
    content = json.loads(path.read_text())
    content["images"][0]["file_name"] = "../secret.jpg"
    path.write_text(json.dumps(content))
    refused(lambda: tools.known(root)(root), DataError, "outside of the export")
    assert not (tmp_path / "b").exists()
