"""A folder of option files from somebody else writes no file and runs no code."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from attnbench.base.errors import ConfigError
from attnbench.config import composition, hydra_state, option_files

Command = Callable[..., subprocess.CompletedProcess[str]]

COPY = "{_target_: shutil.copyfile, src: /etc/hostname, dst: CANARY}"
LOG = "{version: 1, handlers: {f: {class: logging.FileHandler, filename: CANARY}}, root: {handlers: [f]}}"

HOSTILE = {
    "callback": f"hydra: {{callbacks: {{a: {COPY}}}}}",
    "nested callback": f"hydra: {{callbacks: {{a: {{_target_: pathlib.Path, x: [{COPY}]}}}}}}",
    "ours exchanged": f"hydra: {{callbacks: {{sweep: {COPY}}}}}",
    "interpolation": "made: {a: {_target_: os.getcwd}}\nhydra: {callbacks: '${made}'}",
    "ours of another kind": "hydra: {callbacks: {a: {_target_: attnbench.base.files.make_folder, path: CANARY}}}",
    "job_logging": f"hydra: {{job_logging: {LOG}}}",
    "hydra_logging": f"hydra: {{hydra_logging: {LOG}}}",
    "run dir": "hydra: {run: {dir: CANARY}}",
    "sweep dir": "hydra: {sweep: {dir: CANARY}}",
    "subdir": "hydra: {sweep: {subdir: CANARY}}",
    "output_subdir": "hydra: {output_subdir: CANARY}",
    "chdir": "hydra: {job: {chdir: true}}",
    "env_set": "hydra: {job: {env_set: {ATTNBENCH_TRUST: evil}}}",
    "env_copy": "hydra: {job: {env_copy: [HOME]}}",
    "env_copy of nothing": "hydra: {job: {env_copy: [NOT_SET_ANYWHERE]}}",
    "sweeper": "hydra: {sweeper: {_target_: os.system}}",
    "launcher": "hydra: {launcher: {_target_: os.system}}",
    "setup": "defaults: [{override /hydra/launcher: submitit_local}]\nhydra: {launcher: {setup: [touch CANARY]}}",
    "line end": 'defaults: [{override /hydra/launcher: submitit_slurm}]\nhydra: {launcher: {name: "a\\ntouch CANARY"}}',
    "help": 'hydra: {help: {template: "\\e]0;x\\a"}}',
    "bomb": "a: &a [x,x,x,x,x,x,x,x]\n"
    + "".join(f"{c}: &{c} [{','.join([f'*{b}'] * 40)}]\n" for b, c in zip("abcde", "bcdef", strict=True)),
}


@pytest.mark.parametrize("words", [[], ["-m", "seed=0,1"]], ids=["run", "sweep"])
@pytest.mark.parametrize("kind", HOSTILE)
def test_a_foreign_option_file_does_nothing(kind: str, words: list[str], command: Command, tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    sent = tmp_path / "sent/experiment/friend.yaml"
    sent.parent.mkdir(parents=True)
    sent.write_text("# @package _global_\n" + HOSTILE[kind].replace("CANARY", str(canary)) + "\n")
    small = ["dataset.size=4", "backbone.depth=8", "schedule.epochs=1"]
    end = command("train", f"--config-dir={tmp_path}/sent", "experiment=friend", *small, *words)
    assert end.returncode == 2 and end.stderr.startswith("error: ") and "unexpected" not in end.stderr
    assert len(end.stderr.splitlines()) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["sent"]


@pytest.mark.parametrize(
    "words",
    [
        ["+hydra.callbacks.a._target_=shutil.copyfile"],
        ["++hydra.callbacks.sweep._target_=os.getcwd"],
        ["~hydra.callbacks.sweep"],
        ["hydra.run.dir=/tmp/elsewhere"],
        ["hydra/job_logging=default"],
        ["--config-name=other"],
        ["--config-path=/tmp"],
        ["--experimental-rerun=x.pickle"],
        ["hydra.searchpath=[pkg://nowhere.at.all]"],
        ["hydra.searchpath=[http://somewhere]"],
    ],
    ids=" ".join,
)
def test_a_command_line_cannot_replace_what_is_ours(words: list[str], command: Command, tmp_path: Path) -> None:
    end = command("train", *words)
    assert end.returncode == 2 and end.stderr.startswith("error: ") and "unexpected" not in end.stderr
    assert not list(tmp_path.iterdir())


def test_a_class_of_a_trusted_package_may_be_added(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "labs_callbacks.py").write_text("import os\nclass Quiet:\n    pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    line = ["+hydra.callbacks.own._target_=labs_callbacks.Quiet"]
    with pytest.raises(ConfigError, match="name its package in ATTNBENCH_TRUST"):
        composition.compose(line)
    monkeypatch.setenv("ATTNBENCH_TRUST", "labs_callbacks")
    composition.compose(line)
    with pytest.raises(ConfigError, match=r"labs_callbacks.os.system may not be called"):
        composition.compose(["+hydra.callbacks.own._target_=labs_callbacks.os.system"])


def test_the_command_line_may_set_a_launchers_commands(tmp_path: Path) -> None:
    line = ["hydra/launcher=submitit_local", "hydra.launcher.setup=[module load cuda]", "hydra.launcher.timeout_min=5"]
    assert composition.node("hydra.launcher", line)["setup"] == ["module load cuda"]
    own = tmp_path / "hydra/launcher/lab.yaml"
    own.parent.mkdir(parents=True)
    own.write_text("defaults: [submitit_slurm]\npartition: gpu\ntimeout_min: 240\n")
    with option_files.added([tmp_path]):
        node = composition.node("hydra.launcher", ["hydra/launcher=lab"])
    assert (node["partition"], node["timeout_min"]) == ("gpu", 240)


@pytest.mark.parametrize(
    "override", ["attention=null", "attention=3", "dataset=true", "runtime=1e3", "~seed", "~dataset"]
)
def test_a_group_needs_a_name(override: str) -> None:
    with pytest.raises(ConfigError) as refused:
        composition.compose([override])
    assert "unexpected" not in str(refused.value) and refused.value.where in override


def test_timms_networks_are_options_without_files() -> None:
    assert composition.compose(["backbone=timm/resnet18"]).tree["backbone"]["name"] == "resnet18"
    with hydra_state.prepared():
        assert hydra_state.loader() is hydra_state.loader()
