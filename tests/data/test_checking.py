"""``attnbench data check`` prints a line for each problem in a data set."""

from __future__ import annotations

import hashlib
import io
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from attnbench.base.errors import DataError
from attnbench.data.image_folders import sharding
from attnbench.data.images import jpeg
from attnbench.data.layouts import recognise
from tests.conftest import Check
from tests.data_fixtures import image_folder, photo


def grained(seed: int, width: int = 60, height: int = 48) -> Image.Image:
    grain = np.random.default_rng(seed).integers(-40, 41, (height, width, 3))
    return Image.fromarray(np.clip(np.asarray(photo(seed, width, height)) + grain, 0, 255).astype(np.uint8))


def test_a_good_folder_has_no_findings(tmp_path: Path, check: Check) -> None:
    code, lines = check(image_folder(tmp_path))
    assert (code, lines) == (
        0,
        [
            "train/: 8 pictures: cat 4, dog 4",
            "val/: 8 pictures: cat 4, dog 4",
            "image folder train/<class>/*.jpg: 16 images, 0 problems, 0 notes",
        ],
    )


def cut_off(cat: Path) -> None:
    (cat / "1.jpg").write_bytes((cat / "1.jpg").read_bytes()[:-30])


def no_image(cat: Path) -> None:
    (cat / "1.jpg").write_bytes(b"hello")


def sixteen_bits(cat: Path) -> None:
    Image.fromarray(np.full((9, 9), 999, np.uint16)).save(cat / "wide.png")


def a_twin(cat: Path) -> None:
    (cat / "1.JPEG").write_bytes((cat / "2.jpg").read_bytes() + b" ")


def leaked(cat: Path) -> None:
    (cat / "leaked.jpg").write_bytes((cat.parent.parent / "val" / "dog" / "0.jpg").read_bytes())


def two_labels(cat: Path) -> None:
    (cat / "9.jpg").write_bytes((cat.parent / "dog" / "0.jpg").read_bytes())


def empty_class(cat: Path) -> None:
    (cat.parent / "eel").mkdir()


def unknown_class(cat: Path) -> None:
    (cat.parent.parent / "val" / "eel").mkdir()
    grained(0).save(cat.parent.parent / "val" / "eel" / "0.jpg")


def nested(cat: Path) -> None:
    (cat / "kittens").mkdir()


def no_validation(cat: Path) -> None:
    (cat.parent.parent / "val").rename(cat.parent.parent / "dev")


def a_link_to_nowhere(cat: Path) -> None:
    (cat / "7.jpg").symlink_to(cat / "nowhere.jpg")


def not_as_listed(cat: Path) -> None:
    listed = [f"{'0' * 64}  train/cat/1.jpg", f"{'0' * 64} *./train/cat/8.jpg"]
    (cat.parent.parent / "SHA256SUMS").write_text("\n".join(listed) + "\n")


PROBLEMS: dict[Callable[[Path], None], str] = {
    cut_off: "train/cat/1.jpg: this image cannot be read: ",
    no_image: "train/cat/1.jpg: this image cannot be read: cannot identify image file",
    a_twin: "train/cat/1.jpg: the same name as 1.JPEG except for case or suffix",
    leaked: "val/dog/0.jpg: the same bytes as train/cat/leaked.jpg",
    two_labels: "train/dog/0.jpg: the same bytes as train/cat/9.jpg",
    empty_class: "train/eel: this class has no image: it is empty",
    unknown_class: "val/eel: this class is not in train/",
    nested: "train/cat/kittens: a folder inside a class folder: its files are not read",
    no_validation: "a run needs train/ and val/; it holds dev, train",
    a_link_to_nowhere: "train/cat/7.jpg: this image cannot be read: No such file or directory",
    not_as_listed: "train/cat/1.jpg: its SHA-256 is not the one in SHA256SUMS",
}


@pytest.mark.parametrize("spoil", PROBLEMS, ids=lambda spoil: spoil.__name__)
def test_a_problem_is_one_line_with_its_file_and_exit_code_3(
    spoil: Callable[[Path], None], tmp_path: Path, check: Check
) -> None:
    spoil(image_folder(tmp_path) / "train" / "cat")
    code, lines = check(tmp_path)
    assert code == 3
    assert [line for line in lines if PROBLEMS[spoil] in line and not line.startswith("note: ")], lines
    expected = 2 if spoil is not_as_listed else 1  # the second one: a listed file does not exist
    assert f" {expected} problem" in lines[-1]


