"""Shards hold the same data set as their image folder, also if writing them is interrupted."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from attnbench.base.errors import BusyError, ConfigError, DataError, Stopped, StorageError
from attnbench.cli import main
from attnbench.data.dataset import Batch, Dataset
from attnbench.data.image_folders import sharding, shards, tar_shards
from attnbench.data.image_folders.datasets import imagenet
from attnbench.data.image_folders.sharding import Resizing
from attnbench.data.images.files import Files
from attnbench.data.images.pillow import read_file
from attnbench.data.loader import Loader
from tests.data_fixtures import image_folder, photo, same_batches
from tests.small_runs import ForkServer

PIECE = 6_000  # bytes of a shard: two or three images

DataCommand = Callable[..., str]


@pytest.fixture
def data_command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> DataCommand:
    """Runs ``attnbench data`` in this process and returns what it prints."""

    def call(*arguments: str | Path) -> str:
        monkeypatch.setattr(sys, "argv", ["attnbench data", *map(str, arguments)])
        capsys.readouterr()
        main.command("data")()
        return capsys.readouterr().out

    return call


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes of six images; one is a PNG, and one has its suffix in capitals."""
    root = image_folder(tmp_path_factory.mktemp("images"), classes=("cat", "größe"), per_class=6)
    (root / "train" / "cat" / "0.jpg").rename(root / "train" / "cat" / "0.JPEG")
    photo(90, 60, 48).save(root / "train" / "cat" / "1.png")
    return root


def write(folder: Path, target: Path, resizing: Resizing | None = None) -> list[Path]:
    """Write shards of a few images each; returns their paths."""
    target.mkdir(exist_ok=True)
    classes, planned = sharding.plan(folder, target, resizing, PIECE)
    for one in planned:
        if not sharding.is_written(one):
            sharding.write(one, resizing, 2, lambda new: None)
    sharding.finish(target, classes, planned)
    return [one.path for one in planned]


def small(root: Path) -> Dataset:
    return imagenet(root=str(root), size=24, resize=32)


def stream(root: Path, workers: int = 0, *, train: bool = True, start: int = 0) -> list[Batch]:
    data = small(root)
    loader = Loader(
        data.train if train else data.val, batch_size=4, seed=5, train=train, workers=workers, timeout=60
    )  # fmt: skip
    return list(loader.epoch(2, start))


def records(root: Path) -> list[tuple[str, bytes]]:
    """Names and bytes of all images in shards, read through the data set."""
    found = shards.open_shards(root)
    both = [(side, shards.Shards(side)) for side in (found.train, found.val)]
    return [
        (f"{side.side.folder.name}/{name}", some.read(k))
        for side, some in both
        for k, name in enumerate(side.side.files)
    ]


def test_shards_hold_the_folder_byte_by_byte(folder: Path, tmp_path: Path) -> None:
    paths = write(folder, tmp_path)
    assert len(paths) > 6
    found = dict(records(tmp_path))
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert found == {str(path.relative_to(folder)): path.read_bytes() for path in files}
    assert len(files) == 25


@pytest.mark.parametrize("workers", [0, 1, 2])
@pytest.mark.parametrize("train", [True, False])
def test_batches_are_those_of_the_folder(folder: Path, tmp_path: Path, workers: int, train: bool) -> None:
    write(folder, tmp_path)
    assert same_batches(stream(tmp_path, workers, train=train), stream(folder, train=train))


def test_a_run_may_move_from_the_folder_to_its_shards_in_mid_epoch(folder: Path, tmp_path: Path) -> None:
    write(folder, tmp_path)
    there, here = small(folder), small(tmp_path)
    assert (there.fingerprint, there.source, there.classes) == (here.fingerprint, here.source, here.classes)
    assert same_batches(stream(tmp_path, start=2), stream(folder)[2:])


def test_resized_shards_are_labelled_and_have_another_fingerprint(folder: Path, tmp_path: Path) -> None:
    write(folder, tmp_path, Resizing(36, 80))
    data = small(tmp_path)
    assert "changed protocol: resized to shorter side 36 (Lanczos), JPEG quality 80" in data.source
    assert data.fingerprint != small(folder).fingerprint
    sizes = {Image.open(io.BytesIO(image)).size for _, image in records(tmp_path)}
    assert sizes == {(45, 36)}


def test_an_image_that_is_small_enough_keeps_its_bytes(folder: Path, tmp_path: Path) -> None:
    data = (folder / "train" / "cat" / "1.png").read_bytes()
    assert Resizing(48, 80).apply(data, folder) is data
    assert Resizing(47, 80).apply(data, folder) != data
    write(folder, tmp_path, Resizing(48, 80))  # the bytes are the same, but the protocol is another one
    assert "changed protocol" in small(tmp_path).source and small(tmp_path).fingerprint != small(folder).fingerprint


# Interruptions


def kept(target: Path) -> dict[str, tuple[int, int]]:
    """The inode and the time of the last change of each shard that exists."""
    return {path.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in target.glob("*.tar")}


