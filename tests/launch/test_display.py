"""What a sweep shows: which member runs, what started, paths in one piece, and a closing line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hydra.types import RunMode

from attnbench.base import console
from attnbench.base.errors import DataError, Failure
from attnbench.config.configuration import Config
from attnbench.launch.executor import Member
from attnbench.launch.progress import Lines
from attnbench.launch.sweep import Sweep
from attnbench.runs import run
from attnbench.runs.attempt import Outcome

Compose = Callable[..., Config]
CONFIG: Any = SimpleNamespace(hydra=SimpleNamespace(mode=RunMode.MULTIRUN))


def member(composed: Config, name: str, outcome: Outcome | None = None) -> Member:
    return Member(name, composed, outcome)


def test_a_member_that_is_refused_does_not_start(compose: Compose, capsys: pytest.CaptureFixture[str]) -> None:
    """Its folder may have the status of an earlier start."""
    composed = compose()
    failed = Outcome("failed", "folder", failure=Failure("other data"))
    refused, running = member(composed, "refused", failed), member(composed, "running")
    refused.folder.path.mkdir(parents=True)
    refused.folder.status("stopped")
    running.status = refused.folder.record()
    running.began = 1.0
    lines = Lines()
    lines.update([refused, running])
    running.outcome = failed
    lines.update([refused, running])
    said = capsys.readouterr().err.splitlines()
    assert said == ["failed: refused  other data", "started: running", "failed: running  other data"]


def test_a_member_that_ends_between_two_looks_has_started(compose: Compose, capsys: pytest.CaptureFixture[str]) -> None:
    one = member(compose(), "one")
    lines = Lines()
    one.submitted()
    lines.update([one])
    one.folder.path.mkdir(parents=True)
    one.folder.status("done")
    one.outcome = Outcome("done", "folder", {"top1": 50.0})
    lines.update([one])
    assert capsys.readouterr().err.splitlines() == ["started: one", "done: one  top-1 50.00"]


def ended(state: str) -> Any:
    failure = None if state == "done" else Failure("stopped by a signal")
    return SimpleNamespace(overrides=[f"seed={state}"], return_value=Outcome(state, "folder", {}, failure))


def test_basic_says_which_member_runs_and_closes_after_a_signal(capsys: pytest.CaptureFixture[str]) -> None:
    sweep = Sweep()
    sweep.expanded = [["size=4", f"seed={seed}"] for seed in ("done", "stopped", "2")]
    sweep.on_job_start(CONFIG)
    sweep.on_job_end(CONFIG, ended("done"))
    sweep.on_job_start(CONFIG)
    with pytest.raises(SystemExit) as end:
        sweep.on_job_end(CONFIG, ended("stopped"))
    assert end.value.code == 143
    out, err = capsys.readouterr()
    assert err.splitlines() == ["member 1 of 3: seed=done", "member 2 of 3: seed=stopped"]
    assert out.splitlines()[-1] == "1 done, 0 skipped, 0 failed, 1 stopped, 1 not started"


def test_paths_stay_in_one_piece_on_a_narrow_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from rich.console import Console
    from rich.table import Table

    def narrow(**options: Any) -> Console:
        return Console(force_terminal=True, width=60, markup=False, highlight=False, **options)

    monkeypatch.setattr(console, "plain_console", narrow)
    path = f"/tmp/{'long/' * 20}seed0"
    table = Table("member", "state", "folder or reason")
    table.add_row("seed=0", "done", path)
    console.show_last_whole(table, "1 done")
    lines = capsys.readouterr().out.splitlines()
    assert f"seed=0: {path}" in lines and "1 done" in lines


def test_a_start_that_fails_before_its_data_are_read_leaves_no_folder(compose: Compose, tmp_path: Path) -> None:
    composed = compose("dataset=imagenet", f"dataset.root={tmp_path}/nowhere")
    for _ in range(2):
        with pytest.raises(DataError):
            run.train(composed)
        assert not list(tmp_path.rglob("config.yaml"))
    composed.run_folder.mkdir(parents=True)
    (composed.run_folder / "config.yaml").write_text("kept")
    with pytest.raises(Failure):
        run.train(composed)
    assert (composed.run_folder / "config.yaml").exists()
