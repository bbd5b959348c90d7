"""Names of runs and the comparison of their data, where they are easy to get wrong."""

from __future__ import annotations

import os
import shlex
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from attnbench.config import naming, renamed, stored
from attnbench.config.configuration import Config
from attnbench.data.image_folders import sharding
from attnbench.data.image_folders.datasets import folder
from attnbench.runs import data
from attnbench.runs.attempt import attempt
from tests.data_fixtures import image_folder, voc_folder


def test_a_deleted_key_is_another_run(compose: Callable[..., Config]) -> None:
    """The builder's own default decides then, and it differs from the option file's value."""
    plain, other = compose("attention=eca_paper"), compose("attention=eca_paper", "~attention.tie")
    assert plain.tree["attention"]["tie"] == "down" and "tie" not in other.tree["attention"]  # eca() has tie="up"
    assert other.hash != plain.hash
    assert stored.from_record(other.record(), Path("config.yaml")).tree == other.tree


def test_a_renamed_key_keeps_the_names_of_the_first_release(
    compose: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Keys are compared under the names that they had first."""
    config = compose("attention=eca")
    former = naming.first_release_hash(config.tree, config.choices, config.deviations, {})
    schedule = dict(config.tree["schedule"])
    schedule["warmup"] = schedule.pop("warmup_epochs")
    monkeypatch.setitem(renamed.KEYS, "schedule.warmup", ("schedule.warmup_epochs",))
    tree = config.tree | {"schedule": schedule}
    assert naming.first_release_hash(tree, config.choices, config.deviations, {}) == former


def test_a_later_group_keeps_the_names_of_the_first_release(compose: Callable[..., Config]) -> None:
    """A group that came later counts only if it is not at its default."""
    config = compose("attention=eca")
    former = naming.first_release_hash(config.tree, config.choices, config.deviations, {})
    tree = config.tree | {"tracking": {"_target_": "attnbench.training.tracking.Off"}}
    choices = config.choices | {"tracking": "off"}
    assert naming.first_release_hash(tree, choices, config.deviations, {}) == former


def test_a_checkpoint_of_a_renamed_option_is_continued(
    compose: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The names of options in a checkpoint are translated, as its keys are."""
    kept = compose("attention=se_layer").identity | {"attention": "se_first"}  # made under its former name
    monkeypatch.setitem(renamed.OPTIONS, "attention/se_layer", ("attention/se_first",))
    assert not stored.differences(compose("attention=se_layer"), kept)


def test_an_image_that_moves_between_splits_is_other_data(tmp_path: Path, compose: Callable[..., Config]) -> None:
    """The fingerprint of VOC does not say where training ends and validation begins; the counts do."""
    root = voc_folder(tmp_path)
    main = root / "VOC2007" / "ImageSets" / "Main"
    names = ["1", "2", "3"]
    for name in names[2:]:
        for part, suffix in (("JPEGImages", "jpg"), ("Annotations", "xml")):
            (root / f"VOC2007/{part}/{name}.{suffix}").write_bytes((root / f"VOC2007/{part}/1.{suffix}").read_bytes())
    words = ["task=detection", "dataset=voc", f"dataset.root={root}", "dataset.train=[VOC2007/trainval]"]
    (main / "trainval.txt").write_text("1\n2\n")
    (main / "test.txt").write_text("3\n")
    before = data.record(compose(*words), compose(*words).build("dataset"))
    (main / "trainval.txt").write_text("1\n")
    (main / "test.txt").write_text("2\n3\n")
    after = data.record(compose(*words), compose(*words).build("dataset"))
    assert before.difference(after)


def test_reading_shards_in_threads_keeps_few_files_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Threads that meet at a shard open it once."""
    root, target = image_folder(tmp_path / "pictures", per_class=20), tmp_path / "shards"
    target.mkdir()
    classes, planned = sharding.plan(root, target, None, 6_000)
    for one in planned:
        sharding.write(one, None, 2, lambda new: None)
    sharding.finish(target, classes, planned)
    slow = os.open

    def opened(path: object, flags: int, *rest: int, **options: int) -> int:
        if str(path).endswith(".tar"):
            time.sleep(0.01)  # as on a network file system
        return slow(path, flags, *rest, **options)  # type: ignore[arg-type]

    found = folder(root=str(target), size=24, resize=32)
    monkeypatch.setattr(os, "open", opened)
    found.contents()
    links = [
        os.readlink(f"/proc/self/fd/{n}") for n in os.listdir("/proc/self/fd") if os.path.exists(f"/proc/self/fd/{n}")
    ]
    assert len([one for one in links if one.endswith(".tar")]) == len(planned)


TINY = [
    *("runtime.device=cpu", "runtime.workers=0", "backbone=resnet20", "backbone.depth=8", "batch_size=4"),
    *("schedule.epochs=1", "dataset.size=16", "dataset.resize=16", "dataset=folder"),
]


def test_the_advice_for_a_third_version_leads_somewhere(tmp_path: Path, compose: Callable[..., Config]) -> None:
    """The proposed names count up: birds, birds-2, birds-3."""
    birds = image_folder(tmp_path / "birds", size=(20, 20))
    where = [*TINY, f"dataset.root={birds}"]
    assert attempt(lambda: compose(*where)).state == "done"
    (birds / "train/cat/9.jpg").write_bytes((birds / "train/cat/0.jpg").read_bytes())
    assert attempt(lambda: compose(*where, "dataset.name=birds-2")).state == "done"
    (birds / "train/cat/8.jpg").write_bytes((birds / "train/cat/0.jpg").read_bytes())
    third = attempt(lambda: compose(*where, "dataset.name=birds-2"))
    assert third.failure and "dataset.name=birds-2" not in third.failure.todo
    advised = third.failure.todo.partition("dataset.name=")[2]
    assert attempt(lambda: compose(*where, f"dataset.name={advised}")).state == "done", advised


def test_a_run_with_a_deleted_key_is_not_taken_for_the_plain_one(compose: Callable[..., Config]) -> None:
    """End to end: the plain run is trained, and not skipped with the other network's result."""
    words = [*("runtime.device=cpu", "backbone=resnet20", "backbone.depth=8", "dataset.size=4", "batch_size=512")]
    words += ["schedule.epochs=1", "attention=eca_paper"]
    assert attempt(lambda: compose(*words, "~attention.tie")).state == "done"
    assert attempt(lambda: compose(*words)).state == "done"  # and not skipped


def test_the_advised_name_can_be_pasted(tmp_path: Path, compose: Callable[..., Config]) -> None:
    root = image_folder(tmp_path / "my birds, 2024", size=(20, 20))
    words = [word for word in TINY if word != "dataset=folder"] + ["dataset=imagenet", f"dataset.root='{root}'"]
    assert attempt(lambda: compose(*words)).state == "done"
    (root / "train/cat/9.jpg").write_bytes((root / "train/cat/0.jpg").read_bytes())
    failure = attempt(lambda: compose(*words)).failure
    assert failure
    compose(*words, *shlex.split("dataset.name=" + failure.todo.partition("dataset.name=")[2]))