def killed(folder: Path, target: Path, reads: int) -> bool:
    """Write shards in a process that kills itself after ``reads`` images; returns whether it was killed."""
    child = os.fork()
    if not child:
        try:
            left = iter(range(reads))

            def last(path: str | Path) -> bytes:
                if next(left, None) is None:
                    os.kill(os.getpid(), signal.SIGKILL)
                return read_file(path)

            sharding.read_file = last  # type: ignore[attr-defined]
            write(folder, target)
        finally:
            os._exit(0)
    _, status = os.waitpid(child, 0)
    return os.WIFSIGNALED(status)


def test_a_kill_loses_only_the_shard_that_is_being_written(folder: Path, tmp_path: Path) -> None:
    target, kills, resumed = tmp_path / "shards", 0, 0
    target.mkdir()
    before = kept(target)
    while killed(folder, target, reads=4):
        kills += 1
        after = kept(target)
        assert before.items() <= after.items()  # nothing was written again
        resumed += bool(before) and len(after) > len(before)
        assert not (target / shards.INDEX).exists()
        with pytest.raises(DataError, match=r"unfinished .*; run the same attnbench data shard command again"):
            small(target)
        before = after
    assert kills > 5 and resumed > 3
    assert before.items() <= kept(target).items()
    write(folder, tmp_path / "at_once")
    assert dict(records(target)) == dict(records(tmp_path / "at_once"))
    for path in (tmp_path / "at_once").glob("*.tar"):
        assert (target / path.name).read_bytes() == path.read_bytes()
    assert not [path for path in target.iterdir() if path.suffix == ".tmp"]


def test_a_kill_of_the_command_itself(tmp_path: Path) -> None:
    """Kill the command while it writes a shard, then run the same command again."""
    root = image_folder(tmp_path / "images", per_class=40, size=(500, 400))
    target = tmp_path / "shards"
    command = [sys.executable, "-m", "attnbench", "data", "shard", str(root), str(target)]
    command += ["--short-side", "390", "--shard-size", "1"]
    running = subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not (kept(target) and list(target.glob(".*.tmp"))) and running.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.001)
    running.kill()
    assert running.wait() == -signal.SIGKILL
    before = kept(target)
    assert before and not (target / shards.INDEX).exists()
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "changed protocol: resized to shorter side 390" in done.stdout
    assert before.items() < kept(target).items()
    assert len(records(target)) == 160


