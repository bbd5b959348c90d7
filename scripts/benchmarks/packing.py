"""Training steps of S networks of the same shape: stacked into one network, or one network after the other.

A step is the forward pass, loss, backward pass and update of each network, on batches of noise that stay on the device.
Both ways use the same networks and take turns. Wall-clock time is measured on a GPU, and CPU time on a CPU, since other
programs hardly affect it. The claim is that ``attnbench.runs.packed`` uses the faster way on each device: stacked on a
GPU, one after the other on a CPU.

    python scripts/benchmarks/packing.py [--count S] [--repetitions 15] [--json] [key=value ...]

The default networks are MobileNetV2 x0.35 with SB at every convolution, for 32x32 images in batches of 128; S is 15, or
3 on a CPU.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from claims import Claim, arguments, report
from torch import Tensor

from attnbench.base.benchmark import compare, cpu_seconds, wall_seconds
from attnbench.config import catalog, composition
from attnbench.config.configuration import Config
from attnbench.models import factory, fused
from attnbench.models.stacking import Stack
from attnbench.runs import packed
from attnbench.training.runtime import Process

NETWORK = ["dataset=cifar10", "backbone=mobilenetv2_cifar", "backbone.width=0.35", "attention=sb", "batch_size=128"]
STACKED, IN_TURNS = "stacked", "one after the other"


def main() -> None:
    """Measure and print."""
    parser = arguments(__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, help="number of networks (default: 15, or 3 on a CPU)")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    options = parser.parse_args()
    run = composition.compose([*NETWORK, *options.overrides])
    with run.build("runtime").start() as process:
        on_cpu = process.device.type == "cpu"
        networks = Networks(run, process, options.count or (3 if on_cpu else 15))
        comparison = compare(
            {STACKED: networks.stacked, IN_TURNS: networks.one_by_one},
            repetitions=options.repetitions,
            clock=cpu_seconds if on_cpu else wall_seconds,
            warm_up=2,
        )
    report(claim(networks, process), comparison, options.json)


class Networks:
    """S networks, each with an optimizer and a batch."""

    def __init__(self, run: Config, process: Process, count: int) -> None:
        self.process, self.count, self.batch = process, count, run.tree["batch_size"]
        classes, size = catalog.setting(run, ["dataset="])
        height, width = (size, size) if isinstance(size, int) else size
        self.models = [process.place(factory.network(run, classes)[0]).train() for _ in range(count)]
        self.optimizers = [run.build("schedule").optimizer(model) for model in self.models]
        images = [torch.randn(self.batch, 3, height, width, device=process.device) for _ in range(count)]
        self.images = [some.contiguous(memory_format=process.memory_format) for some in images]
        self.targets = torch.randint(0, classes, (self.batch,), device=process.device)
        for model in self.models:
            fused.choose(model, run.tree["runtime"]["tail"])
            process.wrap(model)
        self.stack = Stack(self.models, [torch.Generator(process.device) for _ in range(count)])
        if process.runtime.compile:
            self.stack.network.compile()

    def one_by_one(self) -> None:
        """Take a training step with each network, one after the other."""
        for model, images in zip(self.models, self.images, strict=True):
            with self.process.autocast():
                loss = self.loss(model(images))
            loss.backward()
        self.update()

    def stacked(self) -> None:
        """Take a training step with all networks stacked into one."""
        with self.process.autocast():
            logits = self.stack.network(torch.cat(self.images))
            loss = torch.stack([self.loss(mine) for mine in logits.chunk(self.count)]).sum()
        loss.backward()
        self.stack.hand_out()
        self.update()

    def loss(self, logits: Tensor) -> Tensor:
        """The mean cross-entropy of one network's batch."""
        return F.cross_entropy(logits, self.targets)

    def update(self) -> None:
        """Step every optimizer, and wait for the device."""
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad()
        if self.process.device.type == "cuda":
            torch.cuda.synchronize(self.process.device)


def claim(networks: Networks, process: Process) -> Claim:
    """The claim for this device: stacking is faster on a GPU, taking turns on a CPU."""
    ours, theirs, at_least = STACKED, IN_TURNS, 1.6
    if process.device.type in packed.IN_TURNS:
        ours, theirs, at_least = IN_TURNS, STACKED, 1.0
    return Claim(
        title=f"A training step of {networks.count} networks",
        ours=ours,
        reference=theirs,
        at_least=at_least,
        unit="images per CPU-second" if process.device.type == "cpu" else "images per second",
        work=networks.count * networks.batch,
        setting=f"batches of {networks.batch}, {process.runtime.precision}, {process.device.type}",
    )


if __name__ == "__main__":
    main()
