"""The commands as a user sees them: arguments, files and exit codes."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from attnbench.config.configuration import Config
from attnbench.data.in_memory import digits
from attnbench.runs import run
from tests.conftest import ROOT
from tests.data_fixtures import image_folder
from tests.small_runs import Ended, ForkServer
from tests.sweeps import TINY

Command = Callable[..., subprocess.CompletedProcess[str]]

QUICK = ("schedule.epochs=1",)


def only(paths: Iterable[Path]) -> Path:
    (path,) = paths
    return path


def run_folder(tmp_path: Path, pattern: str = "*") -> Path:
    return only((tmp_path / "outputs/runs").glob(f"*/*/{pattern}/seed*"))


@pytest.fixture(scope="module")
def default_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """Runs `python train.py` once, as a new user types it."""
    folder = tmp_path_factory.mktemp("default")
    done = subprocess.run(
        [sys.executable, str(ROOT / "train.py")], cwd=folder, capture_output=True, text=True, timeout=240
    )
    return folder, done


def test_the_default_run_learns_the_digits(default_run: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    folder, done = default_run
    assert done.returncode == 0, done.stderr
    result = json.loads((run_folder(folder) / "result.json").read_text())
    assert result["status"] == "done"
    assert result["top1"] >= 97.0
    assert result["params"] == 269_722
    assert "top-1, last epoch" in done.stdout and str(Path("outputs/runs/digits/resnet20")) in done.stdout


def test_a_run_leaves_the_folder_of_the_design(
    default_run: tuple[Path, subprocess.CompletedProcess[str]],
) -> None:
    folder = run_folder(default_run[0])
    names = {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file() and "events" not in p.name}
    assert names == {
        ".lock", "classes.json", "config.yaml", "data.json", "env.json", "metrics.jsonl", "result.json", "status.json",
        "train.log", "predictions.csv",
        "checkpoints/last.pt", "checkpoints/previous.pt", "checkpoints/best.pt", "checkpoints/SHA256SUMS",
    }  # fmt: skip
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    config = yaml.safe_load((folder / "config.yaml").read_text())
    assert [line["epoch"] for line in lines] == list(range(1, config["schedule"]["epochs"] + 1))
    assert config["choices"]["backbone"] == "resnet20"
    assert json.loads((folder / "env.json").read_text())["torch"]
    check = subprocess.run(["sha256sum", "-c", "SHA256SUMS"], cwd=folder / "checkpoints", capture_output=True)
    assert check.returncode == 0


def test_tensorboard_has_scalars_texts_and_hparams_in_one_file(
    default_run: tuple[Path, subprocess.CompletedProcess[str]],
) -> None:
    events = EventAccumulator(str(only((run_folder(default_run[0]) / "tb").iterdir()))).Reload()
    assert set(events.Tags()["scalars"]) == {
        "train/loss", "train/lr", "val/top1", "val/top5", "val/loss", "perf/images_per_s", "perf/data_time_share",
    }  # fmt: skip
    assert len(events.Scalars("val/top1")) == 6
    assert {"config/text_summary", "sites/text_summary"} <= set(events.Tags()["tensors"])
    plugin = events.summary_metadata["_hparams_/session_start_info"].plugin_data
    assert plugin.plugin_name == "hparams" and b"schedule.lr" in plugin.content


def test_a_finished_run_is_skipped(default_run: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    folder = run_folder(default_run[0])
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    again = subprocess.run(
        [sys.executable, str(ROOT / "train.py")], cwd=default_run[0], capture_output=True, text=True, timeout=60
    )
    assert again.returncode == 0 and "done already" in again.stdout
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


PAIRS = [
    *[(backbone, "sb") for backbone in ("resnet18", "mobilenetv2", "mobilenetv2_cifar")],
    *[("resnet50", "eca"), ("resnet18", "se"), ("mobilenetv2", "eca"), ("mobilenetv2_cifar", "none")],
]


@pytest.fixture
def few_digits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Digits with 128 training images of the default size."""
    rows = gzip.decompress(digits.DIGITS.read_bytes()).splitlines(keepends=True)
    (tmp_path / "few.csv.gz").write_bytes(gzip.compress(b"".join(rows[:160])))
    monkeypatch.setattr(digits, "DIGITS", tmp_path / "few.csv.gz")


