"""ImageNet's input on one core: reading, decoding, RandomResizedCrop(224), mirroring and normalising.

Ours is ``dataset=imagenet``, measured up to the batch that enters the network. The reference is torchvision's
transforms on Pillow images in torch's DataLoader. Neither uses worker processes, and both read the same files.

    python scripts/benchmarks/imagenet_input.py                    # on generated images
    python scripts/benchmarks/imagenet_input.py --images FOLDER    # on FOLDER/train/<class>/*.jpg and FOLDER/val/
"""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from claims import Claim, arguments, report
from PIL import Image
from torch.utils.data import DataLoader, Subset
from torchvision import datasets, transforms

from attnbench.base.benchmark import compare
from attnbench.data.image_folders.datasets import MEAN, STD, imagenet
from attnbench.data.loader import Loader
from attnbench.training.feed import Feed
from attnbench.training.runtime import Process, Runtime

BATCH, MOST = 32, 64  # images of a batch, and at most of a turn


def main() -> None:
    """Measure and print."""
    parser = arguments(__doc__.splitlines()[0])
    parser.add_argument("--images", type=Path, metavar="FOLDER", help="an image folder with train/ and val/")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as made, Runtime(device="cpu").start() as process:
        root = options.images or samples(Path(made))
        count = min(MOST, len(datasets.ImageFolder(str(root / "train"))))
        claim = Claim(
            title="ImageNet input on one core",
            ours="attnbench",
            reference="torchvision",
            at_least=1.9,
            unit="images per CPU-second",
            work=count,
            setting=f"{count} images of {options.images.name}" if options.images else SAMPLES,
        )
        subjects = {"attnbench": ours(root, process, count), "torchvision": theirs(root, count)}
        report(claim, compare(subjects, repetitions=options.repetitions), options.json)


SAMPLES = f"{MOST} generated images of 500x375, about 110 kB each"


def samples(root: Path) -> Path:
    """Generate images of ImageNet's median size, both in pixels and in bytes."""
    rng = np.random.default_rng(0)
    for side in ("train", "val"):
        (root / side / "class").mkdir(parents=True)
    for k in range(MOST):
        coarse = Image.fromarray(rng.integers(0, 256, (24, 32, 3), dtype=np.uint8))
        smooth = np.asarray(coarse.resize((500, 375), Image.Resampling.BICUBIC), np.int16)
        grain = rng.normal(0, 11, (375, 500, 1)).astype(np.int16)
        pixels = np.clip(smooth + grain, 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(root / "train" / "class" / f"{k}.jpg", quality=92)
    (root / "val" / "class" / "0.jpg").write_bytes((root / "train" / "class" / "0.jpg").read_bytes())
    return root


def ours(root: Path, process: Process, count: int) -> Callable[[], None]:
    """A function that loads the first batches of the next epoch."""
    data = imagenet(root=str(root))
    feed = Feed(Loader(data.train, batch_size=BATCH, seed=0, train=True), process, data.mean, data.std)
    epochs = itertools.count()

    def batches() -> None:
        for _ in itertools.islice(feed.epoch(next(epochs)), -(-count // BATCH)):
            pass

    return batches


def theirs(root: Path, count: int) -> Callable[[], None]:
    """A function that loads as many random images as torchvision's ImageNet training did before transforms v2."""
    steps = [transforms.RandomResizedCrop(224), transforms.RandomHorizontalFlip()]
    steps += [transforms.ToTensor(), transforms.Normalize(MEAN, STD)]
    images = datasets.ImageFolder(str(root / "train"), transforms.Compose(steps))

    def batches() -> None:
        some = Subset(images, torch.randperm(len(images))[:count].tolist())
        for _ in DataLoader(some, batch_size=BATCH):
            pass

    return batches


if __name__ == "__main__":
    main()
