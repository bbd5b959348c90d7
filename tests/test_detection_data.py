"""VOC, COCO and canvases of digits: what is read from them, what is refused, what augmentation does."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
import torch

from attnbench.data import box_augment, coco, digits_det, voc
from attnbench.data.loader import Loader
from attnbench.data.scenes import Objects, boxed
from attnbench.errors import ConfigError, DataError
from tests.data_fixtures import photo


def make_voc(root: Path, xml: str | bytes | None = None, splits: str = "1\n2\n") -> Path:
    """A VOC folder of two images, the first with the given annotation."""
    year = root / "VOC2007"
    for folder in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (year / folder).mkdir(parents=True, exist_ok=True)
    for name in ("1", "2"):
        photo(int(name), 60, 40).save(year / "JPEGImages" / f"{name}.jpg")
        (year / "Annotations" / f"{name}.xml").write_text(annotation())
    if xml is not None:
        (year / "Annotations" / "1.xml").write_bytes(xml if isinstance(xml, bytes) else xml.encode())
    for split in ("trainval", "test"):
        (year / "ImageSets/Main" / f"{split}.txt").write_text(splits)
    return root


def annotation(box: tuple[float, ...] = (1, 2, 60, 40), name: str = "dog", extra: str = "", difficult: int = 0) -> str:
    sides = "".join(f"<{k}>{v}</{k}>" for k, v in zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True))
    return (
        f"<annotation><size><width>60</width><height>40</height><depth>3</depth></size><object><name>{name}</name>"
        f"<difficult>{difficult}</difficult><bndbox>{sides}</bndbox>{extra}</object></annotation>"
    )


def read_voc(root: Path) -> Any:
    return voc.voc(root=str(root), train=["VOC2007/trainval"], val=["VOC2007/test"], augment="none")


def test_voc_counts_pixels_from_one_and_a_part_is_no_object(tmp_path: Path) -> None:
    part = "<part><name>head</name><bndbox><xmin>5</xmin><ymin>5</ymin><xmax>9</xmax><ymax>9</ymax></bndbox></part>"
    data = read_voc(make_voc(tmp_path, annotation((2, 3, 10, 20), "person", part)))
    image, target = data.val.read(0, None)
    assert image.shape == (3, 40, 60) and image.dtype == torch.uint8
    assert target["boxes"].tolist() == [[1, 2, 10, 20]]
    assert target["labels"].tolist() == [voc.CLASSES.index("person") + 1]


def test_a_difficult_object_is_measured_and_not_learned(tmp_path: Path) -> None:
    data = read_voc(make_voc(tmp_path, annotation(difficult=1)))
    assert data.val.read(0, None)[1]["difficult"].tolist() == [True]
    assert data.train.read(0, (0, 0))[1]["boxes"].shape == (0, 4)


def test_the_real_voc_sample(voc_sample: Path) -> None:
    data = read_voc(voc_sample)
    objects = [side.source.objects(i) for side in (data.train, data.val) for i in range(len(side))]
    assert sum(len(o) for o in objects) == 215
    assert sum(int(o.difficult.sum()) for o in objects) == 35
    assert list(voc.check(voc_sample)) == []
    assert read_voc(voc_sample / "VOCdevkit").fingerprint == data.fingerprint


UTF16 = '<?xml version="1.0" encoding="utf-16"?><!DOCTYPE a [<!ENTITY x "y">]>'
DOCTYPE = '<?xml version="1.0"?><!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/passwd">]>'
BAD_VOC = [
    (annotation((1, 1, 65, 40)), "outside its image of 60x40", "1.xml: object 1"),
    (annotation((-9, 1, 20, 40)), "outside its image", "1.xml: object 1"),
    (annotation((5, 5, 5, 9)), "without area", "1.xml: object 1"),
    (annotation((9, 9, 4, 5)), "without area", "1.xml: object 1"),
    (annotation((float("nan"), 1, 2, 2)), "without area|outside", "1.xml: object 1"),
    (annotation(name="unicorn"), "unicorn is no class", "1.xml: object 1"),
    (annotation().replace("<xmin>1</xmin>", ""), "xmin is missing", "1.xml: object 1"),
    (annotation().replace("<xmin>1<", "<xmin>one<"), "'one', no number", "1.xml: object 1"),
    (DOCTYPE + annotation(), "DOCTYPE", "1.xml"),
    ((UTF16 + annotation()).encode("utf-16"), "DOCTYPE", "1.xml"),
    (annotation()[:-20], "no XML", "1.xml"),
    (annotation() + " " * (1 << 20), "more than 1048576 bytes", "1.xml"),
    (annotation().replace("<width>60<", "<width>61<").replace("<xmax>60<", "<xmax>61<"), "60x40 pixels", "1.jpg"),
]  # fmt: skip


@pytest.mark.parametrize(("xml", "what", "where"), BAD_VOC, ids=range(len(BAD_VOC)))
def test_a_bad_annotation_of_voc_is_named(xml: str | bytes, what: str, where: str, tmp_path: Path) -> None:
    root = make_voc(tmp_path, xml)
    with pytest.raises(DataError) as refused:
        read_voc(root).val.read(0, None)
    assert re.search(what, refused.value.what) and refused.value.where.endswith(where)
    (line,) = voc.check(root)
    assert re.search(what, line) and where in line


def test_a_missing_image_and_an_empty_split_of_voc(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="training split is empty"):
        read_voc(make_voc(tmp_path / "empty", splits=""))
    assert len(list(voc.check(tmp_path / "empty"))) == 2
    root = make_voc(tmp_path / "missing")
    (root / "VOC2007/JPEGImages/2.jpg").unlink()
    with pytest.raises(DataError, match=r"image is missing.*2\.jpg"):
        read_voc(root)
    with pytest.raises(DataError, match=r"no VOC2007/ here"):
        read_voc(tmp_path / "nowhere")
    with pytest.raises(DataError, match="VOC2007/val cannot be read"):
        voc.voc(root=str(tmp_path / "empty"), train=["VOC2007/val"], val=["VOC2007/test"])


def make_coco(root: Path, change: Callable[[dict[str, Any]], object] = dict) -> Path:
    """A COCO folder of two splits with two images each, one of them without annotations; ``change`` edits val's."""
    square = [5, 5, 25, 5, 25, 15, 5, 15]
    for split in ("train2017", "val2017"):
        (root / split).mkdir(parents=True)
        content = {
            "images": [{"id": n, "file_name": f"{n}.jpg", "width": 60, "height": 40} for n in (7, 3)],
            "categories": [{"id": 9, "name": "zebra"}, {"id": 2, "name": "ant"}],
            "annotations": [
                {"id": 1, "image_id": 7, "category_id": 9, "bbox": [5, 5, 20, 10], "area": 200, "iscrowd": 0,
                 "segmentation": [square]},
                {"id": 2, "image_id": 7, "category_id": 2, "bbox": [0, 0, 60, 20], "area": 1200, "iscrowd": 1,
                 "segmentation": {"size": [40, 60], "counts": [0, *[20, 20] * 60]}},
            ],
        }  # fmt: skip
        if split == "val2017":
            change(content)
        for n in (3, 7):
            photo(n, 60, 40).convert("L" if n == 3 else "RGB").save(root / split / f"{n}.jpg")
        (root / "annotations").mkdir(exist_ok=True)
        (root / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))
    return root


