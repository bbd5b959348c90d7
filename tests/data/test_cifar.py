"""CIFAR, read from official files and from image folders."""

from __future__ import annotations

import hashlib
import os
import pickle
import tarfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from PIL import Image

from attnbench.base.errors import DataError
from attnbench.data.in_memory import cifar_batches
from attnbench.data.in_memory.cifar import cifar10, cifar100
from attnbench.data.in_memory.resident import Resident
from tests.data_fixtures import (
    CIFAR10_CLASSES,
    canary,
    image_folder,
    python2_batch,
)
from tests.data_fixtures import (
    cifar_batches as write_batches,
)


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture
def official(tmp_path: Path) -> Iterator[Path]:
    """A generated folder, and its archive in ``../packed``, whose hashes count as the published ones."""
    folder = write_batches(tmp_path)
    archive = tmp_path / "packed" / "cifar-10-python.tar.gz"
    archive.parent.mkdir()
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(folder, arcname=folder.name)
    hashes = {file.name: sha256(file) for file in [*folder.iterdir(), archive]}
    release = replace(cifar_batches.CIFAR10, sha256=hashes)
    with mock.patch("attnbench.data.in_memory.cifar.CIFAR10", release):
        yield folder


def test_folder_itself_parent_and_archive_agree(official: Path) -> None:
    inside, above = cifar10(root=str(official)), cifar10(root=str(official.parent))
    packed = official.parent / "packed"
    archive = cifar10(root=str(packed))
    assert inside.fingerprint == above.fingerprint == archive.fingerprint
    assert archive.classes == CIFAR10_CLASSES and archive.source == "CIFAR-10, official files"
    assert (len(archive.train), len(archive.val), archive.size) == (100, 20, 32)
    assert [file.name for file in packed.iterdir()] == ["cifar-10-python.tar.gz"]  # not extracted


def test_pixels_and_labels(official: Path) -> None:
    data = cifar10(root=str(official), pad=4)
    with open(official / "data_batch_2", "rb") as file:
        table = pickle.load(file, encoding="bytes")  # safe: generated above
    split = data.train
    assert isinstance(split, Resident) and (split.pad, split.flip) == (4, True)
    red_green_blue = torch.from_numpy(table[b"data"]).view(-1, 3, 32, 32)
    assert torch.equal(split.images[20:40, 4:-4, 4:-4].permute(0, 3, 1, 2), red_green_blue)
    assert split.labels[20:40].tolist() == table[b"labels"]


@pytest.mark.parametrize("name", ["data_batch_3", "test_batch", "batches.meta"])
def test_a_tampered_file_is_named(official: Path, name: str) -> None:
    content = bytearray((official / name).read_bytes())
    content[-5] ^= 1
    (official / name).write_bytes(content)
    with pytest.raises(DataError, match=rf"not the {name} of CIFAR-10.*/{name}\); .*verify=false"):
        cifar10(root=str(official))


def test_a_tampered_archive_is_named(official: Path) -> None:
    archive = official.parent / "packed" / "cifar-10-python.tar.gz"
    archive.write_bytes(archive.read_bytes() + b"\0")
    with pytest.raises(DataError, match=r"not the cifar-10-python.tar.gz.*/cifar-10-python.tar.gz"):
        cifar10(root=str(archive.parent))


def test_a_missing_file_is_named(official: Path) -> None:
    (official / "data_batch_5").unlink()
    with pytest.raises(DataError, match=r"cannot be read.*/data_batch_5"):
        cifar10(root=str(official))


def test_unverified_copies_are_labelled(tmp_path: Path) -> None:
    folder = write_batches(tmp_path)
    with pytest.raises(DataError, match="SHA-256"):
        cifar10(root=str(folder))
    assert cifar10(root=str(folder), verify=False).source == "CIFAR-10, unverified files"


def test_a_pickle_that_would_run_code_is_refused(tmp_path: Path) -> None:
    folder, trace = write_batches(tmp_path), tmp_path / "trace"
    content = canary(os.mkdir, trace)
    (folder / "data_batch_1").write_bytes(content)
    with pytest.raises(DataError, match=r"asks for posix.mkdir.*/data_batch_1"):
        cifar10(root=str(folder), verify=False)
    assert not trace.exists()
    pickle.loads(content)
    assert trace.exists()  # the pickle does run code when it is loaded without protection


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"not a pickle",
        pickle.dumps([1, 2]),
        pickle.dumps({b"data": 1}),
        python2_batch(np.zeros((2, 3072), np.uint8), [0, 10], b"labels"),
        python2_batch(np.zeros((2, 3072), np.uint8), [0], b"labels"),
        python2_batch(np.zeros((2, 3071), np.uint8), [0, 1], b"labels"),
        python2_batch(np.zeros((2, 3072), np.uint8), [0, 1], b"labels")[:-99],
    ],
)
def test_a_file_of_something_else_is_named(tmp_path: Path, content: bytes) -> None:
    folder = write_batches(tmp_path)
    (folder / "data_batch_4").write_bytes(content)
    with pytest.raises(DataError, match="/data_batch_4"):
        cifar10(root=str(folder), verify=False)


