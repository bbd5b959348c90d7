"""``dataset=folder``: layouts of one's own pictures, their division, their formats, and what is said about them."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from attnbench.base.errors import ConfigError, DataError
from attnbench.config.configuration import Config
from attnbench.data import sampling
from attnbench.data.dataset import Dataset
from attnbench.data.image_folders import sharding
from attnbench.data.image_folders.datasets import folder, imagenet
from attnbench.data.images.files import Files
from attnbench.data.loader import Loader
from tests.conftest import Check, refused
from tests.data_fixtures import image_folder, photo, tensors

SMALL = {"size": 24, "resize": 32}


def own(root: Path, **options: object) -> Dataset:
    return folder(root=str(root), **{**SMALL, **options})  # type: ignore[arg-type]


def names(data: Dataset, side: str) -> list[str]:
    """The class and name of each picture of a split."""
    split = getattr(data, side)
    assert isinstance(split, Files)
    return ["/".join(Path(split.records.where(k)).parts[-2:]) for k in range(len(split))]


@pytest.fixture(scope="module")
def classes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder of three classes of 10, 7 and 3 pictures."""
    root = tmp_path_factory.mktemp("classes") / "birds"
    for name, number in (("finch", 10), ("owl", 7), ("wren", 3)):
        image_folder(root, classes=(name,), per_class=number, sides=("",), size=(40 + number, 40))
    return root


# layouts


@pytest.mark.parametrize("side", ["valid", "validation", "test"])
def test_other_names_of_the_validation_folder(tmp_path: Path, side: str) -> None:
    data = own(image_folder(tmp_path, sides=("train", side)))
    assert len(data.train) == len(data.val) == 8
    assert ("validation is test/: there is no val/" in data.notes()) == (side == "test")


def test_test_is_not_read_if_there_is_another_validation_folder(tmp_path: Path) -> None:
    data = own(image_folder(tmp_path, sides=("train", "test", "valid")))
    assert isinstance(data.val, Files) and data.val.records.place == tmp_path / "valid"


def test_a_layout_that_cannot_be_read_says_how_it_could_be(classes: Path, tmp_path: Path) -> None:
    refused(lambda: own(classes), DataError, "no train/", "dataset.holdout=0.2", "dataset.fold=0")
    refused(lambda: imagenet(root=str(classes), **SMALL), DataError, "dataset=folder")  # type: ignore[arg-type]
    image_folder(tmp_path / "a" / "b")
    refused(lambda: own(tmp_path), DataError, f"use dataset.root={tmp_path}/a/b")
    refused(lambda: own(tmp_path, holdout=0.5), DataError, f"use dataset.root={tmp_path}/a/b")


def test_a_class_that_differs_in_case_is_named(tmp_path: Path) -> None:
    root = image_folder(tmp_path)
    (root / "val" / "cat").rename(root / "val" / "Cat")
    refused(lambda: own(root), DataError, "class Cat has no training images", "is it cat?")


def test_what_is_there_is_said(tmp_path: Path, check: Check) -> None:
    root = image_folder(tmp_path)
    shutil.rmtree(root / "val" / "dog")
    (root / "train" / "cat" / "notes.txt").write_text("x")
    (root / "train" / "cat" / "x.HEIC").write_text("x")
    photo(1, 20, 20).save(root / "train" / "beside.jpg")
    (root / "train" / "cat" / "more").mkdir()
    photo(1, 20, 20).save(root / "train" / "cat" / "more" / "x.jpg")
    assert list(own(root).notes()) == [
        "training: 8 pictures: cat 4, dog 4",
        "validation: 4 pictures: cat 4, dog 0",
        "no validation picture of dog",
        "left out: 1 .heic, 1 .jpg outside of class folders, 1 .txt, 1 in folders inside a class",
    ]
    lines = check(root)[1]
    assert "note: train/beside.jpg: it is not in a class folder: it is not read" in lines
    assert "train/: left out: 1 .heic, 1 .jpg outside of class folders, 1 .txt" in lines


# holdout and folds


