"""``predictions.csv``: what it holds, that eval makes it for old runs, and the report that is made of it."""

from __future__ import annotations

import csv
import json
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import fields
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from attnbench.base.errors import StorageError
from attnbench.config.configuration import Config
from attnbench.runs import predictions
from attnbench.runs.predictions import Predictions
from attnbench.training.metrics.answers import Answers
from attnbench.training.metrics.detections import Found
from tests.conftest import refused
from tests.small_runs import ForkServer, folder, in_two_processes, killed_at

Command = Callable[..., subprocess.CompletedProcess[str]]


def table(path: Path) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_a_run_writes_a_row_for_each_picture_that_gives_its_accuracy(trained: Config) -> None:
    rows = table(trained.run_folder / "predictions.csv")
    result = json.loads((trained.run_folder / "result.json").read_text())
    assert [row["sample"] for row in rows] == [str(n) for n in range(359)] and rows[7]["image"] == "7"
    right = [row["label"] == row["prediction"] for row in rows]
    assert 100 * sum(right) / 359 == pytest.approx(result["top1"])
    assert right == [row["rank"] == "1" for row in rows]
    assert 100 * sum(int(row["rank"]) <= 5 for row in rows) / 359 == pytest.approx(result["top5"])
    assert all(float(row["confidence"]) >= float(row["label_confidence"]) > 0 for row in rows)


def test_a_killed_run_leaves_the_same_file_also_if_the_last_evaluation_was_before_the_kill(
    forks: ForkServer, reference: dict[str, bytes], tmp_path: Path
) -> None:
    """Saver.after_epoch moves the state to epoch 2 and saves it; then nothing is left to train."""
    end = forks.run(tmp_path, before=partial(killed_at, 2, 0))
    assert end.code == -9 and not (folder(tmp_path) / "predictions.csv").exists()
    assert forks.run(tmp_path).code == 0
    assert (folder(tmp_path) / "predictions.csv").read_bytes() == reference["predictions"]


def test_two_processes_write_each_picture_once(forks: ForkServer, reference: dict[str, bytes], tmp_path: Path) -> None:
    assert forks.run(tmp_path, before=in_two_processes).code == 0
    rows = table(folder(tmp_path) / "predictions.csv")
    alone = list(csv.DictReader(reference["predictions"].decode().splitlines()))
    assert [(row["sample"], row["label"]) for row in rows] == [(row["sample"], row["label"]) for row in alone]
    result = json.loads((folder(tmp_path) / "result.json").read_text())
    assert 100 * sum(row["rank"] == "1" for row in rows) / 359 == pytest.approx(result["top1"])


def test_eval_writes_the_file_of_a_run_that_has_none(trained: Config, tmp_path: Path, command: Command) -> None:
    run = shutil.copytree(trained.run_folder, tmp_path / "seed0")
    before = (run / "predictions.csv").read_bytes()
    (run / "predictions.csv").unlink()
    for other in (["--which", "best"], ["dataset.size=12"]):
        assert command("eval", str(run), *other).returncode == 0 and not (run / "predictions.csv").exists()
    assert command("eval", str(run)).returncode == 0
    assert (run / "predictions.csv").read_bytes() == before


def test_a_report_shows_classes_confusion_calibration_and_the_most_wrong(
    trained: Config, tmp_path: Path, command: Command
) -> None:
    run = shutil.copytree(trained.run_folder, tmp_path / "seed0")
    (run / "checkpoints" / "last.pt").unlink()  # all is made from the saved predictions
    done = command("eval", str(run), "--report")
    assert done.returncode == 0, done.stderr
    names = ["classes.csv", "confusion.csv", "confusion.png", "calibration.csv", "most_wrong.csv", "most_wrong.png"]
    assert done.stdout.splitlines()[-6:] == [str(run / "report" / name) for name in names]
    rows = table(run / "predictions.csv")
    counts = table(run / "report" / "confusion.csv")
    for number, one in enumerate(counts):
        for answer in "0123456789":
            expected = sum(row["label"] == str(number) and row["prediction"] == answer for row in rows)
            assert int(one[answer]) == expected
    classes = table(run / "report" / "classes.csv")
    of_three = [row for row in rows if row["label"] == "3"]
    assert classes[3]["class"] == "3" and int(classes[3]["pictures"]) == len(of_three)
    share = 100 * sum(row["prediction"] == "3" for row in of_three) / len(of_three)
    assert float(classes[3]["accuracy"]) == pytest.approx(share)
    wrong = max((row for row in rows if row["rank"] != "1"), key=lambda row: float(row["confidence"]))
    assert table(run / "report" / "most_wrong.csv")[0]["image"] == wrong["image"]
    assert sum(int(row["pictures"]) for row in table(run / "report" / "calibration.csv")) == 359
    for name in ("confusion.png", "most_wrong.png"):
        with Image.open(run / "report" / name) as picture:
            assert min(picture.size) > 200 and len(picture.convert("L").getcolors() or []) > 10
    other = command("eval", str(trained.run_folder), "dataset.size=12", "--report", "--output", str(tmp_path / "o"))
    assert other.returncode == 0 and (tmp_path / "o" / "confusion.csv").exists()


