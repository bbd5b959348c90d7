"""Training steps of S networks of one shape: stacked to one network, against one network after the other.

A step is forward, loss, backward and update of each network, on batches of noise that stay on the device; the two ways
take turns with the same networks. On a GPU the clock's time is taken, on a CPU the processor's, which other programs do
not stretch. Claimed is that ``attnbench.runs.packed`` takes the faster way on this device: stacked, or in turns on a
CPU.

    python scripts/benchmarks/packing.py [--count S] [--repetitions 15] [--json] [key=value ...]

The default is SB at every convolution of MobileNetV2 x0.35, 32x32, batch 128; 15 networks, 3 on a CPU.
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

WORDS = ["dataset=cifar10", "backbone=mobilenetv2_cifar", "backbone.width=0.35", "attention=sb", "batch_size=128"]
STACKED, IN_TURNS = "stacked", "one after the other"


def main() -> None:
    """Measure and print."""
    words = arguments(__doc__.splitlines()[0])
    words.add_argument("--count", type=int, help="networks; default: 15, 3 on a CPU")
    words.add_argument("overrides", nargs="*", metavar="key=value")
    taken = words.parse_args()
    run = composition.compose([*WORDS, *taken.overrides])
    with run.build("runtime").start() as process:
        on_cpu = process.device.type == "cpu"
        networks = Networks(run, process, taken.count or (3 if on_cpu else 15))
        comparison = compare(
            {STACKED: networks.stacked, IN_TURNS: networks.one_by_one},
            repetitions=taken.repetitions,
            clock=cpu_seconds if on_cpu else wall_seconds,
            warm_up=2,
        )
    report(claim(networks, process), comparison, taken.json)


class Networks:
    """S networks with their optimizers and a batch each."""

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
        """A training step of each network, one after the other."""
        for model, images in zip(self.models, self.images, strict=True):
            with self.process.autocast():
                loss = self.loss(model(images))
            loss.backward()
        self.update()

    def stacked(self) -> None:
        """A training step of all networks as one."""
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
    """What is claimed: stacked is faster on a GPU, taking turns on a CPU."""
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
