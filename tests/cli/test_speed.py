"""``attnbench speed``: what it says of members that take turns, of classifiers and of detectors."""

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
Say = Callable[..., str]


@pytest.fixture
def say(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Say:
    """What the command prints in a pipe, from a shell of 80 columns."""
    monkeypatch.setenv("COLUMNS", "80")

    def call(*words: str) -> str:
        monkeypatch.setattr(sys, "argv", ["attnbench speed", *words])
        capsys.readouterr()
        main.command("speed")()
        return capsys.readouterr().out

    return call


def test_members_take_turns_and_ratios_are_to_the_first(say: Say) -> None:
    none, se = json.loads(say("attention=none,se", "dataset.size=8", *SMALL, "--json"))
    assert (none["label"], se["label"]) == ("none", "se")
    assert none["train_ratio"] == none["infer_ratio"] == none["memory_ratio"] == 1
    assert se["macs"] > none["macs"] and se["peak_memory_bytes"] > 0
    for kind in ("train", "infer"):
        low, high = se[f"{kind}_ratio_interval"]
        assert 0 < low <= se[f"{kind}_ratio"] <= high
        assert none[f"{kind}_images_per_s"] > 0
    assert none["flop_ceiling_images_per_s"] > 0


def test_a_detector_is_measured_and_nothing_of_its_lines_is_cut(say: Say) -> None:
    out = say("detector=ssd", "attention=none,eca", *DETECT)
    lines = [line.split("│")[1:-1] for line in out.splitlines() if line.startswith("│")]
    assert [line[0].strip() for line in lines] == ["none", "eca"]
    for _, train, ratio, *_ in lines:
        middle, low, high = map(float, re.fullmatch(r"(\S+) \((\S+)\.\.(\S+)\)", ratio.strip()).groups())  # type: ignore[union-attr]
        assert float(train) > 0 and low <= middle <= high
    assert "batch 2, fp32, eager" in out and "Ceilings" not in out


def test_a_single_member_with_regions(say: Say) -> None:
    (only,) = json.loads(say("detector=mask_rcnn_small", "attention=se", *DETECT[:-1], "1", "--json"))
    assert only["label"] == "se" and only["train_images_per_s"] > 0 and only["infer_images_per_s"] > 0
    assert only["flop_ceiling_images_per_s"] is None and only["byte_ceiling_images_per_s"] is None


def test_no_repetitions_are_refused(say: Say) -> None:
    with pytest.raises(ConfigError, match="--repetitions"):
        say("attention=none", "--repetitions", "0")
