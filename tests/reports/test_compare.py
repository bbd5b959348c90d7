"""``attnbench compare``: means, deviations and paired differences of any set of runs."""

from __future__ import annotations

import csv
import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from statistics import mean, stdev

import pytest
import yaml
from scipy import stats

from attnbench.config import composition, configuration, hydra_state
from attnbench.reports.comparison import compare
from attnbench.reports.figures.value_axis import value_axis
from attnbench.runs import results

Command = Callable[..., subprocess.CompletedProcess[str]]

SCORES = {  # kernel size: top-1 by seed
    "3": {0: 90.0, 1: 91.0, 2: 93.5},
    "5": {0: 92.0, 1: 91.5, 2: 95.0},
    "adaptive": {0: 90.5, 2: 94.5},  # seed 1 is missing
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run folders like those of a sweep, with invented scores; one run is unfinished."""
    outputs = tmp_path_factory.mktemp("outputs")
    with hydra_state.prepared():
        for k, scores in SCORES.items():
            for seed in range(3):
                overrides = ["attention=eca", f"attention.kernel_size={k}", f"seed={seed}", f"paths.outputs={outputs}"]
                leave(composition.compose(overrides), scores.get(seed))
    return outputs


def leave(composed: configuration.Config, top1: float | None) -> None:
    folder = composed.run_folder
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(composed.record()))
    (folder / "env.json").write_text(json.dumps({"commit": "c0ffee", "device": "cpu"}))
    if top1 is None:
        status = {"status": "failed", "error": "the loss became nan", "code": 4, "pid": 1}
        (folder / "status.json").write_text(json.dumps(status))
        return
    result = {"status": "done", "top1": top1, "seed": composed.seed, "config_hash": composed.hash}
    result["data"] = {"source": "made up", "fingerprint": "0"}
    (folder / "result.json").write_text(json.dumps(result))


def test_groups_seeds_and_differences_are_those_of_a_hand_computation(
    command: Command, runs: Path, tmp_path: Path
) -> None:
    done = command("compare", f"{runs}/runs/**", "--by", "attention.kernel_size", "--output", str(tmp_path / "out"))
    assert done.returncode == 0, done.stderr
    with open(tmp_path / "out" / "compare.csv", newline="") as file:
        rows = {row["attention.kernel_size"]: row for row in csv.DictReader(file)}
    assert list(rows) == list(SCORES)
    for k, scores in SCORES.items():
        assert float(rows[k]["mean"]) == pytest.approx(mean(scores.values()))
        assert float(rows[k]["std"]) == pytest.approx(stdev(scores.values()))
        assert int(rows[k]["n"]) == len(scores)
    assert rows["adaptive"]["missing_seeds"] == "1"
    for k, seeds in (("5", (0, 1, 2)), ("adaptive", (0, 2))):
        ours, base = [SCORES[k][s] for s in seeds], [SCORES["3"][s] for s in seeds]
        interval = stats.ttest_rel(ours, base).confidence_interval(0.95)
        found = [float(rows[k][name]) for name in ("difference", "low", "high")]
        assert found == pytest.approx([mean(ours) - mean(base), interval.low, interval.high])


def test_what_differs_is_found_and_unfinished_runs_are_named(command: Command, runs: Path, tmp_path: Path) -> None:
    done = command("compare", str(runs), "--output", str(tmp_path / "out"))
    assert done.returncode == 0, done.stderr
    assert "nan" in done.stdout

    report = (tmp_path / "out" / "compare.md").read_text()
    assert "| attention.kernel_size |" in report
    assert "the loss became nan" in report and "c0ffee" in report
    assert (tmp_path / "out" / "compare.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [(["/nowhere"], "/nowhere"), (["{runs}", "--by", "attention.gamma"], "attention.kernel_size"), ([], "--help")],
)
def test_bad_arguments_give_one_line(command: Command, runs: Path, arguments: list[str], hint: str) -> None:
    done = command("compare", *(argument.replace("{runs}", str(runs)) for argument in arguments))
    assert done.returncode in (2, 3)
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    assert hint in done.stderr


def test_a_network_without_attention_is_compared_with_every_placement(tmp_path: Path) -> None:
    with hydra_state.prepared():
        for overrides in (
            ["attention=none"],
            *(["attention=sb", f"placement.wrap={wrap}"] for wrap in ("conv", "conv_norm")),
        ):
            leave(composition.compose([*overrides, f"paths.outputs={tmp_path}"]), 50.0)
    found = compare(results.find([str(tmp_path)]), by="placement.wrap")
    assert [group.label for group in found.groups] == ["none", "sb wrap=conv", "sb wrap=conv_norm"]
    assert [group.baseline for group in found.groups] == ["", "none", "none"]
    axis = value_axis([group.at("placement.wrap") for group in found.groups])
    assert list(axis.places) == ["conv", "conv_norm"]  # the plain network is a horizontal line


def test_the_plain_network_is_the_baseline_and_first_whatever_its_name(tmp_path: Path) -> None:
    """``eca`` and ``cbam`` come before ``none`` in the alphabet, in which order the runs are found."""
    scores = {"cbam": 51.0, "eca": 52.0, "none": 50.0, "se": 53.0}
    with hydra_state.prepared():
        for attention, top1 in scores.items():
            for seed in (0, 1):
                overrides = [f"attention={attention}", f"seed={seed}", f"paths.outputs={tmp_path}"]
                leave(composition.compose(overrides), top1 + seed)
    found = compare(results.find([str(tmp_path)]))
    assert [group.label.split()[0] for group in found.groups] == ["none", "cbam", "eca", "se"]
    assert [group.baseline for group in found.groups] == ["", "none", "none", "none"]
    assert [group.against and group.against.mean for group in found.groups] == [None, 1.0, 2.0, 3.0]


def test_without_a_plain_network_the_first_configuration_is_the_baseline(runs: Path) -> None:
    found = compare(results.find([str(runs)]))
    assert [group.label for group in found.groups] == ["kernel_size=3", "kernel_size=5", "kernel_size=adaptive"]
    assert [group.baseline for group in found.groups] == ["", "kernel_size=3", "kernel_size=3"]


def test_a_given_baseline_is_used(runs: Path) -> None:
    found = compare(results.find([str(runs)]), baseline="attention.kernel_size=5")
    assert [group.label for group in found.groups] == ["kernel_size=5", "kernel_size=3", "kernel_size=adaptive"]
    assert [group.baseline for group in found.groups] == ["", "kernel_size=5", "kernel_size=5"]
    assert found.groups[1].against is not None and found.groups[1].against.mean == pytest.approx(91.5 - 278.5 / 3)
