"""VOC, COCO and canvases of digits: reading, refused errors in the data, and augmentation."""

from __future__ import annotations

import itertools
import json
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
import torch

from attnbench.base.errors import ConfigError, DataError
from attnbench.config.configuration import Config
from attnbench.data.dataset import Dataset
from attnbench.data.detection import box_augment, coco, digits_det, voc
from attnbench.data.detection.scenes import Objects, Scenes, boxed
from attnbench.data.loader import Loader
from attnbench.training import setup
from attnbench.training.runtime import Runtime
from tests.conftest import Check
from tests.data_fixtures import coco_folder, coco_scenes, photo, scenes, source, voc_annotation, voc_folder, voc_scenes


@pytest.fixture
def check(check: Check) -> Check:
    """``attnbench data check`` without the lines that count objects."""

    def call(root: Path) -> tuple[int, list[str]]:
        code, lines = check(root)
        return code, [line for line in lines if not re.search(r": \d+ pictures(, \d+ objects| in common)", line)]

    return call


def read_voc(root: Path) -> Any:
    return voc.voc(root=str(root), train=["VOC2007/trainval"], val=["VOC2007/test"], augment="none")


def test_voc_counts_pixels_from_one_and_a_part_is_no_object(tmp_path: Path) -> None:
    part = "<part><name>head</name><bndbox><xmin>5</xmin><ymin>5</ymin><xmax>9</xmax><ymax>9</ymax></bndbox></part>"
    data = read_voc(voc_folder(tmp_path, voc_annotation((2, 3, 10, 20), "person", part)))
    image, target = scenes(data.val).read(0, None)
    assert image.shape == (3, 40, 60) and image.dtype == torch.uint8
    assert target["boxes"].tolist() == [[1, 2, 10, 20]]
    assert target["labels"].tolist() == [voc.CLASSES.index("person") + 1]


def test_a_difficult_object_is_measured_and_not_learned(tmp_path: Path) -> None:
    data = read_voc(voc_folder(tmp_path, voc_annotation(difficult=1)))
    assert scenes(data.val).read(0, None)[1]["difficult"].tolist() == [True]
    assert scenes(data.train).read(0, (0, 0))[1]["boxes"].shape == (0, 4)


def test_a_voc_folder_is_read_and_checked_whole(tmp_path: Path, check: Check) -> None:
    voc_scenes(tmp_path, images=12)
    data = read_voc(tmp_path)
    sides = [[scenes(side).source.objects(i) for i in range(len(side))] for side in (data.train, data.val)]
    assert [[len(objects) for objects in side] for side in sides] == [[0, 1, 2, 3] * 2, [0, 1, 2, 3]]
    assert [[int(objects.difficult.sum()) for objects in side] for side in sides] == [[0, 1, 0, 0] * 2, [0, 1, 0, 0]]
    name = "PASCAL VOC VOC2007/{JPEGImages,Annotations,ImageSets}"
    assert check(tmp_path) == (0, [f"{name}: 12 images, 0 problems, 0 notes"])
    assert read_voc(tmp_path / "VOCdevkit").fingerprint == data.fingerprint
    for side in (data.train, data.val):
        for i in range(len(side)):
            image, target = scenes(side).read(i, None)
            _, height, width = image.shape
            assert not len(target["boxes"]) or (target["boxes"] <= torch.tensor([width, height] * 2)).all()


def test_the_real_voc_sample(voc_sample: Path, check: Check) -> None:
    data = read_voc(voc_sample)
    objects = [side.source.objects(i) for side in (data.train, data.val) for i in range(len(side))]
    assert sum(len(o) for o in objects) == 215
    assert sum(int(o.difficult.sum()) for o in objects) == 35
    name = "PASCAL VOC VOC2007/{JPEGImages,Annotations,ImageSets}"
    assert check(voc_sample) == (0, [f"{name}: 84 images, 0 problems, 0 notes"])
    assert read_voc(voc_sample / "VOCdevkit").fingerprint == data.fingerprint


