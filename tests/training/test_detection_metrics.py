"""Both average precisions against references: pycocotools on real ground truth, values by hand, brute force."""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pycocotools import mask as rle
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from attnbench.data.dataset import Dataset, Target
from attnbench.data.detection import coco
from attnbench.training.metrics.coco_ap import NAMES, coco_ap
from attnbench.training.metrics.detections import Found, found
from attnbench.training.metrics.voc_ap import average_precision, voc_ap
from tests.data_fixtures import scenes, source


@pytest.fixture(scope="module")
def dataset(coco_images: Path) -> Dataset:
    return coco.coco(root=str(coco_images))


def guesses(target: Target, generator: torch.Generator, classes: int) -> dict[str, torch.Tensor]:
    """Detections: the true objects, shifted and some with wrong labels, and random boxes; some scores are equal."""
    count = len(target["boxes"])
    height, width = target["masks"].shape[-2:]
    moved = target["boxes"] + torch.randn(count, 4, generator=generator) * 6
    anywhere = torch.rand(12, 2, generator=generator) * torch.tensor([width, height]) * 0.7
    boxes = torch.cat([moved, torch.cat([anywhere, anywhere + 40], 1)])
    boxes = torch.cat([torch.min(boxes[:, :2], boxes[:, 2:] - 1), boxes[:, 2:]], 1)
    labels = torch.cat([target["labels"], torch.randint(1, classes + 1, (12,), generator=generator)])
    swapped = torch.rand(len(labels), generator=generator) < 0.2
    labels[swapped] = torch.randint(1, classes + 1, (int(swapped.sum()),), generator=generator)
    scores = (torch.rand(len(boxes), generator=generator) * 50).round() / 50
    shifted = torch.roll(target["masks"], (3, -4), (1, 2))
    blank = torch.zeros(12, height, width, dtype=torch.uint8)
    for mask, (left, top, right, bottom) in zip(blank, boxes[count:].int().tolist(), strict=True):
        mask[max(0, top) : bottom, max(0, left) : right] = 1
    masks = torch.cat([shifted, blank])[:, None].float()
    return {"boxes": boxes, "labels": labels, "scores": scores, "masks": masks}


def reference(
    path: Path, records: Sequence[Any], answers: list[dict[str, torch.Tensor]], kind: str
) -> dict[str, float]:
    """The values of pycocotools for the same detections, with annotations read from their original file."""
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(path))
        names = {image["file_name"]: number for number, image in truth.imgs.items()}
        categories = sorted(truth.getCatIds())
        entries = []
        for record, answer in zip(records, answers, strict=True):
            for box, label, score, mask in zip(
                *(answer[k] for k in ("boxes", "labels", "scores", "masks")), strict=True
            ):
                left, top, right, bottom = box.double().tolist()
                entry: dict[str, Any] = {"bbox": [left, top, right - left, bottom - top]}
                if kind == "segm":
                    entry = {"segmentation": rle.encode(np.asfortranarray((mask[0] > 0.5).byte().numpy()))}
                about = {"image_id": names[record.image.name], "category_id": categories[label - 1]}
                entries.append(entry | about | {"score": float(score)})
        evaluation = COCOeval(truth, truth.loadRes(entries), kind)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return {name: 100 * value for name, value in zip(NAMES, evaluation.stats, strict=False)}


def test_coco_ap_is_pycocotools_on_random_detections(dataset: Dataset, coco_images: Path) -> None:
    generator, side, classes = torch.Generator().manual_seed(1), scenes(dataset.val), len(dataset.classes)
    targets = [side.read(i, None)[1] for i in range(len(side))]
    assert any(target["crowd"].any() for target in targets)
    answers = [guesses(target, generator, classes) for target in targets]
    images = [found(answer, target) for answer, target in zip(answers, targets, strict=True)]
    path = coco_images / "annotations" / "instances_val2017.json"
    boxes = reference(path, source(side).records, answers, "bbox")
    masks = reference(path, source(side).records, answers, "segm")
    ours = coco_ap(images[::-1], classes) | coco_ap(images, classes, masks=True)
    assert 5 < boxes["AP"] < 90 and 5 < masks["AP"] < 90
    assert ours == pytest.approx(boxes | {f"mask_{k}": v for k, v in masks.items()}, abs=1e-6)


