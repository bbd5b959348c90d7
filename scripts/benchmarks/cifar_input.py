"""CIFAR's input on one core: padding by 4, cropping, mirroring and normalising 50,000 images of 32x32.

Ours is a resident data set, measured up to the batch that enters the network. The reference is torchvision's transforms
on Pillow images in torch's DataLoader, as in pytorch-cifar, but without worker processes, which would add the time of
passing batches on. The pixels are noise, since neither side's time depends on them.

    python scripts/benchmarks/cifar_input.py [--repetitions 15] [--json]
"""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import torch
from claims import Claim, arguments, report
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from attnbench.base.benchmark import compare
from attnbench.data.in_memory.cifar_batches import CIFAR10
from attnbench.data.in_memory.resident import Pixels, Resident
from attnbench.data.loader import Loader
from attnbench.training.feed import Feed
from attnbench.training.runtime import Process, Runtime

IMAGES, BATCH, STEPS = 50_000, 128, 40  # a turn is the first STEPS batches of an epoch


def main() -> None:
    """Measure and print."""
    options = arguments(__doc__.splitlines()[0]).parse_args()
    torch.set_num_threads(1)
    rng = np.random.default_rng(0)
    pixels = Pixels(rng.integers(0, 256, (IMAGES, 32, 32, 3), dtype=np.uint8), rng.integers(0, 10, IMAGES))
    claim = Claim(
        title="CIFAR input on one core",
        ours="attnbench",
        reference="torchvision",
        at_least=7.0,
        unit="images per CPU-second",
        work=STEPS * BATCH,
        setting=f"{STEPS} batches of {BATCH} out of {IMAGES:,} images",
    )
    with Runtime(device="cpu").start() as process:
        subjects = {"attnbench": ours(pixels, process), "torchvision": theirs(pixels)}
        report(claim, compare(subjects, repetitions=options.repetitions), options.json)


def ours(pixels: Pixels, process: Process) -> Callable[[], None]:
    """A function that loads the first batches of the next epoch, including the costs of starting an epoch."""
    split = Resident(pixels, pad=4, flip=True)
    feed = Feed(Loader(split, batch_size=BATCH, seed=0, train=True), process, CIFAR10.mean, CIFAR10.std)
    epochs = itertools.count()

    def batches() -> None:
        for _ in itertools.islice(feed.epoch(next(epochs)), STEPS):
            pass

    return batches


class Arrays(Dataset[tuple[torch.Tensor, int]]):
    """A data set that treats its array as torchvision's CIFAR10 does."""

    def __init__(self, pixels: Pixels) -> None:
        self.images, self.labels = pixels.images, pixels.labels.tolist()
        steps = [transforms.RandomCrop(32, padding=4), transforms.RandomHorizontalFlip()]
        steps += [transforms.ToTensor(), transforms.Normalize(CIFAR10.mean, CIFAR10.std)]
        self.transform = transforms.Compose(steps)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return self.transform(Image.fromarray(self.images[index])), self.labels[index]


def theirs(pixels: Pixels) -> Callable[[], None]:
    """A function that loads the first batches of the next shuffled epoch."""
    loader = DataLoader(Arrays(pixels), batch_size=BATCH, shuffle=True)

    def batches() -> None:
        for _ in itertools.islice(loader, STEPS):
            pass

    return batches


if __name__ == "__main__":
    main()
