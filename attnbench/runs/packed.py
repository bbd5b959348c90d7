"""Trains several runs at once, in one process on one device. Their networks and batches have the same shapes.

Each run is an ordinary ``run.train`` in a separate thread, with its own folder, model, optimizer, batches and random
numbers. The runs share only the network call of the training loop, where each thread waits for the others. When all
have submitted a batch, one forward pass of the stacked networks (``stacking.py``) gives each run its logits. When all
have computed the gradients of their logits, one backward pass gives each run the gradients of its weights. One thread
runs at a time, in a fixed order, so a pack is as reproducible as a single run.

Runs may be at different steps and end at different times. If the shapes of their batches differ, as at the end of an
epoch, each run calls its own model in that step. Its weights are up to date, because they are slices of the stacked
weights. On a CPU, which a single network keeps busy, every step is computed in this way. There, a packed run equals the
same run alone, to the last bit.
"""

from __future__ import annotations

import logging
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import cache, partial
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn

from attnbench.base.errors import Failure, OutOfMemory
from attnbench.config.configuration import Config
from attnbench.data.dataset import Dataset
from attnbench.models.stacking import Stack, mistake
from attnbench.runs import run
from attnbench.runs.attempt import Outcome, attempt
from attnbench.runs.folder import PACKED, RunFolder
from attnbench.training.runtime import Process, Runtime
from attnbench.training.state import rng_state, set_rng_state

log = logging.getLogger("attnbench")

# Devices on which each run calls its own model. A CPU takes twice as long for stacked networks as for one network after
# the other; see scripts/benchmarks/packing.py.
IN_TURNS = {"cpu"}

Ended = Callable[[Outcome], object]


def train_pack(configs: Sequence[Config], ended: Callable[[int, Outcome], object]) -> None:
    """Train, continue or skip several runs at once.

    An error in a step that the runs compute together, such as too little memory for the stacked networks, fails all of
    them as a shared failure (``Outcome.shared``). Too little memory for one run beside the others is shared as well.

    Args:
        configs: configurations that lead to the same shapes, each with a folder of a different name.
        ended: called with a run's number and its outcome when the run ends; one call at a time, from any thread.
    """
    runtime: Runtime = configs[0].build("runtime")
    try:
        runtime.check()
    except Failure as failure:
        for number, config in enumerate(configs):
            ended(number, Outcome("failed", str(config.run_folder), failure=failure))
        return
    with runtime.start() as process, process.signals():
        Pack(process, configs, [partial(ended, number) for number in range(len(configs))]).run()


class Gradients:
    """A run's request for the gradients of its weights, before it updates them."""


