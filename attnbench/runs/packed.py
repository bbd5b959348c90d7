"""Runs that share shapes, trained at once in one process on one device.

Each run is what it is alone: ``run.train`` in a thread of its own, with its own folder, model, optimizer, batches and
random numbers. What is shared is the network that its training loop calls. There the threads meet: when all have
brought a batch, one pass over the stacked networks (``stacking.py``) gives each run its logits, and when all have their
gradients of these, one pass back gives each run the gradients of its weights. One thread runs at a time, in a fixed
order, so that a pack is as reproducible as a run.

Runs may stand at different steps and end at different times. In a round in which their batches are not of one shape
(at the end of an epoch) each calls its own model, which is whole: the stacked weights are the models' own. On a CPU,
which one network keeps busy, that is so in every round, and a packed run is its single run to the last bit.
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

# Devices on which each run calls its own model. A CPU needs twice the time for stacked networks that it needs for one
# after the other: scripts/benchmarks/packing.py.
IN_TURNS = {"cpu"}

Ended = Callable[[Outcome], object]


def train_pack(configs: Sequence[Config], ended: Callable[[int, Outcome], object]) -> None:
    """Train, continue or skip runs at once.

    What breaks off a step of all of them at once, such as too little memory for the stacked networks, is a failure
    that they share; so is too little memory for one of them beside the others.

    Args:
        configs: of runs that differ in values alone, each with a folder of its own.
        ended: called with a run's number and how it ended; one call at a time, in some thread.
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
    """What a run asks for before it updates its weights."""


class PackedRun(Process):
    """The process as one of the runs in a pack sees it, and that run's thread.

    Attributes:
        request: what the run waits for: the logits of images, or gradients; None at its end.
        logits: the last answer, whose gradient the run leaves there.
        failure: what broke off a step of all runs.
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
        self.mine, self.packs = threading.Semaphore(0), threading.Semaphore(0)  # whose turn it is
        self.thread = threading.Thread(target=self._live, name=f"{PACKED}{config.run_folder}", daemon=True)
        self.thread.start()

    def advance(self) -> None:
        """Let the run go on to its next request; meanwhile the process's random numbers are the run's."""
        set_rng_state(self.random)
        self.mine.release()
        self.packs.acquire()
        self.random = rng_state()

    def ask(self, request: Tensor | Gradients) -> Tensor | None:
        """In the run's thread: wait for the pack's answer, which is None for gradients."""
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
            unlucky = self.failure is not None or isinstance(outcome.failure, OutOfMemory)
            self.ended(replace(outcome, shared=unlucky and outcome.state == "failed"))
        finally:
            self.request = None
            self.packs.release()

    def _attempted(self) -> Outcome:
        try:
            return attempt(lambda: self.config, lambda config: run.train(config, self._opened))
        except BaseException as end:  # such as a module's SystemExit, which shall not take the others along
            return self._died(end)

    def _died(self, end: BaseException) -> Outcome:
        folder = RunFolder(self.config.run_folder)
        failure = Failure(f"ended by {type(end).__name__}", folder.path, "the same command continues it")
        folder.died(failure, traceback.format_exc())
        return Outcome("failed", str(folder.path), failure=failure)

    @contextmanager
    def _opened(self, config: Config, runtime: Runtime) -> Iterator[tuple[Dataset, Process]]:
        yield self.data(), self

    @property
    def workers(self) -> int:
        """Its share of the processes that decode images."""
        return -(-super().workers // self.packed)

    def wrap(self, model: nn.Module) -> nn.Module:
        """The network as the run calls it: its batch waits for those of the other runs."""
        self.model = super().wrap(model)
        model.register_state_dict_post_hook(_own)
        return _Meeting(self, model)

    def scaler(self) -> torch.amp.GradScaler:
        """A loss scaler that hands out the pack's gradients before it steps; it scales in fp16 alone."""
        return _Scaler(self, self.device.type, enabled=self.runtime.precision == "fp16")

    def signals(self) -> Any:
        """The pack's main thread listens."""
        return nullcontext()


def _own(model: nn.Module, state: dict[str, Any], prefix: str, metadata: Any) -> None:
    """Slices of stacked tensors as tensors of their own: a checkpoint would hold all that they are slices of."""
    for name, value in state.items():
        state[name] = value.clone() if isinstance(value, Tensor) else value


class _Meeting(nn.Module):
    """A run's network as its training loop calls it: the place where the runs meet."""

    def __init__(self, run: PackedRun, model: nn.Module) -> None:
        super().__init__()
        self.run, self.model = run, model

    def forward(self, images: Tensor) -> Tensor:
        logits = self.run.ask(images)
        return self.model(images) if logits is None else logits


class _Scaler(torch.amp.GradScaler):
    """A loss scaler that has the pack's gradients handed out before it looks at them."""

    def __init__(self, run: PackedRun, device: str, *, enabled: bool) -> None:
        super().__init__(device, enabled=enabled)
        self.run = run

    def step(self, optimizer: torch.optim.Optimizer, *args: Any, **options: Any) -> float | None:
        self.run.ask(Gradients())
        return super().step(optimizer, *args, **options)


class Pack:
    """Leads runs from meeting to meeting.

    Args:
        process: where they are trained.
        configs: the runs.
        ended: for each of them, called with how it ended.
    """

    def __init__(self, process: Process, configs: Sequence[Config], ended: Sequence[Ended]) -> None:
        self.process = process
        data = cache(lambda: configs[0].build("dataset"))
        size = len(configs)
        self.runs = [PackedRun(process, one, size, data, end) for one, end in zip(configs, ended, strict=True)]
        self.stacked: tuple[PackedRun, ...] = ()
        self.trusted: bool | None = None

    def run(self) -> None:
        """Go on until every run has come to its end."""
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
        """End runs whose shared step failed."""
        for one in runs:
            one.failure = error.with_traceback(trace)  # without what it passed through in the others
            while one.request is not None:
                one.advance()

    def _step(self, runs: tuple[PackedRun, ...]) -> None:
        """All have brought images: give logits, take their gradients, and let those update that have all parts."""
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
        """Stack the runs' networks, unless they are; False if they are better off, or only right, one by one."""
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
        """Why the networks are not stacked, in words; "" if they are."""
        if self.process.device.type in IN_TURNS:
            return f"one network keeps a {self.process.device.type} busy"
        few = torch.stack([part[:2] for part in images[:2]])
        wrong = mistake([one.model for one in runs[:2]], few)
        return wrong and f"stacked they are not what they are alone ({wrong})"

    def _forward(self, images: Sequence[Tensor]) -> Tensor:
        """The logits of all runs, each run's dropout drawn as it would alone."""
        kind = self.process.device.type if self.process.device.type == "cuda" else "torch"
        for one, generator in zip(self.stacked, self.stack.generators, strict=True):
            generator.set_state(one.random[kind])
        with self.process.autocast():
            logits: Tensor = self.stack.network(torch.cat(list(images)))
        for one, generator in zip(self.stacked, self.stack.generators, strict=True):
            one.random[kind] = generator.get_state()
        return logits


def _gradient(one: PackedRun, part: Tensor) -> Tensor:
    """What a run's loss has left at its logits; zero if it broke off before."""
    left = None if one.logits is None else one.logits.grad
    return torch.zeros_like(part) if left is None else left


def _turns(modules: dict[str, str]) -> str:
    """Which modules the runs take turns at, in words."""
    if not modules:
        return ""
    kinds = ", ".join(sorted(set(modules.values())))
    return f", in turns at {len(modules)} modules ({kinds})"
