"""Classes of data and of a network are matched by name; the forms of a class map."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from attnbench.base.errors import ConfigError, DataError
from attnbench.data.dataset import Dataset
from attnbench.data.detection import coco
from attnbench.data.image_folders.datasets import folder
from attnbench.data.in_memory.digits import digits
from attnbench.data.matching import Matching, class_map, matched
from tests.conftest import refused
from tests.data_fixtures import coco_scenes, image_folder, scenes


def labels(data: Dataset) -> list[int]:
    batches = data.val.batches([torch.arange(len(data.val))], None, workers=0, timeout=0)
    ((_, targets),) = batches
    assert isinstance(targets, Tensor)
    return targets.tolist()


@pytest.fixture
def pictures(tmp_path: Path) -> Dataset:
    """Three classes a, b, c with two validation pictures each."""
    root = image_folder(tmp_path / "pictures", classes="abc", per_class=2)
    return folder(root=str(root), size=8, resize=8)


def test_labels_are_the_networks_whatever_the_order(pictures: Dataset) -> None:
    found = matched(pictures, ["c", "a", "b"], Matching(), "here", boxes=False)
    assert labels(found.data) == [1, 1, 2, 2, 0, 0] and found.data.classes == ("c", "a", "b")
    assert found.answers is None and not found.lacking and not found.others
    assert matched(pictures, ["a", "b", "c"], Matching(), "here", boxes=False).data is pictures


def test_other_classes_are_refused_by_name_or_left_out(pictures: Dataset) -> None:
    run = ["d", "c", "a"]

    def strict() -> object:
        return matched(pictures, run, Matching(), "here", boxes=False)

    refused(strict, DataError, "have 1 that the run lacks: b", "lack 1 of the run's: d", "--common-classes")
    found = matched(pictures, run, Matching(common=True), "here", boxes=False)
    assert labels(found.data) == [1, 1, 0, 0] and found.data.classes == ("c", "a") and found.answers == [1, 2]
    assert found.lacking == ("d",) and found.others == ("b",)
    names = [found.data.val.name(number) for number in range(4)]  # type: ignore[attr-defined]
    assert names == ["a/0.jpg", "a/1.jpg", "c/0.jpg", "c/1.jpg"]
    every = matched(pictures, run, Matching(common=True, answers="all"), "here", boxes=False)
    assert labels(every.data) == [2, 2, 1, 1] and every.data.classes == ("d", "c", "a") and every.answers is None
    nothing = Matching(common=True)
    refused(lambda: matched(pictures, ["x", "y"], nothing, "here", boxes=False), DataError, "no class", "--class-map")


def test_samples_in_memory_are_matched_too() -> None:
    data = digits(size=8)
    reverse = list(reversed(data.classes))
    found = matched(data, reverse, Matching(), "here", boxes=False)
    assert labels(found.data) == [9 - label for label in labels(data)]
    few = matched(data, ["7", "3"], Matching(common=True), "here", boxes=False)
    assert len(few.data.val) == sum(label in (3, 7) for label in labels(data))


def test_objects_get_the_detectors_labels_and_unknown_ones_go(tmp_path: Path) -> None:
    coco_scenes(tmp_path)
    data = coco.coco(root=str(tmp_path))
    run = [f"kind {n}" for n in (4, 3, 2, 1)]
    found = matched(data, run, Matching(common=True), tmp_path, boxes=True)
    assert found.others == ("kind 0",) and len(found.data.val) == len(data.val)
    for index in range(len(data.val)):
        (_, before), (_, after) = (scenes(of.val).read(index, None) for of in (data, found.data))
        kept = before["labels"] > 1
        assert after["labels"].tolist() == [6 - label for label in before["labels"][kept].tolist()]
        assert torch.equal(after["boxes"], before["boxes"][kept]) and torch.equal(after["masks"], before["masks"][kept])


def test_a_run_with_two_classes_of_one_name_is_only_matched_with_its_own_data(pictures: Dataset) -> None:
    twice = replace(pictures, classes=("a", "a", "c"))
    assert matched(twice, ["a", "a", "c"], Matching(), "here", boxes=False).data is twice
    refused(lambda: matched(pictures, ["a", "a", "c"], Matching(), "here", boxes=False), DataError, "two classes", "a")


@pytest.mark.parametrize(
    "text",
    ['{"0": "cat", "1": "big dog"}', "0,cat\n1,big dog\n", "\ufeff0\tcat\n\n1\tbig dog\n", "cat\nbig dog\n",
     '["cat", "big dog"]'],
)  # fmt: skip
def test_the_forms_of_a_class_map(text: str, tmp_path: Path) -> None:
    (tmp_path / "map").write_text(text, encoding="utf-8")
    assert class_map(str(tmp_path / "map"), ["big dog", "cat"]) == {"0": "cat", "1": "big dog"}


def test_a_class_map_of_numbers_is_the_runs_order() -> None:
    assert class_map("numbers", ["x", "y"]) == {"0": "x", "1": "y"}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("0,cat,more\n", "line 1 does not have two names"),
        ("0,cat\n1\n", "line 2 does not have two names"),
        ('{"0": 1}', "not an object of names"),
        ("{", "cannot be read"),
        ("", "cannot be read"),
        ("0,bird\n", "classes that the run does not have: bird"),
        (None, "No such file"),
    ],
)
def test_a_class_map_that_cannot_be_used_is_refused_in_a_line(text: str | None, words: str, tmp_path: Path) -> None:
    if text is not None:
        (tmp_path / "map").write_text(text)
    refused(lambda: class_map(str(tmp_path / "map"), ["cat"]), ConfigError, words, str(tmp_path / "map"))


def test_a_split_of_ones_own_is_refused_if_it_would_have_to_be_matched(pictures: Dataset) -> None:
    class Own:
        def __len__(self) -> int:
            return 1

    own = replace(pictures, val=Own())  # type: ignore[arg-type]
    assert matched(own, ["a", "b", "c"], Matching(), "here", boxes=False).data is own
    refused(lambda: matched(own, ["b", "a", "c"], Matching(), "here", boxes=False), DataError, "another order")
    assert np.array_equal(own.classes, pictures.classes)