def test_a_signal_ends_in_one_line_and_the_same_command_continues(
    folder: Path, tmp_path: Path, data_command: DataCommand, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(sharding, "finish", interrupted)
        with pytest.raises(Stopped, match="run the same command to continue"):
            data_command("shard", folder, tmp_path / "out")
    before = kept(tmp_path / "out")
    assert "25 images, 2 classes, 2 shards" in data_command("shard", folder, tmp_path / "out")
    assert kept(tmp_path / "out") == before and len(before) == 2


def test_a_disk_that_is_full_leaves_nothing_half_written(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageError, match=r"cannot write: No space left.*choose another folder"):
        write(folder, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_two_at_once_are_refused(folder: Path, tmp_path: Path, data_command: DataCommand) -> None:
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )  # fmt: skip
    assert holder.stdout and holder.stdout.readline() == "held\n"
    with pytest.raises(BusyError, match="another process is writing shards here"):
        data_command("shard", folder, tmp_path)
    holder.communicate("go\n")
    assert "25 images" in data_command("shard", folder, tmp_path)


HOLD = """
import sys
from pathlib import Path
from attnbench.runs.folder import RunFolder
with RunFolder(Path(sys.argv[1])).hold():
    print("held", flush=True)
    sys.stdin.readline()
"""


@pytest.mark.parametrize("change", ["options", "images"])
def test_shards_of_other_data_are_not_mixed_with_these(
    change: str, folder: Path, tmp_path: Path, data_command: DataCommand
) -> None:
    root = image_folder(tmp_path / "images")
    data_command("shard", root, tmp_path / "out")
    before = kept(tmp_path / "out")
    if change == "images":
        photo(50, 70, 48).save(root / "train" / "cat" / "5.jpg")
    options = ["--short-side", "20"] if change == "options" else []
    with pytest.raises(StorageError, match=r"made from other images or with other options .*empty folder"):
        data_command("shard", root, tmp_path / "out", *options)
    assert kept(tmp_path / "out") == before


def test_invalid_options_are_refused(folder: Path, tmp_path: Path, data_command: DataCommand) -> None:
    for options in (["--quality", "80"], ["--short-side", "9", "--quality", "101"], ["--short-side", "0"]):
        with pytest.raises(ConfigError):
            data_command("shard", folder, tmp_path / "out", *options)
    with pytest.raises(ConfigError, match="this is an image folder"):
        data_command("shard", folder, folder)
    with pytest.raises(ConfigError, match="did you mean shard"):
        data_command("shards", folder, tmp_path)
    assert not (tmp_path / "out").exists()


# Damage


def spoil(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def test_a_damaged_record_is_named_with_its_shard(folder: Path, tmp_path: Path) -> None:
    first = write(folder, tmp_path)[0]
    index = tar_shards.read_shard(first)
    spoil(first, int(index.starts[1]) + 20)
    named = rf"this record is damaged.*{first.name}, record 1: {index.names[1]}"
    for workers in (0, 2):
        with pytest.raises(DataError, match=named):
            stream(tmp_path, workers)


def test_a_run_on_damaged_shards_ends_with_exit_code_3(forks: ForkServer, tmp_path: Path) -> None:
    root = image_folder(tmp_path / "images", per_class=8)
    train, _ = write_one(root, tmp_path / "shards")
    spoil(train, 600)
    overrides = ("dataset.size=32", "dataset.resize=36", "batch_size=4", "schedule.epochs=1")
    outputs = f"paths.outputs={tmp_path}/outputs"
    end = forks.train(tmp_path, "dataset=imagenet", f"dataset.root={tmp_path}/shards", *overrides, outputs)
    assert end.code == 3
    [line] = end.errors
    assert "train-000000.tar, record 0: cat/0.jpg" in line and "write it again" in line


def write_one(root: Path, target: Path) -> list[Path]:
    """Write one shard for each split; returns their paths."""
    target.mkdir()
    classes, planned = sharding.plan(root, target, None, 2**30)
    for one in planned:
        sharding.write(one, None, 2, lambda new: None)
    sharding.finish(target, classes, planned)
    return [one.path for one in planned]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ("index", "not the index that shards.json names, or it is damaged"),
        ("longer", "cut off or damaged"),
        ("cut", "cut off or damaged"),
        ("empty", "cut off or damaged"),
        ("missing", "cannot be read: No such file"),
        ("exchanged", "not the index that shards.json names"),
        ("link", "this shard is a link"),
        ("linked index", "this shard is a link"),
        ("absolute", "names a file outside its folder"),
        ("above", "names a file outside its folder"),
        ("not a name", "names a file outside its folder"),
        ("no index", "these shards are unfinished"),
        ("other index", "this is not an index of attnbench shards 2"),
        ("half an index", "this index is damaged: KeyError"),
    ],
)
def test_a_damaged_data_set_is_refused_before_it_is_used(
    damage: str, message: str, folder: Path, tmp_path: Path
) -> None:
    first, second, *_ = write(folder, tmp_path)
    index = tmp_path / shards.INDEX
    DAMAGES[damage](first, second, index)
    with pytest.raises(DataError, match=message):
        small(tmp_path)


def link(path: Path) -> None:
    """Put a link to the same contents in the place of a file."""
    outside = path.parent.parent / f"outside-{path.parent.name}-{path.name}"
    path.rename(outside)
    path.symlink_to(outside)


def exchange(first: Path, second: Path, index: Path) -> None:
    for suffix in (".tar", ".json"):
        first.with_suffix(suffix).write_bytes(second.with_suffix(suffix).read_bytes())


def rename(index: Path, name: object) -> None:
    """Give the first shard another name in ``shards.json``."""
    about = json.loads(index.read_text())
    about["sides"]["train"][0]["file"] = name
    index.write_text(json.dumps(about))


DAMAGES: dict[str, Callable[[Path, Path, Path], object]] = {
    "index": lambda first, second, index: spoil(first.with_suffix(".json"), 300),
    "longer": lambda first, second, index: first.write_bytes(first.read_bytes() + b"more"),
    "cut": lambda first, second, index: first.write_bytes(first.read_bytes()[:-100]),
    "empty": lambda first, second, index: first.write_bytes(b""),
    "missing": lambda first, second, index: first.unlink(),
    "exchanged": exchange,
    "link": lambda first, second, index: link(first),
    "linked index": lambda first, second, index: link(first.with_suffix(".json")),
    "absolute": lambda first, second, index: rename(index, str(first)),
    "above": lambda first, second, index: rename(index, f"../{first.parent.name}/{first.name}"),
    "not a name": lambda first, second, index: rename(index, 7),
    "no index": lambda first, second, index: index.unlink(),
    "other index": lambda first, second, index: index.write_text(json.dumps({"format": "attnbench shards 3"})),
    "half an index": lambda first, second, index: index.write_text(
        json.dumps({"format": tar_shards.FORMAT, "classes": []})
    ),
}


def test_a_few_open_files_suffice_for_many_shards(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(folder, tmp_path)
    expected = stream(folder)
    monkeypatch.setattr(shards, "OPEN_FILES", 2)
    split = small(tmp_path).train
    assert isinstance(split, Files) and isinstance(split.records, shards.Shards)
    some = [split.read(k, None) for k in range(len(split))]
    assert len(split.records.open) == 2 and len(split.records.paths) > 4
    assert np.array_equal(split.read(0, None), some[0])
    assert same_batches(stream(tmp_path), expected)