@pytest.mark.parametrize(("backbone", "attention"), PAIRS)
def test_backbones_and_attentions_train_on_the_default_data(
    few_digits: None, compose: Callable[..., Config], backbone: str, attention: str
) -> None:
    overrides = [f"backbone={backbone}", f"attention={attention}", *QUICK]
    overrides += ["backbone.width=0.35"] if "mobilenet" in backbone else []
    result = run.train(compose(*overrides))
    assert result["status"] == "done" and result["epochs"] == 1


def test_a_sweep_survives_its_members_and_repeats_only_what_failed(attnbench: Command, tmp_path: Path) -> None:
    overrides = ("-m", *TINY, "seed=0,1", "schedule.lr=0.1,1e20")
    first = attnbench(*overrides)
    assert first.returncode == 1
    assert "2 done, 0 skipped, 2 failed" in first.stdout
    failed = [p for p in (tmp_path / "outputs").rglob("status.json") if "failed" in p.read_text()]
    assert len(failed) == 2
    for status in failed:
        assert "NonFiniteError" in json.loads(status.read_text())["traceback"]
        assert "Traceback" in (status.parent / "train.log").read_text()
        assert not (status.parent / "result.json").exists()
    results = {p: p.stat().st_mtime_ns for p in (tmp_path / "outputs").rglob("result.json")}
    second = attnbench(*overrides)
    assert second.returncode == 1 and "0 done, 2 skipped, 2 failed" in second.stdout
    assert {p: p.stat().st_mtime_ns for p in results} == results


def test_a_sweep_with_a_typo_runs_no_member(attnbench: Command, tmp_path: Path) -> None:
    refused = attnbench("-m", *QUICK, "attention=eca", "attention.kernel_size=3,5,4")
    assert refused.returncode == 2
    assert refused.stderr.count("\n") == 1 and "attention.kernel_size" in refused.stderr
    assert list(tmp_path.iterdir()) == []


def one_line(end: Ended, code: int, *parts: str) -> None:
    assert end.code == code, end.stderr
    assert len(end.errors) == 1 and "Traceback" not in end.stderr
    for part in parts:
        assert part in end.errors[0]


@pytest.mark.parametrize("dataset", ["cifar10", "imagenet"])
def test_a_missing_data_folder_says_what_was_looked_for(forks: ForkServer, tmp_path: Path, dataset: str) -> None:
    one_line(forks.train(tmp_path, f"dataset={dataset}", "dataset.root=/nowhere"), 3, "/nowhere", "train/")


def test_a_truncated_image_is_named(forks: ForkServer, tmp_path: Path) -> None:
    root = image_folder(tmp_path / "images", classes=["a", "b"], per_class=8)
    victim = sorted((root / "train" / "b").iterdir())[0]
    victim.write_bytes(victim.read_bytes()[:200])
    overrides = (f"dataset.root={root}", "dataset.size=32", "dataset.resize=36", "runtime.workers=1", *QUICK)
    end = forks.train(tmp_path, "dataset=imagenet", "batch_size=4", f"paths.outputs={tmp_path}/outputs", *overrides)
    one_line(end, 3, victim.name)


def test_a_class_without_images_is_named(forks: ForkServer, tmp_path: Path) -> None:
    root = image_folder(tmp_path / "images", classes=["a", "b"])
    (root / "train" / "c").mkdir()
    one_line(forks.train(tmp_path, "dataset=imagenet", f"dataset.root={root}"), 3, "train/c")


def test_an_unknown_command_is_refused_with_the_nearest_one() -> None:
    command = [
        sys.executable,
        "-c",
        "import sys; sys.argv = ['attnbench', 'trian']; from attnbench.cli.main import main; main()",
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: unknown command trian (command line); did you mean train?\n"
