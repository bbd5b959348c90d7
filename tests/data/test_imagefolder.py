"""Image folders: listing, decoding, crops, and batches from worker processes."""

from __future__ import annotations

import os
import random
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from attnbench.base.errors import ConfigError, DataError
from attnbench.data import sampling
from attnbench.data.dataset import Batch, Dataset
from attnbench.data.image_folders.datasets import imagenet
from attnbench.data.images import pillow
from attnbench.data.images.crops import Crops, random_box
from attnbench.data.images.files import Files
from attnbench.data.images.pillow import draw, read_file, read_rgb
from attnbench.data.loader import Loader
from tests.data_fixtures import image_folder, photo, same_batches, tensors

WORKERS = (0, 1, 2, 4)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes of five images; one image is grey, one a palette PNG and one CMYK."""
    root = image_folder(tmp_path_factory.mktemp("images"), per_class=5)
    photo(90, 60, 48).convert("L").save(root / "train" / "cat" / "0.jpg")
    photo(91, 60, 48).convert("P").save(root / "train" / "cat" / "1.PNG")
    photo(92, 60, 48).convert("CMYK").save(root / "train" / "dog" / "0.jpg")
    (root / "train" / "cat" / "1.jpg").unlink()
    (root / "train" / "cat" / "._0.jpg").write_bytes(b"left by macOS")
    (root / "train" / "cat" / "notes.txt").write_text("not an image")
    return root


def small(root: Path) -> Dataset:
    return imagenet(root=str(root), size=24, resize=32)


def stream(root: Path, workers: int, *, train: bool = True, start: int = 0) -> list[Batch]:
    data = small(root)
    split = data.train if train else data.val
    loader = Loader(split, batch_size=4, seed=5, train=train, workers=workers, timeout=60)
    return list(loader.epoch(2, start))


@pytest.mark.filterwarnings("ignore:This DataLoader will create 4 worker processes")
@pytest.mark.parametrize("train", [True, False])
def test_the_stream_does_not_depend_on_workers(folder: Path, train: bool) -> None:
    streams = [stream(folder, workers, train=train) for workers in WORKERS]
    assert sum(len(batch.targets) for batch in streams[0]) == 10
    for other in streams[1:]:
        assert same_batches(streams[0], other)


@pytest.mark.parametrize("workers", [0, 2])
def test_an_epoch_continues_from_any_step(folder: Path, workers: int) -> None:
    whole = stream(folder, 0)
    for start in (1, 2, 3):
        assert same_batches(stream(folder, workers, start=start), whole[start:])


def test_batches_are_channels_last_bytes(folder: Path) -> None:
    images, targets = tensors(stream(folder, 1)[0])
    assert images.dtype == torch.uint8 and images.shape == (4, 3, 24, 24)
    assert images.is_contiguous(memory_format=torch.channels_last)
    assert targets.dtype == torch.int64


def test_epochs_seeds_and_samples_are_cropped_differently(folder: Path) -> None:
    split = small(folder).train
    assert isinstance(split, Files)
    crops = [split.read(2, draw) for draw in [(0, 0), (0, 1), (1, 0), (0, 0)]]
    assert np.array_equal(crops[0], crops[3])
    assert not np.array_equal(crops[0], crops[1]) and not np.array_equal(crops[0], crops[2])
    boxes = {random_box(500, 400, 0.08, sampling.stream("crop", 0, 0, k)) for k in range(100)}
    assert len(boxes) == 100


def test_global_random_states_are_left_alone(folder: Path) -> None:
    before = torch.get_rng_state(), random.getstate(), str(np.random.get_state())
    for workers in (0, 2):
        stream(folder, workers)
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1:] == (random.getstate(), str(np.random.get_state()))


def test_labels_go_by_name(tmp_path: Path) -> None:
    root = image_folder(tmp_path, classes=("a", "b", "c"), per_class=2, sides=("train",))
    image_folder(tmp_path, classes=("a", "c"), per_class=1, sides=("val",))
    data = small(root)
    assert data.classes == ("a", "b", "c")
    assert isinstance(data.train, Files) and isinstance(data.val, Files)
    assert data.train.records.labels.tolist() == [0, 0, 1, 1, 2, 2] and data.val.records.labels.tolist() == [0, 2]
    assert data.val.records.where(1) == str(root / "val" / "c" / "0.jpg")


def test_names_beyond_ascii(tmp_path: Path) -> None:
    root = image_folder(tmp_path, classes=("größe", "犬"), per_class=2)
    assert len(stream(root, 0)[0].targets) == 4


def test_fingerprint_follows_names_and_sizes(tmp_path: Path) -> None:
    root = image_folder(tmp_path)
    before = small(root).fingerprint
    assert small(root).fingerprint == before
    (root / "val" / "cat" / "0.jpg").rename(root / "val" / "cat" / "00.jpg")
    renamed = small(root).fingerprint
    (root / "val" / "cat" / "00.jpg").write_bytes(b"shorter")
    assert len({before, renamed, small(root).fingerprint}) == 3


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_a_truncated_image_is_named(tmp_path: Path, workers: int, suffix: str) -> None:
    root = image_folder(tmp_path)
    damaged = root / "train" / "dog" / f"damaged.{suffix}"
    photo(1, 60, 48).save(damaged)
    damaged.write_bytes(damaged.read_bytes()[:-200])
    with pytest.raises(DataError, match="^this image cannot be read: ") as caught:
        stream(root, workers)
    assert caught.value.where == str(damaged)


@pytest.mark.parametrize("content", [b"", b"GIF89a", b"\xff\xd8\xff\xe0 nothing"])
def test_a_file_that_is_no_image_is_named(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "x.jpg"
    file.write_bytes(content)
    with pytest.raises(DataError, match=r"cannot be read: .*/x\.jpg"):
        read_rgb(read_file(file), file)


def test_a_png_with_a_broken_chunk_is_named(tmp_path: Path) -> None:
    file = tmp_path / "x.png"
    noise = np.random.default_rng(0).integers(0, 256, (200, 200, 3), dtype=np.uint8)
    Image.fromarray(noise).save(file)
    head, last = file.read_bytes().rsplit(b"IDAT", 1)
    file.write_bytes(head + b"\xc0\xaf\xcc?" + last)  # PIL raises SyntaxError
    with pytest.raises(DataError, match=r"cannot be read: broken PNG.*/x\.png"):
        read_rgb(read_file(file), file)


def test_a_foreign_format_is_named(tmp_path: Path) -> None:
    file = tmp_path / "x.jpg"
    file.write_bytes(b"\0\0\0\x20ftypheic\0\0\0\0")
    with pytest.raises(DataError, match="cannot be read: its format is HEIC"):
        read_rgb(read_file(file), file)


def test_a_decompression_bomb_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert pillow.LARGEST == Image.MAX_IMAGE_PIXELS
    monkeypatch.setattr(pillow, "LARGEST", 99)
    photo(0, 10, 10).save(tmp_path / "x.png")
    with pytest.raises(DataError, match=r"10x10 pixels are too many.*/x\.png"):
        read_rgb(read_file(tmp_path / "x.png"), tmp_path / "x.png")


def test_a_dead_worker_is_reported(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def die(*_: object) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    monkeypatch.setattr(Files, "read", die)
    with pytest.raises(DataError, match=r"data worker failed: DataLoader worker .*2 workers"):
        stream(folder, 2)


def test_a_worker_that_hangs_ends_in_an_error(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Files, "read", lambda *_: time.sleep(1.5))
    loader = Loader(small(folder).val, batch_size=1, seed=0, train=False, workers=1, timeout=1)
    with pytest.raises(DataError, match="timed out after 1 seconds"):
        list(loader.epoch(0))


def test_missing_folders(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no train/<class>/\*.jpg here: .*no such folder"):
        small(tmp_path / "nowhere")
    (tmp_path / "validation").mkdir()
    with pytest.raises(DataError, match=r"no train/<class>.*holds validation.*dataset.root"):
        small(tmp_path)
    (tmp_path / "train").mkdir()
    with pytest.raises(DataError, match="no val/<class>"):
        small(tmp_path)
    (tmp_path / "val").mkdir()
    with pytest.raises(DataError, match=r"no class folder here: it is empty .*/train\)"):
        small(tmp_path)


def test_an_empty_class_is_named(folder: Path, tmp_path: Path) -> None:
    root = image_folder(tmp_path)
    (root / "train" / "eel").mkdir()
    with pytest.raises(DataError, match=r"no image: it is empty \(.*/train/eel\)"):
        small(root)
    (root / "train" / "eel").rmdir()
    (root / "val" / "eel").mkdir()
    with pytest.raises(DataError, match=r"class eel has no training images \(.*/val/eel\)"):
        small(root)


def test_a_link_to_nowhere_is_named(tmp_path: Path) -> None:
    root = image_folder(tmp_path)
    (root / "train" / "cat" / "lost.jpg").symlink_to(tmp_path / "nowhere.jpg")
    with pytest.raises(DataError, match=r"cannot be listed: No such file.*/lost\.jpg"):
        small(root)


def test_a_crop_larger_than_the_resized_image_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="resize=256 is less than size=288"):
        imagenet(root=str(tmp_path), size=288)


# Pixels and the distribution of crops are those of torchvision's transforms on PIL images.

SIZES = [
    (500, 375),
    (375, 500),
    (333, 333),
    (100, 1000),
    (257, 256),
    (224, 300),
    (31, 900),
    (500, 357),
    (343, 256),  # its centre crop begins at 59.5
    (256, 345),  # its centre crop begins at 60.5
]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("mode", ["shorter", "square"])
def test_evaluation_equals_torchvision(size: tuple[int, int], mode: str) -> None:
    from torchvision.transforms import functional

    image = photo(3, *size)
    crops = Crops(224, 256, mode, 0.08)  # type: ignore[arg-type]
    resized = functional.resize(image, [256] if mode == "shorter" else [256, 256])
    expected = functional.center_crop(resized, [224, 224])
    assert np.array_equal(draw(image, crops.evaluate(*size)), np.asarray(expected))


@pytest.mark.parametrize("size", SIZES)
def test_training_equals_torchvision_for_the_same_box(size: tuple[int, int]) -> None:
    from torchvision.transforms import functional

    image, crops = photo(4, *size), Crops(96, 128, "shorter", 0.08)
    mirrored = 0
    for seed in range(6):
        left, top, width, height = random_box(*size, 0.08, draws := random.Random(seed))
        expected = functional.resized_crop(image, top, left, height, width, [96, 96])
        if draws.random() < 0.5:
            expected, mirrored = functional.hflip(expected), mirrored + 1
        assert np.array_equal(draw(image, crops.train(*size, random.Random(seed))), np.asarray(expected))
    assert 0 < mirrored < 6


@pytest.mark.parametrize("size", [(500, 375), (100, 1000), (1000, 100), (160, 100)])
def test_boxes_are_distributed_as_torchvisions(size: tuple[int, int]) -> None:
    from torchvision.transforms import RandomResizedCrop

    width, height = size
    image, draws = torch.empty(3, height, width), 3000
    torch.manual_seed(0)
    theirs = np.array([RandomResizedCrop.get_params(image, [0.08, 1.0], [3 / 4, 4 / 3]) for _ in range(draws)])[
        :, [1, 0, 3, 2]
    ]
    stream = random.Random(0)
    ours = np.array([random_box(width, height, 0.08, stream) for _ in range(draws)])
    ours, theirs = (
        np.column_stack([boxes, boxes[:, 2] * boxes[:, 3], boxes[:, 2] / boxes[:, 3]]) for boxes in (ours, theirs)
    )
    for quantity in range(6):  # left, top, width, height, area, aspect
        values = np.unique(np.concatenate([ours[:, quantity], theirs[:, quantity]]))
        below = [np.searchsorted(np.sort(boxes[:, quantity]), values, side="right") / draws for boxes in (ours, theirs)]
        assert np.abs(below[0] - below[1]).max() < 1.95 * (2 / draws) ** 0.5  # p = 0.001


@pytest.mark.parametrize("size", [(10, 1000), (1000, 10), (1, 3)])
def test_boxes_that_never_fit_fall_back_to_the_centre(size: tuple[int, int]) -> None:
    from torchvision.transforms import RandomResizedCrop

    left, top, width, height = random_box(*size, 1.0, random.Random(0))
    image = torch.empty(3, size[1], size[0])
    expected = RandomResizedCrop.get_params(image, [1.0, 1.0], [3 / 4, 4 / 3])
    assert (top, left, height, width) == expected


def test_a_folder_is_evaluated_as_by_torchvision(imagenet_images: Path, tmp_path: Path) -> None:
    from torchvision import transforms

    for side in ("train", "val"):
        (tmp_path / side).symlink_to(imagenet_images / "val")
    data = imagenet(root=str(tmp_path))
    assert len(data.classes) == len(data.val) >= 9
    reference = transforms.Compose([transforms.Resize(256), transforms.CenterCrop(224)])
    split, modes = data.val, set()
    assert isinstance(split, Files)
    loader = Loader(split, batch_size=16, seed=0, train=False, workers=2)
    ours = torch.cat([tensors(batch)[0] for batch in loader.epoch(0)])
    for k, image in enumerate(ours):
        with Image.open(split.records.where(k)) as original:
            modes.add(original.mode)
            expected = np.asarray(reference(original.convert("RGB")))
        assert np.array_equal(image.permute(1, 2, 0).numpy(), expected)
    assert modes == {"RGB", "L"}


def test_an_orientation_is_not_applied_as_torchvision_does_not(tmp_path: Path) -> None:
    from torchvision.datasets.folder import pil_loader

    root, exif = image_folder(tmp_path, per_class=1), Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees
    turned = root / "train" / "cat" / "0.jpg"
    photo(0, 60, 48).save(turned, exif=exif)
    assert Image.open(turned).getexif()[0x0112] == 6
    split = imagenet(root=str(root), size=48, resize=48).train
    assert isinstance(split, Files)
    assert np.array_equal(split.read(0, None), np.asarray(pil_loader(str(turned)))[:, 6:54])
