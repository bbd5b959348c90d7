"""``attnbench predict``: classes of pictures and objects in them; bad pictures; no file of the user's is replaced."""

from __future__ import annotations

import csv
import json
import os
import resource
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as rle
from torchvision.models.detection.roi_heads import paste_masks_in_image

from attnbench.config import composition
from attnbench.config.configuration import Config
from attnbench.models.detection.pasting import blank, regions, run_lengths
from attnbench.runs import classified, load, preprocessing, run
from attnbench.runs.detected import outlines
from tests.data_fixtures import image_folder, photo

Command = Callable[..., subprocess.CompletedProcess[str]]

DETECTOR = [
    *("task=detection", "detector=mask_rcnn_small", "backbone=resnet20", "backbone.depth=8", "batch_size=4"),
    *("dataset.train_images=4", "dataset.val_images=2", "dataset.size=48", "schedule.epochs=1", "runtime.device=cpu"),
    *("detector.channels=16", "detector.hidden=32"),
]


@pytest.fixture(scope="module")
def detector(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of Mask R-CNN on digits, hardly trained: it finds 100 objects of a low score."""
    config = composition.compose([*DETECTOR, f"paths.outputs={tmp_path_factory.mktemp('detector')}"])
    run.train(config)
    return config.run_folder


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Config:
    """A run on three classes of pictures."""
    root = image_folder(tmp_path_factory.mktemp("data") / "animals", classes=("ant", "bee", "cow"))
    words = ["dataset=folder", f"dataset.root={root}", "dataset.size=24", "dataset.resize=28", "backbone=resnet20"]
    words += ["backbone.depth=8", "attention=eca", "batch_size=6", "runtime.device=cpu", "runtime.workers=0"]
    config = composition.compose([*words, "schedule.epochs=2", f"paths.outputs={tmp_path_factory.mktemp('outputs')}"])
    run.train(config)
    return config


def entries(folder: Path) -> list[dict[str, Any]]:
    return json.loads((folder / "predictions.json").read_text())


def table(path: Path) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_the_classes_are_those_of_the_evaluation(classifier: Config, tmp_path: Path, command: Command) -> None:
    """The run's own crop, mean and std: the first class of each validation picture is that of predictions.csv."""
    root = Path(classifier.tree["dataset"]["root"])
    done = command("predict", str(classifier.run_folder), str(root / "val"), "--top", "2", "--output", str(tmp_path))
    assert done.returncode == 0, done.stderr
    told = {row["image"]: row for row in table(classifier.run_folder / "predictions.csv")}
    rows = table(tmp_path / "predictions.csv")
    firsts = [row for row in rows if row["rank"] == "1"]
    assert len(firsts) == 12 and len(rows) == 24
    for row in firsts:
        expected = told[Path(row["image"]).relative_to(root / "val").as_posix()]
        assert row["class"] == expected["prediction"]
        assert float(row["probability"]) == pytest.approx(float(expected["confidence"]), abs=1e-4)
    assert [one["classes"][0]["class"] for one in entries(tmp_path)] == [row["class"] for row in firsts]
    assert done.stdout.splitlines()[-3:] == [
        str(tmp_path / name) for name in ("predictions.json", "predictions.csv", "sheet.png")
    ]
    assert f"{100 * entries(tmp_path)[0]['classes'][0]['probability']:.1f} %" in done.stdout
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.width > 6 * 160 and sheet.height > 2 * 160


def test_the_data_set_need_not_be_there(classifier: Config, tmp_path: Path, command: Command) -> None:
    copy = shutil.copytree(classifier.run_folder, tmp_path / "seed0")
    text = (copy / "config.yaml").read_text().replace(classifier.tree["dataset"]["root"], "/nowhere")
    (copy / "config.yaml").write_text(text)
    photo(0, 90, 70).save(tmp_path / "a.jpg")
    assert command("predict", str(copy), str(tmp_path / "a.jpg")).returncode == 0
    assert (copy / "predictions" / "sheet.png").exists() and (copy / "predictions.csv").exists()


@pytest.mark.parametrize(
    ("dataset", "size"), [("dataset=cifar10", 32), ("dataset=digits", 16), ("dataset=synthetic", 224)]
)
def test_every_data_set_tells_its_preprocessing(dataset: str, size: int) -> None:
    config = composition.compose([dataset])
    how = preprocessing.preprocessing(config)
    assert how.cropped(photo(0, 50, 30)).shape == (3, size, size)
    if dataset != "dataset=cifar10":
        data = config.build("dataset")
        assert (how.mean, how.std) == (data.mean, data.std)


def test_grad_cam_shows_where_the_network_looked(classifier: Config, tmp_path: Path, command: Command) -> None:
    pytest.importorskip("pytorch_grad_cam")
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        photo(len(folder), 90, 70).save(tmp_path / folder / "x.jpg")
    words = ("predict", str(classifier.run_folder), str(tmp_path / "a"), str(tmp_path / "b"), "--cam")
    done = command(*words, "--output", str(tmp_path / "out"))
    assert done.returncode == 0, done.stderr
    assert [one["picture"] for one in entries(tmp_path / "out")] == ["x-cam.png", "x-cam-2.png"]
    with Image.open(tmp_path / "out" / "x-cam.png") as picture:
        assert picture.size == (24, 24) and len(picture.getcolors(1 << 20) or []) > 50


def test_the_last_map_is_the_outermost_module_before_the_pooling(classifier: Config) -> None:
    network = load.load_run(classifier.run_folder).model
    last = classified.last_map(network, torch.zeros(1, 3, 24, 24))
    assert [name for name, module in network.named_modules() if module is last] == ["layer3"]


def test_grad_cam_without_its_package_or_a_classifier_is_refused(
    classifier: Config, detector: Path, tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    photo(0, 40, 40).save(tmp_path / "a.jpg")
    done = command("predict", str(detector), str(tmp_path / "a.jpg"), "--cam")
    assert done.returncode == 2 and "Grad-CAM is for classifiers" in done.stderr
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    done = command("predict", str(classifier.run_folder), str(tmp_path / "a.jpg"), "--cam")
    assert done.returncode == 2 and "pip install 'attnbench[cam]'" in done.stderr
    done = command("predict", str(classifier.run_folder), str(tmp_path / "a.jpg"), "--polygons")
    assert done.returncode == 2 and "has no masks" in done.stderr


@pytest.mark.parametrize("kind", ["classifier", "detector"])
def test_a_bad_picture_among_many_is_named_and_the_others_are_done(
    kind: str, classifier: Config, detector: Path, tmp_path: Path, command: Command
) -> None:
    folder = str(detector if kind == "detector" else classifier.run_folder)
    for name in "ac":
        photo(ord(name), 60, 40).save(tmp_path / f"{name}.jpg")
    (tmp_path / "b.jpg").write_text("no picture")
    names = [str(tmp_path / f"{name}.jpg") for name in "abc"]
    done = command("predict", folder, *names, "--output", str(tmp_path / "out"))
    assert done.returncode == 3 and done.stderr.count("\n") == 1
    assert f"cannot identify image file ({names[1]}); the others are done" in done.stderr
    assert [(one["image"], "error" in one) for one in entries(tmp_path / "out")] == [
        (names[0], False), (names[2], False), (names[1], True),
    ]  # fmt: skip
    done = command("predict", folder, *names, str(tmp_path / "no.png"), "--output", str(tmp_path / "out"))
    assert done.returncode == 3 and "2 of 4 pictures cannot be read" in done.stderr
    assert [line.partition(":")[0] for line in done.stderr.splitlines()] == ["left out", "left out", "error"]


def test_a_folder_means_the_pictures_below_it(classifier: Config, tmp_path: Path, command: Command) -> None:
    for name in ("x/b.png", "x/y/a.JPG", "x/.hidden.png", "x/.git/c.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        photo(0, 30, 30).save(tmp_path / name, format="PNG")
    (tmp_path / "x" / "notes.txt").write_text("")
    words = ("predict", str(classifier.run_folder), str(tmp_path / "x"), str(tmp_path / "x" / "b.png"))
    done = command(*words, "--output", str(tmp_path / "out"))
    assert done.returncode == 0 and f"left out: 1 .txt ({tmp_path}/x)" in done.stderr
    assert [one["image"] for one in entries(tmp_path / "out")] == [
        str(tmp_path / "x" / n) for n in ("b.png", "y/a.JPG")
    ]
    (tmp_path / "empty").mkdir()
    done = command("predict", str(classifier.run_folder), str(tmp_path / "empty"))
    assert done.returncode == 3 and "no picture here" in done.stderr


def test_an_output_never_replaces_an_input_or_a_strangers_file(
    detector: Path, tmp_path: Path, command: Command
) -> None:
    for number, name in enumerate(("photo.png", "stranger.png", "other/photo.jpg", "stranger.jpg", "linked.jpg")):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        photo(number, 50, 40).save(tmp_path / name)
    os.symlink(tmp_path / "linked.jpg", tmp_path / "linked.png")
    os.link(tmp_path / "photo.png", tmp_path / "hard.png")
    given = [tmp_path / name for name in ("photo.png", "other/photo.jpg", "stranger.jpg", "linked.jpg")]
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.*") if path.is_file()}
    for _ in range(2):  # the second call replaces what the first one wrote, and nothing else
        done = command("predict", str(detector), *map(str, given), "--output", str(tmp_path))
        assert done.returncode == 0, done.stderr
        assert {path: path.read_bytes() for path in before} == before
        assert os.path.islink(tmp_path / "linked.png")
        names = [one["picture"] for one in entries(tmp_path)]
        assert names == [f"{name}.png" for name in ("photo-predicted", "photo-predicted-2", "stranger-predicted",
                                                    "linked-predicted")]  # fmt: skip
    assert len(list(tmp_path.glob("*.png"))) == 4 + 4


@pytest.mark.parametrize("way", ["itself", "symbolic link", "hard link"])
def test_a_drawn_picture_that_is_an_input_is_kept(way: str, detector: Path, tmp_path: Path, command: Command) -> None:
    photo(0, 50, 40).save(tmp_path / "a.jpg")
    out, given = tmp_path / "out", tmp_path / "out" / "a.png"
    assert command("predict", str(detector), str(tmp_path / "a.jpg"), "--output", str(out)).returncode == 0
    before = given.read_bytes()
    if way != "itself":
        given = tmp_path / "a.png"
        (os.symlink if way == "symbolic link" else os.link)(out / "a.png", given)
    done = command("predict", str(detector), str(given), "--output", str(out))
    assert done.returncode == 0 and (out / "a.png").read_bytes() == before
    assert [one["picture"] for one in entries(out)] == ["a-predicted.png"]


def test_equal_names_from_two_folders_are_numbered(detector: Path, tmp_path: Path, command: Command) -> None:
    for folder in "abc":
        (tmp_path / folder).mkdir()
        photo(ord(folder), 50, 40).save(tmp_path / folder / ("X.jpg" if folder == "c" else "x.jpg"))
    words = [str(tmp_path / folder) for folder in "abc"]
    done = command("predict", str(detector), *words, "--output", str(tmp_path / "out"))
    assert done.returncode == 0, done.stderr
    assert [one["picture"] for one in entries(tmp_path / "out")] == ["x.png", "x-2.png", "X-3.png"]


def test_a_runs_own_files_are_no_place_for_outputs(detector: Path, tmp_path: Path, command: Command) -> None:
    photo(0, 50, 40).save(tmp_path / "a.jpg")
    before = (detector / "predictions.csv").read_bytes()
    done = command("predict", str(detector), str(tmp_path / "a.jpg"), "--output", str(detector))
    assert done.returncode == 2 and "this is a run's folder" in done.stderr
    assert (detector / "predictions.csv").read_bytes() == before


def test_files_of_the_names_of_outputs_are_kept_unless_they_are_outputs(
    classifier: Config, tmp_path: Path, command: Command
) -> None:
    photo(0, 50, 40).save(tmp_path / "a.jpg")
    photo(1, 50, 40).save(tmp_path / "sheet.png")
    (tmp_path / "predictions.json").write_text('{"mine": 1}')
    (tmp_path / "predictions.csv").write_text("mine")
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    names = {f"{name}-predicted{suffix}" for name, suffix in (("sheet", ".png"), ("predictions", ".json"),
                                                             ("predictions", ".csv"))}  # fmt: skip
    for _ in range(2):
        done = command("predict", str(classifier.run_folder), str(tmp_path / "a.jpg"), "--output", str(tmp_path))
        assert done.returncode == 0 and {Path(line).name for line in done.stdout.splitlines()[-3:]} == names
        assert {path.name for path in tmp_path.iterdir()} == {path.name for path in before} | names
        assert {path: path.read_bytes() for path in before} == before


def test_what_a_call_drew_is_no_picture_of_the_next_call(detector: Path, tmp_path: Path, command: Command) -> None:
    photo(0, 50, 40).save(tmp_path / "a.jpg")
    (tmp_path / "inner").mkdir()
    os.symlink(tmp_path, tmp_path / "inner" / "loop")
    for _ in range(2):
        done = command("predict", str(detector), str(tmp_path), "--output", str(tmp_path / "inner"))
        assert done.returncode == 0 and len(entries(tmp_path / "inner")) == 1
    assert "1 written by attnbench predict" in done.stderr
    assert [path.name for path in sorted((tmp_path / "inner").glob("*.png"))] == ["a.png"]


def test_objects_have_masks_and_are_counted(detector: Path, tmp_path: Path, command: Command) -> None:
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 60), dtype=np.uint8)).save(tmp_path / "grey.png")
    words = ("predict", str(detector), str(tmp_path / "grey.png"), "--output", str(tmp_path / "out"))
    done = command(*words, "--polygons", "--score", "0")
    assert done.returncode == 0, done.stderr
    (found,) = entries(tmp_path / "out")
    assert found["image"] == str(tmp_path / "grey.png") and (found["width"], found["height"]) == (60, 40)
    objects = found["objects"]
    assert f"grey.png: {len(objects)} objects (" in done.stdout and len(objects) > 10
    assert all(one["class"] in "0123456789" and 0 <= one["score"] <= 1 for one in objects)
    for one in objects:
        assert one["mask"]["size"] == [40, 60]
        inside = rle.decode({**one["mask"], "counts": one["mask"]["counts"].encode()})
        left, top, right, bottom = one["box"]
        ys, xs = inside.nonzero()
        if len(xs):
            assert left - 2 <= xs.min() and xs.max() <= right + 2 and top - 2 <= ys.min() and ys.max() <= bottom + 2
        assert bool(len(xs)) == bool(one["polygons"])
    with Image.open(tmp_path / "out" / "grey.png") as picture:
        assert picture.size == (360, 240) and picture.mode == "RGB"
        assert len(picture.getcolors(1 << 20) or []) > 300  # noise of 256 greys, and colours
    none = command(*words, "--score", "1.1")
    assert "grey.png: 0 objects of score 1.1 or more" in none.stdout and "polygons" not in entries(tmp_path / "out")[0]


