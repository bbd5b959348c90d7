"""The behaviour of ``fit``: the order of events, the rate of each step, and what is measured, saved and resumed."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attnbench.base.errors import NonFiniteError, Stopped
from attnbench.data.dataset import Batch
from attnbench.data.in_memory.resident import Pixels, Resident
from attnbench.data.loader import Loader
from attnbench.training import engine, setup
from attnbench.training.checkpoints import Checkpoints, Timer
from attnbench.training.engine import Saver, fit
from attnbench.training.feed import Feed
from attnbench.training.optim import Schedule
from attnbench.training.recorder import Progress
from attnbench.training.runtime import Process, Runtime
from attnbench.training.state import TrainState, load_weights, set_rng_state

SAMPLES, BATCH, STEPS = 22, 8, 3  # the last batch of an epoch has six samples
READING, COMPUTING, EVALUATING = 0.25, 0.75, 100.0  # seconds on the tests' own clock

MEAN = (0.5, 0.5, 0.5)


class Clock:
    """A clock that moves only when a test moves it."""

    now = 0.0


class Annealed(nn.Linear):
    progress = -1.0

    def set_progress(self, progress: float) -> None:
        self.progress = progress


class Slow(Loader):
    """A loader that takes time for every batch, on the tests' own clock."""

    clock: Clock

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        for batch in super().epoch(epoch, start):
            self.clock.now += READING
            yield batch


class Trial:
    """A small run that records everything that happens in it. It is also the run's task and its recorder.

    Args:
        scores: the metric after each epoch.
        checkpoint_steps: when to save inside an epoch.

    Attributes:
        events: what has happened, in order.
        losses, rates, progress: one entry for each update; ``weights`` are the weights after it.
        modes: for each loss, whether the network was in training mode.
        precisions: the dtypes of the network's outputs.
        lines: the metrics that the recorder received for each epoch.
        stop_after: the update after which a signal arrives.
        bad_loss: the update whose loss is NaN.
    """

    metric = "top1"
    results: tuple[str, ...] = ("top1",)

    def __init__(
        self,
        folder: Path,
        process: Process,
        clock: Clock,
        *,
        scores: Iterable[float] = (50.0, 60.0),
        checkpoint_steps: int | None = None,
        **schedule: Any,
    ) -> None:
        self.process, self.clock, self.scores = process, clock, iter(scores)
        self.events: list[str] = []
        self.losses: list[float] = []
        self.rates: list[float] = []
        self.progress: list[float] = []
        self.weights: list[list[Tensor]] = []
        self.lines: list[Mapping[str, float]] = []
        self.modes: list[bool] = []
        self.precisions: set[torch.dtype] = set()
        self.stop_after = self.bad_loss = 0
        torch.manual_seed(0)
        self.annealed = Annealed(12, 8)
        self.model = nn.Sequential(nn.Flatten(), self.annealed, nn.BatchNorm1d(8), nn.Dropout(), nn.Linear(8, 3))
        self.network = nn.Sequential(self.model)  # a wrapper, like a compiled or distributed network
        self.schedule = Schedule(**{"law": "cosine", "per": "step", "epochs": 2, "lr": 0.1, **schedule})
        self.state = setup.train_state(self.model, self.schedule, process)
        self.state.optimizer.register_step_pre_hook(self._before_update)
        self.state.optimizer.register_step_post_hook(self._after_update)
        loader = Slow(images(), batch_size=BATCH, seed=3, train=True)
        loader.clock = clock
        self.feed = Feed(loader, process, MEAN, MEAN)
        self.checkpoints = Checkpoints(folder, {})
        self.saver = Watched(self, Timer(checkpoint_steps, minutes=1e9))
        torch.manual_seed(1)

    def fit(self) -> None:
        fit(
            self.state,
            self.network,
            self,
            self.feed,
            self._evaluated,
            schedule=self.schedule,
            batch_size=BATCH,
            process=self.process,
            recorder=self,
            saver=self.saver,
        )

    def continued(self, saved: dict[str, Any]) -> None:
        """Restore the state of a checkpoint."""
        load_weights(self.model, saved["model"])
        self.state.load_state_dict(saved)
        set_rng_state(saved["rng"][0])

    def _before_update(self, *_: object) -> None:
        self.rates.append(self.state.lr)
        self.progress.append(self.annealed.progress)

    def _after_update(self, *_: object) -> None:
        self.events.append("update")
        self.weights.append([parameter.detach().clone() for parameter in self.model.parameters()])

    def _evaluated(self) -> dict[str, float]:
        self.events.append("evaluate")
        self.clock.now += EVALUATING
        self.network.eval()  # as the evaluation of a network that cannot be folded does
        return {"top1": next(self.scores)}

    # The task

    def loss(self, network: nn.Module, batch: Batch) -> Tensor:
        self.events.append("loss")
        self.clock.now += COMPUTING
        self.modes.append(network.training and self.model.training)
        assert network is self.network and isinstance(batch.targets, Tensor)
        logits = network(batch.images)
        self.precisions.add(logits.dtype)
        loss = F.cross_entropy(logits, batch.targets) * batch.weight
        if len(self.losses) + 1 == self.bad_loss:
            loss = loss * float("nan")
        self.losses.append(float(loss.detach()))
        if len(self.losses) == self.stop_after:
            self.process.stop_requested = True
        return loss

    def evaluate(self, network: nn.Module, batches: Iterator[Batch], process: Process) -> dict[str, float]:
        raise AssertionError("fit must evaluate with the function that it is given")

    def pictures(self) -> Mapping[str, np.ndarray]:
        return {}

    # The recorder

    def begin(self, epoch: int, epochs: int, step: int, steps: int) -> None:
        self.events.append(f"begin {epoch} of {epochs} at {step} of {steps}")

    def step(self, state: Progress) -> None:
        self.events.append(f"step {state.step}")

    def epoch(self, epoch: int, metrics: Mapping[str, float]) -> None:
        self.events.append(f"line {epoch}")
        self.lines.append(dict(metrics))

    def close(self) -> None: ...