def perfect(target: Target) -> dict[str, torch.Tensor]:
    """The ground truth as detections, without crowds and difficult objects, which need not be detected."""
    asked = ~(target["crowd"] | target["difficult"])
    answer = {
        "boxes": target["boxes"][asked],
        "labels": target["labels"][asked],
        "scores": torch.ones(int(asked.sum())),
    }
    return answer | ({"masks": target["masks"][asked][:, None].float()} if "masks" in target else {})


def test_ground_truth_against_itself_gives_100(dataset: Dataset) -> None:
    targets = [scenes(dataset.val).read(i, None)[1] for i in range(len(dataset.val))]
    images = [found(perfect(target), target) for target in targets]
    classes = len(dataset.classes)
    values = coco_ap(images, classes) | coco_ap(images, classes, masks=True) | voc_ap(images, classes)
    assert set(values) == {*NAMES, *(f"mask_{name}" for name in NAMES), "mAP", "mAP_area"}
    assert list(values.values()) == pytest.approx([100.0] * len(values))


def scene(
    answer: list[tuple[list[float], int, float]], truth: list[tuple[list[float], int, bool]], n: int = 0
) -> Found:
    """An image from lists of detections (box, label, score) and true objects (box, label, difficult)."""
    boxes = np.array([box for box, _, _ in answer], dtype=float).reshape(-1, 4)
    there = np.array([box for box, _, _ in truth], dtype=float).reshape(-1, 4)
    difficult = np.array([flag for _, _, flag in truth], dtype=bool)
    return Found(
        n,
        boxes,
        np.array([label for _, label, _ in answer], dtype=int),
        np.array([score for _, _, score in answer]),
        there,
        np.array([label for _, label, _ in truth], dtype=int),
        (there[:, 2:] - there[:, :2]).prod(1),
        difficult,
        np.zeros(len(truth), dtype=bool),
    )


def test_a_case_by_hand() -> None:
    """Two objects and a difficult one. By score, the detections are: right, ignored, a duplicate, right."""
    a, b, hard = [0.0, 0, 10, 10], [20.0, 0, 30, 10], [40.0, 0, 50, 10]
    answer = [(a, 1, 0.9), (hard, 1, 0.8), ([0.0, 0, 10, 9], 1, 0.7), (b, 1, 0.6)]
    one = scene(answer, [(a, 1, False), (b, 1, False), (hard, 1, True)])
    # precision 1 up to recall 0.5 (six of the eleven points), then 2/3
    assert voc_ap([one], 1) == pytest.approx({"mAP": 100 * (6 + 5 * 2 / 3) / 11, "mAP_area": 100 * (0.5 + 0.5 * 2 / 3)})


def test_what_is_found_in_a_crowd_counts_for_nothing_and_a_crowd_need_not_be_found() -> None:
    """One object is detected; two detections in a crowd have higher scores."""
    a, crowd = [0.0, 0, 10, 10], [20.0, 0, 60, 40]
    answer = [(crowd, 1, 0.9), ([20.0, 0, 60, 36], 1, 0.8), (a, 1, 0.7)]
    image = scene(answer, [(a, 1, False), (crowd, 1, False)])
    crowded = replace(image, crowd=np.array([False, True]))
    assert voc_ap([crowded], 1) == {"mAP": 100.0, "mAP_area": 100.0}
    # If the crowd were an object, the second detection would be wrong, and recall 1 be reached at precision 2/3.
    assert voc_ap([image], 1)["mAP_area"] == pytest.approx(100 * (0.5 + 0.5 * 2 / 3))
    only = scene([(crowd, 1, 0.9)], [(crowd, 1, False)])
    assert voc_ap([replace(only, crowd=np.array([True]))], 1)["mAP"] == 0.0  # a class without an object to find
    missed = replace(scene([(a, 1, 0.9)], [(a, 1, False), (crowd, 1, False)]), crowd=np.array([False, True]))
    assert voc_ap([missed], 1)["mAP"] == 100.0


def test_a_class_that_is_nowhere_has_no_part_in_the_mean() -> None:
    box, hard = [0.0, 0, 10, 10], [40.0, 0, 50, 10]
    answer = [(hard, 1, 0.95), (box, 1, 0.9), (box, 3, 0.5)]
    image = scene(answer, [(box, 1, False), (hard, 1, True), (box, 2, True)])
    assert voc_ap([image], 3)["mAP"] == 100.0
    assert coco_ap([image], 3)["AP"] == pytest.approx(100.0)


