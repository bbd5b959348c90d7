"""``attnbench compare --test``: McNemar's exact test and the paired bootstrap, and what they refuse."""

from __future__ import annotations

import csv
import json
import subprocess
from collections.abc import Callable
from math import comb
from pathlib import Path

import numpy as np
import pytest
import yaml

from attnbench.config import composition
from attnbench.reports.statistics import mcnemar, resampled
from attnbench.runs import predictions
from attnbench.runs.predictions import Predictions
from attnbench.training.metrics.answers import Answers
from tests.training.test_answers import scattered

Command = Callable[..., subprocess.CompletedProcess[str]]
CLASSES = ["a", "b"]


def leave(
    outputs: Path, told: Predictions | None, *overrides: str, data: str = "0", classes: list[str] = CLASSES
) -> Path:
    """A finished run's folder with the given predictions."""
    config = composition.compose([*overrides, f"paths.outputs={outputs}"])
    folder = config.run_folder
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(config.record()))
    (folder / "classes.json").write_text(json.dumps(classes))
    result = {"status": "done", "top1": 1.0, "AP": 1.0, "seed": config.seed}
    (folder / "result.json").write_text(json.dumps(result | {"data": {"source": f"made {data}", "fingerprint": data}}))
    if told:
        predictions.write(folder, told)
    return folder


def answers(right: list[bool], image: str = "p") -> Predictions:
    labels = np.arange(len(right)) % 2
    told, shares = np.where(right, labels, 1 - labels), np.full(len(right), 0.9, np.float32)
    given = Answers(np.arange(len(right)), labels, told, shares, shares, np.where(right, 1, 2))
    return Predictions([f"{image}{n}" for n in range(len(right))], CLASSES, given)


OURS = [True] * 60 + [False] * 40
THEIRS = [True] * 50 + [False] * 10 + [True] * 3 + [False] * 37  # ten that only ours has, three that only theirs has


def rows(path: Path) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize(("b", "c"), [(10, 3), (3, 10), (0, 0), (5, 5), (0, 6), (40, 21)])
def test_the_p_value_is_the_textbooks(b: int, c: int) -> None:
    n, few = b + c, min(b, c)
    assert mcnemar(b, c) == pytest.approx(min(1.0, 2 * sum(comb(n, k) for k in range(few + 1)) / 2**n))


def test_two_settings_are_compared_seed_by_seed(command: Command, tmp_path: Path) -> None:
    for seed, pair in ((0, (OURS, THEIRS)), (1, (THEIRS, OURS))):
        leave(tmp_path, answers(pair[0]), "attention=eca", f"seed={seed}")
        leave(tmp_path, answers(pair[1]), "attention=none", f"seed={seed}")
    leave(tmp_path, answers(OURS), "attention=eca", "seed=2")
    groups = [str(next((tmp_path / "runs").glob(f"*/*/{name}-*"))) for name in ("eca", "none")]
    done = command("compare", *groups, "--test", "mcnemar", "--output", str(tmp_path / "out"))
    assert done.returncode == 0, done.stderr
    first, second = rows(tmp_path / "out" / "mcnemar.csv")
    counts = ("both_right", "only_A", "only_B", "both_wrong")
    assert [first[name] for name in counts] == ["50", "10", "3", "37"]
    assert [second[name] for name in counts] == ["50", "3", "10", "37"]
    assert float(first["A-B"]) == pytest.approx(7) and float(first["p"]) == pytest.approx(mcnemar(10, 3))
    assert "seed 2 is left out" in done.stdout
    other = command("compare", *reversed(groups), "--test", "mcnemar", "--output", str(tmp_path / "out"))
    assert other.returncode == 0 and rows(tmp_path / "out" / "mcnemar.csv")[0]["only_A"] == "3"  # A is given first


def test_a_bootstrap_gives_the_interval_of_the_difference(command: Command, tmp_path: Path) -> None:
    ours, theirs = (
        leave(tmp_path, answers(right), f"attention={name}") for right, name in ((OURS, "eca"), (THEIRS, "none"))
    )
    done = command("compare", str(ours), str(theirs), "--test", "bootstrap", "--output", str(tmp_path / "out"))
    assert done.returncode == 0, done.stderr
    (row,) = rows(tmp_path / "out" / "bootstrap.csv")
    low, high = float(row["low"]), float(row["high"])
    error = 100 * np.sqrt((0.13 - 0.07**2) / 100)  # of the mean of 10 ones, 3 minus ones and 87 zeros
    assert float(row["A-B"]) == pytest.approx(7)
    assert low == pytest.approx(7 - 1.96 * error, abs=1.5) and high == pytest.approx(7 + 1.96 * error, abs=1.5)
    assert 0.02 < float(row["p"]) < 0.12


def test_a_bootstrap_never_claims_more_than_its_resamples() -> None:
    found = resampled(lambda weights: float(weights.mean()), 10, 100)
    assert found.p == pytest.approx(2 / 101) and found.low == found.high == found.mean == 1.0


def test_detectors_are_compared_by_average_precision(command: Command, tmp_path: Path) -> None:
    names = [f"{n}.jpg" for n in range(12)]
    found = scattered(0)
    worse = [type(one)(**{**vars(one), "boxes": one.boxes + 6}) for one in found]
    words = ("task=detection", "detector=ssd")
    classes = ["a", "b", "c"]
    ours = leave(tmp_path, Predictions(names, classes, found), *words, "attention=eca", classes=classes)
    theirs = leave(tmp_path, Predictions(names, classes, worse), *words, "attention=none", classes=classes)
    given = ("compare", str(ours), str(theirs), "--output", str(tmp_path / "out"))
    done = command(*given, "--test", "bootstrap", "--resamples", "50")
    assert done.returncode == 0, done.stderr
    (row,) = rows(tmp_path / "out" / "bootstrap.csv")
    assert float(row["AP_A"]) > float(row["AP_B"]) and float(row["low"]) > 0
    for test, message in (
        (("--test", "mcnemar"), "McNemar's test is for classifiers"),
        (("--test", "bootstrap", "--metric", "mask_AP"), "have no masks"),
        (("--test", "bootstrap", "--metric", "top1"), "no paired test of top1"),
    ):
        done = command(*given, *test)
        assert done.returncode == 2 and message in done.stderr and done.stderr.count("\n") == 1


def test_runs_that_do_not_belong_together_are_refused_in_a_line(command: Command, tmp_path: Path) -> None:
    base = leave(tmp_path, answers(OURS), "attention=eca")
    others = {
        "different data: made 0 then, made 1 now": leave(tmp_path, answers(OURS), "attention=none", data="1"),
        "other pictures or labels": leave(tmp_path, answers(OURS, "q"), "attention=se"),
        "share no seed: 0 and 1": leave(tmp_path, answers(OURS), "attention=cbam", "seed=1"),
        "eval": leave(tmp_path, None, "attention=sb"),
        "have 1": leave(tmp_path, answers(OURS), "attention=eca", "seed=3"),
    }
    codes = {"different data: made 0 then, made 1 now": 3, "other pictures or labels": 3, "eval": 5}
    for message, other in others.items():
        done = command("compare", str(base), str(other), "--test", "mcnemar")
        assert done.returncode == codes.get(message, 2), done.stderr
        assert message in done.stderr and done.stderr.count("\n") == 1