@pytest.mark.skipif(jpeg.running() is None, reason="needs a C compiler")
def test_damage_that_training_would_not_notice_is_found(tmp_path: Path, check: Check) -> None:
    """Half of the images have ten flipped bits; Pillow alone finds about a fifth of these."""
    root, draws = image_folder(tmp_path, per_class=1), random.Random(0)
    for k in range(60):
        file = io.BytesIO()
        grained(k).save(file, "JPEG", quality=90)
        data = bytearray(file.getvalue())
        for _ in range(10 * (k % 2)):
            data[draws.randrange(700, len(data))] ^= 1 << draws.randrange(8)
        (root / "train" / "cat" / f"image{k:02}.jpg").write_bytes(bytes(data))
    code, lines = check(root)
    named = {int(line.partition("image")[2][:2]) for line in lines if "train/cat/image" in line}
    assert code == 3
    assert not [k for k in named if k % 2 == 0]
    assert len(named) >= 27


def test_what_a_run_does_without_complaint_is_a_note(tmp_path: Path, check: Check) -> None:
    cat = image_folder(tmp_path) / "train" / "cat"
    grained(1).convert("CMYK").save(cat / "inks.jpg")
    grained(2).convert("L").save(cat / "grey.jpg")  # gives no note
    grained(3).save(cat / "disguise.jpg", format="PNG")
    grained(4).convert("RGBA").save(cat / "glass.png")
    (cat / "again.jpg").write_bytes((cat / "0.jpg").read_bytes())
    (cat / "notes.txt").write_text("nothing")
    (tmp_path / "val" / "dog").rename(tmp_path / "dog")
    code, lines = check(tmp_path)
    assert code == 0
    assert sorted(lines[:-1]) == [
        "note: train/cat/again.jpg: the same bytes as train/cat/0.jpg",
        "note: train/cat/disguise.jpg: a PNG image in a .jpg file",
        "note: train/cat/glass.png: mode RGBA with transparency, which is dropped",
        "note: train/cat/inks.jpg: mode CMYK, converted to RGB when it is read",
        "note: train/cat/notes.txt: its name is not that of an image: it is ignored",
        "note: val/dog: this class has no folder here",
        "train/: 13 pictures: cat 9, dog 4",
        "train/: left out: 1 .txt",
        "val/: 4 pictures: cat 4, dog 0",
    ]


def test_a_manifest_names_every_image_that_changed(tmp_path: Path, check: Check) -> None:
    root = image_folder(tmp_path)
    files = sorted(path for path in root.rglob("*.jpg"))
    sums = [f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.relative_to(root)}" for path in files]
    (root / "SHA256SUMS").write_text("\n".join(sums))
    assert check(root)[0] == 0
    for path in files[::2]:
        path.write_bytes(path.read_bytes()[:-2] + b"\0\xff\xd9")
    code, lines = check(root)
    assert code == 3
    assert {line.partition(":")[0] for line in lines if "SHA256SUMS" in line} == {
        str(path.relative_to(root)) for path in files[::2]
    }


def test_shards_are_checked_record_by_record(tmp_path: Path, check: Check) -> None:
    root, target = image_folder(tmp_path / "images"), tmp_path / "shards"
    cut_off(root / "train" / "cat")
    target.mkdir()
    classes, planned = sharding.plan(root, target, None, 2**30)
    for one in planned:
        sharding.write(one, None, 1, lambda new: None)
    assert check(target)[1][0] == f"{target}: these shards are unfinished"
    sharding.finish(target, classes, planned)
    damaged = bytearray((target / "val-000000.tar").read_bytes())
    damaged[600] ^= 1
    (target / "val-000000.tar").write_bytes(damaged)
    code, lines = check(target)
    assert code == 3 and len(lines) == 5
    assert lines[2:4] == ["train/: 8 pictures: cat 4, dog 4", "val/: 8 pictures: cat 4, dog 4"]
    assert "train-000000.tar, record 1: cat/1.jpg: this image cannot be read: " in lines[0]
    assert "val-000000.tar, record 0: cat/0.jpg: this record is damaged" in lines[1]
    assert lines[4] == "shards of attnbench data shard: 16 images, 2 problems, 0 notes"


@pytest.mark.parametrize("at", [5, -1, -2000])
def test_a_bit_that_belongs_to_no_picture_is_found(at: int, tmp_path: Path, check: Check) -> None:
    root, target = image_folder(tmp_path / "images"), tmp_path / "shards"
    target.mkdir()
    classes, planned = sharding.plan(root, target, None, 2**30)
    for one in planned:
        sharding.write(one, None, 1, lambda new: None)
    sharding.finish(target, classes, planned)
    assert check(target)[0] == 0
    damaged = bytearray((target / "val-000000.tar").read_bytes())
    damaged[at] ^= 1
    (target / "val-000000.tar").write_bytes(damaged)
    code, lines = check(target)
    assert code == 3
    assert lines[0] == (
        f"{target}/val-000000.tar: this file is damaged: its checksum is wrong, but those of its pictures are not"
    )


def test_a_folder_of_something_else_is_refused(tmp_path: Path, check: Check) -> None:
    with pytest.raises(DataError, match=r"unknown data set layout: it is empty .*image folder"):
        recognise(tmp_path)
    assert check(tmp_path) == (3, [])