@pytest.mark.parametrize("share", [0.1, 0.2, 0.5, 0.99])
def test_a_share_of_every_class_is_held_out(classes: Path, share: float) -> None:
    data = own(classes, holdout=share)
    train, val = names(data, "train"), names(data, "val")
    assert len(train) + len(val) == 20 and not set(train) & set(val)
    held = Counter(name.split("/")[0] for name in val)
    for name, number in (("finch", 10), ("owl", 7), ("wren", 3)):
        assert held[name] == min(number - 1, max(1, round(share * number)))


def test_the_division_follows_its_own_seed(classes: Path) -> None:
    divided = [names(own(classes, holdout=0.3, division_seed=seed), "val") for seed in (0, 0, 1)]
    assert divided[0] == divided[1] != divided[2]
    prints = {own(classes, holdout=0.3, division_seed=seed).fingerprint for seed in (0, 1)}
    assert len(prints | {own(classes, fold=0).fingerprint}) == 3


@pytest.mark.parametrize("folds", [2, 3, 5, 7])
def test_every_picture_is_held_out_in_one_fold(classes: Path, folds: int) -> None:
    data = [own(classes, fold=fold, folds=folds) for fold in range(folds)]
    held = [names(one, "val") for one in data]
    assert sorted(name for one in held for name in one) == sorted({*names(data[0], "train"), *held[0]})
    sizes = [len(one) for one in held]
    assert max(sizes) - min(sizes) <= 1
    for name in ("finch", "owl", "wren"):
        of_class = [sum(entry.startswith(name) for entry in one) for one in held]
        assert max(of_class) - min(of_class) <= 1
    assert all(one.source.endswith(f"fold {k} of 0 to {folds - 1} held out") for k, one in enumerate(data))


def test_folds_of_train_leave_val_alone(tmp_path: Path) -> None:
    data = own(image_folder(tmp_path, per_class=5), fold=1)
    assert len(data.train) == 8 and len(data.val) == 2
    assert "val/ is not read: validation pictures are held out from train/" in data.notes()


def test_divisions_that_make_no_sense_are_refused(classes: Path, tmp_path: Path) -> None:
    refused(lambda: own(classes, holdout=0.2, fold=0), ConfigError, "dataset.fold", "holdout")
    refused(lambda: own(classes, fold=5), ConfigError, "fold=5", "use 0 to 4")
    refused(lambda: own(classes, holdout=1.0), ConfigError, "holdout")
    single = image_folder(tmp_path, classes=("one",), per_class=1, sides=("",))
    refused(lambda: own(single, fold=0), DataError, "a single picture", "one/0.jpg")


def test_a_division_is_refused_before_anything_is_made(compose: Callable[..., Config]) -> None:
    words = ["dataset=folder", "dataset.root=/data/birds"]
    for more, where in (
        (["dataset.fold=5"], "dataset.fold"),
        (["dataset.fold=0", "dataset.holdout=0.2"], "dataset.fold"),
        (["dataset.folds=3"], "dataset.folds"),
        (["dataset.division_seed=1"], "dataset.division_seed"),
    ):
        refused(partial(compose, *words, *more), ConfigError, where)
    assert compose(*words, "dataset.holdout=0.2", "dataset.division_seed=1").dataset_name == "birds"


# labels of a flat val/


