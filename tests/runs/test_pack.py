"""Runs that are trained in a pack are equal to the same runs alone."""

from __future__ import annotations

import json
import logging
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from attnbench.base import files
from attnbench.config import composition
from attnbench.config.configuration import Config
from attnbench.launch import pool
from attnbench.launch.executor import Member
from attnbench.launch.packing import objection, packs
from attnbench.models import factory
from attnbench.models.insertion import Site
from attnbench.reports.rows import seeded
from attnbench.runs import packed
from attnbench.runs.attempt import Outcome, attempt
from attnbench.training.engine import Saver
from attnbench.training.feed import Feed
from tests.conftest import ROOT
from tests.small_runs import SMALL, ForkServer, killed_at, wait_for
from tests.sweeps import Sweep

SHORT = [*SMALL, "batch_size=256"]  # 12 steps; the sixth and the last have fewer images
SEEDS = (0, 1, 2)
LISTED = ",".join(map(str, SEEDS))


def runs(outputs: Path, name: str = "result.json") -> dict[int, dict[str, Any]]:
    """A file of each run's folder, by seed."""
    paths = (outputs / "runs").glob(f"*/*/*/seed*/{name}")
    return {int(path.parent.name.removeprefix("seed")): json.loads(path.read_text()) for path in paths}


