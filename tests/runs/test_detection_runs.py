"""Detectors in the whole program: a run, its resume, its folder, two processes, pictures, tables."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from attnbench.base.errors import Failure
from attnbench.cli import main
from attnbench.cli.table import _sketch
from attnbench.config.configuration import Config
from attnbench.models import factory
from attnbench.reports import counts, paper_tables
from attnbench.runs import run
from attnbench.training import engine, setup
from attnbench.training.engine import Saver
from attnbench.training.metrics.titles import headline, headline_text
from attnbench.training.state import TrainState
from tests.small_runs import ForkServer, folder, in_two_processes, result

# 8 steps of a small detector with attention that has dropout, with sampling and masks.
TINY = [
    *("task=detection", "detector=mask_rcnn_small", "backbone=resnet20", "attention=sb", "attention.dropout=0.2"),
    *("dataset.train_images=16", "dataset.val_images=5", "dataset.size=48", "batch_size=4", "schedule.epochs=2"),
    *("runtime.device=cpu", "runtime.checkpoint_steps=3", "detector.channels=16", "detector.hidden=32"),
]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Config:
    from attnbench.config import composition

    composed = composition.compose([*TINY, f"paths.outputs={tmp_path_factory.mktemp('finished')}"])
    run.train(composed)
    return composed


def test_a_run_leaves_its_measures(finished: Config) -> None:
    left = json.loads((finished.run_folder / "result.json").read_text())
    assert {"AP", "AP50", "AP75", "mask_AP", "mask_AP50", "best_AP", "best_epoch"} <= set(left)
    assert "top1" not in left and "mAP" not in left
    assert left["macs"] > left["params"] > 100_000
    (events,) = (finished.run_folder / "tb").iterdir()  # a folder named after the changed values
    names = EventAccumulator(str(events)).Reload().Tags()
    assert {"val/AP", "val/mask_AP50", "train/loss"} <= set(names["scalars"])
    assert names["images"] == [f"val/image{n}" for n in range(4)]


def test_eval_gives_what_the_run_wrote_down(
    finished: Config, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run_eval(*arguments: str) -> str:
        monkeypatch.setattr(sys, "argv", ["attnbench eval", str(finished.run_folder), *arguments])
        capsys.readouterr()
        main.command("eval")()
        return capsys.readouterr().out

    left = json.loads((finished.run_folder / "result.json").read_text())
    found = json.loads(run_eval("--json"))
    measures = [name for name in found if name.startswith(("AP", "mask_AP"))]
    assert {"AP", "AP50", "mask_AP", "mask_AP50"} <= set(measures)
    assert [found[name] for name in measures] == pytest.approx([left[name] for name in measures], abs=1e-5)
    assert found["images"] == 5 and found["same_data"] is True and found["changed"] == []
    other = run_eval("dataset.val_images=4")
    assert "mask_AP50" in other and "CHANGED PROTOCOL: dataset.val_images=4" in other and "not the data" in other


class Killed(Exception):
    pass


@pytest.mark.parametrize("step", [2, 3])
def test_a_run_that_is_killed_in_mid_epoch_ends_as_if_it_had_not_been(
    step: int, finished: Config, compose: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    after = Saver.after_step

    def dies(self: Saver, state: TrainState) -> None:
        after(self, state)
        if (state.epoch, state.step) == (1, step):
            raise Killed

    composed = compose(*TINY)
    monkeypatch.setattr(Saver, "after_step", dies)
    with pytest.raises(Failure, match="Killed"):
        run.train(composed)
    monkeypatch.setattr(Saver, "after_step", after)
    left = run.train(composed)
    expected = json.loads((finished.run_folder / "result.json").read_text())
    assert left["resumed_from_step"] == {2: 4, 3: 7}[step]
    assert left["state_sha256"] == expected["state_sha256"] and left["mask_AP"] == expected["mask_AP"]


def test_two_processes_evaluate_every_image_once(
    forks: ForkServer, tmp_path: Path, compose: Callable[..., Config]
) -> None:
    """Two processes cannot share five images evenly, but report the same values as one process."""
    overrides = [*TINY, "schedule.epochs=1", f"paths.outputs={tmp_path}"]
    done = forks.train(tmp_path, *overrides, before=in_two_processes)
    assert done.code == 0, done.stderr
    assert result(tmp_path)["world_size"] == 2
    composition = compose(*overrides)
    saved = torch.load(folder(tmp_path) / "checkpoints" / "last.pt", weights_only=True)
    scenes = composition.build("dataset")
    task = composition.build("task", class_names=scenes.classes)
    with composition.build("runtime").start() as process:
        model, _ = factory.network(composition, len(scenes.classes))
        model.load_state_dict(saved["model"])
        state = setup.train_state(process.place(model), composition.build("schedule"), process)
        alone = engine.evaluation(state, task, setup.feeds(composition, scenes, process)[1], process)
    line = json.loads((folder(tmp_path) / "metrics.jsonl").read_text().splitlines()[-1])
    measures = alone.keys() - {"val_images_per_s"}
    assert {"AP", "mask_AP"} <= measures
    assert {key: line[key] for key in measures} == pytest.approx({key: alone[key] for key in measures}, abs=1e-5)


def test_every_detector_and_attention_takes_a_step(compose: Callable[..., Config]) -> None:
    for attention in ("none", "se", "eca"):
        composed = compose(
            *("task=detection", f"attention={attention}", "dataset.train_images=4", "dataset.val_images=2"),
            *("dataset.size=32", "dataset.largest=20", "batch_size=4", "schedule.epochs=1", "task.metric=mAP"),
        )
        left = run.train(composed)
        assert {"mAP", "mAP_area", "best_mAP", "AP"} <= set(left)


def test_masks_are_learned_from_what_ssds_augmentation_leaves(compose: Callable[..., Config]) -> None:
    overrides = [*TINY, "dataset.augment=ssd", "dataset.train_images=4", "dataset.val_images=2", "schedule.epochs=1"]
    left = run.train(compose(*overrides))
    assert "mask_AP" in left and left["epochs"] == 1


@pytest.mark.parametrize("detector", ["ssd", "mask_rcnn_small"])
def test_detectors_learn_from_pytorch_ssds_float_images(detector: str, compose: Callable[..., Config]) -> None:
    given = [f"detector={detector}", "dataset.augment=pytorch_ssd", "backbone=mobilenetv2_cifar", "backbone.width=0.35"]
    given += ["dataset.train_images=4", "dataset.val_images=2", "dataset.size=32", "dataset.largest=20", "batch_size=4"]
    given += ["detector.protocol=pytorch_ssd", "detector.init=default"] if detector == "ssd" else []
    left = run.train(compose("task=detection", "attention=sb", "schedule.epochs=1", *given))
    assert left["epochs"] == 1 and np.isfinite(left["AP"])


def test_the_headline_of_a_result() -> None:
    assert headline({"AP": 1.0, "top1": None}) == ("AP", 1.0)
    assert headline_text({"mAP": 45.409, "AP": 20.0}) == "mAP 45.41"
    assert headline_text({"top1": 91.2}) == "top-1 91.20" and headline_text(None) == headline_text({}) == ""


def test_table_4_of_the_eca_paper_is_counted_exactly() -> None:
    table = paper_tables.load("eca/4")
    kept = [row for row in table.rows if "101" not in row.label]
    for row in kept:
        cells = counts.cells(table, row, _sketch)
        assert {name: cell.ours for name, cell in cells.items()} == row.counts
        assert all(cell.matched for cell in cells.values())
    assert len(kept) == 6


def test_a_picture_frames_what_was_to_be_found_and_on_it_what_was() -> None:
    from attnbench.base.draw_boxes import colour, drawn

    answer = {
        "boxes": torch.tensor([[8.0, 8.0, 24.0, 24.0], [100.0, 8.0, 116.0, 24.0]]),
        "labels": torch.tensor([1, 2]),
        "scores": torch.tensor([0.9, 0.4]),
    }
    truth = torch.tensor([[8.0, 8.0, 24.0, 24.0], [8.0, 40.0, 24.0, 56.0]])
    picture = drawn(torch.zeros(3, 320, 320), answer, ["a", "b"], truth=truth)
    assert tuple(picture[23, 16]) == colour(1)  # the lower edge of the first detection, over the white of its true box
    assert tuple(picture[55, 16]) == (255, 255, 255)  # an object that was not detected
    assert not picture[8:24, 100:116].any()  # the score is too low
    assert not drawn(torch.zeros(3, 320, 320), answer, ["a", "b"])[40:].any()
