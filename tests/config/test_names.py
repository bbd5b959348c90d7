"""Names of runs are stable: they depend on options and on values that differ from them, not on module paths."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from attnbench.base.errors import ConfigError, StorageError
from attnbench.config import composition, option_files, renamed, stored
from attnbench.config.configuration import Config
from attnbench.config.hydra_state import load_option, prepared
from attnbench.config.naming import hash8
from attnbench.runs import run
from attnbench.runs.attempt import attempt
from attnbench.runs.data import DataCheck
from attnbench.runs.evaluate import evaluate
from attnbench.runs.export import export, load_exported
from attnbench.runs.results import find
from attnbench.runs.status import run_status
from tests.conftest import ROOT

PINNED = yaml.safe_load((Path(__file__).parent / "pinned_names.yaml").read_text("utf-8"))
OLD_RUNS = ROOT / "tests" / "fixtures" / "release-0.1.0.tar.xz"

TINY = [
    *("runtime.device=cpu", "backbone=resnet20", "backbone.depth=8", "dataset.size=4", "batch_size=512"),
    *("attention=eca", "attention.kernel_size=3"),
]


def names(entry: dict[str, str]) -> list[str]:
    """The folders of a pinned command line's run, the present one first."""
    return [
        str(path).removeprefix("outputs/runs/") for path in composition.compose(entry["line"].split()).group_folders
    ]