def flat(root: Path) -> Path:
    """An image folder whose val/ has no class folders: a.jpg is a dog, b.jpg and c.jpg are cats."""
    image_folder(root, sides=("train",))
    (root / "val").mkdir()
    for k, name in enumerate("abc"):
        photo(100 + k, 60, 48).save(root / "val" / f"{name}.jpg")
    return root


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("val_labels.txt", "a.jpg dog\nb.jpg cat\nc.jpg cat\n"),
        ("val_labels.txt", "\ufeffdog\ncat\ncat\n"),
        ("val_labels.csv", "file_name,label\nc,cat\nb,cat\na,dog\n"),
        ("LOC_val_solution.csv", "ImageId,PredictionString\na,dog 1 2 3 4\nb,cat 1 2 3 4 cat 5 6 7 8\nc,cat 1 2 3 4\n"),
    ],
)
def test_a_flat_validation_folder_has_a_list_of_labels(tmp_path: Path, file: str, text: str) -> None:
    root = flat(tmp_path / "flat")
    refused(lambda: own(root), DataError, "no list of labels", "dataset.labels")
    (root / file).write_text(text, encoding="utf-8")
    data = own(root)
    assert isinstance(data.val, Files) and data.val.records.labels.tolist() == [0, 0, 1]
    assert [Path(data.val.records.where(k)).name for k in range(3)] == ["b.jpg", "c.jpg", "a.jpg"]
    assert f"labels of val/: {file}" in data.notes()
    assert imagenet(root=str(root), **SMALL).fingerprint == data.fingerprint  # type: ignore[arg-type]
    sorted_ = tmp_path / "sorted"
    shutil.copytree(root, sorted_)
    for name, of in (("a", "dog"), ("b", "cat"), ("c", "cat")):
        (sorted_ / "val" / of).mkdir(exist_ok=True)
        (sorted_ / "val" / f"{name}.jpg").rename(sorted_ / "val" / of / f"{name}.jpg")
    assert own(sorted_).fingerprint == data.fingerprint and own(sorted_).contents() == data.contents()


def test_numbers_need_the_classes_that_they_mean(tmp_path: Path) -> None:
    root = flat(tmp_path)
    (root / "list.txt").write_text("1\n2\n2\n")
    refused(lambda: own(root, labels="list.txt"), DataError, "numbers without the classes", "classes.txt")
    (root / "classes.txt").write_text("dog\ncat\n")
    data = own(root, labels="list.txt")
    assert isinstance(data.val, Files) and data.val.records.labels.tolist() == [0, 0, 1]


def test_imagenets_numbers_are_those_of_its_development_kit(tmp_path: Path) -> None:
    from scipy.io import savemat

    root = flat(tmp_path)
    kit = root / "ILSVRC2012_devkit_t12" / "data"
    kit.mkdir(parents=True)
    (kit / "ILSVRC2012_validation_ground_truth.txt").write_text("2\n1\n1\n")
    synsets = np.array([(1, "cat"), (2, "dog")], dtype=[("ILSVRC2012_ID", object), ("WNID", object)])
    savemat(kit / "meta.mat", {"synsets": synsets})
    data = imagenet(root=str(root), **SMALL)  # type: ignore[arg-type]
    assert isinstance(data.val, Files) and data.val.records.labels.tolist() == [0, 0, 1]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("dog\ncat\n", "2 labels for 3 pictures"),
        ("a dog\nb cat\n", "no label of c.jpg"),
        ("dog\ncat\neel\n", "class eel"),
    ],
)
def test_a_list_that_does_not_fit_is_refused(tmp_path: Path, check: Check, text: str, words: str) -> None:
    root = flat(tmp_path)
    (root / "val_labels.txt").write_text(text)
    refused(lambda: own(root), DataError, words, "val_labels.txt")
    code, lines = check(root)
    assert code == 3 and any(words in line for line in lines)


# sampling


def test_balanced_draws_equally_many_of_each_class() -> None:
    labels = torch.tensor([0] * 50 + [1] * 7 + [2] * 3)
    for draw in ((0, 0), (0, 1), (7, 0)):
        order = sampling.balanced(labels, draw)
        counts = torch.bincount(labels[order % 60])
        assert counts.tolist() == [20, 20, 20]
        assert len(set(order.tolist())) == 60  # those that come again have other numbers
        assert torch.bincount(order[labels[order % 60] == 1] % 60)[50:57].tolist().count(3) == 6
    assert torch.equal(sampling.balanced(labels, (3, 1)), sampling.balanced(labels, (3, 1)))
    assert not torch.equal(sampling.balanced(labels, (3, 1)), sampling.balanced(labels, (3, 2)))


def test_balanced_batches_do_not_depend_on_workers_or_the_first_step(classes: Path) -> None:
    data = own(classes, holdout=0.3, sampling="balanced")

    def batches(workers: int, start: int) -> list[torch.Tensor]:
        loader = Loader(data.train, batch_size=4, seed=1, train=True, workers=workers, balanced=data.balanced)
        return [tensors(batch)[0] for batch in loader.epoch(0, start)]

    whole = batches(0, 0)
    assert all(map(torch.equal, whole[1:], batches(2, 1)))
    drawn = torch.cat(whole).flatten(1)
    assert len(drawn.unique(dim=0)) == len(drawn)  # an image that comes again is cropped otherwise