UTF16 = '<?xml version="1.0" encoding="utf-16"?><!DOCTYPE a [<!ENTITY x "y">]>'
DOCTYPE = '<?xml version="1.0"?><!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/passwd">]>'
BAD_VOC = [
    (voc_annotation((1, 1, 65, 40)), "outside its image of 60x40", "1.xml: object 1"),
    (voc_annotation((-9, 1, 20, 40)), "outside its image", "1.xml: object 1"),
    (voc_annotation((5, 5, 5, 9)), "without area", "1.xml: object 1"),
    (voc_annotation((9, 9, 4, 5)), "without area", "1.xml: object 1"),
    (voc_annotation((float("nan"), 1, 2, 2)), "without area|outside", "1.xml: object 1"),
    (voc_annotation(name="unicorn"), "unicorn is not a class", "1.xml: object 1"),
    (voc_annotation().replace("<xmin>1</xmin>", ""), "xmin is missing", "1.xml: object 1"),
    (voc_annotation().replace("<xmin>1<", "<xmin>one<"), "'one', not a number", "1.xml: object 1"),
    (DOCTYPE + voc_annotation(), "DOCTYPE", "1.xml"),
    ((UTF16 + voc_annotation()).encode("utf-16"), "DOCTYPE", "1.xml"),
    (voc_annotation()[:-20], "not XML", "1.xml"),
    (voc_annotation() + " " * (1 << 20), "more than 1048576 bytes", "1.xml"),
    (voc_annotation().replace("<width>60<", "<width>61<").replace("<xmax>60<", "<xmax>61<"), "60x40 pixels", "1.jpg"),
]  # fmt: skip


@pytest.mark.parametrize(("xml", "what", "where"), BAD_VOC, ids=range(len(BAD_VOC)))
def test_a_bad_annotation_of_voc_is_named(
    xml: str | bytes, what: str, where: str, tmp_path: Path, check: Check
) -> None:
    root = voc_folder(tmp_path, xml)
    with pytest.raises(DataError) as refused:
        read_voc(root).val.read(0, None)
    assert re.search(what, refused.value.what) and refused.value.where.endswith(where)
    code, (line, last) = check(root)
    assert code == 3 and re.fullmatch(rf"VOC2007/(Annotations|JPEGImages)/{where}: .*({what}).*", line)
    assert last.endswith(": 2 images, 1 problem, 0 notes")


def test_a_missing_image_and_an_empty_split_of_voc(tmp_path: Path, check: Check) -> None:
    with pytest.raises(DataError, match="training split is empty"):
        read_voc(voc_folder(tmp_path / "empty", splits=""))
    code, lines = check(tmp_path / "empty")
    assert (code, lines[:-1]) == (3, [f"VOC2007/{split}: this split is empty" for split in ("test", "trainval")])
    root = voc_folder(tmp_path / "missing")
    (root / "VOC2007/JPEGImages/2.jpg").unlink()
    with pytest.raises(DataError, match=r"image is missing.*2\.jpg"):
        read_voc(root)
    (root / "VOC2007/JPEGImages/1.jpg").write_bytes(b"no image")
    (root / "VOC2007/ImageSets/Main/val.txt").write_bytes(b"\xff\xfe")
    code, lines = check(root)
    assert code == 3 and [line.partition(": ")[0] for line in lines[:-1]] == [
        "VOC2007/JPEGImages/2.jpg", "VOC2007/ImageSets/Main/val.txt", "VOC2007/JPEGImages/1.jpg",
    ]  # fmt: skip
    with pytest.raises(DataError, match=r"no VOC2007/ here"):
        read_voc(tmp_path / "nowhere")
    with pytest.raises(DataError, match="VOC2007/val cannot be read"):
        voc.voc(root=str(tmp_path / "empty"), train=["VOC2007/val"], val=["VOC2007/test"])


def test_coco_is_read_by_ids_with_masks_and_crowds(tmp_path: Path, check: Check) -> None:
    data = coco.coco(root=str(coco_folder(tmp_path)))
    assert data.classes == ("ant", "zebra")
    grey, nothing = scenes(data.val).read(0, None)
    assert grey.shape == (3, 40, 60) and nothing["boxes"].shape == (0, 4) and nothing["masks"].shape == (0, 40, 60)
    _, target = scenes(data.val).read(1, None)
    assert target["labels"].tolist() == [2, 1] and target["crowd"].tolist() == [False, True]
    assert target["boxes"].tolist() == [[5, 5, 25, 15], [0, 0, 60, 20]]
    assert target["areas"].tolist() == [200, 1200]
    assert target["masks"].sum((1, 2)).tolist() == [200, 1200] and target["masks"][1, :20].all()
    assert scenes(data.train).read(1, (0, 0))[1]["labels"].tolist() == [2]
    assert check(tmp_path) == (0, ["COCO annotations/instances_*.json: 4 images, 0 problems, 0 notes"])
    assert len(coco.coco(root=str(tmp_path), keep_empty=False).train) == 1


