"""``attnbench eval`` on other data: classes by name, and the published layouts of ImageNet's other test sets."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from attnbench.config import composition
from attnbench.config.configuration import Config
from attnbench.data.matching import Matching
from attnbench.runs import run
from attnbench.runs.evaluate import evaluate, measured
from attnbench.runs.load import Trained, ready
from tests.data_fixtures import coco_scenes, image_folder

Command = Callable[..., subprocess.CompletedProcess[str]]
CLASSES = ("ant", "bee", "cow", "dog")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return image_folder(tmp_path_factory.mktemp("data") / "animals", classes=CLASSES, per_class=3)


@pytest.fixture(scope="module")
def classifier(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Config:
    """A run on the pictures, done."""
    words = ["dataset=folder", f"dataset.root={pictures}", "dataset.size=16", "dataset.resize=20", "backbone=resnet20"]
    words += ["backbone.depth=8", "batch_size=6", "runtime.device=cpu", "runtime.workers=0", "schedule.epochs=2"]
    done = composition.compose([*words, f"paths.outputs={tmp_path_factory.mktemp('outputs')}"])
    run.train(done)
    return done


def measures(command: Command, config: Config, *words: str) -> dict[str, Any]:
    done = command("eval", str(config.run_folder), *words, "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def renamed(pictures: Path, root: Path, names: dict[str, str]) -> Path:
    for side in ("train", "val"):
        for old, new in names.items():
            shutil.copytree(pictures / side / old, root / side / new)
    return root


def test_renamed_classes_are_refused_by_name_and_with_a_map_nothing_changes(
    classifier: Config, pictures: Path, tmp_path: Path, command: Command
) -> None:
    names = {"ant": "z", "bee": "y", "cow": "x", "dog": "w"}  # in the other order
    root = renamed(pictures, tmp_path / "renamed", names)
    refusal = command("eval", str(classifier.run_folder), f"dataset.root={root}")
    assert refusal.returncode == 3 and refusal.stderr.count("\n") == 1
    assert "have 4 that the run lacks: w, x, y, z" in refusal.stderr and "--class-map" in refusal.stderr
    (tmp_path / "map.csv").write_text("".join(f"{new},{old}\n" for old, new in names.items()))
    own = measures(command, classifier)
    other = measures(command, classifier, f"dataset.root={root}", "--class-map", str(tmp_path / "map.csv"))
    assert {key: own[key] for key in ("top1", "images")} == {key: other[key] for key in ("top1", "images")}
    assert other["val_loss"] == pytest.approx(own["val_loss"], rel=1e-5) and other["same_data"] is False
    assert own["evaluated"] == "12 pictures of the run's 4 classes"


@pytest.mark.parametrize("layout", ["val", "classes"])
def test_pictures_to_evaluate_on_are_enough(
    layout: str, classifier: Config, pictures: Path, tmp_path: Path, command: Command
) -> None:
    root = tmp_path / "only"
    shutil.copytree(pictures / "val", root / "val" if layout == "val" else root)
    own, other = measures(command, classifier), measures(command, classifier, f"dataset.root={root}")
    same = ("top1", "top5", "val_loss", "ece", "images")
    assert {key: other[key] for key in same} == {key: own[key] for key in same}
    assert other["data"]["source"] == "only, evaluation only: 4 classes, 12 images"


def test_a_subset_as_imagenet_a_and_r_is_evaluated_on_its_classes_if_asked_to(
    classifier: Config, pictures: Path, tmp_path: Path, command: Command
) -> None:
    root = tmp_path / "imagenet-r"
    for name in ("bee", "dog"):
        shutil.copytree(pictures / "val" / name, root / name)
    (root / "README.txt").write_text("as it is published")
    (root / "bee" / "notes.txt").write_text("beside the pictures")
    refusal = command("eval", str(classifier.run_folder), f"dataset.root={root}")
    assert refusal.returncode == 3 and "lack 2 of the run's: ant, cow" in refusal.stderr
    words = (f"dataset.root={root}", "--common-classes")
    found = measures(command, classifier, *words)
    sentence = "6 pictures of 2 of the run's 4 classes, without ant, cow; the network chooses among these 2"
    assert found["evaluated"] == sentence and sentence in command("eval", str(classifier.run_folder), *words).stdout
    assert found["data"]["source"].endswith("2 classes, 6 images; left out: 1 .txt")
    every = measures(command, classifier, *words, "--answers", "all")
    assert every["top1"] <= found["top1"] and every["val_loss"] > found["val_loss"]


def test_numbered_classes_as_in_imagenet_v2_need_a_map(
    classifier: Config, pictures: Path, tmp_path: Path, command: Command
) -> None:
    root = tmp_path / "imagenetv2-matched-frequency-format-val"
    for number, name in enumerate(CLASSES):
        shutil.copytree(pictures / "val" / name, root / str(number))
    refusal = command("eval", str(classifier.run_folder), f"dataset.root={root}")
    assert refusal.returncode == 3 and "--class-map numbers" in refusal.stderr
    found = measures(command, classifier, f"dataset.root={root}", "--class-map", "numbers")
    assert found["top1"] == measures(command, classifier)["top1"] and found["images"] == 12


def test_corruptions_as_in_imagenet_c_are_evaluated_together_and_listed(
    classifier: Config, pictures: Path, tmp_path: Path, command: Command
) -> None:
    root = tmp_path / "ImageNet-C"
    for corruption in ("blur", "noise"):
        for severity in ("1", "2"):
            shutil.copytree(pictures / "val", root / corruption / severity)
    for picture in (root / "noise" / "2").rglob("*.jpg"):
        shutil.copy(pictures / "val" / "ant" / "0.jpg", picture)  # all alike: at most one class is right
    found = measures(command, classifier, f"dataset.root={root}")
    own = measures(command, classifier)["top1"]
    assert found["images"] == 48 and list(found["sets"]) == ["blur/1", "blur/2", "noise/1", "noise/2"]
    assert [found["sets"][name] for name in ("blur/1", "blur/2", "noise/1")] == [own] * 3
    assert found["top1"] == pytest.approx(sum(found["sets"].values()) / 4)
    assert "top1 of noise/2" in command("eval", str(classifier.run_folder), f"dataset.root={root}").stdout


def test_a_folder_without_pictures_is_refused(classifier: Config, tmp_path: Path, command: Command) -> None:
    (tmp_path / "empty").mkdir()
    done = command("eval", str(classifier.run_folder), f"dataset.root={tmp_path}/empty")
    assert done.returncode == 3 and "no <class>/*.jpg here: it is empty" in done.stderr


class Oracle(nn.Module):
    """A detector that knows the objects of each image by its size, and the names of its own classes."""

    def __init__(self, classes: list[str], known: dict[tuple[int, ...], tuple[Tensor, list[str]]]) -> None:
        super().__init__()
        self.classes, self.known = classes, known

    def forward(self, images: list[Tensor]) -> list[dict[str, Tensor]]:
        return [self._found(*self.known[tuple(image.shape)]) for image in images]

    def _found(self, boxes: Tensor, names: list[str]) -> dict[str, Tensor]:
        labels = torch.tensor([self.classes.index(name) + 1 for name in names], dtype=torch.int64)
        return {"boxes": boxes, "labels": labels, "scores": torch.linspace(0.9, 0.5, len(names))}


@pytest.mark.parametrize("only_val", [False, True])
def test_ap_is_unchanged_by_other_category_ids(only_val: bool, tmp_path: Path) -> None:
    coco_scenes(tmp_path)
    words = ["task=detection", "dataset=coco", f"dataset.root={tmp_path}", "detector=faster_rcnn_small"]
    config = composition.compose([*words, "runtime.device=cpu", "runtime.workers=0", "batch_size=4"])
    data = config.build("dataset")
    known: dict[tuple[int, ...], tuple[Tensor, list[str]]] = {}
    for images, targets in data.val.batches([torch.arange(len(data.val))], None, workers=0, timeout=0):
        for image, target in zip(images, targets, strict=True):
            plain = ~target["crowd"]
            names = [data.classes[label - 1] for label in target["labels"][plain]]
            known[tuple(image.shape)] = target["boxes"][plain], names
    oracle = Trained(Oracle(list(data.classes), known), [], list(data.classes), config, {})
    with ready(oracle) as opened:
        expected, _ = measured(oracle, opened)
    for path in (tmp_path / "annotations").glob("*.json"):
        content = json.loads(path.read_text())
        swapped = {one["id"]: 100 - one["id"] for one in content["categories"]}
        for key, entries in (("id", content["categories"]), ("category_id", content["annotations"])):
            for one in entries:
                one[key] = swapped[one[key]]
        path.write_text(json.dumps(content))
    if only_val:
        (tmp_path / "annotations" / "instances_train2017.json").unlink()
    with ready(replace(oracle, moved=True)) as opened:
        found, _ = measured(oracle, opened)
        assert opened.data.classes == tuple(data.classes)
        assert ("evaluation only: 10 images" in opened.data.source) is only_val
    assert found == expected and expected["AP"] > 90
    with ready(oracle, Matching()) as opened:
        assert opened.matched.others == ()


def test_evaluate_is_called_from_python_as_before(classifier: Config) -> None:
    assert evaluate(classifier.run_folder)["same_data"] is True


def test_a_run_on_a_fold_is_evaluated_on_its_own_part_and_elsewhere_on_all(
    pictures: Path, tmp_path: Path, command: Command
) -> None:
    words = ["dataset=folder", f"dataset.root={pictures}", "dataset.size=16", "dataset.resize=20", "backbone=resnet20"]
    words += ["backbone.depth=8", "batch_size=6", "runtime.device=cpu", "runtime.workers=0", "schedule.epochs=1"]
    done = composition.compose([*words, "dataset.fold=0", "dataset.folds=3", f"paths.outputs={tmp_path}/outputs"])
    run.train(done)
    assert measures(command, done)["images"] == 4
    shutil.copytree(pictures, tmp_path / "copy")
    assert measures(command, done, f"dataset.root={tmp_path / 'copy'}")["images"] == 4
    shutil.rmtree(tmp_path / "copy" / "train" / "ant")
    shutil.copytree(pictures / "val" / "ant", tmp_path / "copy" / "train" / "ant")
    (tmp_path / "copy" / "train" / "ant" / "0.jpg").unlink()
    assert measures(command, done, f"dataset.root={tmp_path / 'copy'}")["images"] == 12  # val/ of other data
