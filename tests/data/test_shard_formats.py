"""Shards as other programs read them, those of an earlier release, and both against the folder in a run."""

from __future__ import annotations

import io
import json
import signal
import sys
import tarfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from attnbench.base.errors import ConfigError, DataError, StorageError
from attnbench.cli import main
from attnbench.data.image_folders.datasets import folder as folder_data
from attnbench.data.image_folders.shards import Shards, open_shards
from tests.data.earlier_shards import write_earlier
from tests.data_fixtures import image_folder, photo
from tests.small_runs import ForkServer, interrupted_in

Shard = Callable[..., str]


@pytest.fixture
def shard(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Shard:
    """Runs ``attnbench data shard`` in this process and returns what it prints."""

    def call(*arguments: str | Path) -> str:
        monkeypatch.setattr(sys, "argv", ["attnbench data", "shard", *map(str, arguments)])
        capsys.readouterr()
        main.command("data")()
        return capsys.readouterr().out

    return call


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Three classes; names with points, capitals, spaces and quotes, one in two formats, and PNG and WebP."""
    root = image_folder(tmp_path / "pictures", classes=("a cat", "dog", "größe"), per_class=5)
    here = root / "train" / "a cat"
    (here / "0.jpg").rename(here / "0.JPEG")
    (here / "1.jpg").rename(here / "1.a.b.jpg")
    (here / "2.jpg").rename(here / 'x},"y.jpg')
    photo(90, 60, 48).save(here / "0.png")
    photo(91, 60, 48).save(here / "5.webp", lossless=True)
    return root


def stored(root: Path) -> dict[str, bytes]:
    """The bytes of every picture in shards, by split and name."""
    found = open_shards(root)
    both = [(side.side, Shards(side)) for side in (found.train, found.val)]
    return {f"{side.name}/{name}": one.read(k) for side, one in both for k, name in enumerate(side.files)}


def files_of(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*.*") if path.is_file()}


def test_webdataset_reads_them_in_order(pictures: Path, tmp_path: Path, shard: Shard) -> None:
    import webdataset

    shard(pictures, tmp_path / "out")
    side = open_shards(tmp_path / "out").train.side
    samples = list(webdataset.WebDataset(str(tmp_path / "out/train-000000.tar"), shardshuffle=False))
    assert [int(one["cls"]) for one in samples] == side.labels
    kinds = ("jpg", "png", "webp")
    pairs = [next(one[kind] for kind in kinds if kind in one) for one in samples]
    assert pairs == [(pictures / "train" / name).read_bytes() for name in side.files]


def test_timm_reads_every_split(pictures: Path, tmp_path: Path, shard: Shard) -> None:
    from timm.data.readers import create_reader

    out = tmp_path / "out"
    shard(pictures, out, "--shard-size", "1")
    found = open_shards(out)
    for split, side in (("train", found.train.side), ("val", found.val.side)):
        reader: Any = create_reader("wds/", root=str(out), split=split)
        read = list(reader)
        assert len(reader) == len(read) == len(side.files)
        assert [target for _, target in read] == side.labels
        for (image, _), name in zip(read, side.files, strict=True):
            with Image.open(pictures / split / name) as own:
                assert np.array_equal(np.asarray(image), np.asarray(own.convert("RGB")))


def test_the_index_has_the_place_of_every_picture(pictures: Path, tmp_path: Path, shard: Shard) -> None:
    """``files`` with offset and length, under the name of the tar file, is what webshart reads."""
    shard(pictures, tmp_path / "out")
    for tar in (tmp_path / "out").glob("*.tar"):
        index = json.loads(tar.with_suffix(".json").read_text())
        data = tar.read_bytes()
        assert index["path"] == tar.name and index["filesize"] == len(data)
        with tarfile.open(tar) as archive:
            members = {one.name: archive.extractfile(one).read() for one in archive if one.isreg()}  # type: ignore[union-attr]
            assert all(one.isreg() and "/" not in one.name for one in archive)
        assert len(members) == 2 * len(index["files"])
        for name, place in index["files"].items():
            assert members[name] == data[place["offset"] : place["offset"] + place["length"]]
            assert members[name.partition(".")[0] + ".cls"] == str(place["label"]).encode()


LOSS = "attnbench.training.tasks.classification:Classification.loss"
TINY = [
    *("runtime.device=cpu", "runtime.workers=0", "backbone=resnet20", "backbone.depth=8", "batch_size=4"),
    *("schedule.epochs=2", "dataset=folder", "dataset.size=16", "dataset.resize=16", "dataset.name=same"),
]


def trained(forks: ForkServer, root: Path, outputs: Path, *more: str) -> dict[str, Any]:
    """Train on a folder; returns the final weights, and the fingerprint of the data under a name of its own."""
    end = forks.train(outputs.parent, *TINY, *more, f"dataset.root={root}", f"paths.outputs={outputs}")
    assert end.code == 0, end.errors
    run = next(outputs.rglob("result.json")).parent
    weights = torch.load(next((run / "checkpoints").glob("last*")), weights_only=True)
    return {**weights["model"], "fingerprint": json.loads((run / "data.json").read_text())["fingerprint"]}


def test_weights_and_fingerprint_are_those_of_the_folder(
    pictures: Path, tmp_path: Path, shard: Shard, forks: ForkServer
) -> None:
    shard(pictures, tmp_path / "new")
    write_earlier(pictures, tmp_path / "old")
    expected = trained(forks, pictures, tmp_path / "outputs")
    for kind in ("new", "old"):
        found = trained(forks, tmp_path / kind, tmp_path / f"outputs-{kind}")
        assert found.keys() == expected.keys() and found["fingerprint"] == expected["fingerprint"]
        assert all(torch.equal(found[name], expected[name]) for name in expected if name != "fingerprint")


def test_a_run_on_earlier_shards_goes_on_with_new_ones(
    pictures: Path, tmp_path: Path, shard: Shard, forks: ForkServer
) -> None:
    """Stopped in the second epoch on the earlier shards; then the same weights as from one kind alone."""
    write_earlier(pictures, tmp_path / "old")
    expected = trained(forks, tmp_path / "old", tmp_path / "outputs")
    outputs = f"paths.outputs={tmp_path}/moved"
    stopped = partial(interrupted_in, LOSS, 7, signal.SIGTERM)
    end = forks.train(tmp_path, *TINY, f"dataset.root={tmp_path}/old", outputs, before=stopped)
    assert end.code == 143, end.errors
    shard(tmp_path / "old", tmp_path / "new")
    found = trained(forks, tmp_path / "new", tmp_path / "moved")
    assert all(torch.equal(found[name], expected[name]) for name in expected if name != "fingerprint")


# Shards of an earlier release


def test_earlier_shards_are_read_and_converted(pictures: Path, tmp_path: Path, shard: Shard) -> None:
    old = write_earlier(pictures, tmp_path / "old")
    assert stored(old) == files_of(pictures)
    assert "use the shards with dataset.root=" in shard(old, tmp_path / "new")
    assert stored(tmp_path / "new") == files_of(pictures)
    shard(pictures, tmp_path / "direct")
    for path in (tmp_path / "direct").glob("*.*"):
        assert (tmp_path / "new" / path.name).read_bytes() == path.read_bytes()
    sources = [folder_data(root=str(root)) for root in (old, tmp_path / "new", pictures)]
    assert len({(one.source, one.fingerprint, one.contents()) for one in sources}) == 1


def test_a_changed_protocol_is_kept_and_not_changed_twice(pictures: Path, tmp_path: Path, shard: Shard) -> None:
    changed = "resized to shorter side 48 (Lanczos), JPEG quality 90"
    old = write_earlier(pictures, tmp_path / "old", changed=changed)
    assert f"changed protocol: {changed}" in shard(old, tmp_path / "new")
    before, after = (folder_data(root=str(root)) for root in (old, tmp_path / "new"))
    assert before.fingerprint == after.fingerprint and changed in after.source
    with pytest.raises(ConfigError, match=r"the images of these shards were resized .*remove --short-side"):
        shard(old, tmp_path / "again", "--short-side", "20")


def test_damage_in_earlier_shards_stops_the_conversion(pictures: Path, tmp_path: Path, shard: Shard) -> None:
    old = write_earlier(pictures, tmp_path / "old")
    data = bytearray((old / "val-00000.shard").read_bytes())
    data[50] ^= 4
    (old / "val-00000.shard").write_bytes(data)
    with pytest.raises(DataError, match=r"this record is damaged.*val-00000.shard, record 0"):
        shard(old, tmp_path / "new")
    assert not (tmp_path / "new" / "shards.json").exists()


def test_new_shards_are_not_written_among_earlier_ones(pictures: Path, tmp_path: Path, shard: Shard) -> None:
    old = write_earlier(pictures, tmp_path / "old", last=False)
    before = files_of(old)
    with pytest.raises(ConfigError, match=r"shards of an earlier release .*choose an empty folder"):
        shard(pictures, old)
    with pytest.raises(DataError, match="these shards are unfinished"):
        shard(old, tmp_path / "new")
    assert files_of(old) == before


def test_a_tar_file_of_somebody_else_is_kept(pictures: Path, tmp_path: Path, shard: Shard) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "train-000000.tar").write_bytes(b"mine")
    with pytest.raises(StorageError, match=r"attnbench did not write this file .*empty folder"):
        shard(pictures, tmp_path / "out")
    assert (tmp_path / "out" / "train-000000.tar").read_bytes() == b"mine"


def test_every_flipped_bit_of_a_picture_is_found(pictures: Path, tmp_path: Path, shard: Shard) -> None:
    shard(pictures, tmp_path / "out")
    tar = tmp_path / "out" / "val-000000.tar"
    whole = tar.read_bytes()
    place = next(iter(json.loads(tar.with_suffix(".json").read_text())["files"].values()))
    for at in range(place["offset"], place["offset"] + place["length"], 97):
        damaged = bytearray(whole)
        damaged[at] ^= 1 << at % 8
        tar.write_bytes(damaged)
        with pytest.raises(DataError, match=r"record 0: .*checksum is wrong|this record is damaged"):
            Shards(open_shards(tmp_path / "out").val).read(0)
    tar.write_bytes(whole)
    Image.open(io.BytesIO(Shards(open_shards(tmp_path / "out").val).read(0))).load()
