"""``attnbench eval``: a run's weights give the values of its result.json, and other data are reported as such."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from attnbench.base.errors import DataError, Failure
from attnbench.cli import main
from attnbench.config.configuration import Config
from attnbench.runs.evaluate import evaluate
from attnbench.runs.load import load_run, ready
from attnbench.training.checkpoints import Checkpoints
from attnbench.training.recorder import read_metrics
from attnbench.training.runtime import Process
from attnbench.training.tasks.classification import Classification


@pytest.fixture
def run_eval(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    def call(*arguments: object) -> str:
        monkeypatch.setattr(sys, "argv", ["attnbench eval", *map(str, arguments)])
        capsys.readouterr()
        main.command("eval")()
        return capsys.readouterr().out

    return call


def test_it_gives_what_the_run_wrote_down(trained: Config, run_eval: Callable[..., str]) -> None:
    result = json.loads((trained.run_folder / "result.json").read_text())
    found = json.loads(run_eval(trained.run_folder, "--json"))
    assert [found["top1"], found["top5"]] == pytest.approx([result["top1"], result["top5"]], abs=1e-6)
    assert found["val_loss"] == pytest.approx(
        read_metrics(trained.run_folder / "metrics.jsonl")[-1]["val_loss"], rel=1e-5
    )
    assert found["images"] == 359 and found["epoch"] == 1 and found["which"] == "last"
    assert found["data"]["fingerprint"] == result["data"]["fingerprint"] and found["same_data"] is True
    assert found["changed"] == []
    assert f"{result['top1']:.3f}" in run_eval(trained.run_folder)


def test_a_long_evaluation_says_how_far_it_is(
    trained: Config, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("attnbench.base.console.LINE_SECONDS", 0.0)
    evaluate(trained.run_folder)
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("evaluating: ")]
    assert [line.partition(",")[0] for line in lines] == [f"evaluating: {k} of 3 batches" for k in (1, 2, 3)]


def test_best_weights_are_evaluated_when_asked_for(trained: Config, tmp_path: Path) -> None:
    folder = shutil.copytree(trained.run_folder, tmp_path / "seed0")
    nothing = {key: torch.zeros_like(value) for key, value in load_run(folder).model.state_dict().items()}
    Checkpoints(folder / "checkpoints", trained.identity).save_best(nothing, {"top1": 99.0, "epoch": 1})
    best, last = evaluate(folder, "best"), evaluate(folder, "last")
    assert best["val_loss"] == pytest.approx(torch.log(torch.tensor(10.0)).item())  # all logits are equal
    assert last["val_loss"] != best["val_loss"]


def test_the_precision_is_the_one_that_is_asked_for(trained: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def measure(task: Classification, network: nn.Module, batches: object, process: Process) -> dict[str, float]:
        asked.append((torch.is_autocast_enabled("cpu"), torch.is_grad_enabled(), network.training))
        return plain(task, network, batches, process)  # type: ignore[arg-type]

    plain = Classification.evaluate
    monkeypatch.setattr(Classification, "evaluate", measure)
    full, half = (evaluate(trained.run_folder, overrides=[f"runtime.precision={name}"]) for name in ("fp32", "bf16"))
    assert asked == [(False, False, False), (True, False, False)]
    assert full["val_loss"] != half["val_loss"] == pytest.approx(full["val_loss"], rel=0.05)


def test_other_data_are_reported(trained: Config, run_eval: Callable[..., str]) -> None:
    found = evaluate(trained.run_folder, overrides=["dataset.size=12", "runtime.workers=0"])
    assert found["same_data"] is False and found["changed"] == ["dataset.size=12"]
    output = run_eval(trained.run_folder, "dataset.size=12")
    assert "CHANGED PROTOCOL: dataset.size=12" in output and "not the data" in output


def test_data_of_other_classes_are_refused(trained: Config) -> None:
    network = load_run(trained.run_folder)
    object.__setattr__(network, "classes", list("abcdefg"))
    with pytest.raises(DataError, match="these data have 10 that the run lacks: 0, 1, .* and lack 7"), ready(network):
        pass


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["{run}", "schedule.lr=1"], 2, "schedule.lr=1 cannot be changed after the training"),
        (["{run}", "dataset=cifar10"], 2, "dataset=cifar10 cannot be changed"),
        (["{run}", "dataset.sise=9"], 2, "did you mean dataset.size"),
        (["{run}", "dataset.size=none"], 2, "dataset.size"),
        (["{run}/nowhere"], 5, "no config.yaml"),
        ([], 2, "RUN"),
    ],
)
def test_bad_arguments_give_one_line_and_an_exit_code(
    trained: Config, run_eval: Callable[..., str], arguments: list[str], code: int, message: str
) -> None:
    with pytest.raises(Failure, match=message) as raised:
        run_eval(*(argument.replace("{run}", str(trained.run_folder)) for argument in arguments))
    assert raised.value.code == code and "\n" not in str(raised.value)