def test_arrays_pickled_by_python_3_are_read(tmp_path: Path) -> None:
    folder = write_batches(tmp_path)
    rows = np.full((3, 3072), 7, np.uint8)
    for protocol in (2, 3):
        content = pickle.dumps({b"data": rows, b"labels": [1, 2, 3]}, protocol=protocol)
        (folder / "test_batch").write_bytes(content)
        val = cifar10(root=str(folder), verify=False).val
        assert isinstance(val, Resident) and val.labels.tolist() == [1, 2, 3]
        assert val.images.unique().tolist() == [7]


def test_cifar100_reads_fine_labels(tmp_path: Path) -> None:
    rows = np.random.default_rng(0).integers(0, 256, (5, 3072), dtype=np.uint8)
    for name in ("train", "test"):
        content = python2_batch(rows, [0, 99, 3, 4, 5], b"fine_labels")
        (tmp_path / name).write_bytes(content)
    meta = {b"fine_label_names": [f"class{k}".encode() for k in range(100)]}
    (tmp_path / "meta").write_bytes(pickle.dumps(meta, protocol=2))
    data = cifar100(root=str(tmp_path), verify=False)
    assert isinstance(data.train, Resident) and data.train.labels.tolist() == [0, 99, 3, 4, 5]
    assert len(data.classes) == 100 and data.mean == (0.5071, 0.4865, 0.4409)


def test_digests_are_whole() -> None:
    for release in (cifar_batches.CIFAR10, cifar_batches.CIFAR100):
        assert set(release.sha256) == {release.archive, *release.files}
        assert all(len(bytes.fromhex(digest)) == 32 for digest in release.sha256.values())


def test_a_missing_data_set_names_what_was_expected(tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    looked_for = r"holds pictures.*cifar-10-python.tar.gz, cifar-10-batches-py/ or train/<class>"
    with pytest.raises(DataError, match=looked_for):
        cifar10(root=str(tmp_path))
    with pytest.raises(DataError, match="no such folder"):
        cifar10(root=str(tmp_path / "nowhere"))


@pytest.mark.parametrize("val", ["test", "val"])
def test_image_folder(tmp_path: Path, val: str) -> None:
    root = image_folder(tmp_path, classes=CIFAR10_CLASSES, per_class=2, size=(32, 32), sides=("train", val))
    Image.new("L", (32, 32), 200).save(root / "train" / "truck" / "grey.png")
    data = cifar10(root=str(root), pad=0)
    assert data.classes == CIFAR10_CLASSES and (len(data.train), len(data.val)) == (21, 20)
    assert data.source == "CIFAR-10, image folder (JPEG: lossy, not the official pixels)"
    assert isinstance(data.train, Resident)
    with Image.open(root / "train" / "bird" / "1.jpg") as image:
        assert np.array_equal(data.train.images[5].numpy(), np.asarray(image))
    assert data.train.labels[5] == 2
    assert data.train.images[-1].unique().tolist() == [200]


def test_another_data_set_is_refused(tmp_path: Path) -> None:
    root = image_folder(tmp_path / "three", classes=("a", "b", "c"), size=(32, 32))
    with pytest.raises(DataError, match="3 classes instead of the 10 of CIFAR-10"):
        cifar10(root=str(root))
    root = image_folder(tmp_path / "large", classes=CIFAR10_CLASSES, per_class=1, size=(64, 48))
    with pytest.raises(DataError, match=r"64x48 pixels instead of 32x32.*/airplane/0.jpg"):
        cifar10(root=str(root))


def test_real_images(cifar_sample: Path, tmp_path: Path) -> None:
    """Uses the 10,000 test images for both splits, because reading the training images takes too long."""
    for side in ("train", "test"):
        (tmp_path / side).symlink_to(cifar_sample / "test")
    data = cifar10(root=str(tmp_path), pad=0)
    assert data.classes == CIFAR10_CLASSES
    assert isinstance(data.train, Resident) and isinstance(data.val, Resident)
    assert torch.equal(data.train.images, data.val.images)
    assert data.val.labels.bincount().tolist() == [1000] * 10
    pixels = data.val.images.numpy().reshape(-1, 3)
    mean, std = (f(0, dtype=np.float64) / 255 for f in (pixels.mean, pixels.std))
    assert mean == pytest.approx(data.mean, abs=0.005)
    assert std == pytest.approx(data.std, abs=0.005)
