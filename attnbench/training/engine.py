"""The training loop."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from attnbench.base.errors import Stopped
from attnbench.data.dataset import Batch
from attnbench.models import freezing
from attnbench.models.folding import folded
from attnbench.training.checkpoints import Checkpoints, Timer
from attnbench.training.feed import Feed
from attnbench.training.optim import Schedule
from attnbench.training.parts import number
from attnbench.training.recorder import Recorder
from attnbench.training.runtime import Process
from attnbench.training.state import TrainState, rng_state
from attnbench.training.step import Update, recorded


class Task(Protocol):
    """What a network is trained for: its loss, its metrics and its images."""

    @property
    def metric(self) -> str:
        """The metric that decides which epoch is the best."""
        ...

    @property
    def results(self) -> tuple[str, ...]:
        """The last epoch's metrics that go into result.json."""
        ...

    def loss(self, network: nn.Module, batch: Batch) -> Tensor:
        """The loss to minimise, a scalar: the mean over the batch times the batch's weight."""
        ...

    def evaluate(self, network: nn.Module, batches: Iterator[Batch], process: Process) -> dict[str, float]:
        """Metrics over the validation split; each sample counts once."""
        ...

    def pictures(self) -> Mapping[str, np.ndarray]:
        """Images that illustrate the last evaluation, uint8 (H, W, 3), by name."""
        ...


def fit(
    state: TrainState,
    network: nn.Module,
    task: Task,
    train: Feed,
    evaluate: Callable[[], Mapping[str, float]],
    *,
    schedule: Schedule,
    batch_size: int,
    process: Process,
    recorder: Recorder,
    saver: Saver,
) -> None:
    """Train from the state's position to the schedule's last epoch.

    Args:
        state: what is trained, and how far the training has come.
        network: the state's model in the form that is called: compiled, or wrapped in DDP.
        evaluate: returns the metrics of the state's present weights.

    Raises:
        NonFiniteError: the loss or a weight is NaN or infinite.
        Stopped: a signal asked the run to stop; the state is between two steps.
    """
    clip = schedule.clip_grad_norm
    parts = number(schedule.accumulate, process.runtime.norm_batch, batch_size, process.world_size)
    update = Update(state, lambda part: task.loss(network, part), process, parts, clip)
    step = recorded(update, schedule.per) if process.runtime.graph else update
    for epoch in range(state.epoch, schedule.epochs):
        clock = Clock(state, train)
        recorder.begin(epoch, schedule.epochs, state.step, len(train))
        network.train()
        freezing.hold(state.model, state.frozen)
        for batch in train.epoch(epoch, start=state.step):
            progress = epoch + state.step / len(train)
            done = epoch * len(train) + state.step
            pace(state, progress, schedule.rate(progress, batch_size, done))
            state.loss_sum += step(batch)
            if state.average is not None:
                state.average.update_parameters(state.model)
            state.step += 1
            recorder.step(state)
            saver.after_step(state)
        state.loss_sum = process.mean(state.loss_sum)
        speed = clock.read()
        metrics = {"train_loss": state.mean_loss(), "lr": state.lr, **evaluate(), **speed}
        recorder.epoch(epoch, metrics)
        saver.after_epoch(state, metrics)


def pace(state: TrainState, progress: float, rate: float) -> None:
    """Set the learning rate, and the progress (in epochs) of modules that anneal."""
    for group in state.optimizer.param_groups:
        group["lr"] = rate
        if "lr_scale" in group:
            group["lr"], group["lr_unscaled"] = rate * group["lr_scale"], rate
    for anneal in state.annealing:
        anneal(progress)


class Clock:
    """Measures the training speed over the steps of one epoch that this process runs."""

    def __init__(self, state: TrainState, train: Feed) -> None:
        self.state, self.train = state, train
        self.first, self.waited = state.step, train.seconds_waiting
        self.began = time.perf_counter()

    def read(self) -> dict[str, float]:
        """Images per second over all processes, and the share of time spent waiting for data; empty without a step."""
        seconds = time.perf_counter() - self.began
        steps = self.state.step - self.first
        if steps == 0:  # the run continued after the epoch's last step
            return {}
        images = self.train.samples * steps / len(self.train)
        waited = self.train.seconds_waiting - self.waited
        return {"images_per_s": images / seconds, "data_time_share": waited / seconds}


class Saver:
    """Decides, together with the other processes, when the main process saves a checkpoint."""

    def __init__(self, checkpoints: Checkpoints, timer: Timer, process: Process, metric: str) -> None:
        self.checkpoints, self.timer, self.process, self.metric = checkpoints, timer, process, metric
        self.began = time.monotonic()

    def after_step(self, state: TrainState) -> None:
        """Save a checkpoint if one is due.

        Raises:
            Stopped: any process has received a signal.
        """
        stop, due = self.process.any(self.process.stop_requested, self.process.main and self.timer.due(state.step))
        if stop:
            raise Stopped("stopped by a signal", todo="run the same command to continue")
        if due:
            self.save(state)

    def after_epoch(self, state: TrainState, metrics: Mapping[str, float]) -> None:
        """Move the state to the next epoch and save it; keep the weights if this epoch is the best so far."""
        if metrics[self.metric] > state.best.get(self.metric, float("-inf")):
            state.best = {self.metric: metrics[self.metric], "epoch": state.epoch + 1}
            if self.process.main:
                self.checkpoints.save_best(state.evaluated.state_dict(), state.best)
        state.next_epoch()
        self.save(state)

    def save(self, state: TrainState) -> None:
        """Save the state, with the random number generators of every process, as the last checkpoint."""
        now = time.monotonic()
        state.seconds, self.began = state.seconds + now - self.began, now
        state.loss_sum = self.process.mean(state.loss_sum)
        rng = self.process.gather(rng_state())
        if self.process.main:
            self.checkpoints.save(state.state_dict(rng))
        self.timer.restart()


def last_answers(task: Task, val: Feed, process: Process, evaluate: Callable[[], object]) -> Any:
    """The task's answers in the last evaluation; it is repeated if a run continued after it in this process.

    None for a task of a user's own that has no method ``answers``.
    """
    give = getattr(task, "answers", None)
    if give is None:
        return None
    found = give(val.evaluated, process)
    if found is None:
        evaluate()
        found = give(val.evaluated, process)
    return found


TIMED_BATCHES = 3  # for the speed of the network as it is written


@torch.no_grad()
def speed_as_written(network: nn.Module, images: Tensor, process: Process) -> float:
    """Images per second of a network in evaluation mode as it is written, batch norms included.

    ``val_images_per_s``, in contrast, has the norms folded into the convolutions and includes loading the images.

    Args:
        images: a batch (N, 3, H, W) on the network's device; a first pass over it is not timed.
    """
    network.eval()
    began = 0.0
    for number_of_pass in range(TIMED_BATCHES + 1):
        with process.autocast():
            network(images)
        if images.is_cuda:
            torch.cuda.synchronize(images.device)
        began = began if number_of_pass else time.perf_counter()
    return TIMED_BATCHES * len(images) / (time.perf_counter() - began)


@torch.no_grad()
def evaluation(state: TrainState, task: Task, val: Feed, process: Process) -> dict[str, float]:
    """The task's metrics of the evaluated weights, and the images per second, including the time to load them."""
    process.share_buffers(state.evaluated)
    network = folded(state.evaluated, process.reduced)
    began = time.perf_counter()
    with process.autocast():
        metrics = task.evaluate(network, val.epoch(0), process)
    return {**metrics, "val_images_per_s": val.samples / (time.perf_counter() - began)}