@pytest.fixture(scope="module")
def alone(forks: ForkServer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The outputs of three runs of SHORT, each trained alone."""
    outputs = tmp_path_factory.mktemp("alone")
    for seed in SEEDS:
        assert forks.run(outputs, "batch_size=256", f"seed={seed}").code == 0
    return outputs


def configs(outputs: Path, *overrides: str) -> list[Config]:
    """A configuration of SHORT for each seed."""
    one = composition.compose([*SHORT, f"paths.outputs={outputs}", *overrides])
    return [seeded(one, seed) for seed in SEEDS]


def train(some: Sequence[Config]) -> list[Outcome]:
    """Train them at once, in this process."""
    outcomes: dict[int, Outcome] = {}
    packed.train_pack(some, outcomes.__setitem__)
    return [outcomes[number] for number in range(len(some))]


def in_a_pack(outputs: Path, dies: Callable[[], None] = int) -> None:  # type: ignore[assignment]
    """In a forked process: train the three runs at once instead of the run that was requested."""
    dies()
    os._exit(max(outcome.failure.code if outcome.failure else 0 for outcome in train(configs(outputs))))


@pytest.fixture
def sweep(tmp_path: Path) -> Sweep:
    """A sweep in packs on one core, since the runs that it is compared with had one thread."""
    one = Sweep(tmp_path, "hydra/launcher=pool", "hydra.launcher.pack=auto")
    one.environment["ATTNBENCH_CORES"] = "1"
    return one


def test_a_pack_that_is_killed_goes_on_in_halves_and_leaves_what_single_runs_leave(sweep: Sweep, alone: Path) -> None:
    outputs, overrides = sweep.folder / "outputs", [*SHORT, f"seed={LISTED}"]
    process = sweep.start(*overrides)
    wait_for(lambda: len(list(outputs.rglob("last.pt"))) == 3 or process.poll() is not None)
    os.kill(sweep.statuses()[0]["pid"], signal.SIGKILL)
    out, err = process.communicate(timeout=240)
    assert process.returncode == 0 and "3 done, 0 skipped, 0 failed" in out, err
    assert err.count("a pack of 3 failed: killed by SIGKILL") == 1 and "retrying in packs of at most 2" in err
    assert_equal(runs(outputs), runs(alone))
    assert sorted(result["packed"] for result in runs(outputs).values()) == [1, 2, 2]
    assert all(result["resumed_from_step"] > 0 for result in runs(outputs).values())
    assert {path.relative_to(outputs) for path in lasting(outputs)} == {p.relative_to(alone) for p in lasting(alone)}
    for path in [*outputs.rglob("gauges.jsonl"), *outputs.rglob("predictions.csv")]:
        assert path.read_text() == (alone / path.relative_to(outputs)).read_text()
    for path in outputs.rglob("train.log"):
        text = path.read_text()
        assert text.count("3 runs take turns at each step: one network keeps a cpu busy") == 1
        assert text.count("epoch 2/2 loss") == 1
    before = {path: path.stat().st_mtime_ns for path in outputs.rglob("*") if path.name != "multirun.yaml"}
    code, out, err = sweep.run(*overrides)
    assert code == 0 and "0 done, 3 skipped, 0 failed" in out, err
    assert {path: path.stat().st_mtime_ns for path in before} == before


SAME = ("top1", "best_top1", "epochs", "params", "config_hash", "data", "state_sha256")


def assert_equal(ours: dict[int, dict[str, Any]], theirs: dict[int, dict[str, Any]]) -> None:
    """Compare results of packed runs and of single runs, to the last bit."""
    assert {s: [one[key] for key in SAME] for s, one in ours.items()} == {
        s: [one[key] for key in SAME] for s, one in theirs.items()
    }


def lasting(outputs: Path) -> list[Path]:
    """The files of runs, without TensorBoard's, whose names contain the time."""
    return [path for path in (outputs / "runs").rglob("*") if path.is_file() and "tb" not in path.parts]


def test_runs_at_different_steps_are_packed_and_killed_and_packed_again(
    forks: ForkServer, alone: Path, tmp_path: Path
) -> None:
    """Run 1 is three steps ahead, so its smaller last batch of an epoch comes at another step."""
    assert forks.run(tmp_path, "batch_size=256", "seed=1", before=partial(killed_at, 0, 4)).code == -signal.SIGKILL
    dies = partial(killed_at, 1, 2)
    assert forks.run(tmp_path, before=partial(in_a_pack, tmp_path, dies)).code == -signal.SIGKILL
    assert len(runs(tmp_path)) == 0
    assert forks.run(tmp_path, before=partial(in_a_pack, tmp_path)).code == 0
    assert_equal(runs(tmp_path), runs(alone))
    assert {seed: result["resumed_from_step"] for seed, result in runs(tmp_path).items()} == {0: 3, 1: 6, 2: 3}
    assert {result["packed"] for result in runs(tmp_path).values()} == {3}


def test_a_pack_that_is_stopped_is_continued_by_single_runs(forks: ForkServer, alone: Path, tmp_path: Path) -> None:
    assert forks.run(tmp_path, before=partial(in_a_pack, tmp_path, stopped_after_a_while)).code == 143
    statuses = runs(tmp_path, "status.json")
    assert [statuses[seed]["status"] for seed in SEEDS] == ["stopped"] * 3
    steps = [torch.load(path, weights_only=True)["step"] for path in tmp_path.rglob("last.pt")]
    assert len(set(steps)) == 1  # all stopped after the same step
    for seed in SEEDS:
        assert forks.run(tmp_path, "batch_size=256", f"seed={seed}").code == 0
    assert_equal(runs(tmp_path), runs(alone))
    assert {result["resumed_from_step"] for result in runs(tmp_path).values()} == set(steps)


def stopped_after_a_while() -> None:
    """In a forked process: SIGTERM arrives while the second run is in its fourth step."""
    plain, calls = Saver.after_step, 0

    def after_step(self: Saver, state: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == 3 * 3 + 2:
            os.kill(os.getpid(), signal.SIGTERM)
        plain(self, state)

    Saver.after_step = after_step  # type: ignore[method-assign]


# In this process


@pytest.fixture
def exact(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make networks and images float64, and stack networks as on a GPU."""
    network, normalised = factory.network, Feed.normalised

    def in_double(*arguments: Any) -> tuple[nn.Module, list[Site]]:
        model, sites = network(*arguments)
        return model.double(), sites

    monkeypatch.setattr(factory, "network", in_double)
    monkeypatch.setattr(Feed, "normalised", lambda self, images: normalised(self, images).double())
    monkeypatch.setattr(packed, "IN_TURNS", set())


TINY = ["batch_size=512", "dataset.size=4", "dataset.pad=0", "schedule.epochs=1", "runtime.device=cpu"]
TINY += ["backbone=resnet20", "backbone.depth=8", "attention=sb", "placement.stages=[3]", "attention.dropout=0.2"]
CLIPPED = ["schedule.clip_grad_norm=0.1", "schedule.weight_decay=0.01", "schedule.no_decay=[lambda_]"]
VARIED = [
    ["seed=0", "schedule.lr=0.02"],
    ["seed=1", "attention.lambda_init=0.3", "attention.gate=sigmoid", "schedule.clip_grad_norm=0.5"],
    ["seed=2", "attention.dropout=0.5", "schedule.ema_decay=0.9", "schedule.epochs=2", *CLIPPED],
]
POISON = ["seed=3", "schedule.lr=1e200"]


def test_runs_that_differ_in_values_are_what_they_are_alone(exact: None, tmp_path: Path) -> None:
    """Three steps, the last with another batch size; one run goes on for six when the others are done."""
    together, apart = (
        [composition.compose([*TINY, *one, f"paths.outputs={tmp_path / where}"]) for one in (*VARIED, POISON)]
        for where in ("packed", "alone")
    )
    assert len(packs([Member(str(c.seed), c) for c in together], 1, None)) == 1
    outcomes = train(together)
    assert [outcome.state for outcome in outcomes] == ["done", "done", "done", "failed"]
    assert "the loss became nan" in str(outcomes[3].failure)
    for ours, one in zip(outcomes[:3], apart, strict=False):
        theirs = attempt(lambda one=one: one)  # type: ignore[misc]
        ends = [torch.load(Path(o.folder) / "checkpoints/last.pt", weights_only=True) for o in (ours, theirs)]
        tensors = [dict(named(end, "")) for end in ends]
        assert tensors[0].keys() == tensors[1].keys()
        for name, value in tensors[0].items():
            torch.testing.assert_close(value, tensors[1][name], rtol=0, atol=1e-10, msg=name)
        sizes = [(Path(o.folder) / "checkpoints/last.pt").stat().st_size for o in (ours, theirs)]
        assert sizes[0] < 1.01 * sizes[1]  # slices are saved, and not the whole stacked tensors


def named(value: Any, name: str) -> Iterator[tuple[str, Tensor]]:
    if isinstance(value, Tensor):
        yield name, value.double()
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from named(item, f"{name}.{key}")
    elif isinstance(value, list):
        for i, item in enumerate(value):
            yield from named(item, f"{name}.{i}")


# How the run of a seed ends after its second step.
ENDS = {
    "seed3": ZeroDivisionError("an error of this run"),
    "seed4": SystemExit(3),
    "seed5": torch.OutOfMemoryError("no more"),
}


def test_what_goes_wrong_in_a_run_ends_no_other(alone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = Saver.after_step

    def after_step(self: Saver, state: Any) -> None:
        if state.step == 2 and (end := ENDS.get(self.checkpoints.folder.parent.name)):
            raise end
        plain(self, state)

    monkeypatch.setattr(Saver, "after_step", after_step)
    some = configs(tmp_path)
    some[1] = some[1].updated({"schedule": {"lr": 1e30}})
    outcomes = train([*some, *(seeded(some[0], int(name.removeprefix("seed"))) for name in ENDS)])
    reasons = ["", "the loss became nan", "", "unexpected ZeroDivisionError", "ended by SystemExit", "out of memory"]
    for outcome, reason in zip(outcomes, reasons, strict=True):
        assert outcome.state == ("failed" if reason else "done") and reason in str(outcome.failure or "")
        status = files.read_json(Path(outcome.folder) / "status.json")
        assert status["status"] == outcome.state and status.get("error", "") == str(outcome.failure or "")
        log = (Path(outcome.folder) / "train.log").read_text()
        assert log.count("Traceback (most recent call last)") == bool(reason)
    assert [outcome.shared for outcome in outcomes] == [False] * 5 + [True]  # alone, memory may suffice
    assert_equal(runs(tmp_path), {seed: result for seed, result in runs(alone).items() if seed != 1})


@pytest.fixture
def faulty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[Outcome]]:
    """Trains three runs with a fault of tests/faulty_attention.py, packed and stacked."""
    monkeypatch.setenv("ATTNBENCH_TRUST", "tests")
    monkeypatch.setenv("ATTNBENCH_FAULTS", str(ROOT))
    monkeypatch.setattr(packed, "IN_TURNS", set())

    def trained(member: int, seeds: Sequence[int] = SEEDS) -> list[Outcome]:
        overrides = [*TINY[:-3], "batch_size=128", f"paths.outputs={tmp_path}"]
        one = composition.compose([*overrides, "attention=se"])
        node = {"_target_": "tests.faulty_attention.faulty", "member": member}
        return train([seeded(replace(one, tree=one.tree | {"attention": node}), seed) for seed in seeds])

    return trained


@pytest.mark.parametrize(("member", "code"), [(51, 6), (52, 1)])
def test_an_error_in_a_shared_step_is_a_shared_failure(
    faulty: Callable[..., list[Outcome]], member: int, code: int
) -> None:
    """Too little memory for three runs, or an error that needs more than two; afterwards, two at once succeed."""
    outcomes = faulty(member)
    assert [(o.failure and o.failure.code, o.shared) for o in outcomes] == [(code, True)] * 3
    assert [(o.state, o.shared) for o in faulty(member, seeds=(0, 1))] == [("done", False)] * 2
    (again,) = faulty(member, seeds=(0,))
    assert again.state == "skipped" and again.result and again.result["packed"] == 2


def test_a_network_that_mixes_samples_is_not_stacked(
    faulty: Callable[..., list[Outcome]], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "attnbench"):
        outcomes = faulty(53)
    assert [outcome.state for outcome in outcomes] == ["done"] * 3
    why = "3 runs take turns at each step: stacked networks give other results (its outputs differ)"
    assert caplog.messages.count(why) == 1


def members(*some: str) -> list[Member]:
    return [Member(overrides, composition.compose([*SMALL, *overrides.split()])) for overrides in some]


def names(some: list[list[Member]]) -> list[list[str]]:
    return [[member.name for member in one] for one in some]


def test_what_is_packed_with_what() -> None:
    free = ["seed=1", "attention.lambda_init=0.5", "attention.gate=relu", "attention.dropout=0.9", "schedule.law=step"]
    shapes = ["attention.hidden=2", "batch_size=64", "schedule.accumulate=2", "runtime.precision=bf16"]
    some = members("seed=0", *shapes, *free)
    assert names(packs(some, 1, None)) == [["seed=0", *free], *([shape] for shape in shapes)]
    twins = members("seed=0", "seed=1", "seed=0")
    assert names(packs(twins, 1, None)) == [["seed=0", "seed=1"], ["seed=0"]]  # only one run can hold a folder
    five = members(*(f"seed={seed}" for seed in range(5)))
    assert [len(one) for one in packs(five, 1, 2)] == [2, 2, 1]
    assert [len(one) for one in packs(five, 2, None)] == [3, 2]
    assert [len(one) for one in packs(five, 4, 1)] == [1] * 5
    assert names(packs(five, 1, None, {five[0]: 1, five[2]: 1})) == [
        ["seed=0"],
        ["seed=2"],
        ["seed=1", "seed=3", "seed=4"],
    ]
    assert packs([], 2, None) == []


def test_runs_that_are_never_packed_are_reported_with_the_reason(capsys: pytest.CaptureFixture[str]) -> None:
    detect = [seeded(composition.compose(["task=detection", "detector=ssd"]), seed) for seed in SEEDS]
    shared = configs(Path("outputs"), "runtime.processes=2")
    some = [Member(str(one.seed), one) for one in (*detect, *shared, *configs(Path("outputs")))]
    assert [len(one) for one in packs(some, 1, None)] == [1] * 6 + [3]
    pool.Pool(pack="auto").executor(some)
    assert capsys.readouterr().err.splitlines() == [
        f"not packed: 3 of 9 members ({objection(detect[0])})", f"not packed: 3 of 9 members ({objection(shared[0])})"
    ]  # fmt: skip
    assert "task=detection" in objection(detect[0]) and "runtime.processes=2" in objection(shared[0])
    pool.Pool().executor(some)
    assert capsys.readouterr().err == ""
