"""scripts/benchmarks: taking turns, the median's interval, and that every script still runs."""

from __future__ import annotations

import importlib
import json
import math
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
from scipy import stats

from attnbench.base import benchmark
from tests.conftest import ROOT
from tests.data_fixtures import image_folder

FOLDER = ROOT / "scripts" / "benchmarks"


@pytest.mark.parametrize("n", [6, 7, 15, 16, 40])
def test_the_interval_is_the_narrowest_of_order_statistics_with_95_percent(n: int) -> None:
    found = benchmark.median([float(k) for k in range(n)])
    low, high = int(found.low), int(found.high)
    assert found.median == (n - 1) / 2 and low + high == n - 1

    def held(k: int) -> float:  # the probability that the true median is between the k-th smallest and largest, from 0
        return float(1 - 2 * stats.binom.cdf(k, n, 0.5))

    assert held(low) >= 0.95 > held(low + 1)


def test_few_values_have_their_range() -> None:
    assert benchmark.median([3.0]) == benchmark.Median(3.0, 3.0, 3.0)
    assert benchmark.median([1.0, 5.0, 2.0]) == benchmark.Median(2.0, 1.0, 5.0)


def test_subjects_take_turns_and_each_is_first_as_often() -> None:
    called: list[str] = []
    now = iter(range(1000))
    subjects = {name: lambda name=name: called.append(name) for name in ("a", "b")}
    found = benchmark.compare(subjects, repetitions=4, clock=lambda: float(next(now)))
    assert "".join(called) == "ba" + "ab" + "ba" + "ab" + "ba"
    assert found.seconds == {"a": [1.0] * 4, "b": [1.0] * 4}


def test_a_ratio_is_that_of_pairs() -> None:
    found = benchmark.Timings({"ours": [1.0, 2.0, 4.0], "theirs": [2.0, 4.0, 8.0]})
    assert found.ratio("ours", "theirs") == benchmark.Median(2.0, 2.0, 2.0)
    assert found.rate("ours", 8).median == 4.0


def test_a_childs_time_counts() -> None:
    before = benchmark.cpu_seconds()
    subprocess.run([sys.executable, "-c", "sum(range(3_000_000))"], check=True)
    assert benchmark.cpu_seconds() - before > 0.02


def test_a_claim_is_met_by_the_median(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(FOLDER))
    made = importlib.import_module("claims").Claim
    found = benchmark.Timings({"ours": [1.0, 2.0, 4.0], "theirs": [2.0, 4.0, 8.0]})
    assert made("", "ours", "theirs", 2.0, "calls", 8).met(found)
    assert not made("", "ours", "theirs", 2.1, "calls", 8).met(found)


@pytest.mark.parametrize("script", ["imagenet_input", "cifar_input"])
def test_a_script_measures_and_reports(
    script: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--images", str(image_folder(tmp_path))] if script == "imagenet_input" else []
    monkeypatch.setattr(sys, "argv", [script, "--repetitions", "1", "--json", *words])
    monkeypatch.syspath_prepend(str(FOLDER))
    runpy.run_path(str(FOLDER / f"{script}.py"), run_name="__main__")
    found = json.loads(capsys.readouterr().out)
    assert set(found["subjects"]) == {"attnbench", "torchvision"} and found["repetitions"] == 1
    ours, theirs = (found["subjects"][name]["rate"]["median"] for name in ("attnbench", "torchvision"))
    assert math.isclose(found["subjects"]["attnbench"]["ratio"]["median"], ours / theirs)
    assert found["met"] == (ours / theirs >= found["at_least"]) and found["machine"]["torch"]


def test_the_page_of_all_benchmarks_keeps_what_was_measured_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    finding = {"claim": "Cold start", "bar": ">= 2", "reached": "3.0", "met": True}
    machine = {"commit": "c0ffee", "device": "cpu", "cores": 2, "torch": "2.0", "python": "3.11", "platform": "Linux"}
    before = {"findings": [finding] * 2, "repetitions": 5, "date": "2020-01-01", "machine": machine}
    (tmp_path / "speed").mkdir()
    (tmp_path / "speed" / "cold_start.json").write_text(json.dumps(before))
    words = ["all.py", "cifar_input", "--repetitions", "1", "--results", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", words)
    monkeypatch.syspath_prepend(str(FOLDER))
    runpy.run_path(str(FOLDER / "all.py"), run_name="__main__")
    left = json.loads((tmp_path / "speed" / "cifar_input.json").read_text())
    page = (tmp_path / "speed.md").read_text()
    (measured,) = [line for line in page.splitlines() if line.startswith("| CIFAR input")]
    assert str(left["machine"]["commit"])[:9] in measured and f">= {left['at_least']}" in measured
    assert page.count("| Cold start | >= 2 | **3.0** | met | 5 | 2020-01-01, c0ffee |") == 2
    missing = next(line for line in page.splitlines() if line.startswith("Not measured: cifar_training,"))
    assert "cifar_input" not in missing and "attention_cost" in missing
    assert f"torch {left['machine']['torch']}" in page and "torch 2.0, Python 3.11" in page


def test_a_script_that_finds_nothing_ends_the_round(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(FOLDER))
    monkeypatch.setattr(sys, "argv", ["all.py", "cifar_input", "--repetitions", "none", "--results", str(tmp_path)])
    with pytest.raises(SystemExit) as left:
        runpy.run_path(str(FOLDER / "all.py"), run_name="__main__")
    assert left.value.code == 2 and not list(tmp_path.iterdir())


@pytest.mark.parametrize("script", ["attention_cost", "cifar_memory", "cold_start", "pool", "cifar_training"])
def test_a_long_script_takes_its_words(
    script: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", [script, "--help"])
    monkeypatch.syspath_prepend(str(FOLDER))
    with pytest.raises(SystemExit) as left:
        runpy.run_path(str(FOLDER / f"{script}.py"), run_name="__main__")
    assert left.value.code == 0 and "--repetitions" in capsys.readouterr().out


def test_packing_is_measured_and_the_way_that_a_pack_takes_is_claimed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["backbone.width=0.1", "placement.stages=[7]", "batch_size=4", "runtime.device=cpu"]
    words += ["--count", "2", "--repetitions", "1", "--json"]
    monkeypatch.setattr(sys, "argv", ["packing", *words])
    monkeypatch.syspath_prepend(str(FOLDER))
    runpy.run_path(str(FOLDER / "packing.py"), run_name="__main__")
    found = json.loads(capsys.readouterr().out)
    assert set(found["subjects"]) == {"stacked", "one after the other"} and found["work"] == 2 * 4
    assert (found["ours"], found["reference"]) == ("one after the other", "stacked")