def test_masks_are_pasted_as_torchvision_pastes_them() -> None:
    random = torch.Generator().manual_seed(0)
    height, width = 50, 70
    corners = torch.rand(40, 2, generator=random) * torch.tensor([width, height]) * 0.9
    boxes = torch.cat([corners, corners + 1 + torch.rand(40, 2, generator=random) * 40], 1)
    boxes[:, 2].clamp_(max=width)
    boxes[:, 3].clamp_(max=height)
    small = torch.rand(40, 1, 28, 28, generator=random)
    expected = paste_masks_in_image(small, boxes, (height, width))[:, 0] > 0.5
    canvas = blank(height, width)
    for whole, part in zip(expected, regions({"boxes": boxes, "small_masks": small}, height, width), strict=True):
        assert np.array_equal(rle.decode(run_lengths(part, canvas)).astype(bool), whole.numpy())
    assert not canvas.any()


def test_a_polygon_covers_the_mask_that_it_outlines() -> None:
    yy, xx = np.mgrid[:60, :80]
    inside = ((xx - 30) ** 2 / 400 + (yy - 28) ** 2 / 300 < 1) | (abs(xx - 70) + abs(yy - 50) < 8)
    part = next(regions({"masks": torch.from_numpy(inside)[None, None].float()}, 60, 80))
    polygons = outlines(part)
    assert len(polygons) == 2 and all(len(one) % 2 == 0 for one in polygons)
    drawn = rle.decode(rle.merge(rle.frPyObjects(polygons, 60, 80))).astype(bool)
    assert (drawn & inside).sum() / (drawn | inside).sum() > 0.97
    assert not outlines(part._replace(inside=np.zeros((5, 5), bool)))