# formats


@pytest.mark.parametrize("suffix", ["jpg", "jfif", "png", "webp", "bmp", "tif", "TIFF", "gif"])
def test_formats_of_pictures(tmp_path: Path, suffix: str) -> None:
    root = image_folder(tmp_path, per_class=2)
    pixels = np.full((48, 60, 3), (200, 40, 40), np.uint8)
    frames = [Image.fromarray(pixels), Image.fromarray(255 - pixels)]
    kind = {"jfif": "JPEG"}.get(suffix)
    more = {"save_all": True, "append_images": frames[1:]} if suffix in ("gif", "webp") else {}
    frames[0].save(root / "train" / "cat" / f"a.{suffix}", kind, **more)
    data = own(root)
    number = names(data, "train").index(f"cat/a.{suffix}")
    assert isinstance(data.train, Files)
    assert np.abs(data.train.read(number, None).astype(int) - (200, 40, 40)).max() < 8
    if suffix not in ("jpg", "png"):
        published = imagenet(root=str(root), **SMALL)  # type: ignore[arg-type]
        assert len(published.train) == len(data.train) - 1
        assert f"left out: 1 .{suffix.lower()}; dataset=folder reads more formats" in published.notes()


def turned(path: Path, tag: int, size: tuple[int, int] = (60, 48)) -> np.ndarray:
    """Write a picture whose EXIF data say that it is to be turned; returns it as it is to be seen."""
    image, exif = photo(5, *size), Image.Exif()
    exif[0x0112] = tag
    image.save(path, exif=exif, quality=95)
    from PIL import ImageOps

    with Image.open(path) as opened:
        return np.array(ImageOps.exif_transpose(opened).convert("RGB"))


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif"])
@pytest.mark.parametrize("tag", [1, 2, 3, 4, 5, 6, 7, 8])
def test_pictures_are_turned_upright(tmp_path: Path, suffix: str, tag: int) -> None:
    from attnbench.data.images.pillow import load_rgb

    seen = turned(tmp_path / f"a.{suffix}", tag)
    assert np.array_equal(np.array(load_rgb(tmp_path / f"a.{suffix}")), seen)
    stored = np.array(load_rgb(tmp_path / f"a.{suffix}", upright=False))
    lossless = np.array(photo(5, 60, 48))
    assert stored.shape == lossless.shape and np.abs(stored.astype(int) - lossless).mean() < 4


def test_own_pictures_are_upright_and_imagenets_as_stored(tmp_path: Path) -> None:
    root = image_folder(tmp_path, size=(64, 64))
    before = own(root), imagenet(root=str(root), **SMALL)  # type: ignore[arg-type]
    plain = [one.contents() for one in before]
    assert plain[0] == plain[1] and before[0].drawn() == ""
    turned(root / "train" / "cat" / "0.jpg", 6, (64, 64))
    upright, stored = own(root), own(root, orientation="stored")
    published = imagenet(root=str(root), **SMALL)  # type: ignore[arg-type]
    splits = [one.train for one in (upright, stored, published)]
    images = [split.read(0, None) for split in splits if isinstance(split, Files)]
    assert np.array_equal(images[1], images[2])
    assert np.abs(np.rot90(images[1], -1).astype(int) - images[0]).max() <= 3  # rounding of two passes
    assert stored.contents() == published.contents() != upright.contents()
    assert upright.drawn() == "1 turned upright" and "pictures: 1 turned upright" in upright.notes()
    assert "pictures: 1 with an EXIF orientation drawn as stored" in stored.notes()


def test_shrunk_shards_keep_the_orientation(tmp_path: Path) -> None:
    root = image_folder(tmp_path / "a", size=(64, 64))
    turned(root / "train" / "cat" / "0.jpg", 6, (64, 64))
    data = (root / "train" / "cat" / "0.jpg").read_bytes()
    small = sharding.Resizing(32, 90).apply(data, root)
    from attnbench.data.images.formats import facts

    assert facts(small).orientation == 6