@pytest.mark.parametrize("entry", PINNED, ids=[entry["line"] for entry in PINNED])
def test_a_pinned_command_line_keeps_its_folder(entry: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ATTNBENCH_OUTPUTS", raising=False)
    assert names(entry) == [entry["folder"], *([entry["former"]] if "former" in entry else [])]


def test_many_lines_are_pinned_and_none_twice() -> None:
    assert len({entry["line"] for entry in PINNED}) == len(PINNED) >= 54
    assert sum("former" in entry for entry in PINNED) >= 50


@pytest.fixture(scope="module")
def moved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of attnbench with renamed modules, and with new options that have defaults."""
    copy = tmp_path_factory.mktemp("moved")
    shutil.copytree(ROOT / "attnbench", copy / "attnbench", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(ROOT / "configs", copy / "configs")
    package = copy / "attnbench"
    others = {"training.runtime": "training.execution", "models.attention.eca": "models.attention.efficient"}
    others |= {"training.optim": "training.laws", "data.in_memory.digits": "data.in_memory.digit_images"}
    for old, new in others.items():
        (package / f"{old.replace('.', '/')}.py").rename(package / f"{new.replace('.', '/')}.py")
    for path in [*package.rglob("*.py"), *(copy / "configs").rglob("*.yaml")]:
        text = path.read_text("utf-8")
        for old, new in others.items():
            parent, _, last = old.rpartition(".")
            text = text.replace(f"attnbench.{old}", f"attnbench.{new}")
            name = new.rpartition(".")[2]
            text = re.sub(rf"(from attnbench\.{parent} import .*)\b{last}\b", rf"\1{name} as {last}", text)
        path.write_text(text, "utf-8")
    _insert(
        package / "models/attention/efficient.py", "def eca(", "    site: Site,\n    *,\n", "    leak: float = 0.0,\n"
    )
    _insert(package / "training/laws.py", "class Schedule", "    law: Law\n", "    clip: float | None\n")
    with open(copy / "configs/attention/eca.yaml", "a", encoding="utf-8") as file:
        file.write("leak: 0.0\n")
    for path in (copy / "configs/schedule").glob("*.yaml"):
        path.write_text(path.read_text("utf-8") + "clip: null\n", "utf-8")
    return copy


def _insert(path: Path, after: str, at: str, line: str) -> None:
    """Insert ``line`` after the first ``at`` that follows ``after``."""
    head, found, rest = path.read_text("utf-8").partition(after)
    before, place, tail = rest.partition(at)
    assert found and place, (path, after, at)
    path.write_text(head + found + before + place + line + tail, "utf-8")


PRINT_FOLDERS = """
import sys, yaml, attnbench
from attnbench.config import composition
assert attnbench.__file__.startswith(sys.argv[1]), attnbench.__file__
for entry in yaml.safe_load(open(sys.argv[2])):
    config = composition.compose(entry["line"].split())
    print(*config.group_folders, config.tree["schedule"].get("clip", "none"), config.tree["attention"].get("leak"))
print(*composition.compose(["attention=eca", "attention.leak=0.5"]).group_folders)
print(*composition.compose(["attention=eca"]).group_folders)
"""


def test_neither_a_moved_module_nor_a_new_default_renames_a_run(moved: Path) -> None:
    command = [sys.executable, "-c", PRINT_FOLDERS, str(moved), str(Path(__file__).parent / "pinned_names.yaml")]
    environment = {key: value for key, value in os.environ.items() if key != "ATTNBENCH_OUTPUTS"}
    done = subprocess.run(
        command, cwd=moved, env={**environment, "PYTHONPATH": str(moved)}, capture_output=True, text=True, check=True
    )
    *lines, leaking, plain = done.stdout.replace("outputs/runs/", "").splitlines()
    for entry, line in zip(PINNED, lines, strict=True):
        *folders, clip, leak = line.split()
        assert folders == [entry["folder"], *([entry["former"]] if "former" in entry else [])]
        assert clip == "None"
        assert leak == ("0.0" if "/eca-" in line else "None")
    # With a value that differs from the new default, it is another run, which 0.1.0 could not have made.
    assert len(leaking.split()) == 1 and leaking != plain.split()[0]
    assert len(plain.split()) == 2


@pytest.fixture
def options(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Config]:
    """Composes from a copy of the option files, which a test may change."""
    copied = Path(shutil.copytree(ROOT / "configs", tmp_path / "configs"))
    monkeypatch.setattr("attnbench.config.hydra_state.folder", lambda: copied)

    def composed(*overrides: str, attention: str | None = None) -> Config:
        if attention is not None:
            (copied / "attention" / "eca.yaml").write_text(attention, "utf-8")
        return composition.compose([*overrides, f"paths.outputs={tmp_path}/outputs"])

    return composed


def test_a_revised_option_names_another_run(options: Callable[..., Config]) -> None:
    text = (ROOT / "configs/attention/eca.yaml").read_text("utf-8")
    first = options("attention=eca")
    revised = options("attention=eca", attention=text.replace("gamma: 2.0", "gamma: 3.0") + "_revision_: 2\n")
    assert revised.tree["attention"]["gamma"] == 3.0 and "_revision_" not in revised.tree["attention"]
    assert revised.hash != first.hash and len(revised.group_folders) == 1  # no folder of 0.1.0 belongs to it
    assert revised.record()["revisions"] == {"attention": 2}
    assert options("attention=se").hash == composition.compose(["attention=se"]).hash


def test_a_default_that_is_written_out_is_no_other_run(options: Callable[..., Config]) -> None:
    plain = options("attention=eca", "schedule=cosine")
    assert options("attention=eca", "schedule=cosine", "attention.gamma=2", "schedule.epochs=200").hash == plain.hash
    assert options("task=detection", "detector.size=64").hash == options("task=detection").hash
    assert options("task=detection", "detector.size=96").hash != options("task=detection").hash


def test_a_default_that_changed_without_a_revision_is_refused(options: Callable[..., Config]) -> None:
    """Old and new runs have the same name: the old result must not count as the new one, and must not be lost."""
    done = run.train(options(*TINY, "schedule.epochs=1"))
    text = (ROOT / "configs/attention/eca.yaml").read_text("utf-8").replace("gamma: 2.0", "gamma: 3.0")
    changed = options(*TINY, "schedule.epochs=1", attention=text)
    outcome = attempt(lambda: changed)
    assert outcome.state == "failed" and isinstance(outcome.failure, ConfigError)
    assert "attention.gamma: 2.0 then, 3.0 now" in str(outcome.failure) and "_revision_" in str(outcome.failure)
    assert json.loads((changed.run_folder / "result.json").read_text()) == done


def test_an_option_inherits_what_another_one_declares(options: Callable[..., Config], tmp_path: Path) -> None:
    own = "defaults:\n  - eca\ngamma: 3.0\n"
    (tmp_path / "configs" / "attention" / "own.yaml").write_text(own, "utf-8")
    assert options("attention=own").deviations == {}
    assert options("attention=own", "attention.gamma=2.0").deviations == {"attention.gamma": 2.0}


def test_a_run_of_a_renamed_key_and_option_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    common = ["attention=se_layer", "attention.hidden=2", f"paths.outputs={tmp_path}/outputs", "backbone=resnet20"]
    before = composition.compose([*common, "schedule.warmup_epochs=0.5"])
    before.run_folder.mkdir(parents=True)
    (before.run_folder / "config.yaml").write_text(yaml.safe_dump(before.record()), "utf-8")
    # As if the option was called se_first and the key schedule.ramp when the run was made.
    record = before.record()
    record["choices"]["attention"] = "se_first"
    record["schedule"]["ramp"] = record["schedule"].pop("warmup_epochs")
    options = before.identity | {"attention": "se_first"}
    named = {group: options[group] for group in before.choices if group in before.tree}
    expected = hash8(named, {"schedule.ramp": 0.5, "attention.hidden": 2}, {}, before.usual)
    monkeypatch.setitem(renamed.OPTIONS, "attention/se_layer", ("attention/se_first",))
    monkeypatch.setitem(renamed.KEYS, "schedule.warmup_epochs", ("schedule.ramp",))
    now = composition.compose([*common, "schedule.warmup_epochs=0.5"])
    former = now.group_folder.parent / f"se_first-layer-{now.hash}"
    assert former in now.group_folders and now.hash == expected != before.hash
    (former / "seed0").mkdir(parents=True)
    (former / "seed0" / "config.yaml").write_text(yaml.safe_dump(record), "utf-8")
    assert now.run_folder == former / "seed0"
    read = stored.read(now.run_folder)
    assert read.choices["attention"] == "se_layer" and read.tree["schedule"]["warmup_epochs"] == 0.5
    assert read.hash == now.hash and not stored.differences(now, read.identity)
    with pytest.raises(ConfigError, match=r"was renamed .*it is attention=se_layer now"):
        composition.compose(["attention=se_first"])
    with pytest.raises(ConfigError, match=r"this key was renamed .*it is schedule.warmup_epochs now"):
        composition.compose(["schedule.ramp=1"])


def test_a_record_names_options_and_values_but_no_code(compose: Callable[..., Config]) -> None:
    for overrides in (["attention=eca"], ["task=detection", "attention=sb"], ["backbone=timm/resnet18"]):
        record = compose(*overrides).record()
        text = yaml.safe_dump(record)
        assert record["format"] == 2 and "_target_" not in text and "attnbench." not in text
        again = stored.from_record(yaml.safe_load(text), Path("config.yaml"))
        assert again.tree == compose(*overrides).tree and again.hash == compose(*overrides).hash


def test_a_users_own_builder_is_part_of_the_record(
    options: Callable[..., Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ATTNBENCH_TRUST", "tests")
    shutil.copy(ROOT / "tests/faulty/attention/faulty.yaml", tmp_path / "configs/attention")
    ours = options("attention=faulty")
    record = ours.record()
    assert record["attention"] == {"_target_": "tests.faulty_attention.faulty", "member": 0}
    again = stored.from_record(record, Path("config.yaml"))
    assert again.tree == ours.tree and again.hash == ours.hash and ours.deviations == {}
    del record["attention"]["_target_"]
    shutil.rmtree(tmp_path / "configs/attention")
    with pytest.raises(StorageError, match="attention=faulty"):
        stored.from_record(record, Path("config.yaml"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": 3}, "format 3, made by a later attnbench"),
        ({"format": "x"}, "format x"),
        ({"choices": None}, "lacks choices"),
        ({"choices": {"attention": 3}}, "lacks choices"),
        ({"seed": "zero"}, "lacks seed"),
        ({"schedule": []}, "lacks schedule"),
        ({"paths": {}}, "lacks paths"),
        ({"revisions": {"attention": "two"}}, "revisions"),
        ({"attention": {"_target_": ["os.system"]}}, "the record names no builder"),
        ({"attention": {"_target_": "os.system"}}, "os.system is not a builder"),
        ({"attention": {"_target_": "attnbench.base.files.write"}}, "files.write is not a builder"),
        ({"attention": {"_target_": "attnbench.storage.write"}}, "files.write is not a builder"),
    ],
)
def test_an_invalid_record_is_refused(change: dict[str, Any], message: str, compose: Callable[..., Config]) -> None:
    with pytest.raises(StorageError, match=re.escape(message)):
        stored.checked(stored.from_record(compose("attention=eca").record() | change, Path("config.yaml")), Path())


def test_an_exchanged_builder_is_another_run_and_is_recorded(
    compose: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ATTNBENCH_TRUST", "tests")
    plain = compose("attention=none")
    other = compose("attention=none", "attention._target_=tests.faulty_attention.faulty", "+attention.member=3")
    assert other.hash != plain.hash and plain.deviations == {}
    record = other.record()
    assert record["attention"]["_target_"] == "tests.faulty_attention.faulty"
    again = stored.from_record(record, Path("config.yaml"))
    assert again.tree == other.tree and again.hash == other.hash
    assert "attention._target_" in stored.differences(other, plain.identity)
    assert not stored.differences(other, again.identity)
    # The other builder may lack all keys of the option's own builder.
    tree = compose("attention=se").tree | {"attention": other.tree["attention"]}
    bare = replace(compose("attention=se"), tree=tree)
    read = stored.from_record(bare.record(), Path("config.yaml"))
    assert read.tree == tree and not stored.differences(bare, read.identity)


# Runs that release 0.1.0 made.


@pytest.fixture
def old_runs(tmp_path: Path) -> Path:
    with tarfile.open(OLD_RUNS) as archive:
        archive.extractall(tmp_path, filter="data")
    return tmp_path


def test_a_run_of_the_first_release_is_skipped_evaluated_exported_and_compared(old_runs: Path) -> None:
    config = composition.compose([*TINY, "schedule.epochs=1", f"paths.outputs={old_runs}/outputs"])
    folder = old_runs / "outputs/runs/digits/resnet20/eca-block-19fe89f3/seed0"
    assert config.run_folder == folder and config.group_folder != folder.parent
    outcome = attempt(lambda: config)
    assert (outcome.state, outcome.folder) == ("skipped", str(folder))
    assert run_status(config, DataCheck()).state == "done"
    assert evaluate(folder)["top1"] == pytest.approx(outcome.result["top1"] if outcome.result else None)
    assert evaluate(folder)["same_data"]
    written = export(folder)
    ours, theirs = load_exported(written), load_exported(old_runs / "eca.safetensors")
    assert {k: v.sum().item() for k, v in ours.state_dict().items()} == {
        k: v.sum().item() for k, v in theirs.state_dict().items()
    }
    found = find([str(old_runs / "outputs")])
    assert {run.values["schedule.epochs"] for run in found} == {1, 20}
    assert not (config.group_folder).exists()


def test_an_unfinished_run_of_the_first_release_goes_on(old_runs: Path) -> None:
    config = composition.compose([*TINY, "schedule.epochs=20", f"paths.outputs={old_runs}/outputs"])
    assert config.run_folder.parent.name == "eca-block-386a35c0"
    result = run.train(config)
    assert result["resumed_from_step"] > 0 and result["epochs"] == 20 and result["top1"] > 50
    assert yaml.safe_load((config.run_folder / "config.yaml").read_text())["format"] == 2
    assert not config.group_folder.exists()


def test_other_seeds_of_an_old_run_are_grouped_with_it(old_runs: Path) -> None:
    from attnbench.reports.comparison import compare
    from attnbench.reports.rows import seeds_there

    overrides = [*TINY, "schedule.epochs=1", f"paths.outputs={old_runs}/outputs"]
    run.train(composition.compose([*overrides, "seed=1"]))
    assert seeds_there(composition.compose(overrides)) == [0, 1]
    runs = [found for found in find([str(old_runs / "outputs")]) if found.values["schedule.epochs"] == 1]
    (group,) = compare(runs).groups
    assert sorted(group.scores) == [0, 1]


def declared_now() -> dict[str, dict[str, Any]]:
    """The values that every option declares, without builders."""
    groups = sorted(path.name for path in (ROOT / "configs").iterdir() if path.is_dir())
    with prepared():
        root = option_files.declared(load_option, {})
        return {
            f"{group}/{option}": {
                key: value
                for key, value in option_files.declared(load_option, {group: option}).items()
                if not key.endswith("_target_") and root.get(key, ...) != value
            }
            for group in groups
            if group not in ("table", "figure", "hydra", "experiment")
            for option in option_files.names(group)
        } | {"train": root}


def test_a_default_changes_only_with_a_revision() -> None:
    """If an option declared other values under the same revision, old results would count as new ones."""
    pinned = yaml.safe_load((Path(__file__).parent / "declared.yaml").read_text("utf-8"))
    found = declared_now()
    changed = {
        option: {
            key: (value, found[option].get(key)) for key, value in values.items() if found[option].get(key) != value
        }
        for option, values in pinned.items()
    }
    assert not {option: keys for option, keys in changed.items() if keys}, "raise _revision_, then renew declared.yaml"
    assert found.keys() >= pinned.keys() and len(pinned) >= 67