def test_coco_is_read_by_ids_with_masks_and_crowds(tmp_path: Path) -> None:
    data = coco.coco(root=str(make_coco(tmp_path)))
    assert data.classes == ("ant", "zebra")
    grey, nothing = data.val.read(0, None)
    assert grey.shape == (3, 40, 60) and nothing["boxes"].shape == (0, 4) and nothing["masks"].shape == (0, 40, 60)
    _, target = data.val.read(1, None)
    assert target["labels"].tolist() == [2, 1] and target["crowd"].tolist() == [False, True]
    assert target["boxes"].tolist() == [[5, 5, 25, 15], [0, 0, 60, 20]]
    assert target["areas"].tolist() == [200, 1200]
    assert target["masks"].sum((1, 2)).tolist() == [200, 1200] and target["masks"][1, :20].all()
    assert data.train.read(1, (0, 0))[1]["labels"].tolist() == [2]
    assert list(coco.check(tmp_path)) == []
    assert len(coco.coco(root=str(tmp_path), keep_empty=False).train) == 1


def test_the_real_coco_sample(coco_sample: Path) -> None:
    data = coco.coco(root=str(coco_sample))
    objects = [side.source.objects(i, masks=False) for side in (data.train, data.val) for i in range(len(side))]
    assert sum(len(o) for o in objects) == 624 and sum(int(o.crowd.sum()) for o in objects) == 9
    assert list(coco.check(coco_sample)) == []
    ours = data.val.source.objects(0).masks
    assert ours is not None
    path = coco_sample / "annotations/instances_val2017.json"
    from pycocotools.coco import COCO

    reference = COCO(str(path))
    annotations = reference.imgToAnns[int(data.val.source.records[0].image.stem)]
    assert all((mask == reference.annToMask(a)).all() for mask, a in zip(ours, annotations, strict=True))


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
    (edit("bbox", None), "lacks something", "image 7"),
    (edit("file_name", "8.jpg", "images"), "image is missing", "8.jpg"),
    (edit("height", 41, "images", at=1), "60x40 pixels", "3.jpg"),
    (lambda content: content.pop("categories"), "no list of categories", "instances_val2017.json"),
]