class Watched(Saver):
    """A saver whose calls are events of a trial."""

    def __init__(self, trial: Trial, timer: Timer) -> None:
        super().__init__(trial.checkpoints, timer, trial.process, trial.metric)
        self.events = trial.events

    def after_step(self, state: TrainState) -> None:
        self.events.append("after step")
        super().after_step(state)

    def after_epoch(self, state: TrainState, metrics: Mapping[str, float]) -> None:
        self.events.append("after epoch")
        super().after_epoch(state, metrics)

    def save(self, state: TrainState) -> None:
        self.events.append(f"save {state.epoch}.{state.step}")
        super().save(state)


def images() -> Resident:
    """Images of 2 x 2 pixels, of three classes."""
    random = np.random.default_rng(0)
    pixels = random.integers(0, 256, (SAMPLES, 2, 2, 3), dtype=np.uint8)
    return Resident(Pixels(pixels, random.integers(0, 3, SAMPLES)), pad=0, flip=False)


@pytest.fixture
def process() -> Iterator[Process]:
    with Runtime(device="cpu").start() as started:
        yield started


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The only clock that training reads."""
    clock = Clock()
    for name in ("perf_counter", "monotonic"):
        monkeypatch.setattr(time, name, lambda: clock.now)
    return clock


Begin = Callable[..., Trial]


@pytest.fixture
def begin(tmp_path: Path, process: Process, clock: Clock) -> Begin:
    """Makes trials; all trials of a test use the same folder of checkpoints."""
    return lambda **options: Trial(tmp_path / "checkpoints", process, clock, **options)


def an_epoch(number: int, first: int = 1) -> list[str]:
    """The events of an epoch, beginning with a given step."""
    steps = [event for step in range(first, STEPS + 1) for event in ("loss", "update", f"step {step}", "after step")]
    return [
        f"begin {number} of 2 at {first - 1} of {STEPS}",
        *steps,
        *("evaluate", f"line {number}", "after epoch", f"save {number + 1}.0"),
    ]


def test_every_step_is_recorded_and_every_epoch_is_evaluated_recorded_and_saved(begin: Begin) -> None:
    trial = begin()
    trial.fit()
    assert trial.events == an_epoch(0) + an_epoch(1)
    assert (trial.state.epoch, trial.state.step) == (2, 0)


def test_a_run_goes_on_after_the_last_step_that_it_did(begin: Begin) -> None:
    trial = begin()
    trial.state.epoch, trial.state.step = 1, 2
    trial.fit()
    assert trial.events == an_epoch(1, first=3)


def test_a_batch_in_parts_is_one_step(begin: Begin) -> None:
    trial = begin(accumulate=2, epochs=1)
    trial.fit()
    assert trial.events[:6] == ["begin 0 of 1 at 0 of 3", "loss", "loss", "update", "step 1", "after step"]
    assert trial.events.count("update") == STEPS


@pytest.mark.parametrize("per", ["step", "epoch"])
def test_the_rate_is_set_before_each_step_and_so_is_what_anneals(begin: Begin, per: str) -> None:
    trial = begin(per=per, lr_reference_batch=2)  # where the rate depends on the batch size too
    trial.fit()
    at = [epoch + step / STEPS for epoch in range(2) for step in range(STEPS)]
    assert trial.progress == at
    assert trial.rates == [trial.schedule.rate(progress, BATCH) for progress in at]
    assert len(set(trial.rates)) == (6 if per == "step" else 2)
    assert trial.lines[1]["lr"] == trial.rates[-1]


def test_a_warmup_in_steps_counts_the_steps_of_all_epochs(begin: Begin) -> None:
    """Three steps an epoch; also after a start in the middle."""
    expected = [0.1 * (0.25 + 0.75 * step / 5) for step in range(5)] + [0.1]
    for first in (0, 4):
        trial = begin(law="step", per="epoch", warmup_steps=5, warmup_from=0.25, scores=(50.0, 60.0))
        trial.state.epoch, trial.state.step = divmod(first, STEPS)
        trial.fit()
        assert trial.rates == pytest.approx(expected[first:])


def test_the_network_trains_in_every_step_also_after_an_evaluation(begin: Begin) -> None:
    trial = begin()
    trial.fit()
    assert trial.modes == [True] * 2 * STEPS


@pytest.mark.parametrize(("precision", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16)])
def test_the_loss_is_computed_in_the_runs_precision(
    tmp_path: Path, clock: Clock, precision: str, dtype: torch.dtype
) -> None:
    with Runtime(device="cpu", precision=precision).start() as process:  # type: ignore[arg-type]
        trial = Trial(tmp_path, process, clock, epochs=1)
        trial.fit()
    assert trial.precisions == {dtype}


def test_the_average_takes_in_the_weights_of_each_step(begin: Begin) -> None:
    trial = begin(ema_decay=0.75)
    trial.fit()
    by_hand = trial.weights[0]
    for weights in trial.weights[1:]:
        by_hand = [0.75 * mean + 0.25 * now for mean, now in zip(by_hand, weights, strict=True)]
    assert len(trial.weights) == 2 * STEPS
    torch.testing.assert_close(list(trial.state.evaluated.parameters()), by_hand)


def test_an_epochs_loss_is_the_mean_of_its_steps(begin: Begin) -> None:
    trial = begin()
    trial.fit()
    means = [sum(trial.losses[i : i + STEPS]) / STEPS for i in (0, STEPS)]
    assert [line["train_loss"] for line in trial.lines] == pytest.approx(means)
    assert trial.state.loss_sum == 0


def test_images_a_second_are_those_of_training_without_evaluation(begin: Begin) -> None:
    trial = begin()
    trial.fit()
    for line in trial.lines:
        assert line["images_per_s"] == pytest.approx(SAMPLES / (STEPS * (READING + COMPUTING)))
        assert line["data_time_share"] == pytest.approx(READING / (READING + COMPUTING))


def test_images_a_second_of_a_continued_epoch_are_of_the_steps_that_were_done_since(begin: Begin) -> None:
    trial = begin()
    trial.state.epoch, trial.state.step = 1, 1
    trial.fit()
    assert trial.lines[0]["images_per_s"] == pytest.approx(SAMPLES / (STEPS * (READING + COMPUTING)))
    assert trial.lines[0]["data_time_share"] == pytest.approx(READING / (READING + COMPUTING))


def test_an_epoch_that_only_had_to_be_evaluated_has_no_speed(begin: Begin) -> None:
    trial = begin()
    trial.state.epoch, trial.state.step = 1, STEPS
    trial.fit()
    assert trial.events == an_epoch(1, first=STEPS + 1)
    assert {"images_per_s", "data_time_share"} & trial.lines[0].keys() == set()


@pytest.mark.parametrize(
    ("scores", "best", "epoch"),
    [((50, 50, 40), 50, 1), ((40, 50, 50), 50, 2), ((30, 20, 40), 40, 3), ((0, 0, 0), 0, 1)],
)
def test_the_best_epoch_is_the_first_that_no_later_one_exceeds(
    begin: Begin, scores: tuple[float, ...], best: float, epoch: int
) -> None:
    trial = begin(scores=map(float, scores), epochs=3)
    trial.fit()
    assert trial.state.best == {"top1": best, "epoch": epoch}
    kept = torch.load(trial.checkpoints.best, weights_only=True)
    assert (kept["top1"], kept["epoch"]) == (best, epoch)
    assert torch.equal(kept["model"]["1.weight"], trial.weights[epoch * STEPS - 1][0])


def test_the_best_weights_are_those_that_were_evaluated(begin: Begin) -> None:
    trial = begin(ema_decay=0.75, epochs=1)
    trial.fit()
    kept = torch.load(trial.checkpoints.best, weights_only=True)["model"]
    averaged = trial.state.evaluated.state_dict()
    assert all(torch.equal(kept[name], averaged[name]) for name in averaged)
    assert not torch.equal(kept["1.weight"], trial.state.model.state_dict()["1.weight"])


@pytest.mark.parametrize("checkpoint_steps", [None, 1])
def test_seconds_add_up_over_saves_and_starts(begin: Begin, clock: Clock, checkpoint_steps: int | None) -> None:
    trial = begin(checkpoint_steps=checkpoint_steps)
    trial.state.seconds = 1000.0  # of an earlier start
    trial.fit()
    passed = 2 * (STEPS * (READING + COMPUTING) + EVALUATING)
    assert clock.now == pytest.approx(passed)
    assert trial.state.seconds == pytest.approx(1000 + passed)
    saved = trial.checkpoints.load()
    assert saved is not None and saved["seconds"] == pytest.approx(1000 + passed)
    again = begin()
    again.continued(saved)
    assert again.state.seconds == pytest.approx(1000 + passed)


def test_checkpoints_are_written_inside_an_epoch_when_they_are_due(begin: Begin) -> None:
    trial = begin(checkpoint_steps=2, epochs=1)
    trial.fit()
    assert [event for event in trial.events if event.startswith("save")] == ["save 0.2", "save 1.0"]


@pytest.mark.parametrize("after", range(1, 2 * STEPS + 1))
def test_a_run_that_is_stopped_after_any_step_ends_as_if_it_had_not_been(begin: Begin, after: int) -> None:
    whole = begin(ema_decay=0.75)
    whole.fit()
    stopped = begin(ema_decay=0.75)
    stopped.stop_after = after
    with pytest.raises(Stopped):
        stopped.fit()
    assert stopped.events[-1] == "after step" and stopped.events.count("update") == after
    assert stopped.state.epoch * STEPS + stopped.state.step == after
    stopped.saver.save(stopped.state)
    saved = stopped.checkpoints.load()
    assert saved is not None
    stopped.process.stop_requested = False
    rest = begin(ema_decay=0.75, scores=[60.0] if after > STEPS else [50.0, 60.0])
    rest.continued(saved)
    rest.fit()
    assert rest.state.digest() == whole.state.digest()
    assert [line["train_loss"] for line in stopped.lines + rest.lines] == [line["train_loss"] for line in whole.lines]
    assert rest.state.best == whole.state.best


@pytest.mark.parametrize("step", [1, 2, 3])
def test_a_loss_that_is_not_a_number_ends_the_run_before_anything_of_it_is_kept(begin: Begin, step: int) -> None:
    trial = begin()
    trial.bad_loss = STEPS + step
    with pytest.raises(NonFiniteError, match=r"the loss became nan \(epoch 2, step 3\)"):
        trial.fit()
    assert trial.events.count("evaluate") == 1 and len(trial.lines) == 1
    saved = trial.checkpoints.load()
    assert saved is not None and (saved["epoch"], saved["step"]) == (1, 0)
    assert all(tensor.isfinite().all() for tensor in saved["model"].values())


def test_a_checkpoint_that_is_due_is_not_written_of_weights_that_are_not_numbers(begin: Begin) -> None:
    trial = begin(checkpoint_steps=1)
    trial.bad_loss = 2
    with pytest.raises(NonFiniteError):
        trial.fit()
    saved = trial.checkpoints.load()
    assert saved is not None and (saved["epoch"], saved["step"]) == (0, 1)


# The evaluation that a run passes to fit


class Asked:
    """A task whose metrics describe how its evaluation was called."""

    metric = "top1"
    results: tuple[str, ...] = ("top1",)

    def __init__(self, clock: Clock) -> None:
        self.clock = clock

    def loss(self, network: nn.Module, batch: Batch) -> Tensor:
        raise AssertionError("an evaluation has no loss")

    def evaluate(self, network: nn.Module, batches: Iterator[Batch], process: Process) -> dict[str, float]:
        logits = [network(batch.images) for batch in batches]
        self.clock.now += 2.0
        return {
            "samples": float(sum(map(len, logits))),
            "autocast": float(torch.is_autocast_enabled("cpu")),
            "gradients": float(torch.is_grad_enabled()),
            "training": float(network.training),
            "weight": first_weight(network),
            "bits": float(logits[0].dtype.itemsize * 8),
        }

    def pictures(self) -> Mapping[str, np.ndarray]:
        return {}


def first_weight(network: nn.Module) -> float:
    return next(network.parameters()).flatten()[0].item()


@pytest.mark.parametrize(("precision", "bits"), [("fp32", 32), ("bf16", 16)])
def test_an_evaluation_is_of_the_averaged_weights_in_the_runs_precision(
    begin: Begin, clock: Clock, precision: str, bits: int
) -> None:
    trial = begin(ema_decay=0.75, epochs=1)
    trial.fit()
    with Runtime(device="cpu", precision=precision).start() as process:  # type: ignore[arg-type]
        feed = Feed(Loader(images(), batch_size=BATCH, seed=0, train=False), process, MEAN, MEAN)
        metrics = engine.evaluation(trial.state, Asked(clock), feed, process)
    expected = first_weight(trial.state.evaluated)
    assert metrics.pop("weight") == pytest.approx(expected, rel=1e-2)
    assert metrics == {
        "samples": SAMPLES,
        "autocast": bits == 16,
        "gradients": False,
        "training": False,
        "bits": bits,
        "val_images_per_s": SAMPLES / 2.0,
    }
