"""Sampling, the loader, resident splits, and the digits that come with the package."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import pad as zero_pad

from attnbench.base.errors import ConfigError, DataError
from attnbench.data import sampling
from attnbench.data.dataset import Batch, Split
from attnbench.data.in_memory.digits import digits
from attnbench.data.in_memory.resident import Pixels, Resident, resident_dataset
from attnbench.data.in_memory.synthetic import synthetic
from attnbench.data.loader import Loader
from attnbench.training.feed import Feed
from attnbench.training.runtime import Runtime
from tests.data_fixtures import same_batches, tensors


def numbered(samples: int, *, size: int = 6, pad: int = 2, flip: bool = True) -> Resident:
    """A split of random images whose targets are their indices."""
    images = np.random.default_rng(0).integers(0, 256, (samples, size, size, 3), dtype=np.uint8)
    return Resident(Pixels(images, np.arange(samples)), pad=pad, flip=flip)


def loaders(split: Split, world_size: int, batch_size: int, *, train: bool) -> list[Loader]:
    """One loader for each of ``world_size`` processes."""
    return [
        Loader(
            split,
            batch_size=batch_size,
            seed=3,
            train=train,
            rank=rank,
            world_size=world_size,
        )
        for rank in range(world_size)
    ]


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 60), st.integers(1, 20), st.integers(1, 5))
def test_evaluation_sees_every_sample_once(samples: int, batch_size: int, world_size: int) -> None:
    seen: Counter[int] = Counter()
    for loader in loaders(numbered(samples, size=2), world_size, batch_size, train=False):
        batches = list(loader.epoch(0))
        assert loader.samples == samples and len(batches) == len(loader)
        for batch in batches:
            seen.update(tensors(batch)[1].tolist())
    assert seen == Counter(range(samples))


def test_evaluation_is_in_order_and_the_centre() -> None:
    split = numbered(10)
    [loader] = loaders(split, 1, 4, train=False)
    images, targets = map(torch.cat, zip(*map(tensors, loader.epoch(0)), strict=True))
    assert targets.tolist() == list(range(10))
    assert torch.equal(images, split.images[:, 2:-2, 2:-2].permute(0, 3, 1, 2))


@settings(max_examples=60, deadline=None)
@given(st.integers(10, 60), st.integers(10, 20), st.integers(1, 5))
def test_ranks_partition_each_global_batch(samples: int, batch_size: int, world_size: int) -> None:
    split = numbered(samples, size=2)
    [whole] = loaders(split, 1, batch_size, train=True)
    shares = [list(x.epoch(1)) for x in loaders(split, world_size, batch_size, train=True)]
    assert len({len(share) for share in shares}) == 1  # otherwise DDP would wait for ever
    for batch, *parts in zip(whole.epoch(1), *shares, strict=False):
        _, targets = tensors(batch)
        assert sorted(targets.tolist()) == sorted(target for part in parts for target in tensors(part)[1].tolist())
        assert min(len(part.targets) for part in parts) >= 2
        assert sum(part.weight for part in parts) == pytest.approx(world_size)
        mean = sum(part.weight * tensors(part)[1].double().mean() for part in parts) / world_size
        assert mean == pytest.approx(targets.double().mean())


@pytest.mark.parametrize(("samples", "used", "steps"), [(16, 16, 2), (17, 16, 2), (18, 18, 3), (7, 7, 1)])
def test_a_last_training_batch_of_one_is_left_out(samples: int, used: int, steps: int) -> None:
    [loader] = loaders(numbered(samples), 1, 8, train=True)
    targets = [target for batch in loader.epoch(0) for target in tensors(batch)[1].tolist()]
    assert len(targets) == len(set(targets)) == loader.samples == used
    assert len(loader) == len(list(loader.epoch(0))) == steps


def test_a_batch_too_small_to_train_on_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"batch norm needs 2 .*batch_size.*at least 8"):
        Loader(numbered(20), batch_size=6, seed=0, train=True, world_size=4)
    with pytest.raises(DataError, match="only 1 samples"):
        Loader(numbered(1), batch_size=6, seed=0, train=True)


@pytest.mark.parametrize("start", [0, 1, 3, 4, 5])
def test_an_epoch_continues_from_any_step(start: int) -> None:
    [loader] = loaders(numbered(34), 1, 8, train=True)
    assert same_batches(list(loader.epoch(2, start)), list(loader.epoch(2))[start:])


def test_epochs_and_seeds_differ() -> None:
    split = numbered(32)

    def images(seed: int, epoch: int) -> Tensor:
        loader = Loader(split, batch_size=32, seed=seed, train=True)
        [batch] = loader.epoch(epoch)
        images, targets = tensors(batch)
        return images[targets.argsort()]  # in the same order, so that only the augmentation differs

    first = images(0, 0)
    assert torch.equal(first, images(0, 0))
    assert not torch.equal(first, images(0, 1)) and not torch.equal(first, images(1, 0))
    orders = {tuple(sampling.order(32, draw).tolist()) for draw in [(0, 0), (0, 1), (1, 0), (1, 1)]}
    assert len(orders) == 4


def test_global_random_state_is_left_alone() -> None:
    before = torch.get_rng_state()
    [loader] = loaders(numbered(20), 1, 4, train=True)
    list(loader.epoch(0))
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("flip", [True, False])
def test_gather_equals_pad_then_crop_then_flip(flip: bool) -> None:
    split = numbered(50, size=5, pad=3, flip=flip)
    originals = split.images[:, 3:-3, 3:-3].permute(0, 3, 1, 2)
    top, left, mirrored = split._placements((7, 2))
    [(images, targets)] = split.batches([torch.randperm(50)], (7, 2), workers=0, timeout=1)
    for image, k in zip(images, targets.tolist(), strict=True):
        y, x = int(top[k]), int(left[k])
        crop = zero_pad(originals[k], (3, 3, 3, 3))[:, y : y + 5, x : x + 5]
        assert torch.equal(image, crop.flip(-1) if mirrored[k] else crop)
    assert bool(mirrored.any()) == flip


@pytest.mark.parametrize("pad", [0, 3])
@pytest.mark.parametrize("mirrored", ["none", "some", "all"])
def test_both_ways_of_gathering_give_the_same_bytes(pad: int, mirrored: str) -> None:
    """Gathering rows (CPU) and single pixels (GPU) agree, at every offset in the first and the last image."""
    split = numbered(9, size=5, pad=pad)
    top, left = (way.flatten() for way in torch.meshgrid(*[torch.arange(2 * pad + 1)] * 2, indexing="ij"))
    index = torch.arange(len(top)) % 2 * 8
    turned = {"none": index < 0, "some": top % 2 == 0, "all": index >= 0}[mirrored]
    ways = [way(index, top, left, turned) for way in (split._by_windows, split._by_pixels)]
    assert torch.equal(*ways) and ways[0].shape == (len(top), 5, 5, 3)


@pytest.mark.parametrize("channels_last", [True, False])
@pytest.mark.parametrize("in_rows", [True, False])
def test_a_feed_normalises_bit_by_bit_as_the_formula(channels_last: bool, in_rows: bool) -> None:
    images = torch.randint(0, 256, (3, 5, 7, 3), dtype=torch.uint8).permute(0, 3, 1, 2)
    images = images if in_rows else images.contiguous()
    mean, std = (0.4, 0.5, 0.3), (0.2, 0.3, 0.25)
    with Runtime(device="cpu", channels_last=channels_last).start() as process:
        found = Feed(Loader(numbered(9), batch_size=3, seed=0, train=True), process, mean, std).normalised(images)
    shape = (1, 3, 1, 1)
    expected = (images.float() - 255 * torch.tensor(mean).view(shape)) * (1 / (255 * torch.tensor(std).view(shape)))
    assert torch.equal(found, expected) and found.dtype == torch.float32
    assert found.is_contiguous(memory_format=process.memory_format)


def test_crops_reach_everywhere_and_half_are_mirrored() -> None:
    top, left, mirrored = numbered(20_000, size=1, pad=2)._placements((0, 0))
    for offsets in (top, left):
        counts = torch.bincount(offsets, minlength=5)
        assert len(counts) == 5 and (counts - 4000).abs().max() < 5 * 4000**0.5
    assert abs(int(mirrored.sum()) - 10_000) < 5 * 5000**0.5


def test_batches_are_channels_last_bytes() -> None:
    [loader] = loaders(numbered(8), 1, 8, train=True)
    [batch] = loader.epoch(0)
    images, targets = tensors(batch)
    assert images.dtype == torch.uint8 and images.shape == (8, 3, 6, 6)
    assert images.is_contiguous(memory_format=torch.channels_last)
    assert targets.dtype == torch.int64 and batch.weight == 1.0


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_draws_the_same_batches() -> None:
    [loader] = loaders(numbered(34), 1, 8, train=True)
    there, here = numbered(34).to("cuda"), list(loader.epoch(1))
    [loader] = loaders(there, 1, 8, train=True)
    moved = list(loader.epoch(1))
    assert all(tensors(batch)[0].is_cuda for batch in moved)
    back = [Batch(images.cpu(), targets.cpu(), b.weight) for b in moved for images, targets in [tensors(b)]]
    assert same_batches(here, back)


def test_digits() -> None:
    data = digits()
    assert (len(data.train), len(data.val), data.size, len(data.classes)) == (1438, 359, 16, 10)
    train = data.train
    assert isinstance(train, Resident) and (train.pad, train.flip) == (2, False)
    pixels = train.images[:, 2:-2, 2:-2].double() / 255
    assert pixels.mean((0, 1, 2)).tolist() == pytest.approx(data.mean, abs=1e-4)
    assert pixels.std((0, 1, 2)).tolist() == pytest.approx(data.std, abs=1e-4)
    assert train.labels.bincount().min() > 120


def test_digits_at_their_own_size_are_the_published_values() -> None:
    val = digits(size=8).val
    assert isinstance(val, Resident)
    fourth = """
        0  0  0  1 11  0  0  0
        0  0  0  7  8  0  0  0
        0  0  1 13  6  2  2  0
        0  0  7 15  0  9  8  0
        0  5 16 10  0 16  6  0
        0  4 15 16 13 16  1  0
        0  0  0  3 15 10  0  0
        0  0  0  2 16  4  0  0
    """  # scikit-learn: load_digits().images[4], the first that is held out
    values = torch.tensor([int(value) for value in fourth.split()]).view(8, 8)
    assert torch.equal(val.images[0, :, :, 1], (values * 255 / 16).round().byte())
    assert val.labels[0] == 4


def test_synthetic_images_are_the_same_everywhere_and_are_labelled() -> None:
    data = synthetic(size=8, classes=3, train=10, val=4)
    assert data.source.startswith("SYNTHETIC: 10 + 4 images of noise, 8x8, 3 classes; accuracy means nothing")
    assert (len(data.train), len(data.val), data.size, data.classes) == (10, 4, 8, ("0", "1", "2"))
    train, val = data.train, data.val
    assert isinstance(train, Resident) and isinstance(val, Resident)
    assert (train.pad, train.flip) == (0, False)
    assert train.labels.tolist() == [0, 1, 2] * 3 + [0]
    assert train.images[0, 0, 0].tolist() == [87, 252, 204]  # SHAKE-128 defines them, so they never change
    assert not torch.equal(train.images[:4], val.images) and len(train.images.unique(dim=0)) == 10
    pixels = synthetic(size=32, train=64).train
    assert isinstance(pixels, Resident)
    assert pixels.images.double().std() / 255 == pytest.approx(data.std[0], abs=2e-3)


def test_fingerprint_follows_pixels_and_labels() -> None:
    def fingerprint(pixel: int, label: int, val_label: int = 0) -> str:
        image = np.full((1, 2, 2, 3), 5, np.uint8)
        image[0, 1, 1, 2] = pixel
        train, val = (Pixels(image, np.array([target])) for target in (label, val_label))
        facts: dict[str, Any] = {"classes": ("a", "b"), "mean": (0,) * 3, "std": (1,) * 3}
        return resident_dataset(train, val, pad=0, flip=False, source="", **facts).fingerprint

    assert fingerprint(5, 0) == fingerprint(5, 0)
    assert len({fingerprint(*changed) for changed in [(5, 0), (6, 0), (5, 1), (5, 0, 1)]}) == 4
    assert digits().fingerprint == digits(pad=0).fingerprint != digits(size=8).fingerprint


def test_options_are_checked() -> None:
    with pytest.raises(ConfigError, match="size=0"):
        digits(size=0)


def test_the_default_run_never_imports_torchvision() -> None:
    code = """
import sys, attnbench.data
assert "torch" not in sys.modules
import attnbench.data.in_memory.cifar
from attnbench.data.in_memory.digits import digits
from attnbench.data.loader import Loader
next(Loader(digits().train, batch_size=8, seed=0, train=True).epoch(0))
print([name for name in ("torchvision", "PIL", "sklearn") if name in sys.modules])
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert run.stdout.strip() == "[]", run.stderr