@pytest.mark.parametrize(("change", "what", "where"), BAD_COCO, ids=range(len(BAD_COCO)))
def test_a_bad_annotation_of_coco_is_named(
    change: Callable[[dict[str, Any]], object], what: str, where: str, tmp_path: Path
) -> None:
    root = make_coco(tmp_path, change)
    with pytest.raises(DataError) as refused:
        [coco.coco(root=str(root)).val.read(i, None) for i in range(2)]
    assert what in refused.value.what and refused.value.where.endswith(where)
    lines = list(coco.check(root))
    assert any(what in line and where in line for line in lines)


def test_boxes_without_area_can_be_dropped_and_empty_splits_cannot(tmp_path: Path) -> None:
    root = make_coco(tmp_path / "thin", edit("bbox", [5, 5, 0, 10]))
    with pytest.raises(DataError, match="without_area=drop"):
        coco.coco(root=str(root))
    with pytest.raises(DataError, match="no object to find"):  # the crowd is all that is left
        coco.coco(root=str(root), without_area="drop")
    empty = make_coco(tmp_path / "empty", lambda content: content.update(images=[], annotations=[]))
    with pytest.raises(DataError, match="validation split is empty"):
        coco.coco(root=str(empty))
    assert any("is empty" in line for line in coco.check(empty))
    (empty / "annotations/instances_val2017.json").write_text("{")
    assert any("no JSON" in line for line in coco.check(empty))
    shutil.rmtree(empty / "val2017")
    assert list(coco.check(tmp_path / "nowhere"))


def test_digits_have_exact_boxes_and_masks_and_are_the_same_every_time() -> None:
    data, again = (digits_det.digits_det(train_images=40, val_images=20) for _ in range(2))
    assert data.fingerprint == again.fingerprint
    for side in (data.train, data.val):
        for i in range(len(side)):
            image, target = side.read(i, None)
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
    rows = [{tuple(row) for row in side.source.digits} for side in (data.train, data.val)]
    assert len(rows[0]) > 1400 and len(rows[1]) > 350 and not rows[0] & rows[1]


def test_the_stream_of_scenes_is_the_same_with_any_workers(voc_sample: Path) -> None:
    data = voc.voc(root=str(voc_sample), train=["VOC2007/trainval"], val=["VOC2007/test"])
    common = {"batch_size": 20, "seed": 3, "train": True}
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


def test_ssds_augmentation_keeps_boxes_on_their_objects() -> None:
    image, objects = marked(120, 80)
    objects = replace(objects, masks=None)
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
    assert counts == {1, 2}
    assert min(areas) < 120 * 80 / 2 and max(areas) > 120 * 80 * 2
    sized, there = box_augment.augmentation("ssd", 32)(image, objects, Random(1))  # type: ignore[misc]
    assert sized.shape == (32, 32, 3) and there.boxes.max() <= 32


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