def test_the_real_coco_sample(coco_sample: Path, check: Check) -> None:
    data = coco.coco(root=str(coco_sample))
    sides = [scenes(side) for side in (data.train, data.val)]
    objects = [side.source.objects(i, masks=False) for side in sides for i in range(len(side))]
    assert sum(len(o) for o in objects) == 624 and sum(int(o.crowd.sum()) for o in objects) == 9
    assert check(coco_sample)[0] == 0


def test_masks_are_those_of_pycocotools(coco_images: Path) -> None:
    from pycocotools.coco import COCO

    data = coco.coco(root=str(coco_images))
    reference = COCO(str(coco_images / "annotations/instances_val2017.json"))
    for i, record in enumerate(source(data.val).records[:4]):
        ours, annotations = scenes(data.val).source.objects(i), reference.imgToAnns[int(record.image.stem)]
        assert ours.masks is not None and len(ours.masks) == len(annotations) > 0
        assert ours.crowd.tolist() == [bool(a["iscrowd"]) for a in annotations]
        assert all((mask == reference.annToMask(a)).all() for mask, a in zip(ours.masks, annotations, strict=True))


def test_a_coco_folder_is_checked_whole(tmp_path: Path, check: Check) -> None:
    coco_scenes(tmp_path, images=4)
    data = coco.coco(root=str(tmp_path))
    assert [len(scenes(data.val).source.objects(i)) for i in range(4)] == [4, 1, 2, 4]
    assert check(tmp_path) == (0, ["COCO annotations/instances_*.json: 8 images, 0 problems, 0 notes"])


def edit(key: str, value: Any, of: str = "annotations", at: int = 0) -> Callable[[dict[str, Any]], None]:
    def change(content: dict[str, Any]) -> None:
        content[of][at][key] = value

    return change


BAD_COCO = [
    (edit("bbox", [50, 5, 20, 10]), "outside its image", "annotation 1"),
    (edit("bbox", [5, 5, 0, 10]), "without area", "annotation 1"),
    (edit("category_id", 5), "category 5", "annotation 1"),
    (edit("image_id", 99), "image 99 of this annotation is not among", "annotation 1"),
    (edit("segmentation", [[1, 2, 3]]), "fewer than three corners", "annotation 1"),
    (edit("segmentation", {"size": [4, 4], "counts": [16]}, at=1), "run lengths of", "annotation 2"),
    (edit("segmentation", {"size": [40, 60], "counts": [16]}, at=1), "do not fill", "annotation 2"),
    (edit("bbox", None), "is incomplete", "image 7"),
    (edit("file_name", "8.jpg", "images"), "image is missing", "8.jpg"),
    (edit("height", 41, "images", at=1), "60x40 pixels", "3.jpg"),
    (lambda content: content.pop("categories"), "no list of categories", "instances_val2017.json"),
]


@pytest.mark.parametrize(("change", "what", "where"), BAD_COCO, ids=range(len(BAD_COCO)))
def test_a_bad_annotation_of_coco_is_named(
    change: Callable[[dict[str, Any]], object], what: str, where: str, tmp_path: Path, check: Check
) -> None:
    root = coco_folder(tmp_path, change)
    with pytest.raises(DataError) as refused:
        [scenes(coco.coco(root=str(root)).val).read(i, None) for i in range(2)]
    assert what in refused.value.what and refused.value.where.endswith(where)
    code, lines = check(root)
    assert code == 3 and len(lines) == 2
    place, _, finding = lines[0].partition(f"{where}: ")
    assert place.startswith(("val2017/", "annotations/")) and what in finding


def test_boxes_without_area_can_be_dropped_and_empty_splits_cannot(tmp_path: Path, check: Check) -> None:
    root = coco_folder(tmp_path / "thin", edit("bbox", [5, 5, 0, 10]))
    with pytest.raises(DataError, match="without_area=drop"):
        coco.coco(root=str(root))
    with pytest.raises(DataError, match="no object to detect"):  # only the crowd is left
        coco.coco(root=str(root), without_area="drop")
    empty = coco_folder(tmp_path / "empty", lambda content: content.update(images=[], annotations=[]))
    with pytest.raises(DataError, match="validation split is empty"):
        coco.coco(root=str(empty))
    assert check(empty)[1][0] == "val2017: this split is empty"
    (empty / "annotations/instances_val2017.json").write_text("{")
    shutil.rmtree(empty / "train2017")
    code, lines = check(empty)
    assert code == 3 and len(lines) == 3
    assert "train2017: the images cannot be listed: No such file" in lines[0] and "are not JSON" in lines[1]
    for path in (empty / "annotations").iterdir():
        path.unlink()
    code, lines = check(empty)
    assert code == 3 and lines[0] == "annotations: no instances_*.json here: it is empty"


