"""Training steps of S networks stacked, beside the same networks one after the other: milliseconds for one network.

A step is forward, loss, backward and update, on a batch of noise that stays on the device. The two ways alternate; on a
GPU the clock's time is taken, on a CPU the processor's, which other programs do not stretch.

    python scripts/benchmarks/packing.py [--sizes 1 3 5] [--rounds 5] [--steps 3] [--json] [key=value ...]

The default is SB at every convolution of MobileNetV2 x0.35, 32x32, batch 128. A pack on a CPU takes turns because of
what this shows there.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from attnbench import build, config, tail
from attnbench.config import Config
from attnbench.runtime import Process
from attnbench.stacking import Stack

WORDS = ["backbone=mobilenetv2_cifar", "backbone.width=0.35", "attention=sb", "batch_size=128"]
CLASSES, SIZE = 10, 32


class Networks:
    """S networks with their optimizers and a batch each."""

    def __init__(self, run: Config, process: Process, count: int) -> None:
        self.process, self.count = process, count
        self.models = [process.place(build.network(run, CLASSES)[0]).train() for _ in range(count)]
        self.optimizers = [run.build("schedule").optimizer(model) for model in self.models]
        shape = (run.tree["batch_size"], 3, SIZE, SIZE)
        images = [torch.randn(shape, device=process.device) for _ in range(count)]
        self.images = [some.contiguous(memory_format=process.memory_format) for some in images]
        self.targets = torch.randint(0, CLASSES, shape[:1], device=process.device)
        for model in self.models:
            tail.choose(model, run.tree["runtime"]["tail"])
        self.generators = [torch.Generator(process.device) for _ in range(count)]

    def one_by_one(self) -> None:
        for model, images in zip(self.models, self.images, strict=True):
            with self.process.autocast():
                loss = self.loss(model(images))
            loss.backward()
        self.update()

    def stacked(self, stack: Stack) -> None:
        with self.process.autocast():
            logits = stack.network(torch.cat(self.images))
            loss = torch.stack([self.loss(mine) for mine in logits.chunk(self.count)]).sum()
        loss.backward()
        stack.hand_out()
        self.update()

    def loss(self, logits: Tensor) -> Tensor:
        return F.cross_entropy(logits, self.targets)

    def update(self) -> None:
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", type=int, default=[1, 3, 5])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=3, help="of a round")
    parser.add_argument("--json", action="store_true")
    taken, overrides = parser.parse_known_args()
    run = config.compose([*WORDS, *overrides])
    with run.build("runtime").start() as process:
        for size in taken.sizes:
            row = compared(Networks(run, process, size), taken.rounds, taken.steps)
            line = (
                "{size} networks: alone {alone:.1f} ms ({alone_low:.1f} to {alone_high:.1f}), stacked {stacked:.1f} ms "
            )
            line += "({stacked_low:.1f} to {stacked_high:.1f}), {times_as_fast:.2f} times as fast ({device})"
            print(json.dumps(row) if taken.json else line.format(**row), flush=True)


def compared(networks: Networks, rounds: int, steps: int) -> dict[str, object]:
    """Milliseconds a step of one network, either way."""
    stack = Stack(networks.models, networks.generators)
    ways: dict[str, Callable[[], None]] = {"alone": networks.one_by_one, "stacked": lambda: networks.stacked(stack)}
    times: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(rounds + 1):
        for name, step in ways.items():
            taken = milliseconds(step, steps, networks.process) / networks.count
            times[name] += [taken] if turn else []  # the first warms up
    row: dict[str, object] = {"size": networks.count, "device": device(networks.process)}
    for name, some in times.items():
        row |= {name: statistics.median(some), f"{name}_low": min(some), f"{name}_high": max(some)}
    return row | {"times_as_fast": statistics.median(times["alone"]) / statistics.median(times["stacked"])}


def milliseconds(step: Callable[[], None], steps: int, process: Process) -> float:
    """For one of so many steps."""
    on_gpu = process.device.type == "cuda"
    clock = time.perf_counter if on_gpu else time.process_time
    began = clock()
    for _ in range(steps):
        step()
    if on_gpu:
        torch.cuda.synchronize(process.device)
    return 1000 * (clock() - began) / steps


def device(process: Process) -> str:
    """Its name, for people."""
    on_gpu = process.device.type == "cuda"
    return torch.cuda.get_device_name(process.device) if on_gpu else f"{platform.machine()} CPU"


if __name__ == "__main__":
    main()