class PackedRun(Process):
    """One run of a pack: its thread, and the process as the run sees it.

    Attributes:
        request: what the run waits for: the logits of these images, or gradients; None when it has ended.
        logits: the logits that the run received last; its backward pass leaves their gradient there.
        failure: the error that ended a step of all runs.
    """

    def __init__(
        self, process: Process, config: Config, packed: int, data: Callable[[], Dataset], ended: Ended
    ) -> None:
        super().__init__(process.runtime, process.device, None)
        self.config, self.packed, self.data, self.ended = config, packed, data, ended
        self.random = rng_state()
        self.request: Tensor | Gradients | None = None
        self.logits: Tensor | None = None
        self.failure: Exception | None = None
        self.mine, self.packs = threading.Semaphore(0), threading.Semaphore(0)  # the turns of the run and of the pack
        self.thread = threading.Thread(target=self._live, name=f"{PACKED}{config.run_folder}", daemon=True)
        self.thread.start()

    def advance(self) -> None:
        """Let the run continue to its next request, with its own state of the random number generators."""
        set_rng_state(self.random)
        self.mine.release()
        self.packs.acquire()
        self.random = rng_state()

    def ask(self, request: Tensor | Gradients) -> Tensor | None:
        """In the run's thread: send a request and wait. Return logits if the networks are stacked, else None."""
        self.request = request
        self.packs.release()
        self.mine.acquire()
        if self.failure is not None:
            raise self.failure
        return self.logits

    def _live(self) -> None:
        self.mine.acquire()
        try:
            outcome = self._attempted()
            shared = self.failure is not None or isinstance(outcome.failure, OutOfMemory)
            self.ended(replace(outcome, shared=shared and outcome.state == "failed"))
        finally:
            self.request = None
            self.packs.release()

    def _attempted(self) -> Outcome:
        try:
            return attempt(lambda: self.config, lambda config: run.train(config, self._opened))
        except BaseException as end:  # such as SystemExit from a module, which must not end the other runs
            return self._aborted(end)

    def _aborted(self, end: BaseException) -> Outcome:
        folder = RunFolder(self.config.run_folder)
        failure = Failure(f"ended by {type(end).__name__}", folder.path, "run the same command to continue it")
        folder.record_failure(failure, traceback.format_exc())
        return Outcome("failed", str(folder.path), failure=failure)

    @contextmanager
    def _opened(self, config: Config, runtime: Runtime) -> Iterator[tuple[Dataset, Process]]:
        yield self.data(), self

    @property
    def workers(self) -> int:
        """This run's share of the processes that decode images."""
        return -(-super().workers // self.packed)

    def wrap(self, model: nn.Module) -> nn.Module:
        """The network as the run calls it; each call waits for the batches of the other runs."""
        self.model = super().wrap(model)
        model.register_state_dict_post_hook(_copy_slices)
        return _SharedNetwork(self, model)

    def scaler(self) -> torch.amp.GradScaler:
        """A loss scaler that requests the pack's gradients before each update; it scales only in fp16."""
        return _Scaler(self, self.device.type, enabled=self.runtime.precision == "fp16")

    def signals(self) -> Any:
        """Does nothing: the pack's main thread handles signals."""
        return nullcontext()


def _copy_slices(model: nn.Module, state: dict[str, Any], prefix: str, metadata: Any) -> None:
    """Copy slices of stacked tensors, because a checkpoint would store the whole tensor behind each slice."""
    for name, value in state.items():
        state[name] = value.clone() if isinstance(value, Tensor) else value


class _SharedNetwork(nn.Module):
    """A run's network as its training loop calls it; each call waits for the batches of the other runs."""

    def __init__(self, run: PackedRun, model: nn.Module) -> None:
        super().__init__()
        self.run, self.model = run, model

    def forward(self, images: Tensor) -> Tensor:
        logits = self.run.ask(images)
        return self.model(images) if logits is None else logits


class _Scaler(torch.amp.GradScaler):
    """A loss scaler that requests the pack's gradients before it reads them, once for each update."""

    def __init__(self, run: PackedRun, device: str, *, enabled: bool) -> None:
        super().__init__(device, enabled=enabled)
        self.run, self.complete = run, False

    def unscale_(self, optimizer: torch.optim.Optimizer) -> None:
        self._complete()
        super().unscale_(optimizer)

    def step(self, optimizer: torch.optim.Optimizer, *args: Any, **options: Any) -> float | None:
        self._complete()
        done = super().step(optimizer, *args, **options)
        self.complete = False
        return done

    def _complete(self) -> None:
        """Wait for the gradients, unless the run has them for this update: clipping reads them before the step."""
        if not self.complete:
            self.run.ask(Gradients())
        self.complete = True


class Pack:
    """Advances runs from one shared network call to the next.

    Args:
        process: the process that trains them.
        configs: the runs' configurations.
        ended: for each run, called with its outcome.
    """

    def __init__(self, process: Process, configs: Sequence[Config], ended: Sequence[Ended]) -> None:
        self.process = process
        data = cache(lambda: configs[0].build("dataset"))
        size = len(configs)
        self.runs = [PackedRun(process, one, size, data, end) for one, end in zip(configs, ended, strict=True)]
        self.stacked: tuple[PackedRun, ...] = ()
        self.trusted: bool | None = None

    def run(self) -> None:
        """Continue until every run has ended."""
        for one in self.runs:
            one.advance()
        while runs := tuple(one for one in self.runs if one.request is not None):
            for one in runs:
                one.stop_requested = self.process.stop_requested  # all after the same step
            try:
                self._step(runs)
            except Exception as error:
                self._break_off(runs, error, error.__traceback__)

    def _break_off(self, runs: tuple[PackedRun, ...], error: Exception, trace: TracebackType | None) -> None:
        """End the runs whose shared step failed."""
        for one in runs:
            one.failure = error.with_traceback(trace)  # without the frames that other runs have added
            while one.request is not None:
                one.advance()

    def _step(self, runs: tuple[PackedRun, ...]) -> None:
        """All runs have submitted images: return logits, collect gradients, update the runs with complete batches."""
        images = [one.request for one in runs if isinstance(one.request, Tensor)]
        packed = len(runs) > 1 and len({part.shape for part in images}) == 1 and self._stack(runs, images)
        logits = self._forward(images) if packed else None
        for one, mine in zip(runs, logits.chunk(len(runs)) if logits is not None else [None] * len(runs), strict=True):
            one.logits = None if mine is None else mine.detach().requires_grad_()
            one.advance()
        if logits is not None:
            gradients = [_gradient(one, part) for one, part in zip(runs, logits.chunk(len(runs)), strict=True)]
            logits.backward(torch.cat(gradients))
            self.stack.hand_out()
        for one in runs:
            if isinstance(one.request, Gradients):
                one.logits = None
                one.advance()

    def _stack(self, runs: tuple[PackedRun, ...], images: Sequence[Tensor]) -> bool:
        """Stack the runs' networks if they are not stacked yet; return False if stacking would be slower or wrong."""
        if self.trusted is None:
            objection = self._objection(runs, images)
            self.trusted = not objection
            if objection:
                log.info("%d runs take turns at each step: %s", len(runs), objection)
        if self.trusted and runs != self.stacked:
            generators = [torch.Generator(self.process.device) for _ in runs]
            self.stack, self.stacked = Stack([one.model for one in runs], generators), runs
            if self.process.runtime.compile:
                self.stack.network.compile()
            log.info("packed: %d runs at once%s", len(runs), _turns(self.stack.in_turns))
        return self.trusted

    def _objection(self, runs: tuple[PackedRun, ...], images: Sequence[Tensor]) -> str:
        """Why the networks are not stacked; empty if they are."""
        if self.process.device.type in IN_TURNS:
            return f"one network keeps a {self.process.device.type} busy"
        few = torch.stack([part[:2] for part in images[:2]])
        wrong = mistake([one.model for one in runs[:2]], few)
        return wrong and f"stacked networks give other results ({wrong})"

    def _forward(self, images: Sequence[Tensor]) -> Tensor:
        """The logits of all runs; dropout draws for each run what it would draw alone."""
        kind = self.process.device.type if self.process.device.type == "cuda" else "torch"
        for one, generator in zip(self.stacked, self.stack.generators, strict=True):
            generator.set_state(one.random[kind])
        with self.process.autocast():
            logits: Tensor = self.stack.network(torch.cat(list(images)))
        for one, generator in zip(self.stacked, self.stack.generators, strict=True):
            one.random[kind] = generator.get_state()
        return logits


def _gradient(one: PackedRun, part: Tensor) -> Tensor:
    """The gradient that a run's loss left at its logits; zero if the run ended before."""
    left = None if one.logits is None else one.logits.grad
    return torch.zeros_like(part) if left is None else left


def _turns(modules: dict[str, str]) -> str:
    """The modules at which the runs take turns, as text for the log."""
    if not modules:
        return ""
    kinds = ", ".join(sorted(set(modules.values())))
    return f", in turns at {len(modules)} modules ({kinds})"