def test_the_same_image_in_two_splits_is_found(tmp_path: Path, check: Check) -> None:
    root = coco_folder(tmp_path)
    shutil.copy(root / "train2017/7.jpg", root / "val2017/7.jpg")
    assert check(root)[1][0] == "val2017/7.jpg: the same bytes as train2017/7.jpg"


def test_a_detection_set_is_checked_from_the_command_line(
    tmp_path: Path, command: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    """All problems are listed with their file and record; stderr has one line."""
    root = voc_folder(tmp_path / "voc", DOCTYPE + voc_annotation())
    (root / "VOC2007/Annotations/2.xml").write_text(voc_annotation((1, 1, 99, 40)))
    done = command("data", "check", str(root))
    assert done.returncode == 3
    lines = done.stdout.splitlines()
    assert [line.split(": ")[0] for line in lines[:2]] == [f"VOC2007/Annotations/{n}.xml" for n in (1, 2)]
    assert "DOCTYPE" in lines[0] and "object 1: a box outside its image of 60x40" in lines[1]
    assert done.stderr == f"error: 2 problems ({root}); see the lines above\n"


def test_digits_have_exact_boxes_and_masks_and_are_the_same_every_time() -> None:
    data, again = (digits_det.digits_det(train_images=40, val_images=20) for _ in range(2))
    assert data.fingerprint == again.fingerprint
    for side in (data.train, data.val):
        for i in range(len(side)):
            image, target = scenes(side).read(i, None)
            assert 1 <= len(target["boxes"]) <= 4
            assert (target["masks"].sum(0) <= 1).all()  # digits do not overlap
            ink = image[0] >= digits_det.INK
            assert torch.equal(ink, target["masks"].sum(0).bool())
            for mask, (left, top, right, bottom) in zip(target["masks"], target["boxes"].int().tolist(), strict=True):
                outside = mask.clone()
                outside[top:bottom, left:right] = 0
                assert not outside.any()
                inside = mask[top:bottom, left:right]
                assert inside[0].any() and inside[-1].any() and inside[:, 0].any() and inside[:, -1].any()
    with pytest.raises(ConfigError, match="smallest <= largest"):
        digits_det.digits_det(size=20)


def test_validation_canvases_hold_other_digits() -> None:
    data = digits_det.digits_det(train_images=1, val_images=1)
    rows = [{tuple(row) for row in source(side).digits} for side in (data.train, data.val)]
    assert len(rows[0]) > 1400 and len(rows[1]) > 350 and not rows[0] & rows[1]


def test_the_stream_of_scenes_is_the_same_with_any_workers(voc_images: Path) -> None:
    data = voc.voc(root=str(voc_images), train=["VOC2007/trainval"], val=["VOC2007/test"])
    common = {"batch_size": 20 if len(data.train) > 40 else 3, "seed": 3, "train": True}
    alone, helped = (Loader(data.train, workers=workers, **common).epoch(1, start=1) for workers in (0, 2))  # type: ignore[arg-type]
    for one, other in zip(alone, helped, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one.images, other.images, strict=True))
        for a, b in zip(one.targets, other.targets, strict=True):
            assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def marked(width: int = 60, height: int = 40) -> tuple[np.ndarray, Objects]:
    """Two bright rectangles on black, with their boxes and masks."""
    image = np.zeros((height, width, 3), dtype=np.uint8)
    masks = np.zeros((2, height, width), dtype=np.uint8)
    boxes = [(4, 6, 24, 26), (30, 10, 58, 38)]
    for mask, (left, top, right, bottom) in zip(masks, boxes, strict=True):
        mask[top:bottom, left:right] = 1
    image[masks.any(0)] = 255
    return image, boxed(boxes, [0, 1], masks=masks)


def test_mirroring_moves_boxes_and_masks_with_the_pixels() -> None:
    image, objects = marked()
    seen = set()
    for seed in range(8):
        turned, moved = box_augment.mirror(image, objects, Random(seed))
        assert moved.masks is not None
        assert ((turned[..., 0] == 255) == moved.masks.any(0)).all()
        for mask, box in zip(moved.masks, moved.boxes, strict=True):
            assert digits_det._extent(mask) == tuple(box)
        seen.add(tuple(moved.boxes[0]))
    assert seen == {(4, 6, 24, 26), (36, 6, 56, 26)}


