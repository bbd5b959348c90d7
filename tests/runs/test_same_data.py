"""A finished run is skipped only if it was trained on the data that would be opened."""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from attnbench.base.errors import DataError, OtherData
from attnbench.cli import main
from attnbench.config import composition
from attnbench.config.configuration import Config
from attnbench.data.record import stamp
from attnbench.reports import paper_tables
from attnbench.reports.composer import Composer
from attnbench.runs import data
from attnbench.runs.attempt import Outcome, attempt
from attnbench.runs.data import DataCheck
from attnbench.runs.status import run_status
from tests.data_fixtures import coco_folder, image_folder, voc_folder
from tests.sweeps import Sweep

TINY = [
    *("runtime.device=cpu", "runtime.workers=0", "backbone=resnet20", "backbone.depth=8", "batch_size=4"),
    *("schedule.epochs=1", "dataset.size=16", "dataset.resize=16"),
]
Composed = Callable[..., Config]


@pytest.fixture
def composed(tmp_path: Path) -> Composed:
    def call(*overrides: str) -> Config:
        return composition.compose([*TINY, f"paths.outputs={tmp_path}/outputs", *overrides])

    return call


@pytest.fixture
def birds(tmp_path: Path) -> Path:
    return image_folder(tmp_path / "birds", size=(20, 20))


@pytest.fixture
def animals(tmp_path: Path) -> Path:
    return image_folder(tmp_path / "animals", classes=("ape", "bee", "cow"), size=(20, 20))


def run(config: Config) -> Outcome:
    return attempt(lambda: config)


def refused(outcome: Outcome, *parts: str) -> None:
    """The outcome is an error about other data; its advice would not erase the other run."""
    assert outcome.state == "failed" and isinstance(outcome.failure, OtherData), outcome
    line = str(outcome.failure)
    assert all(part in line for part in parts), line
    assert "resume=never" not in line and "\n" not in line


def kept(config: Config) -> dict[str, bytes]:
    """Everything in the run's folder but its lock."""
    files = (path for path in config.run_folder.rglob("*") if path.is_file() and path.name != ".lock")
    return {str(path): path.read_bytes() for path in files}


def test_other_data_under_the_same_options_are_refused_and_the_run_is_unchanged(
    composed: Composed, birds: Path, animals: Path
) -> None:
    config = composed("dataset=imagenet", f"dataset.root={birds}")
    assert run(config).state == "done"
    before = kept(config)
    other = composed("dataset=imagenet", f"dataset.root={animals}")
    assert other.run_folder == config.run_folder
    refused(run(other), "2 classes", "3 classes", str(animals), "dataset.name=animals")
    assert kept(config) == before
    named = composed("dataset=imagenet", f"dataset.root={animals}", "dataset.name=animals")
    assert run(named).state == "done" and named.run_folder.parts[-4] == "animals"
    assert run(config).state == "skipped" and run(named).state == "skipped"


def test_an_unfinished_run_does_not_go_on_with_other_data(composed: Composed, birds: Path, animals: Path) -> None:
    config = composed("dataset=imagenet", f"dataset.root={birds}")
    run(config)
    (config.run_folder / "result.json").unlink()
    before = kept(config)
    refused(run(composed("dataset=imagenet", f"dataset.root={animals}")), "dataset.name=animals")
    assert kept(config) == before
    (config.run_folder / "data.json").unlink()  # like a run of release 0.1.0
    refused(run(composed("dataset=imagenet", f"dataset.root={animals}")), "dataset.name=animals")
    assert run(config).state == "done"


def test_data_that_moved_or_were_copied_are_the_same(composed: Composed, birds: Path, tmp_path: Path) -> None:
    run(composed("dataset=imagenet", f"dataset.root={birds}"))
    copied = shutil.copytree(birds, tmp_path / "elsewhere", copy_function=shutil.copyfile)
    assert run(composed("dataset=imagenet", f"dataset.root={copied}")).state == "skipped"
    shutil.rmtree(birds)
    assert run(composed("dataset=imagenet", f"dataset.root={copied}")).state == "skipped"


