"""An attention in a package of one's own, from the first look to a finished run's use (SimAM as the example)."""

from __future__ import annotations

import importlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import attnbench
from attnbench.config import composition, source_code
from attnbench.config.annotations import as_trusted_now, folder_of, trusted
from tests.conftest import ROOT

SIMAM = '''
"""SimAM: each position is weighted by its energy in its map."""
import torch
from attnbench import Attended, Site, checked
from attnbench.config.options import Positive
from PACKAGE.parts import energy


class SimAM(torch.nn.Module):
    def __init__(self, lam):
        super().__init__()
        self.lam = lam

    def forward(self, x):
        return torch.sigmoid(energy(x, self.lam))


@checked
def simam(site: Site, *, lam: Positive = 1e-4):
    return Attended(site.trunk, SimAM(lam), reads="output", combine="mul")


def bare(site):
    return site.trunk
'''
PARTS = """
def energy(x, lam):
    d = (x - x.mean((2, 3), keepdim=True)).square()
    return d / (4 * (d.sum((2, 3), keepdim=True) / (x.shape[2] * x.shape[3] - 1) + lam)) + 0.5
"""
OPTION = """
defaults:
  - /placement@_global_.placement: block
_target_: PACKAGE.sim.simam
lam: 1.0e-4
"""
SMALL = ["backbone=resnet20", "backbone.depth=8", "dataset.size=8", "batch_size=256", "schedule.epochs=1"]
SMALL += ["runtime.device=cpu"]

Command = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package in the working folder, which is on no path; its name is another for each test."""
    made = tmp_path / "lab" / re.sub(r"\W", "_", f"lab_{tmp_path.parent.name}_{tmp_path.name}")
    made.mkdir(parents=True)
    for name, text in {"sim.py": SIMAM, "parts.py": PARTS, "__init__.py": ""}.items():
        (made / name).write_text(text.replace("PACKAGE", made.name))
    option = made / "configs" / "attention" / "simam.yaml"
    option.parent.mkdir(parents=True)
    option.write_text(OPTION.replace("PACKAGE", made.name))
    monkeypatch.chdir(made.parent)
    monkeypatch.setattr(sys, "path", [one for one in sys.path if one])
    monkeypatch.setenv("ATTNBENCH_TRUST", made.name)
    return made


def said(done: subprocess.CompletedProcess[str], code: int = 0) -> str:
    assert done.returncode == code, done.stderr
    return done.stdout + done.stderr


def test_every_command_takes_it(package: Path, command: Command, tmp_path: Path) -> None:
    own = ["--config-dir", str(package / "configs")]
    line = ["attention=simam", *SMALL]
    assert "3 sites" in said(command("show", *own, *line))
    assert json.loads(said(command("count", *own, "--json", *line)))["attention_params"] == 0
    assert "simam" in said(command("show", *line, f"hydra.searchpath=[file://{package}/configs]"))
    assert "simam" in said(command("show", *line, f"hydra.searchpath=[pkg://{package.name}.configs]"))
    both = ["attention=none,simam", *SMALL]
    assert "simam" in said(command("speed", *own, "--repetitions", "1", "batch_size=8", *both))
    assert "simam" in said(command("train", *own, "--help"))
    for name in ("show", "count", "speed", "table", "figure", "compare", "eval", "export", "predict"):
        assert "--config-dir" in said(command(name, "--help"))
    assert "did you mean attention=simam?" in said(command("show", *own, "attention=siman"), 2)
    assert "did you mean attention.lam?" in said(command("train", *own, "attention=simam", "attention.lan=1"), 2)
    assert "is not an option" in said(command("show", *line), 2)  # the folder counts for its command alone

    assert "sites (block)" in said(command("train", *own, *line))
    (run,) = (tmp_path / "outputs").glob("runs/digits/resnet20/simam-block-*/seed0")
    said(command("train", *line, f"hydra.searchpath=[{package}/configs]"))  # the same run, done already
    assert len(list((tmp_path / "outputs").glob("runs/*/*/*/seed0"))) == 1
    assert "359 pictures" in said(
        command("eval", str(run))
    )  # its record names the builder; the option file is not needed
    said(command("export", str(run)))
    assert "simam" in said(command("compare", str(run)))
    picture = tmp_path / "a.png"
    subprocess.run([sys.executable, "-c", f"from PIL import Image; Image.new('RGB', (9, 9)).save({str(picture)!r})"])
    said(command("predict", *own, str(run), str(picture)))
    plan = command("table", *own, "sb/5", "--plan", "--scale", "attention=simam", "dataset=digits")
    assert "CHANGED PROTOCOL" in said(plan) and "attention=simam" in plan.stdout

    source = json.loads((run / "env.json").read_text())["source"]
    assert {package.name, f"{package.name}.sim", f"{package.name}.parts", "attnbench"} == source.keys()


def test_python_takes_it(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    configs = package / "configs"
    assert "simam" in attnbench.list_attentions("sim*", config_dir=configs)
    made = attnbench.create_model("resnet20", attention="simam", num_classes=3, config_dir=configs)
    assert made(torch.zeros(1, 3, 8, 8)).shape == (1, 3)
    assert attnbench.list_attentions("sim*") == []
    monkeypatch.setenv("ATTNBENCH_CONFIG_DIR", str(configs))
    assert attnbench.list_attentions("sim*") == ["simam"]
    attnbench.create_model("resnet20", attention="simam")
    monkeypatch.setenv("ATTNBENCH_CONFIG_DIR", str(package / "nowhere"))
    with pytest.raises(ValueError, match=r"there is no folder .*nowhere \(ATTNBENCH_CONFIG_DIR\)"):
        attnbench.list_attentions()


@pytest.mark.parametrize(
    ("target", "trusted", "words"),
    [
        ("PACKAGE.sim.simam", False, "run with ATTNBENCH_TRUST=PACKAGE"),
        ("PACKAGE.sin.simam", True, "there is no module PACKAGE.sin"),
        ("PACKAGE.sim.siman", True, "did you mean PACKAGE.sim.simam?"),
        ("PACKAGE.sim.bare", True, "put @checked above it (from attnbench import checked)"),
        ("PACKAGE.sim.SimAM", True, "put @dataclass above it"),
        ("PACKAGE.sim.energy", True, "write PACKAGE.parts.energy"),
    ],
)
def test_an_error_names_what_is_missing(
    package: Path, command: Command, monkeypatch: pytest.MonkeyPatch, target: str, trusted: bool, words: str
) -> None:
    if not trusted:
        monkeypatch.delenv("ATTNBENCH_TRUST")
    option = package / "configs" / "attention" / "simam.yaml"
    option.write_text(OPTION.replace("PACKAGE.sim.simam", target).replace("PACKAGE", package.name))
    done = command("show", "-cd", f"{package}/configs", "attention=simam")
    assert words.replace("PACKAGE", package.name) in said(done, 2)
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("more", [[], ["placement=block"]])
def test_an_option_without_a_placement_is_told_to_have_one(package: Path, command: Command, more: list[str]) -> None:
    (package / "configs" / "attention" / "simam.yaml").write_text(f"_target_: {package.name}.sim.simam\n")
    done = command("show", "-cd", f"{package}/configs", "attention=simam", *more)
    assert "brings no placement (attention); add this to the option file: defaults:" in said(done, 2)


def test_an_import_that_fails_is_named(package: Path, command: Command) -> None:
    (package / "parts.py").write_text("import nowhere_to_be_found\n")
    done = command("show", "-cd", f"{package}/configs", "attention=simam")
    assert "install nowhere_to_be_found, or correct the import" in said(done, 2)


def test_a_run_under_changed_code_says_so(package: Path, command: Command, tmp_path: Path) -> None:
    line = ["train", "-cd", f"{package}/configs", "attention=simam", *SMALL]
    said(command(*line))
    assert "has changed" not in said(command(*line))
    (package / "parts.py").write_text(PARTS + "\n# another\n")
    assert f"{package.name}.parts has changed since this run was trained" in said(command(*line))
    (run,) = (tmp_path / "outputs").glob("runs/digits/resnet20/simam-*/seed0")
    (run / "result.json").unlink()
    done = said(command(*line))
    assert f"the code has changed since this run began: {package.name}.parts;" in done
    record = json.loads((run / "env.json").read_text())
    assert record["earlier"][0]["source"][f"{package.name}.parts"] != record["source"][f"{package.name}.parts"]
    assert isinstance(record["dirty"], bool) or record["commit"] is None
    (run / "result.json").unlink()
    line_of_change = "the code has changed since " + "this run began"  # logging may print the source of this line
    assert line_of_change not in said(command(*line))
    assert json.loads((run / "env.json").read_text())["earlier"] == record["earlier"]


def test_the_trusted_packages_are_those_of_the_beginning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ATTNBENCH_TRUST", "one")
    with as_trusted_now():
        monkeypatch.setenv("ATTNBENCH_TRUST", "two")
        assert trusted() == ("one",)
    assert trusted() == ("two",)


def test_hashes_are_of_ones_own_modules_alone() -> None:
    assert source_code.digests(composition.compose(["attention=eca"]).tree).keys() == {"attnbench"}


APP = """
import hydra, attnbench
from hydra.core.hydra_config import HydraConfig
from hydra.core.config_store import ConfigStore