def test_ssds_augmentation_keeps_boxes_and_masks_on_their_objects() -> None:
    image, objects = marked(120, 80)
    steps = [box_augment.expand, box_augment.sample_crop, box_augment.mirror]
    areas, counts = [], set()
    for seed in range(60):
        random, pixels, there = Random(seed), image, objects
        for step in steps:
            pixels, there = step(pixels, there, random)
        height, width = pixels.shape[:2]
        counts.add(len(there))
        areas.append(height * width)
        for left, top, right, bottom in there.boxes:
            assert 0 <= left < right <= width and 0 <= top < bottom <= height
        bright = (pixels == 255).all(2)
        covered = np.zeros_like(bright)
        for left, top, right, bottom in there.boxes.astype(int):
            assert bright[top:bottom, left:right].mean() > 0.95
            covered[top:bottom, left:right] = True
        if len(there) == 2:
            assert (bright & ~covered).sum() == 0
        assert there.masks is not None and there.masks.shape == (len(there), height, width)
        for mask, box in zip(there.masks, there.boxes, strict=True):
            assert digits_det._extent(mask) == tuple(box) and mask.sum() == _area(box)
    assert counts == {1, 2}
    assert min(areas) < 120 * 80 / 2 and max(areas) > 120 * 80 * 2
    sized, there = box_augment.augmentation("ssd", 32)(image, objects, Random(1))  # type: ignore[misc]
    assert sized.shape == (32, 32, 3) and there.boxes.max() <= 32


def _area(box: np.ndarray) -> float:
    return float((box[2] - box[0]) * (box[3] - box[1]))


def test_a_resized_mask_is_the_rectangle_that_its_box_has_become() -> None:
    """The mask has exactly the pixels whose centres are in the box, also if the box ends between pixels."""
    seen = set()
    for seed, size in itertools.product(range(40), (17, 48, 300)):
        image, objects = marked(120, 80)
        there = box_augment.augmentation("ssd", size)(image, objects, Random(seed))[1]  # type: ignore[misc]
        assert there.masks is not None and there.masks.dtype == np.uint8
        centres = np.arange(size) + 0.5
        for mask, (left, top, right, bottom) in zip(there.masks, there.boxes, strict=True):
            columns = (left <= centres) & (centres < right)
            rows = (top <= centres) & (centres < bottom)
            assert np.array_equal(mask, np.outer(rows, columns))
            seen.add((bool(mask.any()), bool(mask.all()), size))
    assert {(True, False, size) for size in (17, 48, 300)} <= seen


def test_masks_are_read_for_detectors_that_learn_them_and_images_without_are_refused(
    tmp_path: Path, compose: Callable[..., Config]
) -> None:
    def given(detector: str, root: Path) -> tuple[Config, Dataset]:
        config = compose("task=detection", "dataset=coco", f"dataset.root={root}", f"detector={detector}")
        return config, config.build("dataset")

    with Runtime(device="cpu").start() as process:
        for detector, masks in (("ssd", False), ("faster_rcnn", False), ("mask_rcnn", True)):
            config, data = given(detector, coco_folder(tmp_path / detector))
            setup.feeds(config, data, process)
            for split in (data.train, data.val):
                assert isinstance(split, Scenes)
                assert ("masks" in split.read(1, None)[1]) == ("masks" in split.read(1, (0, 0))[1]) == masks
            setup.refuse_unmasked(config, data)
    root = coco_folder(tmp_path / "boxes")
    path = root / "annotations/instances_train2017.json"
    content = json.loads(path.read_text())
    for annotation in content["annotations"]:
        annotation["segmentation"] = []
    path.write_text(json.dumps(content))
    setup.refuse_unmasked(*given("faster_rcnn", root))
    with pytest.raises(ConfigError, match=r"without masks: .*train2017/7\.jpg \(detector\); .*faster_rcnn"):
        setup.refuse_unmasked(*given("mask_rcnn", root))


def test_colours_are_distorted_and_nothing_else() -> None:
    image = np.array(photo(1, 30, 20))
    changed = [box_augment.distort(image, boxed([], []), Random(seed))[0] for seed in range(12)]
    assert all(c.shape == image.shape and c.dtype == np.uint8 for c in changed)
    assert sum((c != image).any() for c in changed) >= 10
    assert all(abs(c.astype(int) - image).mean() < 110 for c in changed)


def test_an_image_without_objects_passes_the_augmentation() -> None:
    image = np.array(photo(1, 30, 20))
    for seed in range(5):
        pixels, there = box_augment.augmentation("ssd", 16)(image, boxed([], []), Random(seed))  # type: ignore[misc]
        assert pixels.shape == (16, 16, 3) and there.boxes.shape == (0, 4)