def test_overlap_at_the_threshold_is_enough() -> None:
    truth = [([0.0, 0, 10, 10], 1, False)]
    assert voc_ap([scene([([0.0, 0, 10, 5], 1, 0.5)], truth)], 1)["mAP"] == 100.0
    assert voc_ap([scene([([0.0, 0, 10, 4.9], 1, 0.5)], truth)], 1)["mAP"] == 0.0


def brute_force(images: list[Found], label: int, rule: str) -> float | None:  # noqa: C901 - plain on purpose
    """The definition, followed literally: everything is matched again for each threshold of the score."""
    total = sum(int(((i.true_labels == label) & ~i.difficult).sum()) for i in images)
    scores = sorted({float(s) for i in images for s in i.scores[i.labels == label]}, reverse=True)
    points = []
    for threshold in scores:
        right = wrong = 0
        for image in images:
            taken = set()
            candidates = [
                k for k in range(len(image.boxes)) if image.labels[k] == label and image.scores[k] >= threshold
            ]
            for k in sorted(candidates, key=lambda k: -image.scores[k]):
                best, place = 0.0, None
                for j in np.flatnonzero(image.true_labels == label):
                    p, t = image.boxes[k], image.true_boxes[j]
                    w, h = min(p[2], t[2]) - max(p[0], t[0]), min(p[3], t[3]) - max(p[1], t[1])
                    shared = max(w, 0) * max(h, 0)
                    union = (p[2] - p[0]) * (p[3] - p[1]) + (t[2] - t[0]) * (t[3] - t[1]) - shared
                    if shared / union > best:
                        best, place = shared / union, j
                if best < 0.5:
                    wrong += 1
                elif not image.difficult[place]:
                    right, wrong = (right + 1, wrong) if place not in taken else (right, wrong + 1)
                    taken.add(place)
        if right + wrong:
            points.append((right / total, right / (right + wrong)))
    if rule == "11point":
        return sum(max((p for r, p in points if r >= t / 10 - 1e-9), default=0.0) for t in range(11)) / 11
    area, before = 0.0, 0.0
    for recall in sorted({r for r, _ in points}):
        area += (recall - before) * max(p for r, p in points if r >= recall)
        before = recall
    return area


@pytest.mark.parametrize("seed", range(6))
def test_voc_ap_is_brute_force(seed: int) -> None:
    random = np.random.default_rng(seed)

    def some(count: int) -> list[list[float]]:
        corners = random.integers(0, 30, (count, 2))
        boxes: list[list[float]] = np.concatenate([corners, corners + random.integers(8, 20, (count, 2))], 1).tolist()
        return [[float(c) for c in box] for box in boxes]

    images = []
    for n in range(8):
        truth = [(box, int(random.integers(1, 4)), bool(random.random() < 0.3)) for box in some(4)]
        near = [[c + float(random.integers(-2, 3)) for c in box] for box, _, _ in truth]
        scores = random.permutation(1000)[:9] / 1000  # distinct, so that their order is unique
        labels = [label for _, label, _ in truth] + random.integers(1, 4, 5).tolist()
        images.append(scene(list(zip(near + some(5), labels, scores + n / 1e4, strict=True)), truth, n))
    expected = {
        rule: np.mean([brute_force(images, label, rule) for label in (1, 2, 3)]) for rule in ("11point", "area")
    }
    assert voc_ap(images, 3) == pytest.approx({"mAP": 100 * expected["11point"], "mAP_area": 100 * expected["area"]})


def test_what_is_not_finite_is_not_found() -> None:
    box = torch.tensor([[0.0, 0, 10, 10]])
    answer = {"boxes": box.repeat(2, 1), "labels": torch.tensor([1, 1]), "scores": torch.tensor([float("nan"), 0.5])}
    nothing = torch.zeros(1, dtype=torch.bool)
    target = {"boxes": box, "labels": torch.tensor([1]), "areas": torch.tensor([100.0]), "image": torch.tensor(0)}
    assert found(answer, target | {"difficult": nothing, "crowd": nothing}).scores.tolist() == [0.5]


def test_no_detection_at_all_is_zero() -> None:
    one = scene([], [([0.0, 0, 10, 10], 1, False)])
    assert voc_ap([one], 1) == {"mAP": 0.0, "mAP_area": 0.0}
    assert coco_ap([one], 1)["AP"] == 0.0
    assert average_precision(np.zeros(0), np.zeros(0), "area") == 0.0


def test_the_annotations_order_does_not_matter(dataset: Dataset) -> None:
    records = source(dataset.val).records
    numbers = [json.loads(record.image.stem.lstrip("0")) for record in records]
    assert numbers == sorted(numbers)
