"""Training MobileNetV2 on images of CIFAR's shape: images per CPU-second of attnbench and of pytorch-cifar.

Both train the same network in float32 with batches of 128 and SGD. The reference does what pytorch-cifar's main.py
does: torchvision's transforms on Pillow images in torch's DataLoader with two workers, feature maps in NCHW, eager
mode, and the C library's allocator with its default settings. Each side has its own process, since allocator settings
hold for a process, and the two take turns. The pixels are noise, since neither side's time depends on them.

    python scripts/benchmarks/cifar_training.py [--compile] [--repetitions 15] [--steps 4] [--json]
"""

from __future__ import annotations

import itertools
import multiprocessing as mp
import os
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection

import numpy as np
import torch
import torch.nn.functional as F
from cifar_input import Arrays
from claims import Claim, arguments, report
from torch.utils.data import DataLoader

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
NETWORK = ("backbone=mobilenetv2_cifar", "attention=none", "dataset=cifar10")


def main() -> None:
    """Measure both sides, each in its own process, and print."""
    parser = arguments(__doc__.splitlines()[0])
    parser.add_argument("--compile", action="store_true", help="compile our network")
    parser.add_argument("--steps", type=int, default=4, help="steps of a turn (default: %(default)s)")
    options = parser.parse_args()
    ours = "attnbench compiled" if options.compile else "attnbench"
    claim = Claim(
        title="Training MobileNetV2 on 32x32 images, float32",
        ours=ours,
        reference="pytorch-cifar",
        at_least=2.4 if options.compile else 2.0,
        unit="images per CPU-second",
        work=options.steps * BATCH,
        setting=f"turns of {options.steps} batches of {BATCH}",
    )
    sides = {ours: compiled if options.compile else eager, "pytorch-cifar": theirs}
    workers = {name: Worker(side, options.steps) for name, side in sides.items()}
    seconds: dict[str, list[float]] = {name: [] for name in workers}
    for turn in range(-1, options.repetitions):
        for name, worker in list(workers.items())[:: 1 if turn % 2 else -1]:
            took = worker.turn()
            if turn >= 0:
                seconds[name].append(took)
    report(claim, Timings(seconds), options.json)


class Worker:
    """A side in its own process, which trains on request."""

    def __init__(self, side: Callable[[], Iterator[None]], steps: int) -> None:
        context = mp.get_context("spawn")
        self.connection, there = context.Pipe()
        self.process = context.Process(target=_work, args=(there, side, steps), daemon=False)
        self.process.start()
        there.close()

    def turn(self) -> float:
        """Train for one turn, and return its CPU-seconds."""
        self.connection.send(True)
        seconds: float = self.connection.recv()
        return seconds


def _work(connection: Connection, side: Callable[[], Iterator[None]], steps: int) -> None:
    torch.set_num_threads(1)
    training = side()
    while True:
        try:
            connection.recv()
        except EOFError:
            return
        began = cpu_seconds() + _of_children()
        for _ in itertools.islice(training, steps):
            pass
        connection.send(cpu_seconds() + _of_children() - began)


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


def theirs() -> Iterator[None]:
    """The training steps of pytorch-cifar's main.py."""
    model = factory.network(composition.compose(NETWORK), 10)[0].train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
    loader = DataLoader(Arrays(pixels()), batch_size=BATCH, shuffle=True, num_workers=2)
    while True:
        for images, targets in loader:
            optimizer.zero_grad()
            F.cross_entropy(model(images), targets).backward()
            optimizer.step()
            yield


if __name__ == "__main__":
    main()