def test_shards_of_all_formats_are_the_same_data(tmp_path: Path) -> None:
    root = image_folder(tmp_path / "a", size=(64, 64))
    turned(root / "train" / "cat" / "turned.jpg", 6, (64, 64))
    photo(50, 64, 64).save(root / "val" / "dog" / "x.webp")
    (tmp_path / "b").mkdir()
    written, planned = sharding.plan(root, tmp_path / "b", None, 2**20)
    for one in planned:
        sharding.write(one, None, 1, lambda _: None)
    sharding.finish(tmp_path / "b", written, planned)
    loose, shards = own(root), own(tmp_path / "b")
    assert loose.fingerprint == shards.fingerprint and loose.contents() == shards.contents()
    assert loose.drawn() == shards.drawn() == "1 turned upright"
    assert isinstance(loose.train, Files) and isinstance(shards.train, Files)
    assert all(np.array_equal(loose.train.read(k, (0, 0)), shards.train.read(k, (0, 0))) for k in range(9))
    refused(lambda: imagenet(root=str(tmp_path / "b"), **SMALL), DataError, "x.webp", "dataset=folder")  # type: ignore[arg-type]
    refused(lambda: own(tmp_path / "b", fold=0), ConfigError, "shards have train/ and val/")


def test_grey_of_16_bits_is_scaled(tmp_path: Path) -> None:
    root = image_folder(tmp_path, classes=("a",))
    grey = np.linspace(0, 65535, 64 * 64).reshape(64, 64).astype(np.uint16)
    for suffix in ("png", "tif"):
        Image.fromarray(grey).save(root / "train" / "a" / f"deep.{suffix}")
    data = own(root, resize=64, size=64)
    assert isinstance(data.train, Files)
    wanted = np.round(grey / 257)
    for suffix in ("png", "tif"):
        seen = data.train.read(names(data, "train").index(f"a/deep.{suffix}"), None)
        assert np.abs(seen[..., 0] - wanted).max() <= 1 and len(np.unique(seen)) > 250
    assert data.drawn() == "2 of 16 bits scaled to 8"


def test_a_range_that_nobody_knows_is_refused(tmp_path: Path, check: Check) -> None:
    root = image_folder(tmp_path, classes=("a",))
    Image.fromarray(np.ones((9, 9), np.float32)).save(root / "train" / "a" / "floats.tif")
    data = own(root)
    number = names(data, "train").index("a/floats.tif")
    assert isinstance(data.train, Files)
    refused(lambda: data.train.read(number, None), DataError, "mode F", "floats.tif")  # type: ignore[attr-defined]
    code, lines = check(root)
    assert code == 3 and any("a/floats.tif: this image cannot be read" in line for line in lines)


def test_a_name_that_belies_the_contents(tmp_path: Path, check: Check) -> None:
    root = image_folder(tmp_path)
    photo(3, 20, 20).save(root / "train" / "cat" / "saved.jpg", format="WEBP")
    (line,) = [line for line in own(root).notes() if "saved.jpg" in line]
    assert "is WEBP" in line
    assert any("train/cat/saved.jpg: a WEBP image in a .jpg file" in line for line in check(root)[1])


# data check and runs


def test_one_folder_of_classes_is_checked(classes: Path, check: Check) -> None:
    code, lines = check(classes)
    assert code == 0 and lines[-1] == "one folder of classes <class>/*.jpg: 20 images, 0 problems, 1 note"
    assert "birds/: 20 pictures: finch 10, owl 7, wren 3" in lines


def test_a_flat_validation_folder_is_checked(tmp_path: Path, check: Check) -> None:
    root = flat(tmp_path)
    assert check(root)[0] == 3
    (root / "val_labels.txt").write_text("a dog\nb cat\nc cat\n")
    code, lines = check(root)
    assert code == 0 and "val/: 3 pictures: cat 2, dog 1" in lines and "labels of val/: val_labels.txt" in lines
    (root / "val" / "b.jpg").write_bytes(b"\xff\xd8 cut off")
    assert check(root)[0] == 3
