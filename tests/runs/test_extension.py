"""``resume=extend``: a finished run goes on for more epochs, and is then the run that had them from the start."""

from __future__ import annotations

import json
import shutil
import signal
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.runs.test_export_elsewhere import pictures
from tests.small_runs import ForkServer, interrupted_in, killed_at

STEP = ["schedule.law=step", "schedule.period=[1,3]", "schedule.factor=0.5", "schedule.per=epoch"]


def runs(outputs: Path) -> dict[int, Path]:
    """The folders of finished runs by their epochs."""
    found = {path.parent: json.loads(path.read_text()) for path in outputs.glob("runs/*/*/*/seed*/result.json")}
    return {result["epochs"]: folder for folder, result in found.items()}


def result(outputs: Path, epochs: int) -> dict[str, Any]:
    return json.loads((runs(outputs)[epochs] / "result.json").read_text())


@pytest.fixture(scope="module")
def whole(forks: ForkServer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The outputs of a run of four epochs, trained at once."""
    outputs = tmp_path_factory.mktemp("whole")
    assert forks.run(outputs, *STEP, "schedule.epochs=4").code == 0
    return outputs


def lines(run: Path, name: str) -> list[dict[str, Any]]:
    kept = [json.loads(line) for line in (run / name).read_text().splitlines()]
    timed = ("images_per_s", "data_time_share", "val_images_per_s", "seconds")
    return [{key: value for key, value in line.items() if key not in timed} for line in kept]


@pytest.mark.parametrize("law", ["step", "exponential"])
def test_a_longer_run_is_the_one_that_was_started_with_its_epochs(
    law: str, forks: ForkServer, whole: Path, tmp_path: Path
) -> None:
    words = STEP if law == "step" else ["schedule.law=exponential", "schedule.factor=0.7"]
    if law == "exponential":
        whole = tmp_path / "whole"
        assert forks.run(whole, *words, "schedule.epochs=4").code == 0
    outputs = tmp_path / "outputs"
    first = forks.run(outputs, *words, "schedule.epochs=2")
    assert first.code == 0 and "resume=extend" not in first.stderr
    anew = forks.run(outputs, *words, "schedule.epochs=3")
    assert "a finished run of 2 epochs is there" in anew.stderr and "resume=extend continues it" in anew.stderr
    shutil.rmtree(runs(outputs)[3])
    before = {path: path.read_bytes() for path in runs(outputs)[2].rglob("*") if path.is_file()}
    end = forks.run(outputs, *words, "schedule.epochs=4", "resume=extend")
    assert end.code == 0, end.stderr
    assert "resume=extend: continues" in end.stderr and "which has 2 epochs, to 4" in end.stderr
    ours, theirs = result(outputs, 4), result(whole, 4)
    for key in ("state_sha256", "config_hash", "top1", "best_top1", "best_epoch", "choices"):
        assert ours[key] == theirs[key], key
    assert ours["data"]["fingerprint"] == theirs["data"]["fingerprint"]
    assert ours["resumed_from_step"] == 24
    long, reference = runs(outputs)[4], runs(whole)[4]
    assert long.relative_to(outputs) == reference.relative_to(whole)
    for name in ("metrics.jsonl", "gauges.jsonl"):
        assert lines(long, name) == lines(reference, name)
    assert len(list((long / "tb").rglob("events.*"))) > 1
    assert {path: path.read_bytes() for path in before} == before  # the shorter run is as it was


def test_an_extension_that_is_interrupted_goes_on_by_either_command(
    forks: ForkServer, whole: Path, tmp_path: Path
) -> None:
    assert forks.run(tmp_path, *STEP, "schedule.epochs=2").code == 0
    extend = [*STEP, "schedule.epochs=4", "resume=extend"]
    # killed while the checkpoints are taken over, then in the third epoch
    early = partial(interrupted_in, "attnbench.training.checkpoints:Checkpoints.save", 1, signal.SIGKILL)
    assert forks.run(tmp_path, *extend, before=early).code < 0
    killed = forks.run(tmp_path, *extend, before=partial(killed_at, 2, 7))
    assert killed.code < 0 and "which has 2 epochs, to 4" in killed.stderr
    end = forks.run(tmp_path, *extend[:-1])
    assert end.code == 0 and "resumed from step 30" in end.stderr, end.stderr
    assert result(tmp_path, 4)["state_sha256"] == result(whole, 4)["state_sha256"]
    again = forks.run(tmp_path, *extend)
    assert again.code == 0 and "epoch" not in again.stderr  # it is done


def test_the_longest_run_is_continued_and_no_run_of_other_values(
    forks: ForkServer, whole: Path, tmp_path: Path
) -> None:
    for words in (["schedule.epochs=1"], ["schedule.epochs=2"], ["schedule.epochs=3", "schedule.lr=0.05"]):
        assert forks.run(tmp_path, *STEP, *words).code == 0
    assert forks.run(tmp_path, *STEP, "schedule.epochs=3", "seed=1").code == 0
    end = forks.run(tmp_path, *STEP, "schedule.epochs=4", "resume=extend")
    assert end.code == 0 and "which has 2 epochs, to 4" in end.stderr, end.stderr
    assert result(tmp_path, 4)["state_sha256"] == result(whole, 4)["state_sha256"]


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["schedule.law=cosine"], 2, "error: schedule.law=cosine spreads the rate over all epochs, so a longer run"),
        (["schedule.law=linear"], 2, "error: schedule.law=linear spreads the rate over all epochs, so a longer run"),
        (STEP, 5, "error: no finished run of fewer epochs that is otherwise the same as this one of 4"),
    ],
)
def test_what_cannot_be_extended_is_refused_before_anything_is_written(
    words: list[str], code: int, said: str, forks: ForkServer, tmp_path: Path
) -> None:
    end = forks.run(tmp_path, *words, "schedule.epochs=4", "resume=extend")
    assert end.code == code and len(end.errors) == 1 and end.errors[0].startswith(said), end.stderr
    assert not list(tmp_path.iterdir())


def test_a_damaged_run_is_not_extended(forks: ForkServer, tmp_path: Path) -> None:
    assert forks.run(tmp_path, *STEP, "schedule.epochs=2").code == 0
    (runs(tmp_path)[2] / "checkpoints" / "last.pt").write_bytes(b"damaged")
    end = forks.run(tmp_path, *STEP, "schedule.epochs=4", "resume=extend")
    assert end.code == 5 and "last.pt is damaged or missing" in end.errors[0]


def test_a_run_of_other_pictures_is_not_extended(forks: ForkServer, tmp_path: Path) -> None:
    pictures(tmp_path / "flowers")
    words = [
        *STEP[:1],
        "dataset=folder",
        f"dataset.root={tmp_path / 'flowers'}",
        "dataset.size=16",
        "dataset.resize=16",
    ]
    words += [
        "runtime.device=cpu",
        "runtime.workers=0",
        "backbone.depth=8",
        "batch_size=4",
        f"paths.outputs={tmp_path}",
    ]
    assert forks.train(tmp_path, *words, "schedule.epochs=1").code == 0
    (tmp_path / "flowers/train/rose/0.jpg").write_bytes((tmp_path / "flowers/train/tulip/0.jpg").read_bytes())
    end = forks.train(tmp_path, *words, "schedule.epochs=2", "resume=extend")
    assert end.code == 3 and "a run of this name was trained on other data" in end.errors[0], end.stderr
    assert list(runs(tmp_path)) == [1]
