"""What a classifier answered: ranks, confusion and calibration against values by hand; weighted AP against COCO's."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from attnbench.training.metrics.answers import (
    Answers,
    OfClass,
    answered,
    by_class,
    calibration,
    calibration_error,
    confusion,
    most_wrong,
)
from attnbench.training.metrics.coco_ap import ap_by_class, coco_ap
from attnbench.training.metrics.detections import Found
from attnbench.training.metrics.voc_ap import by_class as by_voc
from attnbench.training.metrics.voc_ap import voc_ap
from attnbench.training.metrics.weighted_ap import WeightedAP
from attnbench.training.tasks.classification import tally


def given(labels: list[int], predictions: list[int], confidences: list[float]) -> Answers:
    right = np.array(labels) == np.array(predictions)
    shares = np.array(confidences, dtype=np.float32)
    whole = (np.arange(len(labels)), np.array(labels), np.array(predictions))
    return Answers(*whole, shares, shares, np.where(right, 1, 2))


def test_the_ranks_agree_with_the_accuracies_of_the_tally_also_in_ties_and_without_numbers() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randint(0, 4, (400, 9), generator=generator).float()  # many ties
    logits[3], logits[4, 2], logits[5, 0] = 0.0, float("nan"), float("inf")
    targets = torch.randint(0, 9, (400,), generator=generator)
    rows = answered(logits, targets)
    answers = Answers.of(np.arange(400), rows.numpy())
    top1, top5, _, count = tally(logits, targets).tolist()
    assert answers.accuracy() == pytest.approx(100 * top1 / count)
    assert answers.accuracy(5) == pytest.approx(100 * top5 / count)
    assert answers.ranks[4] == answers.ranks[5] == 0 and answers.ranks[3] >= 1
    shares = logits.softmax(1)
    assert answers.confidences[9] == shares[9].max() and answers.label_confidences[9] == shares[9, targets[9]]


def test_a_rank_beyond_the_fifth_is_the_place_in_the_order_of_logits() -> None:
    logits = torch.arange(9.0, 0.0, -1.0)[None].repeat(9, 1)
    assert answered(logits, torch.arange(9))[:, 4].tolist() == list(range(1, 10))


def test_answers_of_several_processes_are_in_the_order_of_samples() -> None:
    rows = np.array([[0, 0, 0.9, 0.9, 1], [1, 0, 0.8, 0.1, 2], [2, 2, 0.7, 0.7, 1]])
    answers = Answers.of(np.array([2, 0, 1]), rows)
    assert answers.samples.tolist() == [0, 1, 2] and answers.labels.tolist() == [1, 2, 0]


def test_the_confusion_and_the_classes_are_those_of_a_hand_count() -> None:
    answers = given([0, 0, 0, 1, 1], [0, 1, 1, 1, 0], [0.9] * 5)
    assert confusion(answers, 3).tolist() == [[1, 2, 0], [1, 1, 0], [0, 0, 0]]
    first, second, third = by_class(answers, ["a", "b", "c"])
    assert first[:2] + first[3:] == ("a", 3, 2, 50.0, "b") and first.accuracy == pytest.approx(100 / 3)
    assert second[:4] + second[5:] == ("b", 2, 50.0, 3, "a") and second.precision == pytest.approx(100 / 3)
    assert third == OfClass("c", 0, None, 0, None, "")


def test_the_calibration_error_is_that_of_a_hand_computation() -> None:
    answers = given([0, 0, 0, 0], [0, 0, 1, 1], [0.95, 0.96, 0.97, 0.41])
    expected = 3 / 4 * abs(2 / 3 - (0.95 + 0.96 + 0.97) / 3) + 1 / 4 * 0.41
    assert calibration_error(answers) == pytest.approx(100 * expected, abs=1e-5)
    bins = calibration(answers)
    assert len(bins) == 15 and [one.pictures for one in bins if one.pictures] == [1, 3]
    assert calibration(given([0], [0], [1.0]))[-1].pictures == 1
    edge = calibration(given([0], [0], [0.2]))  # float32(0.2) is above 3/15
    assert [number for number, one in enumerate(edge) if one.pictures] == [3]


def test_the_most_wrong_answers_are_the_surest_ones() -> None:
    answers = given([0, 0, 0, 0], [1, 0, 1, 1], [0.5, 0.99, 0.9, 0.5])
    assert most_wrong(answers, 2).tolist() == [2, 0]


def scattered(seed: int, images: int = 12, classes: int = 3) -> list[Found]:
    """Objects, some of them crowds, and detections, most of them near one."""
    random, found = np.random.default_rng(seed), []
    for image in range(images):
        n = int(random.integers(0, 4))
        corners = random.integers(0, 40, (n, 2)).astype(float)
        boxes = np.concatenate([corners, corners + random.integers(8, 30, (n, 2))], 1)
        labels = random.integers(1, classes + 1, n)
        others = np.concatenate([random.integers(0, 20, (2, 2)), random.integers(30, 60, (2, 2))], 1).astype(float)
        near = np.concatenate([boxes + random.normal(0, 1.5, boxes.shape), others])
        told = np.concatenate([labels, random.integers(1, classes + 1, 2)])
        areas, crowd = (boxes[:, 2:] - boxes[:, :2]).prod(1), random.random(n) < 0.2
        scores = random.random(len(near))
        found.append(Found(image, near, told, scores, boxes, labels, areas, np.zeros(n, bool), crowd))
    return found


@pytest.mark.parametrize("metric", ["AP", "AP50", "AP75"])
def test_a_weighted_ap_is_cocos_also_of_pictures_that_are_there_twice(metric: str) -> None:
    images = scattered(0)
    weights = np.random.default_rng(1).integers(0, 4, len(images))
    repeated = [image for image, times in zip(images, weights, strict=True) for _ in range(times)]
    renumbered = [Found(**{**vars(image), "image": number}) for number, image in enumerate(repeated)]
    measure = WeightedAP(images, 3, metric)
    assert measure(np.ones(len(images), int)) == pytest.approx(coco_ap(images, 3)[metric], abs=1e-9)
    expected = coco_ap(renumbered, 3)[metric]
    assert measure(weights) == pytest.approx(expected, abs=1e-9) and expected > 5


def test_the_ap_of_the_classes_has_the_mean_of_all() -> None:
    images = scattered(3)
    of_classes = ap_by_class(images, 4)
    assert of_classes[3] == {}
    for name in ("AP", "AP50", "AP75"):
        assert np.mean([one[name] for one in of_classes if one]) == pytest.approx(coco_ap(images, 4)[name])
    of_classes = by_voc(images, 4)
    expected = voc_ap(images, 4)
    for name, whole in (("voc_AP", "mAP"), ("voc_AP_area", "mAP_area")):
        assert np.mean([one[name] for one in of_classes if one]) == pytest.approx(expected[whole])
