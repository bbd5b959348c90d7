"""The fast JPEG decoder gives Pillow's pixels bit by bit, and leaves images of unusual kinds to Pillow."""

from __future__ import annotations

import io
import logging
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from attnbench.base import compile_c
from attnbench.base.errors import DataError
from attnbench.data import sampling
from attnbench.data.image_folders.datasets import imagenet
from attnbench.data.images import jpeg, pillow
from attnbench.data.images.crops import Crops, View
from attnbench.data.images.files import Files
from tests.data_fixtures import image_folder, photo

needs_engine = pytest.mark.skipif(jpeg.running() is None, reason="needs a C compiler")


def test_the_engine_runs_wherever_there_is_a_compiler() -> None:
    assert (jpeg.running() is not None) == any(map(shutil.which, ("cc", "gcc", "clang")))


def encoded(image: Image.Image, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, "JPEG", **options)
    return file.getvalue()


def grained(seed: int, width: int, height: int) -> Image.Image:
    """A photo with noise in every pixel and colour channel."""
    grain = np.random.default_rng(seed).integers(-40, 41, (height, width, 3))
    return Image.fromarray(np.clip(np.asarray(photo(seed, width, height)) + grain, 0, 255).astype(np.uint8))


def by_pillow(data: bytes, view: View) -> np.ndarray:
    return pillow.draw(pillow.read_rgb(data, "x"), view)


def views(width: int, height: int, seed: int, count: int) -> Iterator[View]:
    """Random views: any part of the image, resized to any size and aspect ratio, and any square of it."""
    draw = random.Random(seed).randint
    for _ in range(count):
        w, h = draw(1, width), draw(1, height)
        part = (draw(0, width - w), draw(0, height - h), w, h)
        resized = draw(1, 2 * w + 9), draw(1, 2 * h + 9)
        side = draw(1, min(resized))
        corner = draw(0, resized[0] - side), draw(0, resized[1] - side)
        yield View(part, resized, corner, side, bool(draw(0, 1)))


KINDS: dict[str, dict[str, Any]] = {
    "4:4:4": {"subsampling": 0},
    "4:2:2": {"subsampling": 1},
    "4:2:0": {"subsampling": 2},
    "progressive": {"progressive": True, "subsampling": 2},
    "restarts": {"restart_marker_blocks": 3},
    "rgb": {"keep_rgb": True},
    "poor": {"quality": 5},
    "grey": {},
}
SIZES = [(1, 1), (3, 40), (17, 16), (97, 61), (64, 200), (333, 50)]


@needs_engine
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("kind", KINDS)
def test_pixels_are_those_of_pillow(kind: str, size: tuple[int, int]) -> None:
    image = grained(sum(size), *size).convert("L" if kind == "grey" else "RGB")
    data = encoded(image, **{"quality": 85} | KINDS[kind])
    for view in views(*size, seed=len(data), count=12):
        drawn = jpeg.draw(data, lambda width, height, view=view: view)  # type: ignore[misc]
        assert drawn is not None
        assert np.array_equal(drawn, by_pillow(data, view)), view


@needs_engine
def test_the_crops_of_imagenet_are_drawn_as_by_pillow(imagenet_images: Path) -> None:
    crops, difference = Crops(224, 256, "shorter", 0.08), []
    for k, path in enumerate(sorted((imagenet_images / "val").glob("*/*.JPEG"))):
        data = path.read_bytes()
        for choose in (crops.evaluate, lambda w, h, k=k: crops.train(w, h, random.Random(k))):
            drawn = jpeg.draw(data, choose)
            assert drawn is not None
            reference = by_pillow(data, choose(*Image.open(path).size))
            difference.append(np.abs(drawn.astype(int) - reference).mean())
    assert len(difference) >= 18 and max(difference) == 0


def cut_tables(data: bytes) -> bytes:
    """JPEG data without their first quantization table."""
    at = data.index(b"\xff\xdb")
    length = int.from_bytes(data[at + 2 : at + 4], "big")
    return data[:at] + data[at + 2 + length :]


def damaged(data: bytes) -> bytes:
    """JPEG data with some bytes of the upper rows overwritten."""
    at = data.index(b"\xff\xda") + 40
    return data[:at] + b"\xff\x00" * 30 + data[at + 60 :]