def test_predictions_that_are_not_the_runs_are_refused(trained: Config, tmp_path: Path, command: Command) -> None:
    run = shutil.copytree(trained.run_folder, tmp_path / "seed0")
    path, lines = run / "predictions.csv", (run / "predictions.csv").read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:200]))
    done = command("eval", str(run), "--report")
    assert done.returncode == 5 and "the saved predictions give top-1" in done.stderr and "remove it" in done.stderr
    for text, words in (("a,b\n1,2\n", "other columns: a, b"), ("".join(lines[:9]) + "9,x,zebra,", "damaged")):
        path.write_text(text)
        done = command("eval", str(run), "--report")
        assert done.returncode == 5 and words in done.stderr and done.stderr.count("\n") == 1
    path.write_bytes(b"")
    assert command("eval", str(run), "--report").returncode == 5


def test_a_round_trip_keeps_everything_of_a_classifier(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    labels, told = random.integers(0, 3, 20), random.integers(0, 3, 20)
    best, of_label = random.random((2, 20)).astype(np.float32)
    answers = Answers(np.arange(20), labels, told, best, of_label, random.integers(1, 4, 20))
    names = [f'odd, "name" {n}\n' for n in range(19)] + [b"\xff.jpg".decode("utf-8", "surrogateescape")]
    before = Predictions(names, ["a,b", 'c"d', "é"], answers)
    predictions.write(tmp_path, before)
    after = predictions.read(tmp_path, before.classes)
    assert after is not None and isinstance(after.answers, Answers)
    assert after.images == before.images
    for field in fields(Answers):
        ours, theirs = (getattr(of, field.name) for of in (answers, after.answers))
        assert np.array_equal(ours, theirs) and ours.dtype == theirs.dtype


def test_answers_that_are_no_numbers_are_empty_and_wrong(tmp_path: Path) -> None:
    shares = np.array([np.nan, 0.5], dtype=np.float32)
    answers = Answers(np.arange(2), np.array([1, 1]), np.array([0, 1]), shares, shares, np.array([0, 1]))
    predictions.write(tmp_path, Predictions(["x", "y"], ["a", "b"], answers))
    assert (tmp_path / "predictions.csv").read_text().splitlines()[1] == "0,x,b,,,,0"
    after = predictions.read(tmp_path, ["a", "b"])
    assert after is not None and isinstance(after.answers, Answers) and after.answers.accuracy() == 50


@pytest.mark.parametrize("masked", [False, True])
def test_a_round_trip_keeps_everything_of_a_detector(masked: bool, tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    found = [picture(random, number, masked) for number in range(6)]
    predictions.write(tmp_path, Predictions([f"{n}.jpg" for n in range(6)], ["a", "b"], found))
    after = predictions.read(tmp_path, ["a", "b"])
    assert after is not None and isinstance(after.answers, list) and len(after.answers) == 6
    for one, other in zip(found, after.answers, strict=True):
        for field in fields(Found):
            ours, theirs = getattr(one, field.name), getattr(other, field.name)
            assert np.array_equal(ours, theirs) if isinstance(ours, np.ndarray) else ours == theirs, field.name


def picture(random: np.random.Generator, number: int, masked: bool) -> Found:
    """A picture with ``number`` objects and ``5 - number`` detections."""

    def floats(*shape: int) -> np.ndarray:
        return random.random(shape).astype(np.float32).astype(np.float64)

    def masks(count: int) -> list[dict[str, object]] | None:
        return [{"size": [4, 6], "counts": f"o{n}\\`".encode()} for n in range(count)] if masked else None

    objects, detections = number, 5 - number
    return Found(
        image=number,
        boxes=floats(detections, 4),
        labels=random.integers(1, 3, detections),
        scores=floats(detections),
        true_boxes=floats(objects, 4),
        true_labels=random.integers(1, 3, objects),
        areas=floats(objects),
        difficult=random.random(objects) < 0.5,
        crowd=random.random(objects) < 0.5,
        masks=masks(detections),
        true_masks=masks(objects),
    )


def test_a_folder_without_the_file_has_no_predictions(tmp_path: Path) -> None:
    assert predictions.read(tmp_path, ["a"]) is None
    (tmp_path / "predictions.csv").mkdir()
    refused(lambda: predictions.read(tmp_path, ["a"]), StorageError, "cannot be read")
