"""Images for tests: real samples where they are at hand, generated ones in the same layouts.

Real samples are looked for in ``$ATTNBENCH_SAMPLES``, then in ``../shared/data`` beside the
checkout.
"""

from __future__ import annotations

import json
import os
import pickle
import struct
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from filelock import FileLock
from PIL import Image
from torch import Tensor

from attnbench.data.dataset import Batch, Split
from attnbench.data.detection.scenes import Scenes

SAMPLES = Path(os.environ.get("ATTNBENCH_SAMPLES") or Path(__file__).resolve().parents[1].parent / "shared" / "data")


def _sample(archive: str) -> Callable[[pytest.TempPathFactory], Path]:
    """A fixture: an archive's content, unpacked once for all xdist workers; skips where the archive is absent."""

    @pytest.fixture(scope="session")
    def unpacked(tmp_path_factory: pytest.TempPathFactory) -> Path:
        if not (SAMPLES / archive).is_file():
            pytest.skip(f"no {archive} in {SAMPLES}; set ATTNBENCH_SAMPLES to the sample data")
        base = tmp_path_factory.getbasetemp()
        shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
        folder = shared / f"sample-{archive.partition('.')[0]}"
        done = folder / ".done"
        with FileLock(f"{folder}.lock"):
            if not done.exists():
                folder.mkdir(exist_ok=True)
                # Five times as fast as the tarfile module for 60,000 files.
                subprocess.run(["tar", "-xf", SAMPLES / archive, "-C", folder], check=True)
                done.touch()
        return folder

    return unpacked


# 59 real ImageNet images as val/<wnid>/*.JPEG, three of them grey; no train
imagenet_sample = _sample("imagenet-sample.tar")
# all of CIFAR-10 as train/<class>/*.jpg and test/<class>/*.jpg: 60,000 small files
cifar_sample = _sample("cifar10-jpeg.tar.xz")
# 84 real VOC images with their XML, as VOCdevkit/VOC2007; trainval of 56, test of 28
voc_sample = _sample("voc-mini.tar")
# 34 + 24 real COCO images with instances, crowds among them; some are grey
coco_sample = _sample("coco-mini.tar")


def _either(name: str, generated: Callable[[Path], object]) -> Callable[..., Path]:
    """A fixture: a folder of generated images, then a sample of real ones, which is skipped where it is absent."""

    @pytest.fixture(scope="session", params=["generated", "real"])
    def images(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
        if request.param == "real":
            return request.getfixturevalue(name)
        folder = tmp_path_factory.mktemp(name)
        generated(folder)
        return folder

    return images


def tensors(batch: Batch) -> tuple[Tensor, Tensor]:
    """The images and targets of a batch of classification."""
    assert isinstance(batch.images, Tensor) and isinstance(batch.targets, Tensor)
    return batch.images, batch.targets


def same_batches(one: Sequence[Batch], other: Sequence[Batch]) -> bool:
    """Whether two streams have the same images, targets and weights, to the bit."""
    return len(one) == len(other) and all(
        all(map(torch.equal, tensors(a), tensors(b))) and a.weight == b.weight for a, b in zip(one, other, strict=True)
    )


def scenes(split: Split) -> Scenes:
    """A split of a detection data set as what it is."""
    assert isinstance(split, Scenes)
    return split


def source(split: Split) -> Any:
    """What a split of a detection data set draws from, with all that only its kind has."""
    return scenes(split).source


def photo(seed: int, width: int, height: int) -> Image.Image:
    """A colourful image unlike that of any other seed, smooth enough to survive JPEG."""
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def image_folder(
    root: Path,
    *,
    classes: Sequence[str] = ("cat", "dog"),
    per_class: int = 4,
    size: tuple[int, int] = (60, 48),
    sides: Sequence[str] = ("train", "val"),
) -> Path:
    """Write ``<side>/<class>/<k>.jpg`` of (width, height) ``size`` below ``root``; returns it."""
    seed = 0
    for side in sides:
        for name in classes:
            folder = root / side / name
            folder.mkdir(parents=True)
            for k in range(per_class):
                photo(seed, *size).save(folder / f"{k}.jpg", quality=95)
                seed += 1
    return root


def voc_folder(root: Path, xml: str | bytes | None = None, splits: str = "1\n2\n") -> Path:
    """A VOC folder of two images, the first with the given annotation."""
    year = root / "VOC2007"
    for folder in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (year / folder).mkdir(parents=True, exist_ok=True)
    for name in ("1", "2"):
        photo(int(name), 60, 40).save(year / "JPEGImages" / f"{name}.jpg")
        (year / "Annotations" / f"{name}.xml").write_text(voc_annotation())
    if xml is not None:
        (year / "Annotations" / "1.xml").write_bytes(xml if isinstance(xml, bytes) else xml.encode())
    for split in ("trainval", "test"):
        (year / "ImageSets/Main" / f"{split}.txt").write_text(splits)
    return root


def voc_annotation(
    box: tuple[float, ...] = (1, 2, 60, 40), name: str = "dog", extra: str = "", difficult: int = 0
) -> str:
    sides = "".join(f"<{k}>{v}</{k}>" for k, v in zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True))
    return (
        f"<annotation><size><width>60</width><height>40</height><depth>3</depth></size><object><name>{name}</name>"
        f"<difficult>{difficult}</difficult><bndbox>{sides}</bndbox>{extra}</object></annotation>"
    )