def png(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


PICTURE = grained(7, 60, 48)
ODD = {
    "CMYK": encoded(PICTURE.convert("CMYK")),
    "PNG in disguise": png(PICTURE),
    "palette PNG": png(PICTURE.convert("P")),
    "grey PNG": png(PICTURE.convert("L")),
    "bytes behind the end": encoded(PICTURE) + b"\0\0 by some camera",
    "damage that Pillow does not mind": damaged(encoded(PICTURE)),
}
BROKEN = {
    "no tables": cut_tables(encoded(PICTURE)),
    "cut off": encoded(PICTURE)[:-100],
    "only a head": encoded(PICTURE)[:40],
    "nothing": b"",
    "GIF": b"GIF89a" + bytes(50),
}


def split_of(data: bytes, root: Path) -> Files:
    image_folder(root, per_class=1)
    (root / "train" / "cat" / "0.jpg").write_bytes(data)
    split = imagenet(root=str(root), size=24, resize=32).train
    assert isinstance(split, Files)
    return split


@pytest.mark.parametrize("kind", ODD)
def test_pillow_draws_what_is_not_plain(kind: str, tmp_path: Path) -> None:
    split = split_of(ODD[kind], tmp_path)
    assert jpeg.draw(ODD[kind], split.crops.evaluate) is None
    assert np.array_equal(split.read(0, None), by_pillow(ODD[kind], split.crops.evaluate(60, 48)))
    cropped = split.crops.train(60, 48, sampling.stream("crop", 1, 2, 0))  # the failed attempt drew no random numbers
    assert np.array_equal(split.read(0, (1, 2)), by_pillow(ODD[kind], cropped))


@pytest.mark.parametrize("kind", BROKEN)
def test_an_unreadable_image_is_named(kind: str, tmp_path: Path) -> None:
    split = split_of(BROKEN[kind], tmp_path)
    for draw in (None, (0, 0)):
        with pytest.raises(DataError, match="this image cannot be read: ") as caught:
            split.read(0, draw)
        assert caught.value.where == str(tmp_path / "train" / "cat" / "0.jpg")


@needs_engine
def test_an_image_too_large_is_left_to_pillow_which_refuses_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    split = split_of(encoded(PICTURE), tmp_path)
    assert jpeg.draw(encoded(PICTURE), split.crops.evaluate) is not None
    monkeypatch.setattr(pillow, "LARGEST", 60 * 48 - 1)
    with pytest.raises(DataError, match="60x48 pixels are too many"):
        split.read(0, None)


@needs_engine
def test_damage_never_changes_pixels_silently() -> None:
    """Images with random damage are drawn as Pillow draws them, or left to Pillow."""
    draws, drawn_at_all = random.Random(0), 0
    whole = [encoded(grained(k, 61, 53), quality=80, subsampling=k % 3, progressive=k == 3) for k in range(4)]
    for case in range(400):
        data = bytearray(draws.choice(whole))
        for _ in range(draws.randint(1, 4)):
            at = draws.randrange(len(data) if case % 2 else 300)
            data[at : at + draws.choice([1, 1, 30])] = draws.randbytes(1)

        def choose(width: int, height: int, case: int = case) -> View:  # the damage may change the image's size
            return next(views(width, height, case, 1))

        drawn = jpeg.draw(bytes(data), choose)
        if drawn is None:
            continue
        drawn_at_all += 1
        try:
            image = pillow.read_rgb(bytes(data), "x")
        except DataError:  # damage below the view, which the fast decoder does not read
            continue
        assert np.array_equal(drawn, pillow.draw(image, choose(*image.size)))
    assert drawn_at_all > 50


@needs_engine
def test_damage_that_pillow_ignores_is_reported() -> None:
    spoilt = damaged(encoded(PICTURE))
    assert jpeg.inspect(encoded(PICTURE)) == ""
    assert "Corrupt JPEG data" in str(jpeg.inspect(spoilt))
    pillow.read_rgb(spoilt, "x")  # no error
    assert jpeg.inspect(ODD["CMYK"]) is None


def test_without_a_compiler_pillow_draws_the_same_and_one_line_is_logged(tmp_path: Path) -> None:
    split = split_of(encoded(PICTURE), tmp_path)
    code = f"""
import logging, sys
logging.basicConfig(format="%(message)s")
from attnbench.data.image_folders.datasets import imagenet
for _ in range(2):
    data = imagenet(root={str(tmp_path)!r}, size=24, resize=32)
sys.stdout.buffer.write(data.train.read(0, (1, 2)).tobytes())
"""
    environment = {"PATH": "", "HOME": str(tmp_path), "PYTHONPATH": ":".join(sys.path)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, env=environment, check=True)
    assert done.stdout == split.read(0, (1, 2)).tobytes()
    [line] = done.stderr.decode().splitlines()
    assert line == "images are decoded by Pillow, at half the speed: there is no C compiler (cc, gcc or clang)"


@needs_engine
def test_other_pixels_than_pillows_are_refused(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A future Pillow may resize differently."""
    draw = pillow.draw
    monkeypatch.setattr(pillow, "draw", lambda image, view: draw(image, view) ^ 1)
    jpeg.running.cache_clear()
    try:
        with caplog.at_level(logging.WARNING):
            assert jpeg.running() is None
        assert "would differ from those of Pillow" in caplog.text
    finally:
        jpeg.running.cache_clear()


# C functions, compiled when they are first used


SOURCE = "int answer(void) { return 42; }"


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    if not any(map(shutil.which, ("cc", "gcc", "clang"))):
        pytest.skip("needs a C compiler")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    file = tmp_path / "some.c"
    file.write_text(SOURCE)
    return file


def test_a_source_is_compiled_once_and_again_when_it_changes(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert compile_c.load(source).answer() == 42
    [kept] = (source.parent / "cache" / "attnbench").iterdir()
    monkeypatch.setattr(compile_c, "_compile", None)  # not called
    assert compile_c.load(source).answer() == 42
    monkeypatch.undo()
    monkeypatch.setenv("XDG_CACHE_HOME", str(source.parent / "cache"))
    source.write_text(SOURCE.replace("42", "43"))
    assert compile_c.load(source).answer() == 43
    assert kept.exists() and len(list(kept.parent.iterdir())) == 2


def test_a_compiler_that_fails_is_quoted_and_leaves_nothing(source: Path) -> None:
    source.write_text("int answer(void) { return fortytwo; }")
    with pytest.raises(compile_c.Unavailable, match="fails: .*fortytwo"):
        compile_c.load(source)
    assert list((source.parent / "cache" / "attnbench").iterdir()) == []


def test_nothing_is_left_where_nothing_can_be_kept(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (source.parent / "cache").write_text("a file where the folder should be")
    monkeypatch.setattr(tempfile, "tempdir", str(source.parent))
    assert compile_c.load(source).answer() == 42
    assert {path.name for path in source.parent.iterdir()} == {"cache", "some.c"}


def test_a_file_that_cannot_be_loaded_is_a_reason(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compile_c, "_compile", lambda *given: given[-1].write_bytes(b"half a file"))
    with pytest.raises(compile_c.Unavailable, match="cannot be made or loaded"):
        compile_c.load(source)
