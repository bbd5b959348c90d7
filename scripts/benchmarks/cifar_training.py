"""Training MobileNetV2 on images of CIFAR's shape: images per CPU-second of attnbench and of pytorch-cifar.

Both train the same network in float32 with batches of 128 and SGD. The reference does what pytorch-cifar's main.py
does: torchvision's transforms on Pillow images in torch's DataLoader with two workers, feature maps in NCHW, eager
mode, and the C library's allocator with its default settings. With ``--script FOLDER`` (or PYTORCH_CIFAR), it is
main.py itself, in a clone of github.com/kuangliu/pytorch-cifar: only its data set, its network and, if asked for,
its number of workers are exchanged. Each side has its own process, since allocator settings hold for a process, and the
two take turns. The pixels are noise, since neither side's time depends on them.

    python scripts/benchmarks/cifar_training.py [--compile] [--script FOLDER [--workers 0]] [--repetitions 15] [--json]
"""

from __future__ import annotations

import importlib
import io
import itertools
import multiprocessing as mp
import os
import runpy
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, redirect_stdout
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
import torch.nn.functional as F
from cifar_input import Arrays
from claims import Claim, arguments, report
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from attnbench.base.benchmark import Timings, cpu_seconds
from attnbench.config import composition
from attnbench.data.in_memory.cifar_batches import CIFAR10
from attnbench.data.in_memory.resident import Pixels, Resident
from attnbench.data.loader import Loader
from attnbench.models import factory
from attnbench.training import setup
from attnbench.training.feed import Feed
from attnbench.training.runtime import Process, Runtime
from attnbench.training.step import Update

IMAGES, BATCH = 12_800, 128
NETWORK = ("backbone=mobilenetv2_cifar", "backbone.stem=32", "attention=none", "dataset=cifar10")  # pytorch-cifar's


def main() -> None:
    """Measure both sides, each in its own process, and print."""
    parser = arguments(__doc__.splitlines()[0])
    parser.add_argument("--compile", action="store_true", help="compile our network")
    parser.add_argument("--script", type=Path, help="a clone of pytorch-cifar, whose main.py is the reference")
    parser.add_argument("--workers", type=int, default=2, help="of the reference (default: %(default)s, as published)")
    parser.add_argument("--steps", type=int, default=4, help="steps of a turn (default: %(default)s)")
    options = parser.parse_args()
    ours = "attnbench compiled" if options.compile else "attnbench"
    script = options.script or (Path(os.environ["PYTORCH_CIFAR"]) if "PYTORCH_CIFAR" in os.environ else None)
    if script and not (script / "main.py").is_file():
        parser.error(f"--script: there is no main.py in {script}; give a clone of pytorch-cifar")
    loading = f"{options.workers} data workers" if options.workers else "no data workers"
    reference = f"pytorch-cifar's {'own main.py' if script else 'steps'} with {loading}"
    claim = Claim(
        title="Training MobileNetV2 on 32x32 images, float32",
        ours=ours,
        reference=reference,
        at_least=2.4 if options.compile else 2.0,
        unit="images per CPU-second",
        work=options.steps * BATCH,
        setting=f"turns of {options.steps} batches of {BATCH}",
    )
    published = (
        partial(run_script, script, options.workers) if script else partial(in_turns, partial(theirs, options.workers))
    )
    sides = {ours: partial(in_turns, compiled if options.compile else eager), reference: published}
    workers = {name: Worker(side, options.steps) for name, side in sides.items()}
    seconds: dict[str, list[float]] = {name: [] for name in workers}
    try:
        for turn in range(-1, options.repetitions):
            for name, worker in list(workers.items())[:: 1 if turn % 2 else -1]:
                took = worker.turn()
                if turn >= 0:
                    seconds[name].append(took)
    finally:
        for worker in workers.values():
            worker.process.kill()
    report(claim, Timings(seconds), options.json)


class Worker:
    """A side in its own process, which trains on request."""

    def __init__(self, side: Callable[[Callable[[], None]], None], steps: int) -> None:
        context = mp.get_context("spawn")
        self.connection, there = context.Pipe()
        self.process = context.Process(target=_work, args=(there, side, steps), daemon=False)
        self.process.start()
        there.close()

    def turn(self) -> float:
        """Train for one turn, and return its CPU-seconds."""
        self.connection.send(True)
        while not self.connection.poll(1) and self.process.is_alive():
            pass
        try:
            seconds: float = self.connection.recv()
        except EOFError:
            sys.exit("error: a side has ended (see above); nothing was measured")
        return seconds


