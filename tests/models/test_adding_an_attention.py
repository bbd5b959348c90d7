"""docs/adding-an-attention.md, followed to the letter: two files, and it trains."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from tests.conftest import ROOT


def blocks(text: str) -> list[str]:
    return re.findall(r"```(?:python|yaml)\n(.*?)```", text, re.DOTALL)


def checkout(folder: Path) -> Path:
    for name in ("attnbench", "configs"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "train.py", folder)
    return folder


def test_two_files_add_an_attention(tmp_path: Path) -> None:
    here = checkout(tmp_path)
    module, option = blocks((ROOT / "docs" / "adding-an-attention.md").read_text(encoding="utf-8"))
    (here / "attnbench/models/attention/sm.py").write_text(module, encoding="utf-8")
    (here / "configs/attention/sm.yaml").write_text(option, encoding="utf-8")
    environment = os.environ | {"PYTHONPATH": str(here)}

    def train(*words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "train.py", "attention=sm", "schedule.epochs=1", *words]
        return subprocess.run(command, cwd=here, env=environment, capture_output=True, text=True)

    done = train("attention.init=0.5")
    assert done.returncode == 0, done.stderr
    assert list((here / "outputs/runs/digits/resnet20").glob("sm-block-*/seed0/result.json"))
    assert "3 sites (block)" in done.stderr
    refused = train("attention.init=-1")
    assert (refused.returncode, refused.stdout) == (2, "")
    assert "attention.init" in refused.stderr