def coco_folder(root: Path, change: Callable[[dict[str, Any]], object] = dict) -> Path:
    """A COCO folder of two splits with two images each, one of them without annotations; ``change`` edits val's."""
    square = [5, 5, 25, 5, 25, 15, 5, 15]
    for split in ("train2017", "val2017"):
        (root / split).mkdir(parents=True)
        content = {
            "images": [{"id": n, "file_name": f"{n}.jpg", "width": 60, "height": 40} for n in (7, 3)],
            "categories": [{"id": 9, "name": "zebra"}, {"id": 2, "name": "ant"}],
            "annotations": [
                {"id": 1, "image_id": 7, "category_id": 9, "bbox": [5, 5, 20, 10], "area": 200, "iscrowd": 0,
                 "segmentation": [square]},
                {"id": 2, "image_id": 7, "category_id": 2, "bbox": [0, 0, 60, 20], "area": 1200, "iscrowd": 1,
                 "segmentation": {"size": [40, 60], "counts": [0, *[20, 20] * 60]}},
            ],
        }  # fmt: skip
        if split == "val2017":
            change(content)
        for n in (3, 7):
            image = photo(n + 10 * (split == "val2017"), 60, 40)
            image.convert("L" if n == 3 else "RGB").save(root / split / f"{n}.jpg")
        (root / "annotations").mkdir(exist_ok=True)
        (root / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))
    return root


def imagenet_scenes(root: Path) -> None:
    """Images of many shapes as ``val/<class>/*.JPEG``, every third one grey; no train."""
    sizes = [(343, 256), (256, 343), (500, 375), (375, 500), (257, 300), (300, 257), (640, 259), (500, 357), (300, 300)]
    for k, size in enumerate(sizes):
        folder = root / "val" / f"n{k:08}"
        folder.mkdir(parents=True)
        photo(k, *size).convert("L" if k % 3 == 2 else "RGB").save(folder / f"{k}.JPEG", quality=90)


