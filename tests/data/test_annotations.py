"""VOC and COCO as tools write them, and annotations that do not say what they seem to: refused, or read and said."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as rle

from attnbench.base.errors import ConfigError, DataError
from attnbench.config import catalog
from attnbench.config.configuration import Config
from attnbench.data.dataset import Dataset
from attnbench.data.detection import coco, voc
from attnbench.data.detection.annotated import flag, is_leak
from attnbench.data.detection.coco_outlines import _uncompressed
from attnbench.data.detection.scenes import NoArea, checked_box
from tests.conftest import Check, refused
from tests.data_fixtures import coco_folder, photo, source, voc_annotation, voc_folder


def read_voc(root: Path, **options: Any) -> Dataset:
    splits = {"train": ["VOC2007/trainval"], "val": ["VOC2007/test"]}
    return voc.voc(root=str(root), **{"augment": "none", **splits, **options})


def read_coco(root: Path, **options: Any) -> Dataset:
    return coco.coco(root=str(root), **options)


# VOC


def renamed(root: Path, old: str, new: str) -> None:
    """Rename picture and annotation of an image, which new names may put into a folder."""
    year = root / "VOC2007"
    for folder, ending in (("JPEGImages", ".jpg"), ("Annotations", ".xml")):
        target = year / folder / f"{new}{ending}"
        target.parent.mkdir(exist_ok=True)
        (year / folder / f"{old}{ending}").rename(target)


LISTS = [
    ("one shot (2)\n2\n", "one shot (2)"),
    ("one 1\n2\n", "one 1"),
    ("one -1\n2 1\n", "one"),
    ("one.jpg\n2.JPG\n", "one"),
    ("\ufeffone\n2\n", "one"),
    ("cam/one\r\n./2\r\n", "cam/one"),
    ("JPEGImages/cam/one.jpg\n2\n", "cam/one"),
    ("cam\\one.jpg\n2\n", "cam/one"),
]


@pytest.mark.parametrize(("text", "name"), LISTS)
def test_lines_of_lists(tmp_path: Path, check: Check, text: str, name: str) -> None:
    root = voc_folder(tmp_path)
    renamed(root, "1", name)
    for split in ("trainval", "test"):
        (root / f"VOC2007/ImageSets/Main/{split}.txt").write_text(text, encoding="utf-8", newline="")
    data = read_voc(root)
    assert [str(record.image.relative_to(root / "VOC2007/JPEGImages")) for record in source(data.val).records] == [
        f"{name}.jpg", "2.jpg",
    ]  # fmt: skip
    assert check(root)[0] == 0


@pytest.mark.parametrize("suffix", [".png", ".JPG", ".jpeg", ".webp", ".bmp"])
def test_other_suffixes(tmp_path: Path, check: Check, suffix: str) -> None:
    root = voc_folder(tmp_path)
    folder = root / "VOC2007/JPEGImages"
    photo(1, 60, 40).save(folder / f"1{suffix}")
    assert source(read_voc(root).val).records[0].image.name == "1.jpg"  # of two files, the one that it was before
    (folder / "1.jpg").unlink()
    assert source(read_voc(root).val).records[0].image.name == f"1{suffix}"
    assert check(root)[0] == 0


@pytest.mark.parametrize(
    ("declared", "written"),
    [("gb2312", "gbk"), ("GBK", "gbk"), ("big5", "big5"), ("shift_jis", "cp932"), ("utf-8", "utf-8-sig")],
)
def test_encodings(tmp_path: Path, check: Check, declared: str, written: str) -> None:
    name = {"gbk": "图", "big5": "圖", "cp932": "図", "utf-8-sig": "ü"}[written]
    text = f'<?xml version="1.0" encoding="{declared}"?>{voc_annotation(name=name)}'
    root = voc_folder(tmp_path, text.encode(written))
    (root / "VOC2007/ImageSets/Main/trainval.txt").write_text("1\n")
    (root / "VOC2007/ImageSets/Main/test.txt").write_text("1\n")
    assert read_voc(root).classes == (name,)
    assert check(root)[0] == 0


@pytest.mark.parametrize(
    ("declared", "written", "words"),
    [("no-such", "utf-8", "unknown encoding: no-such"), ("gb2312", "latin-1", "not in the encoding that it declares")],
)
def test_a_wrong_encoding_is_named_and_the_check_goes_on(
    tmp_path: Path, check: Check, declared: str, written: str, words: str
) -> None:
    text = f'<?xml version="1.0" encoding="{declared}"?>{voc_annotation(extra="<x>é</x>")}'
    root = voc_folder(tmp_path, text.encode(written))
    (root / "VOC2007/JPEGImages/2.jpg").write_bytes(b"x")
    refused(lambda: read_voc(root), DataError, words, "1.xml")
    lines = check(root)[1]
    assert any(words in line and "1.xml" in line for line in lines) and any("2.jpg" in line for line in lines)


def test_a_declared_encoding_does_not_let_a_doctype_in(tmp_path: Path) -> None:
    text = '<?xml version="1.0" encoding="gb2312"?><!DOCTYPE a [<!ENTITY x "y">]>' + voc_annotation()
    refused(lambda: read_voc(voc_folder(tmp_path, text.encode("gb2312"))), DataError, "DOCTYPE", "1.xml")


def own_classes(root: Path, *names: str) -> Path:
    """A VOC folder whose first annotation has an object of the first class, and so on."""
    voc_folder(root)
    for n, name in enumerate(names, start=1):
        (root / f"VOC2007/Annotations/{n}.xml").write_text(voc_annotation(name=name))
    return root


def test_own_classes(tmp_path: Path, check: Check) -> None:
    root = own_classes(tmp_path / "own", "pallet", "box")
    assert read_voc(root).classes == ("box", "pallet") and check(root)[0] == 0
    data = read_voc(root, classes=["pallet", "crate", "box"])
    assert source(data.val).records[0].objects.labels.tolist() == [0]
    assert source(data.val).records[1].objects.labels.tolist() == [2]
    prints = {read_voc(root, classes=one).fingerprint for one in (None, ["pallet", "box"], ["box", "pallet", "x"])}
    assert len(prints) == 3
    refused(lambda: read_voc(root, classes=["box"]), DataError, "pallet is not among the classes", "1.xml: object 1")
    refused(lambda: read_voc(root, classes=[]), ConfigError, "dataset.classes")
    mixed = own_classes(tmp_path / "mixed", "dogg", "dog")
    refused(lambda: read_voc(mixed), DataError, "dogg is not a class of VOC", "dataset.classes", "did you mean dog?")
    assert check(mixed)[0] == 3
    assert read_voc(mixed, classes="found").classes == ("dog", "dogg")


def test_vocs_own_classes_keep_their_fingerprint(tmp_path: Path) -> None:
    root = voc_folder(tmp_path)
    data = read_voc(root)
    assert data.classes == voc.CLASSES
    assert data.fingerprint == read_voc(root, classes=list(voc.CLASSES)).fingerprint


def test_the_number_of_own_classes_is_known(tmp_path: Path, compose: Callable[..., Config]) -> None:
    words = ["task=detection", "detector=ssd", "dataset=voc", f"dataset.root={own_classes(tmp_path, 'pallet', 'box')}"]
    words += ["dataset.train=[VOC2007/trainval]"]
    assert catalog.class_count(compose(*words, "dataset.classes=[a,b,c]")) == 3
    assert catalog.class_count(compose(*words, "dataset.classes=found")) == 2


@pytest.mark.parametrize(("text", "value"), [("0", False), ("1", True), ("False", False), ("true", True), ("", False)])
def test_difficult_as_tools_write_it(tmp_path: Path, text: str, value: bool) -> None:
    root = voc_folder(tmp_path, voc_annotation().replace("<difficult>0<", f"<difficult>{text}<"))
    assert source(read_voc(root).val).records[0].objects.difficult.tolist() == [value]


def test_flags_that_are_none_are_refused(tmp_path: Path, check: Check) -> None:
    values: list[object] = [2, "yes", None, [], 0.5, "2"]
    for value in values:
        refused(partial(flag, value, "iscrowd", "here"), DataError, "iscrowd", "use 0 or 1")
    root = voc_folder(tmp_path, voc_annotation().replace("<difficult>0<", "<difficult>hard<"))
    refused(lambda: read_voc(root), DataError, "difficult is 'hard'", "1.xml: object 1")
    assert check(root)[0] == 3


@pytest.mark.parametrize("size", ["0", "-4", "nan", "1e9"])
def test_a_size_that_is_none(tmp_path: Path, check: Check, size: str) -> None:
    root = voc_folder(tmp_path, voc_annotation().replace("<width>60<", f"<width>{size}<"))
    refused(lambda: read_voc(root), DataError, "the annotation gives a size of", "1.xml")
    code, lines = check(root)
    assert code == 3 and "gives a size of" in lines[0]


# COCO


def edited(root: Path, change: Callable[[dict[str, Any]], object], split: str = "val2017") -> Path:
    path = root / f"annotations/instances_{split}.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    return root


@pytest.mark.parametrize("name", ["./7.jpg", "cam1/7.jpg", "cam1\\7.jpg", "val2017/7.jpg", "val2017/../val2017/7.jpg"])
def test_file_names_with_folders(tmp_path: Path, check: Check, name: str) -> None:
    def change(content: dict[str, Any]) -> None:
        content["images"][0]["file_name"] = name

    root = edited(coco_folder(tmp_path), change)
    if name.startswith("cam1"):
        (root / "val2017/cam1").mkdir()
        (root / "val2017/7.jpg").rename(root / "val2017/cam1/7.jpg")
    assert source(read_coco(root).val).image(1).shape == (40, 60, 3)
    assert check(root)[0] == 0


@pytest.mark.parametrize("name", ["../../7.jpg", "/etc/passwd", "..\\..\\7.jpg"])
def test_file_names_outside_are_refused(tmp_path: Path, check: Check, name: str) -> None:
    root = edited(coco_folder(tmp_path / "a"), lambda content: content["images"][0].update(file_name=name))
    photo(1, 60, 40).save(tmp_path / "7.jpg")
    refused(lambda: read_coco(root), DataError, "outside of the data set")
    assert check(root)[0] == 3


def test_own_splits_and_one_folder_of_images(tmp_path: Path) -> None:
    root = coco_folder(tmp_path)
    refused(lambda: read_coco(root, train="train"), DataError, "there are train2017, val2017")
    (root / "images").mkdir()
    for split in ("train2017", "val2017"):
        for path in (root / split).iterdir():
            path.rename(root / "images" / f"{split}-{path.name}")
        (root / split).rmdir()
        edited(root, lambda c, s=split: [i.update(file_name=f"{s}-{i['file_name']}") for i in c["images"]], split)  # type: ignore[misc]
    for old, new in (("train2017", "mine"), ("val2017", "yours")):
        (root / f"annotations/instances_{old}.json").rename(root / f"annotations/instances_{new}.json")
    data = read_coco(root, train="mine", val="yours")
    assert source(data.val).image(0).shape == (40, 60, 3)


def test_chosen_categories(tmp_path: Path) -> None:
    root = coco_folder(tmp_path)
    data = read_coco(root, classes=["zebra"])
    assert data.classes == ("zebra",) and source(data.train).records[1].objects.labels.tolist() == [0]
    assert "train2017: left out, not in dataset.classes: ant 1" in data.notes()
    turned = read_coco(root, classes=["zebra", "ant"])
    assert source(turned.train).records[1].objects.labels.tolist() == [0, 1]
    assert len({one.fingerprint for one in (data, turned, read_coco(root))}) == 3
    refused(lambda: read_coco(root, classes=["zebr"]), DataError, "zebr is not among", "did you mean zebra?")


TWICE = [
    (lambda c: c["images"][0].update(id=3), "2 images with the id 3"),
    (lambda c: c["images"][0].update(file_name="3.jpg"), "2 images with the file_name '3.jpg'"),
    (lambda c: c["categories"][0].update(id=2), "two categories with the id 2"),
    (lambda c: c["categories"][0].update(name="ant"), "two categories with the name ant"),
]


@pytest.mark.parametrize(("change", "words"), TWICE, ids=range(len(TWICE)))
def test_what_must_be_unique(
    tmp_path: Path, check: Check, change: Callable[[dict[str, Any]], object], words: str
) -> None:
    root = edited(coco_folder(tmp_path), change)
    refused(lambda: read_coco(root), DataError, words, "instances_val2017.json")
    code, lines = check(root)
    assert code == 3 and any(words in line for line in lines)


@pytest.mark.parametrize(("value", "crowd"), [("0", False), ("1", True), (False, False), ("false", False), (1.0, True)])
def test_iscrowd_as_tools_write_it(tmp_path: Path, value: object, crowd: bool) -> None:
    root = coco_folder(tmp_path)
    before = read_coco(root).fingerprint
    edited(root, lambda content: content["annotations"][0].update(iscrowd=value), "train2017")
    data = read_coco(root)
    assert source(data.train).records[1].objects.crowd.tolist() == [crowd, True]
    assert data.fingerprint != before


def test_a_missing_area_is_computed_and_said(tmp_path: Path, check: Check) -> None:
    root = coco_folder(tmp_path)
    edited(root, lambda content: [item.pop("area") for item in content["annotations"]])
    edited(root, lambda content: content["annotations"][0].update(segmentation=[[5, 5, 25, 5, 5, 15]]))
    areas = source(read_coco(root).val).records[1].objects.areas.tolist()
    assert 90 <= areas[0] <= 110 and areas[1] == 1200  # a triangle, and the pixels of the run lengths
    code, lines = check(root)
    assert code == 0 and "val2017: 2 annotations have no area; computed" in lines
    for area in ("200", -1, True, [2]):
        edited(root, lambda content, area=area: content["annotations"][0].update(area=area))  # type: ignore[misc]
        refused(lambda: read_coco(root), DataError, f"area is {area!r}", "annotation 1")
        assert check(root)[0] == 3


OUTLINES = [
    ([[505, 5, 525, 5, 525, 15]], "outside its image"),
    ([[5, 5, 2.08e8, 3.5e8, 25, 15]], "outside its image"),
    ([[5, 5, 1e300, 5, 25, 15]], "not a number"),
    ([[5, 5, True, 5, 25, 15]], "not a number"),
    ([[35, 25, 45, 25, 45, 35]], "not where its box is"),
    ([[0, 0, 60, 0, 60, 40, 0, 40]], "not where its box is"),
    ([5, 5, 25, 5, 25, 15], "fewer than three corners"),
    ("M 5 5", "neither polygons nor run lengths"),
    ({"size": [40, 60]}, "not whole numbers"),
    ({"size": [40, 60], "counts": [-5, 2405]}, "not whole numbers"),
    ({"size": [40, 60], "counts": [2400]}, "without a pixel"),
    ({"size": [40, 60], "counts": "012"}, "do not fill"),
    ({"size": [40, 60], "counts": "\u2603"}, "not whole numbers"),
    ({"size": "40x60", "counts": [2400]}, "run lengths of 40x60"),
]


@pytest.mark.parametrize(("outline", "words"), OUTLINES, ids=range(len(OUTLINES)))
def test_outlines_are_checked_before_they_are_drawn(tmp_path: Path, check: Check, outline: Any, words: str) -> None:
    root = edited(coco_folder(tmp_path), lambda content: content["annotations"][0].update(segmentation=outline))
    refused(lambda: read_coco(root), DataError, words, "annotation 1")
    code, lines = check(root)
    assert code == 3 and words in lines[0] and "annotation 1" in lines[0]


def test_run_lengths_in_compressed_text() -> None:
    random = np.random.default_rng(0)
    for _ in range(50):
        pixels = np.asfortranarray((random.random((37, 53)) < random.random()).astype(np.uint8))
        text = rle.encode(pixels)["counts"].decode()
        runs = _uncompressed(text)
        assert runs is not None and sum(runs) == pixels.size
        assert (np.repeat(np.arange(len(runs)) % 2, runs) == pixels.ravel("F")).all()


def test_masks_of_some_objects(tmp_path: Path, check: Check) -> None:
    root = edited(coco_folder(tmp_path), lambda content: content["annotations"][0].update(segmentation=[]))
    data = read_coco(root)
    assert source(data.val).objects(1).masks is None and source(data.val).unmasked() == root / "val2017/7.jpg"
    code, lines = check(root)
    assert code == 0 and "note: val2017/7.jpg: some objects have a mask: not for detectors of masks" in lines


def test_a_box_without_width_in_float32(tmp_path: Path, check: Check) -> None:
    refused(lambda: checked_box((90, 30, 90 + 1e-7, 40), 96, 64, "x"), NoArea, "without area")
    assert checked_box((0, 0, 1e-7, 1), 96, 64, "x")[2] == 1e-7
    root = edited(coco_folder(tmp_path), lambda content: content["annotations"][0].update(bbox=[50, 5, 1e-7, 9]))
    refused(lambda: read_coco(root), DataError, "without_area=drop")
    assert check(root)[0] == 3


# both


def test_pictures_in_two_splits(tmp_path: Path, check: Check) -> None:
    root = coco_folder(tmp_path)
    edited(root, lambda content: content["images"][0].update(file_name="../train2017/7.jpg"))
    refused(lambda: read_coco(root), DataError, "outside of the data set")
    edited(root, lambda content: content["images"][0].update(file_name="train2017/7.jpg"))
    code, lines = check(root)
    assert code == 3 and "train2017/7.jpg: this picture is in train2017 and in val2017" in lines
    assert "1 pictures are in training and in validation" in read_coco(root).notes()
    assert is_leak("VOC2007/train", "VOC2007/val") and is_leak("VOC2007/test", "VOC2007/trainval")
    assert not is_leak("VOC2007/trainval", "VOC2007/val") and not is_leak("train", "train_small")


def tagged(path: Path, tag: int, size: tuple[int, int]) -> None:
    """A picture with a red left half as it is stored, and an EXIF orientation."""
    pixels = np.zeros((size[1], size[0], 3), np.uint8)
    pixels[:, : size[0] // 2] = (255, 0, 0)
    exif = Image.Exif()
    exif[0x0112] = tag
    Image.fromarray(pixels).save(path, exif=exif, quality=95)


@pytest.mark.parametrize("orientation", ["auto", "upright", "stored"])
def test_boxes_belong_to_the_upright_picture(tmp_path: Path, check: Check, orientation: str) -> None:
    """Orientation 6: a picture of 40 x 60 pixels whose upright size is the annotated 60 x 40; its top is red."""
    root = coco_folder(tmp_path)
    tagged(root / "val2017/7.jpg", 6, (40, 60))
    data = read_coco(root, orientation=orientation)
    if orientation == "stored":
        message = refused(lambda: source(data.val).image(1), DataError, "40x60 pixels", "EXIF orientation is 6")
        assert "dataset.orientation" in message
    else:
        image = source(data.val).image(1)
        assert image.shape == (40, 60, 3) and image[5, :, 0].min() > 200 and image[35, :, 0].max() < 50
        assert "pictures: 1 turned upright" in data.notes()
    assert check(root)[0] == 0
    published = read_coco(root)
    assert read_coco(root, orientation="upright").contents() == published.contents()  # nothing else was possible before


@pytest.mark.parametrize(
    ("options", "upright"), [({}, False), ({"name": "mine"}, True), ({"orientation": "upright"}, True)]
)
def test_an_orientation_that_no_size_tells(
    tmp_path: Path, check: Check, options: dict[str, Any], upright: bool
) -> None:
    """Upside down: COCO itself is drawn as stored, one's own pictures upright, and the check asks."""
    root = coco_folder(tmp_path)
    stored = read_coco(root).contents()
    tagged(root / "val2017/7.jpg", 3, (60, 40))
    data = read_coco(root, **options)
    image = source(data.val).image(1)
    assert (image[:, 50, 0].min() > 200) == upright
    contents = read_coco(root, orientation="stored").contents()
    assert (data.contents() != contents) == upright and contents != stored
    code, lines = check(root)
    assert code == 3 and re.search(r"val2017/7\.jpg: EXIF orientation 3: its size does not tell", lines[0])


def test_pictures_annotated_as_stored(tmp_path: Path, check: Check) -> None:
    root = voc_folder(tmp_path)
    tagged(root / "VOC2007/JPEGImages/1.jpg", 6, (60, 40))
    data = read_voc(root, name="mine")
    assert source(data.val).image(0).shape == (40, 60, 3)
    assert "pictures: 2 with an EXIF orientation drawn as stored" in data.notes()
    refused(lambda: source(read_voc(root, orientation="upright").val).image(0), DataError, "EXIF orientation is 6")
    code, lines = check(root)
    assert code == 0 and "note: VOC2007/JPEGImages/1.jpg: EXIF orientation 6: drawn as stored, as annotated" in lines


def test_objects_of_each_class_are_counted(tmp_path: Path, check: Check) -> None:
    root = coco_folder(tmp_path)
    assert "validation: 2 pictures, 2 objects: ant 1, zebra 1" in read_coco(root).notes()
    assert "val2017: 2 pictures, 2 objects: ant 1, zebra 1" in check(root)[1]
    os.remove(root / "val2017/3.jpg")
    assert "val2017: 1 pictures, 2 objects: ant 1, zebra 1" in check(root)[1]