@hydra.main(version_base="1.1", config_path="configs", config_name="train")
def main(cfg):
    before = HydraConfig.get().runtime.choices.copy(), hydra.core.global_hydra.GlobalHydra.instance().hydra
    network = attnbench.create_model(cfg.model.name, attention=cfg.model.attention, num_classes=10)
    attnbench.create_model("timm/resnet18", num_classes=10)
    assert before == (HydraConfig.get().runtime.choices, hydra.core.global_hydra.GlobalHydra.instance().hydra)
    assert "backbone" not in ConfigStore.instance().repo
    assert str(hydra.version.getbase()) == "1.1"
    print("parameters", sum(p.numel() for p in network.parameters()))

main()
"""


def test_somebody_elses_hydra_is_left_alone(tmp_path: Path) -> None:
    """A program whose own main file is called train.yaml, too."""
    (tmp_path / "configs" / "model").mkdir(parents=True)
    (tmp_path / "configs" / "train.yaml").write_text("defaults: [_self_, {model: small}]\nlr: 0.1\n")
    (tmp_path / "configs" / "model" / "small.yaml").write_text("name: resnet20\nattention: eca\n")
    (tmp_path / "main.py").write_text(APP)
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "main.py"], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120
    )
    assert "parameters 269749" in done.stdout, done.stderr


def test_a_package_is_not_imported_to_be_found(package: Path) -> None:
    assert folder_of(f"{package.name}.configs") == package / "configs"
    assert package.name not in sys.modules
    assert importlib.util.find_spec(package.name) is not None