def _work(connection: Connection, side: Callable[[Callable[[], None]], None], steps: int) -> None:
    """Train; after ``steps`` steps send the CPU-seconds, and wait until more are asked for."""
    mp.set_start_method("fork", force=True)  # of data workers, as in a process that was not spawned
    torch.set_num_threads(1)
    began, done = 0.0, 0

    def stepped() -> None:
        nonlocal began, done
        done += 1
        if done % steps == 0:
            connection.send(cpu_seconds() + _of_children() - began)
            wait()

    def wait() -> None:
        nonlocal began
        try:
            connection.recv()
        except EOFError:
            os._exit(0)
        began = cpu_seconds() + _of_children()

    wait()
    side(stepped)


def in_turns(training: Callable[[], Iterator[None]], stepped: Callable[[], None]) -> None:
    """Call ``stepped`` after each step of a training."""
    for _ in training():
        stepped()


def run_script(folder: Path, workers: int, stepped: Callable[[], None]) -> None:
    """Run pytorch-cifar's main.py on noise, and call ``stepped`` after each step."""
    import torchvision

    step, load = torch.optim.SGD.step, DataLoader.__init__

    def counted(self: torch.optim.SGD, *given: Any) -> Any:
        result = step(self, *given)
        stepped()
        return result

    def loaded(self: Any, *given: Any, **named: Any) -> None:
        load(self, *given, **(named | {"num_workers": workers}))

    def pictures(root: str, train: bool, download: bool, transform: Callable[[Image.Image], Any]) -> Pictures:
        return Pictures(transform)

    sys.path.insert(0, str(folder))
    models = importlib.import_module("models")
    with ExitStack() as stack:
        stack.enter_context(patch.object(torch.optim.SGD, "step", counted))
        stack.enter_context(patch.object(DataLoader, "__init__", loaded))
        stack.enter_context(patch.object(torchvision.datasets, "CIFAR10", pictures))
        stack.enter_context(patch.object(os, "popen", lambda *given: io.StringIO("24 80")))  # the terminal's size
        stack.enter_context(patch.object(models, "SimpleDLA", models.MobileNetV2))  # the network that main.py makes
        stack.enter_context(patch.object(sys, "argv", ["main.py"]))
        stack.enter_context(redirect_stdout(stack.enter_context(open(os.devnull, "w"))))
        runpy.run_path(str(folder / "main.py"), run_name="__main__")


class Pictures(Dataset[tuple[Any, int]]):
    """What torchvision's CIFAR10 returns, of noise."""

    def __init__(self, transform: Callable[[Image.Image], Any]) -> None:
        self.pixels, self.transform = pixels(), transform

    def __len__(self) -> int:
        return len(self.pixels.labels)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        return self.transform(Image.fromarray(self.pixels.images[index])), int(self.pixels.labels[index])


def _of_children() -> float:
    """CPU-seconds of the running data workers."""
    ticks = 0
    for child in mp.active_children():
        with open(f"/proc/{child.pid}/stat") as file:
            ticks += sum(int(field) for field in file.read().rpartition(")")[2].split()[11:13])
    return ticks / os.sysconf("SC_CLK_TCK")


def pixels() -> Pixels:
    """Random images with random labels, equal in every call."""
    rng = np.random.default_rng(0)
    return Pixels(rng.integers(0, 256, (IMAGES, 32, 32, 3), dtype=np.uint8), rng.integers(0, 10, IMAGES))


def eager() -> Iterator[None]:
    """Our training steps in eager mode."""
    return _ours()


def compiled() -> Iterator[None]:
    """Our training steps, compiled."""
    return _ours("runtime.compile=true")


def _ours(*overrides: str) -> Iterator[None]:
    """The training steps of an ordinary run."""
    composed = composition.compose([*NETWORK, *overrides])
    runtime: Runtime = composed.build("runtime")
    with runtime.start() as process:
        schedule, task = composed.build("schedule"), composed.build("task")
        model = process.place(factory.network(composed, 10)[0])
        network = process.wrap(model)
        state = setup.train_state(model, schedule, process)
        parts, clip = schedule.accumulate, schedule.clip_grad_norm
        update = Update(state, lambda part: task.loss(network, part), process, parts, clip)
        feed = _feed(process)
        network.train()
        for epoch in itertools.count():
            for batch in feed.epoch(epoch):
                update(batch)
                yield


def _feed(process: Process) -> Feed:
    split = Resident(pixels(), pad=4, flip=True)
    return Feed(Loader(split, batch_size=BATCH, seed=0, train=True), process, CIFAR10.mean, CIFAR10.std)


def theirs(workers: int) -> Iterator[None]:
    """The training steps of pytorch-cifar's main.py."""
    model = factory.network(composition.compose(NETWORK), 10)[0].train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
    loader = DataLoader(Arrays(pixels()), batch_size=BATCH, shuffle=True, num_workers=workers)
    while True:
        for images, targets in loader:
            optimizer.zero_grad()
            F.cross_entropy(model(images), targets).backward()
            optimizer.step()
            yield


if __name__ == "__main__":
    main()