def voc_scenes(root: Path, images: int = 12) -> None:
    """A VOC folder of images with up to three objects each, some difficult: in ``trainval``, the last four in ``test``.

    Of image k, from 0, the first object is difficult where k is divisible by 4.
    """
    year, random = root / "VOCdevkit" / "VOC2007", np.random.default_rng(0)
    for folder in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (year / folder).mkdir(parents=True)
    for k in range(images):
        width, height = 120 + 10 * k, 160 - 5 * k
        photo(k, width, height).save(year / "JPEGImages" / f"{k:06}.jpg")
        objects = ""
        for n in range(k % 4):
            left, top = random.integers(1, (width // 2, height // 2))
            box = (left, top, random.integers(left + 8, width + 1), random.integers(top + 8, height + 1))
            whole = voc_annotation(box, ("dog", "person", "car")[n], difficult=int(k % 4 == n + 1 == 1))
            objects += whole[whole.index("<object>") : whole.index("</annotation>")]
        sides = f"<size><width>{width}</width><height>{height}</height><depth>3</depth></size>"
        (year / "Annotations" / f"{k:06}.xml").write_text(f"<annotation>{sides}{objects}</annotation>")
    names = [f"{k:06}\n" for k in range(images)]
    (year / "ImageSets/Main/trainval.txt").write_text("".join(names[:-4]))
    (year / "ImageSets/Main/test.txt").write_text("".join(names[-4:]))


KINDS = [{"id": 3 * n + 2, "name": f"kind {n}"} for n in range(5)]  # ids with gaps, as COCO's
CORNERS = [(0.0, 0.2), (0.6, 0.0), (1.0, 0.7), (0.3, 1.0)]  # of a quadrangle in its box


def coco_scenes(root: Path, images: int = 10) -> None:
    """A COCO folder of two splits: small, middling and large quadrangles, a crowd in every third image, some grey."""
    random = np.random.default_rng(0)
    (root / "annotations").mkdir()
    for split in ("train2017", "val2017"):
        (root / split).mkdir()
        content: dict[str, Any] = {"images": [], "categories": KINDS, "annotations": []}
        for k in range(images):
            number, width, height = 100 + 7 * k, 200 + 8 * k, 220 - 4 * k
            name = f"{number:012}.jpg"
            image = photo(k + images * (split == "val2017"), width, height)
            image.convert("L" if k % 4 == 3 else "RGB").save(root / split / name)
            content["images"].append({"id": number, "file_name": name, "width": width, "height": height})
            shapes = [_quadrangle(width, height, at, random) for at in (16, 50, 120)[: 1 + (k + 2) % 3]]
            shapes += [_crowd(width, height)] if k % 3 == 0 else []
            for n, shape in enumerate(shapes):
                about = {"id": len(content["annotations"]) + 1, "image_id": number}
                content["annotations"].append(about | {"category_id": KINDS[(k + n) % 5]["id"], **shape})
        (root / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))


def _quadrangle(width: int, height: int, side: int, random: np.random.Generator) -> dict[str, Any]:
    """A quadrangle of about ``side`` pixels anywhere in an image."""
    w, h = random.integers(side, side + side // 4, 2)
    left, top = random.integers(0, (width - w, height - h))
    polygon = [float(at) for x, y in CORNERS for at in (left + w * x, top + h * y)]
    box = [int(left), int(top), int(w), int(h)]
    return {"bbox": box, "area": 0.5 * float(w * h), "iscrowd": 0, "segmentation": [polygon]}


def _crowd(width: int, height: int) -> dict[str, Any]:
    """The upper third of an image as a region."""
    rows = height // 3
    region = {"size": [height, width], "counts": [0, *[rows, height - rows] * width]}
    return {"bbox": [0, 0, width, rows], "area": width * rows, "iscrowd": 1, "segmentation": region}


imagenet_images = _either("imagenet_sample", imagenet_scenes)
voc_images = _either("voc_sample", voc_scenes)
coco_images = _either("coco_sample", coco_scenes)


CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


def cifar_batches(root: Path, *, per_batch: int = 20) -> Path:
    """Write CIFAR-10's extracted folder, in the byte layout of the official files, below ``root``.

    Returns the folder ``root/cifar-10-batches-py``. Its pixels are random, so its hashes are wrong.
    """
    folder = root / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name in (*(f"data_batch_{k}" for k in range(1, 6)), "test_batch"):
        rows = rng.integers(0, 256, (per_batch, 3072), dtype=np.uint8)
        labels = rng.integers(0, 10, per_batch).tolist()
        (folder / name).write_bytes(python2_batch(rows, labels, b"labels"))
    meta = {b"label_names": [name.encode() for name in CIFAR10_CLASSES]}
    (folder / "batches.meta").write_bytes(pickle.dumps(meta, protocol=2))
    return folder


def python2_batch(rows: np.ndarray, labels: Sequence[int], labels_key: bytes) -> bytes:
    """The pickle that Python 2 and numpy 1 wrote of ``{"data": rows, labels_key: labels}``."""

    def text(value: bytes) -> bytes:
        return b"U" + bytes([len(value)]) + value

    shape = b"".join(b"J" + struct.pack("<i", n) for n in rows.shape) + b"\x86"
    array = (
        b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85" + text(b"b") + b"\x87R("
        b"K\x01" + shape + b"cnumpy\ndtype\n" + text(b"u1") + b"K\x00K\x01\x87R(K\x03" + text(b"|")
        + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89"
        + b"T" + struct.pack("<i", rows.size) + rows.tobytes() + b"tb"
    )  # fmt: skip
    numbers = b"](" + b"".join(b"K" + bytes([label]) for label in labels) + b"e"
    return b"\x80\x02}(" + text(b"data") + array + text(labels_key) + numbers + b"u."


def canary(touch: Callable[[str], object], path: Path) -> bytes:
    """A pickle that calls ``touch(path)`` if it is ever loaded without restriction."""

    class Canary:
        def __reduce__(self) -> tuple[Callable[[str], object], tuple[str]]:
            return touch, (str(path),)

    return pickle.dumps({b"data": Canary()}, protocol=2)