def test_masks_are_never_pasted_all_at_once(
    detector: Path, tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("all masks at the size of the picture")

    monkeypatch.setattr("torchvision.models.detection.transform.paste_masks_in_image", refuse)
    photo(0, 200, 150).save(tmp_path / "a.jpg")
    done = command("predict", str(detector), str(tmp_path / "a.jpg"), "--output", str(tmp_path / "out"))
    assert done.returncode == 0 and "mask" in entries(tmp_path / "out")[0]["objects"][0]
    assert command("eval", str(detector)).returncode == 0


@pytest.mark.slow
def test_a_photo_of_12_megapixels_needs_less_than_two_gigabytes(detector: Path, tmp_path: Path) -> None:
    """In a process of its own; 100 masks at full size would take ten."""
    photo(0, 4000, 3000).save(tmp_path / "photo.jpg")
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            from attnbench.runs.predict import Asked, predict

            torch.set_num_threads(1)
            before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            found = predict(detector, [tmp_path / "photo.jpg"], Asked(output=tmp_path / "out", score=0.0))
            grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
            (tmp_path / "grown").write_text(f"{grown} {found.lines[0]}")
            code = 0
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    kilobytes, _, line = (tmp_path / "grown").read_text().partition(" ")
    assert int(kilobytes) < 1.2e6, f"{int(kilobytes) / 1e6:.2f} GB"
    assert " objects (" in line and len(entries(tmp_path / "out")[0]["objects"]) > 20


def test_too_little_memory_is_reported_as_such(
    detector: Path, tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object, **__: object) -> None:
        raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 480000")

    photo(0, 50, 40).save(tmp_path / "a.jpg")
    monkeypatch.setattr("attnbench.runs.detected.drawn", fails)
    done = command("predict", str(detector), str(tmp_path / "a.jpg"), "--output", str(tmp_path / "out"))
    assert done.returncode == 6 and "out of memory" in done.stderr and done.stderr.count("\n") == 1