def test_nothing_is_opened_where_nothing_has_changed(
    composed: Composed, birds: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = composed("dataset=imagenet", f"dataset.root={birds}")
    run(config)
    monkeypatch.setattr(data, "record", lambda *args: pytest.fail("the data were opened"))
    assert run(config).state == "skipped"


def repaint(path: Path) -> None:
    """Change an image's content, but not its name, size or date."""
    about, size = path.stat(), path.stat().st_size
    content = bytearray(path.read_bytes())
    content[size // 2] ^= 1
    time.sleep(0.01)
    path.write_bytes(content)
    os.utime(path, ns=(about.st_atime_ns, about.st_mtime_ns))
    assert path.stat().st_size == size


CHANGES: dict[str, Callable[[Path], object]] = {
    "more": lambda root: shutil.copy(root / "train/cat/0.jpg", root / "train/cat/9.jpg"),
    "fewer": lambda root: (root / "val/dog/3.jpg").unlink(),
    "renamed": lambda root: (root / "train/dog").rename(root / "train/dog_"),
    "repainted": lambda root: repaint(root / "train/cat/0.jpg"),
    "swapped": lambda root: _swap(root / "train/cat/0.jpg", root / "train/dog/0.jpg"),
}


def _swap(one: Path, other: Path) -> None:
    first, second = one.read_bytes(), other.read_bytes()
    one.write_bytes(second)
    other.write_bytes(first)


@pytest.mark.parametrize("change", CHANGES)
def test_data_changed_in_place_are_other_data(composed: Composed, birds: Path, change: str) -> None:
    config = composed("dataset=folder", f"dataset.root={birds}")
    assert run(config).state == "done"
    if change == "renamed":
        (birds / "val/dog").rename(birds / "val/dog_")
    CHANGES[change](birds)
    refused(run(config), "other data", f"dataset.root={birds}", "dataset.name=birds-2")
    assert run_status(config, DataCheck()).state == "other data"


def test_a_new_date_alone_is_not_a_change(composed: Composed, birds: Path) -> None:
    config = composed("dataset=folder", f"dataset.root={birds}")
    run(config)
    for path in birds.rglob("*.jpg"):
        path.touch()
    assert run(config).state == "skipped"


def test_own_pictures_are_called_as_their_folder(composed: Composed, birds: Path, animals: Path) -> None:
    one, other = (composed("dataset=folder", f"dataset.root={root}") for root in (birds, animals))
    assert one.tree["dataset"]["name"] == "birds" and one.run_folder.parts[-4] == "birds"
    assert other.run_folder.parts[-4] == "animals" and other.hash != one.hash
    assert composed("dataset=folder", f"dataset.root={birds}/").run_folder == one.run_folder
    assert composed("dataset=folder", f"dataset.root={birds}", "dataset.name=birds").run_folder == one.run_folder
    assert run(one).state == "done" and run(other).state == "done"
    result = json.loads((one.run_folder / "result.json").read_text())
    assert result["data"]["source"].startswith("birds: image folder of 2 classes")


def test_two_folders_of_one_name_do_not_share_a_run(composed: Composed, birds: Path, tmp_path: Path) -> None:
    twin = image_folder(tmp_path / "other" / "birds", classes=("x", "y"), size=(20, 20))
    assert run(composed("dataset=folder", f"dataset.root={birds}")).state == "done"
    refused(run(composed("dataset=folder", f"dataset.root={twin}")), "dataset.name=birds-2")


@pytest.mark.parametrize("name", ["a/b", "..", "", "x" * 101, "a\\tb"])
def test_a_name_is_a_file_name(composed: Composed, birds: Path, name: str) -> None:
    with pytest.raises(ValueError, match="dataset.name"):
        composed("dataset=folder", f"dataset.root={birds}", f'dataset.name="{name}"')


def test_own_pictures_need_a_folder() -> None:
    with pytest.raises(ValueError, match=r"dataset.root is not set \(dataset.root\); write dataset.root="):
        composition.compose(["dataset=folder"])


def test_a_plan_and_a_report_say_which_data_they_could_not_check(composed: Composed, birds: Path) -> None:
    config = composed("dataset=imagenet", f"dataset.root={birds}")
    run(config)
    birds.rename(birds.parent / "away")
    status = run_status(config, DataCheck())
    assert status.state == "done" and "data of imagenet not compared" in status.unseen and str(birds) in status.unseen
    outcome = run(config)  # it would have to open them
    assert outcome.state == "failed" and isinstance(outcome.failure, DataError)


def test_a_table_leaves_out_runs_of_other_data_and_says_which_data_it_could_not_check(
    birds: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    scale = ["dataset=folder", f"dataset.root={birds}", "dataset.size=32", "epochs=1"]

    def table(*arguments: str) -> str:
        chosen = ["sb/5", "--rows", "SB x0.35 C1", "--seeds", "1", "--outputs", str(tmp_path)]
        monkeypatch.setattr(sys, "argv", ["attnbench table", *chosen, *arguments, "--scale", *scale])
        main.command("table")()
        return capsys.readouterr().out

    row = paper_tables.load("sb/5").rows[1]
    assert row.label == "SB x0.35 C1" and row.overrides
    config = Composer(scale, str(tmp_path))(row.overrides)
    finish(config)
    (config.run_folder / "classes.json").write_text('["cat", "dog"]')
    assert "1 done, 0 to run" in table("--plan", "--no-probe")
    assert "not compared" not in table()

    away = birds.rename(tmp_path / "away")
    line = f"data of birds not compared: there is no such folder ({birds})"
    plan = table("--plan", "--no-probe")
    assert "1 done, 0 to run" in plan and line in plan
    assert line in table()

    away.rename(birds)
    repaint(birds / "val/cat/0.jpg")
    plan = table("--plan", "--no-probe")
    assert "0 done, 1 to run" in plan and "other data" in plan and "dataset.name=birds-2" in plan
    assert "other data" in table("--json")


def test_a_sweep_over_two_folders_trains_one_and_refuses_the_other(birds: Path, animals: Path, tmp_path: Path) -> None:
    """First with one launcher, then with the other."""
    overrides = [*TINY, "dataset=imagenet", f"dataset.root={birds},{animals}"]
    sweep = Sweep(tmp_path)
    code, out, err = sweep.run(*overrides)
    assert code == 1 and "1 done, 0 skipped, 1 failed" in out, out + err
    assert "trained on other data" in out + err
    (result,) = sweep.finished()
    again = Sweep(tmp_path, "hydra/launcher=pool", "hydra.launcher.slots=2")
    code, out, err = again.run(*overrides)
    assert code == 1 and "0 done, 1 skipped, 1 failed" in out, out + err
    assert "trained on other data" in out + err
    assert again.finished() == [result]


def test_a_sweep_over_own_folders_has_a_run_for_each(birds: Path, animals: Path, tmp_path: Path) -> None:
    sweep = Sweep(tmp_path)
    code, out, err = sweep.run(*TINY, "dataset=folder", f"dataset.root={birds},{animals}")
    assert code == 0 and "2 done" in out, out + err
    assert {path.parts[-5] for path in sweep.results()} == {"birds", "animals"}


DETECTION = ["task=detection", "backbone=resnet20", "runtime.device=cpu", "batch_size=2", "schedule.epochs=1"]


def detection(root: Path, tmp_path: Path, dataset: str) -> Config:
    overrides = [f"dataset={dataset}", f"dataset.root={root}", "detector.size=64", "dataset.augment=none"]
    overrides += ["dataset.train=[VOC2007/trainval]"] if dataset == "voc" else []
    return composition.compose([*DETECTION, *overrides, f"paths.outputs={tmp_path}/outputs"])


def test_annotations_repaired_in_place_are_other_data(tmp_path: Path) -> None:
    root = coco_folder(tmp_path / "coco")
    config = detection(root, tmp_path, "coco")
    finish(config)
    assert run(config).state == "skipped"
    path = root / "annotations" / "instances_val2017.json"
    content = json.loads(path.read_text())
    content["annotations"][0]["bbox"] = [5, 5, 20, 9]
    path.write_text(json.dumps(content))
    refused(run(config), "annotations", "dataset.name=coco-2")


def test_a_picture_of_annotated_data_changed_in_place_is_other_data(tmp_path: Path) -> None:
    for kind, root, picture in (
        ("coco", coco_folder(tmp_path / "coco"), "train2017/7.jpg"),
        ("voc", voc_folder(tmp_path / "voc"), "VOC2007/JPEGImages/1.jpg"),
    ):
        config = detection(root, tmp_path, kind)
        finish(config)
        assert run(config).state == "skipped"
        repaint(root / picture)
        refused(run(config), "other contents", f"dataset.name={kind}-2")


def finish(config: Config) -> None:
    """Write the files of a finished run, without training."""
    folder = config.run_folder
    folder.mkdir(parents=True)
    record = data.record(config, config.build("dataset")).as_dict()
    (folder / "result.json").write_text(json.dumps({"status": "done", "data": record}))


def test_a_stamp_sees_every_change_and_survives_loops(tmp_path: Path) -> None:
    root = image_folder(tmp_path / "pictures")
    (root / "loop").symlink_to(root, target_is_directory=True)
    (root / "nowhere").symlink_to(root / "missing")
    first = stamp(root)
    assert first and first == stamp(root) and stamp(tmp_path / "missing") == ""
    repaint(root / "train/cat/0.jpg")
    assert stamp(root) != first
    (root / "train/cat/new").write_bytes(b"")
    assert stamp(root) != first


def test_contents_of_shards_are_those_of_their_folder(tmp_path: Path, birds: Path) -> None:
    from attnbench.data.image_folders import sharding
    from attnbench.data.image_folders.datasets import folder

    target = tmp_path / "shards"
    target.mkdir()
    classes, planned = sharding.plan(birds, target, None, 2**12)
    for one in planned:
        sharding.write(one, None, 2, lambda new: None)
    sharding.finish(target, classes, planned)
    loose, sharded = folder(root=str(birds)), folder(root=str(target))
    assert loose.fingerprint == sharded.fingerprint
    assert loose.contents() == sharded.contents() != ""


def test_pictures_too_many_to_read_are_sampled(monkeypatch: pytest.MonkeyPatch) -> None:
    from attnbench.data.images import contents

    read: list[int] = []

    def content(number: int) -> bytes:
        read.append(number)
        return bytes([number % 256])

    monkeypatch.setattr(contents, "SAMPLE", 10)
    contents.digest([1] * 50, content)
    assert len(read) == 50
    read.clear()
    monkeypatch.setattr(contents, "WHOLE_FILES", 49)
    assert contents.digest([1] * 50, content) == contents.digest([1] * 50, content)
    assert len(read) == 20 and len(set(read)) == 10


def test_a_fold_is_a_run_of_its_own_and_its_classes_are_counted(
    composed: Composed, birds: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="attnbench")
    one = ["dataset=folder", f"dataset.root={birds / 'train'}", "dataset.name=birds"]
    runs = [composed(*one, part) for part in ("dataset.fold=0", "dataset.fold=1", "dataset.holdout=0.25")]
    assert [run(config).state for config in runs] == ["done"] * 3
    assert len({config.run_folder for config in runs}) == 3
    records = [data.kept(config.run_folder) for config in runs]
    assert len({record.fingerprint for record in records if record}) == 3
    assert records[1] and "6 + 2 images; fold 1 of 0 to 4 held out" in records[1].source
    assert "validation: 2 pictures: cat 1, dog 1" in caplog.messages
    assert run(composed(*one, "dataset.fold=0")).state == "skipped"


def test_pictures_that_are_drawn_otherwise_are_other_data(composed: Composed, birds: Path) -> None:
    """A run that was trained on pictures as stored, by an earlier release, does not continue with upright ones."""
    from PIL import Image

    path = birds / "train" / "cat" / "0.jpg"
    exif = Image.Exif()
    exif[0x0112] = 3
    Image.open(path).save(path, exif=exif)
    config = composed("dataset=folder", f"dataset.root={birds}")
    assert run(config).state == "done"
    as_stored = composed("dataset=folder", f"dataset.root={birds}", "dataset.orientation=stored").build("dataset")
    for file in ("result.json", "data.json"):
        content = json.loads((config.run_folder / file).read_text())
        (content["data"] if file == "result.json" else content).update(
            contents=as_stored.contents(), drawn="", stamp=""
        )
        (config.run_folder / file).write_text(json.dumps(content))
    refused(run(config), "all as stored then", "1 turned upright now")
