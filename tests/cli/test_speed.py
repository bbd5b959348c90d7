"""``attnbench speed``: its measurements of classifiers and of detectors."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable

import pytest

from attnbench.base.errors import ConfigError
from attnbench.cli import main

SMALL = ["runtime.device=cpu", "backbone=resnet20", "batch_size=2", "--repetitions", "2"]
DETECT = ["task=detection", "dataset.size=32", "dataset.smallest=10", "dataset.largest=20", *SMALL]
RunSpeed = Callable[..., str]


@pytest.fixture
def run_speed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> RunSpeed:
    """Runs ``attnbench speed`` and returns what it prints to a pipe, from a shell of 80 columns."""
    monkeypatch.setenv("COLUMNS", "80")

    def call(*arguments: str) -> str:
        monkeypatch.setattr(sys, "argv", ["attnbench speed", *arguments])
        capsys.readouterr()
        main.command("speed")()
        return capsys.readouterr().out

    return call


def test_members_take_turns_and_ratios_are_to_the_first(run_speed: RunSpeed) -> None:
    none, se = json.loads(run_speed("attention=none,se", "dataset.size=8", *SMALL, "--json"))
    assert (none["label"], se["label"]) == ("none", "se")
    assert none["train_ratio"] == none["infer_ratio"] == none["memory_ratio"] == 1
    assert se["macs"] > none["macs"] and se["peak_memory_bytes"] > 0
    for kind in ("train", "infer"):
        low, high = se[f"{kind}_ratio_interval"]
        assert 0 < low <= se[f"{kind}_ratio"] <= high
        assert none[f"{kind}_images_per_s"] > 0
    assert none["flop_ceiling_images_per_s"] > 0


def test_a_detector_is_measured_and_its_lines_are_not_truncated(run_speed: RunSpeed) -> None:
    out = run_speed("detector=ssd", "attention=none,eca", *DETECT)
    lines = [line.split("│")[1:-1] for line in out.splitlines() if line.startswith("│")]
    assert [line[0].strip() for line in lines] == ["none", "eca"]
    for _, train, ratio, *_ in lines:
        middle, low, high = map(float, re.fullmatch(r"(\S+) \((\S+)\.\.(\S+)\)", ratio.strip()).groups())  # type: ignore[union-attr]
        assert float(train) > 0 and low <= middle <= high
    assert "batch 2, fp32, eager" in out and "Ceilings" not in out


def test_a_single_member_with_regions(run_speed: RunSpeed) -> None:
    (only,) = json.loads(run_speed("detector=mask_rcnn_small", "attention=se", *DETECT[:-1], "1", "--json"))
    assert only["label"] == "se" and only["train_images_per_s"] > 0 and only["infer_images_per_s"] > 0
    assert only["flop_ceiling_images_per_s"] is None and only["byte_ceiling_images_per_s"] is None


def test_no_repetitions_are_refused(run_speed: RunSpeed) -> None:
    with pytest.raises(ConfigError, match="--repetitions"):
        run_speed("attention=none", "--repetitions", "0")
