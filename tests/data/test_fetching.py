"""``attnbench data fetch``, from a server on this machine that breaks off, sends wrong bytes and redirects."""

from __future__ import annotations

import hashlib
import io
import os
import sys
import tarfile
import threading
import zipfile
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from attnbench.base.errors import ConfigError, DataError, Failure, StorageError
from attnbench.cli import main
from attnbench.config import option_files
from attnbench.data.fetching import fetch as fetching
from attnbench.data.fetching import transfer, unpack
from attnbench.data.fetching.releases import OURS, releases
from attnbench.data.image_folders.datasets import folder, imagenet
from attnbench.data.in_memory.cifar_batches import CIFAR10, CIFAR100
from tests.data_fixtures import photo


class Server(ThreadingHTTPServer):
    """Serves ``files``; each request is treated as the next word of ``faults`` says, then well.

    Attributes:
        asked: the path and the range of each request.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {}
        self.faults: list[str] = []
        self.asked: list[tuple[str, str]] = []

    def url(self, name: str) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/{name}"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        path, wanted = self.path.lstrip("/"), self.headers.get("Range", "")
        self.server.asked.append((path, wanted))
        if path.startswith("moved/"):
            return self.redirect(f"/{path.removeprefix('moved/')}")
        fault = self.server.faults.pop(0) if self.server.faults else ""
        if fault in ("404", "503"):
            return self.send_error(int(fault))
        if fault == "redirect":
            return self.redirect(f"/{path}")
        if fault == "file":
            return self.redirect("file:///etc/hostname")
        self.send(self.server.files[path], 0 if fault in ("no range", "restart", "page") else wanted, fault)

    def send(self, data: bytes, wanted: str | int, fault: str) -> None:
        start = int(str(wanted)[6:-1]) if wanted else 0
        if start >= len(data):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(data)}")
            return self.end_headers()
        data = {"wrong": bytes(len(data)), "page": b"<html>please log in</html>"}.get(fault, data)
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        self.send_header("Content-Length", str(len(data) - start))
        self.end_headers()
        most = {"break": max(1, len(data) // 25), "restart": max(1, len(data) // 25), "nothing": 0}
        self.wfile.write(data[start:][: most.get(fault)])

    def redirect(self, to: str) -> None:
        self.send_response(302)
        self.send_header("Location", to)
        self.end_headers()


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(transfer, "WAIT", 0.0)
    monkeypatch.setenv("no_proxy", "*")
    with Server() as one:
        thread = threading.Thread(target=one.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield one
        one.shutdown()
        thread.join()


class Fetch:
    """Fetches a data set ``birds`` from the server, in this process."""

    def __init__(self, server: Server, place: Path, run: Callable[[list[str]], None]) -> None:
        self.server, self.place, self.run = server, place, run
        self.target = place / "birds"
        self.parts: list[dict[str, Any]] = []

    def part(self, name: str, data: bytes, makes: list[str], urls: list[str] | None = None, **more: Any) -> None:
        """Publish an archive."""
        self.server.files[name] = data
        more.setdefault("archives", [self.archive(name, data, urls)])
        self.parts.append({"makes": makes, **more})

    def archive(self, name: str, data: bytes, urls: list[str] | None = None) -> dict[str, Any]:
        self.server.files[name] = data
        known = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        return {"name": name, "urls": [self.server.url(name)] if urls is None else urls, **known}

    @property
    def addresses(self) -> Path:
        path = self.place / "addresses.yaml"
        release = {"title": "Birds", "page": "https://birds.example", "use": "dataset=folder", "parts": self.parts}
        path.write_text(yaml.safe_dump({"birds": release}))
        return path

    def __call__(self, *more: str | Path) -> None:
        self.run(["birds", str(self.target), "--addresses", str(self.addresses), *map(str, more)])

    @property
    def visible(self) -> set[str]:
        """The files in the target that are not hidden."""
        found = (path.relative_to(self.target) for path in self.target.rglob("*") if path.is_file())
        return {str(path) for path in found if not str(path).startswith(".")}

    @property
    def hidden(self) -> set[str]:
        return {path.name for path in self.target.iterdir() if path.name.startswith(".")} - {".lock"}


@pytest.fixture
def fetch(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Fetch:
    def run(arguments: list[str]) -> None:
        monkeypatch.setattr(sys, "argv", ["attnbench data", "fetch", *arguments])
        main.command("data")()

    return Fetch(server, tmp_path, run)


def tar_of(files: dict[str, bytes], mode: str = "w:gz") -> bytes:
    held = io.BytesIO()
    with tarfile.open(fileobj=held, mode=mode) as tar:  # type: ignore[call-overload]
        for name, data in files.items():
            about = tarfile.TarInfo(name)
            about.size = len(data)
            tar.addfile(about, io.BytesIO(data))
    return held.getvalue()


def zip_of(files: dict[str, bytes]) -> bytes:
    held = io.BytesIO()
    with zipfile.ZipFile(held, "w", zipfile.ZIP_DEFLATED) as packed:
        for name, data in files.items():
            packed.writestr(name, data)
    return held.getvalue()


def picture(seed: int) -> bytes:
    held = io.BytesIO()
    photo(seed, 40, 32).save(held, "JPEG", quality=95)
    return held.getvalue()


@pytest.fixture
def birds() -> dict[str, bytes]:
    names = [f"{side}/{kind}/{k}.jpg" for side in ("train", "val") for kind in ("wren", "tit") for k in range(3)]
    return {name: picture(k) for k, name in enumerate(names)}


def packed(birds: dict[str, bytes]) -> bytes:
    return tar_of({f"birds2/{name}": data for name, data in birds.items()} | {"birds2/notes.csv": b"1"})


# A transfer


def test_a_data_set_is_unpacked_and_read(
    fetch: Fetch, birds: dict[str, bytes], capsys: pytest.CaptureFixture[str]
) -> None:
    fetch.part("birds.tgz", packed(birds), ["train", "val"], strip="birds2")
    fetch()
    assert {name: (fetch.target / name).read_bytes() for name in fetch.visible} == birds
    assert fetch.hidden == set()
    out = capsys.readouterr().out
    assert out == f"train, val: done\nBirds: use it with dataset=folder dataset.root={fetch.target}\n"
    assert folder(root=str(fetch.target)).classes == ("tit", "wren")
    fetch()
    assert "train, val: already there; attnbench data check" in capsys.readouterr().out
    assert len(fetch.server.asked) == 1


FAULTS = [
    *("break", "redirect", "break", "503", "break", "nothing", "break", "restart", "break", "wrong"),
    *("break", "break", "503", "redirect", "break", "nothing", "nothing", "break", "wrong", "break", "break", "503"),
]


def test_after_twenty_broken_transfers_the_right_file_is_there(fetch: Fetch) -> None:
    data = np.random.default_rng(0).bytes(400_000)
    fetch.part("birds.bin", data, ["birds.bin"], unpack=False)
    fetch.server.faults = [*FAULTS]
    seen: set[str] = set()

    def watch(line: str) -> None:
        seen.update(fetch.visible)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(transfer, "_print", watch)
        fetch()
    assert len(FAULTS) - FAULTS.count("redirect") == 20
    assert not fetch.server.faults and seen == set()
    assert (fetch.target / "birds.bin").read_bytes() == data and fetch.hidden == set()
    assert sum(wanted != "" for _, wanted in fetch.server.asked) >= 12  # they were continued


@pytest.mark.parametrize("fault", ["break", "nothing", "503", "wrong", "page", "404", "file"])
def test_twenty_failed_commands_leave_nothing_half_written(fetch: Fetch, fault: str, birds: dict[str, bytes]) -> None:
    """Each command ends in one line and code 3; then the server is well."""
    data = packed(birds)
    fetch.part("birds.tgz", data, ["train", "val"], strip="birds2")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(transfer, "ATTEMPTS", 1)
        patch.setattr(transfer, "WRONG", 1)
        for _ in range(20):
            fetch.server.faults = [fault, "nothing", "nothing"]
            with pytest.raises(DataError, match=r"birds\.tgz cannot be transferred: 127\.0\.0\.1.*it continues"):
                fetch()
            assert fetch.visible == set()
    fetch.server.faults = []
    fetch()
    assert {name: (fetch.target / name).read_bytes() for name in fetch.visible} == birds
    assert fetch.hidden == set()


def test_only_what_is_missing_is_transferred(fetch: Fetch) -> None:
    """As after a kill: the part of a file is all that there is."""
    data = np.random.default_rng(1).bytes(300_000)
    fetch.part("birds.bin", data, ["birds.bin"], unpack=False)
    part = fetch.target / ".fetch" / ".birds.bin.part"
    part.parent.mkdir(parents=True)
    part.write_bytes(data[:123_456])
    fetch()
    assert fetch.server.asked == [("birds.bin", "bytes=123456-")]
    assert (fetch.target / "birds.bin").read_bytes() == data


def test_the_next_address_is_tried(fetch: Fetch, capsys: pytest.CaptureFixture[str]) -> None:
    data = b"birds" * 1000
    urls = [fetch.server.url("gone/birds.bin"), fetch.server.url("moved/birds.bin")]
    fetch.part("birds.bin", data, ["birds.bin"], urls, unpack=False)
    fetch.server.faults = ["404"]
    fetch()
    assert (fetch.target / "birds.bin").read_bytes() == data
    assert "birds.bin: 127.0.0.1" in (said := capsys.readouterr().err) and "404" in said


def test_a_rest_of_another_file_is_thrown_away(fetch: Fetch) -> None:
    data = np.random.default_rng(2).bytes(50_000)
    fetch.part("birds.bin", data, ["birds.bin"], unpack=False)
    del fetch.parts[0]["archives"][0]["bytes"]
    for rest in (bytes(20_000), bytes(50_000), bytes(70_000)):
        part = fetch.target / ".fetch" / ".birds.bin.part"
        part.parent.mkdir(parents=True, exist_ok=True)
        part.write_bytes(rest)
        fetch()
        assert (fetch.target / "birds.bin").read_bytes() == data
        (fetch.target / "birds.bin").unlink()


def test_a_server_without_ranges_and_sizes_is_enough(fetch: Fetch) -> None:
    data = np.random.default_rng(3).bytes(50_000)
    fetch.part("birds.bin", data, ["birds.bin"], unpack=False)
    fetch.server.faults = ["break", "no range"]
    fetch()
    assert (fetch.target / "birds.bin").read_bytes() == data


def test_a_full_disk_is_an_error_of_storage(fetch: Fetch, monkeypatch: pytest.MonkeyPatch) -> None:
    fetch.part("birds.bin", b"birds", ["birds.bin"], unpack=False)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageError, match=r"No space left.*another folder"):
        fetch()
    assert fetch.visible == set()


def test_own_archives_are_checked_and_kept(fetch: Fetch, tmp_path: Path, birds: dict[str, bytes]) -> None:
    data, own = packed(birds), tmp_path / "own"
    fetch.part("birds.tgz", data, ["train", "val"], strip="birds2")
    own.mkdir()
    (own / "birds.tgz").write_bytes(data[:-1] + b"x")
    with pytest.raises(DataError, match=r"this is not the published file: its SHA-256 begins with .*own/birds.tgz"):
        fetch("--from", own)
    (own / "birds.tgz").write_bytes(data)
    fetch("--from", own)
    assert fetch.visible == birds.keys() and (own / "birds.tgz").read_bytes() == data
    assert fetch.server.asked == []


def test_an_archive_that_is_kept_as_it_is_must_be_the_published_one(fetch: Fetch) -> None:
    fetch.part("birds.bin", b"birds", ["birds.bin"], unpack=False)
    fetch.target.mkdir()
    (fetch.target / "birds.bin").write_bytes(b"bird")
    with pytest.raises(DataError, match=r"not the published file: 4 bytes instead of 5 .*remove it"):
        fetch()
    assert (fetch.target / "birds.bin").read_bytes() == b"bird"


def test_archives_are_kept_if_asked(fetch: Fetch, birds: dict[str, bytes]) -> None:
    fetch.part("birds.tgz", packed(birds), ["train", "val"], strip="birds2")
    fetch("--keep")
    assert (fetch.target / ".fetch" / "birds.tgz").is_file() and fetch.visible == birds.keys()


# Unpacking


def test_parts_are_fetched_one_by_one_and_zip_files_too(fetch: Fetch) -> None:
    fetch.part("a.zip", zip_of({"images/1.jpg": b"one", "images/deep/2.jpg": b"two"}), ["images"])
    fetch.part("b.zip", zip_of({"annotations/x.json": b"{}"}), ["annotations"])
    fetch.server.faults = ["", "404"]
    with pytest.raises(DataError, match=r"b\.zip cannot be transferred"):
        fetch()
    assert fetch.visible == {"images/1.jpg", "images/deep/2.jpg"}
    fetch()
    assert fetch.visible == {"images/1.jpg", "images/deep/2.jpg", "annotations/x.json"}
    assert [path for path, _ in fetch.server.asked].count("a.zip") == 1


def test_archives_of_one_part_are_unpacked_together(fetch: Fetch) -> None:
    """As VOC's: both have files for the same folders."""
    both = {"one.tar": {"kit/V/a/1": b"1"}, "two.tar": {"kit/V/a/2": b"2", "kit/V/b/3": b"3"}}
    archives = [fetch.archive(name, tar_of(files, "w")) for name, files in both.items()]
    fetch.parts.append({"makes": ["kit/V"], "archives": archives})
    fetch()
    assert fetch.visible == {"kit/V/a/1", "kit/V/a/2", "kit/V/b/3"}


def test_an_unpacking_that_was_stopped_is_done_again(fetch: Fetch, birds: dict[str, bytes]) -> None:
    fetch.part("birds.tgz", packed(birds), ["train", "val"], strip="birds2")
    with pytest.MonkeyPatch.context() as patch:
        left = iter(range(5))

        def stopping(*arguments: Any) -> None:
            if next(left, None) is None:
                raise KeyboardInterrupt
            unpack_write(*arguments)

        unpack_write = unpack.write
        patch.setattr(unpack, "write", stopping)
        with pytest.raises(Failure, match="run the same command to continue"):
            fetch()
    assert fetch.visible == set()
    fetch()
    assert fetch.visible == birds.keys() and len(fetch.server.asked) == 1


def test_a_stop_between_two_renames(fetch: Fetch, birds: dict[str, bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    fetch.part("birds.tgz", packed(birds), ["train", "val"], strip="birds2")
    put = fetching._put

    def once(source: Path, target: Path) -> None:
        if target.name == "val":
            raise KeyboardInterrupt
        put(source, target)

    monkeypatch.setattr(fetching, "_put", once)
    with pytest.raises(Failure, match="run the same command"):
        fetch()
    monkeypatch.setattr(fetching, "_put", put)
    monkeypatch.setattr(fetching, "unpack", None)  # it is not unpacked again
    fetch()
    assert fetch.visible == birds.keys() and len(fetch.server.asked) == 1


def link_in_tar(kind: bytes, to: str) -> bytes:
    held = io.BytesIO()
    with tarfile.open(fileobj=held, mode="w") as tar:
        about = tarfile.TarInfo("train/a")
        about.type, about.linkname = kind, to
        tar.addfile(about)
    return held.getvalue()


def link_in_zip() -> bytes:
    held = io.BytesIO()
    with zipfile.ZipFile(held, "w") as one:
        about = zipfile.ZipInfo("train/a")
        about.external_attr = 0o120777 << 16
        one.writestr(about, "/etc/passwd")
    return held.getvalue()


EVIL = {
    "above": (tar_of({"train/../../evil": b"1"}), "a path out of its folder"),
    "absolute": (tar_of({"/evil": b"1"}), "a path out of its folder"),
    "zip above": (zip_of({"../evil": b"1"}), "a path out of its folder"),
    "backslash": (tar_of({"train\\..\\..\\evil": b"1"}), "a path out of its folder"),
    "symbolic link": (link_in_tar(tarfile.SYMTYPE, "/etc"), "a link or a special file"),
    "hard link": (link_in_tar(tarfile.LNKTYPE, "../../x"), "a link or a special file"),
    "device": (link_in_tar(tarfile.CHRTYPE, ""), "a link or a special file"),
    "pipe": (link_in_tar(tarfile.FIFOTYPE, ""), "a link or a special file"),
    "zip link": (link_in_zip(), "a link or a special file"),
    "bomb": (zip_of({"train/a": bytes(30_000_000)}), "unpacks to too much"),
    "tar bomb": (tar_of({"train/a": bytes(30_000_000)}), "unpacks to too much"),
    "twice": (tar_of({"train/a": b"1"}, "w")[:1024] + tar_of({"train/a": b"2"}, "w"), "train/a twice"),
    "cut off": (tar_of({"train/a": os.urandom(5000)})[:3000], "this archive is cut off"),
    "not packed": (b"hello" * 100, "neither a tar nor a zip file"),
    "cut off zip": (zip_of({"train/a": os.urandom(5000)})[:3000], "or it is cut off"),
    "something else": (tar_of({"dogs/a": b"1"}), "there is no train in it"),
}


@pytest.mark.parametrize("kind", EVIL)
def test_archives_do_nothing_outside_their_folder(kind: str, fetch: Fetch, tmp_path: Path) -> None:
    data, message = EVIL[kind]
    fetch.part("birds.tgz", data, ["train"])
    before = set(tmp_path.rglob("*"))
    with pytest.raises(DataError, match=message) as raised:
        fetch()
    assert "unexpected" not in str(raised.value) and fetch.visible == set()
    new = set(tmp_path.rglob("*")) - before
    assert all(path == fetch.target or fetch.target in path.parents or path.name == "addresses.yaml" for path in new)
    assert not [path for path in new if path.is_symlink()]


def test_a_damaged_archive_without_a_known_hash_is_transferred_again(fetch: Fetch) -> None:
    good = tar_of({"train/a": b"1"})
    fetch.part("birds.tgz", good[:-20], ["train"])
    fetch.parts[0]["archives"] = [{"name": "birds.tgz", "urls": [fetch.server.url("birds.tgz")]}]
    with pytest.raises(DataError, match="cut off"):
        fetch()
    fetch.server.files["birds.tgz"] = good
    fetch()
    assert fetch.visible == {"train/a"}


def test_a_damaged_zip_file_is_named(fetch: Fetch) -> None:
    data = bytearray(zip_of({"train/a": os.urandom(5000)}))
    data[2000] ^= 1
    fetch.part("birds.zip", bytes(data), ["train"])
    with pytest.raises(DataError, match=r"this archive is damaged: Bad CRC-32.*birds\.zip"):
        fetch()
    assert fetch.visible == set()


# ImageNet's archives


def imagenet_archives(place: Path, missing: int = 0) -> list[dict[str, Any]]:
    """The three archives in small: two classes, numbered the other way round than they are sorted."""
    from scipy.io import savemat

    place.mkdir()
    wnids = ["n01440764", "n01443537"]
    inner = {
        f"{wnid}.tar": tar_of({f"{wnid}_{k}.JPEG": picture(10 * n + k) for k in range(3)}, "w")
        for n, wnid in enumerate(wnids)
    }
    val = {f"ILSVRC2012_val_{k:08}.JPEG": picture(100 + k) for k in range(1, 5)}
    synsets = np.array([(1, wnids[1]), (2, wnids[0])], dtype=[("ILSVRC2012_ID", "O"), ("WNID", "O")])
    meta = io.BytesIO()
    savemat(meta, {"synsets": synsets})
    kit = {
        "ILSVRC2012_devkit_t12/data/meta.mat": meta.getvalue(),
        "ILSVRC2012_devkit_t12/data/ILSVRC2012_validation_ground_truth.txt": b"1\n2\n2\n1\n"[: 8 - 2 * missing],
    }
    archives = {
        "ILSVRC2012_img_train.tar": tar_of(inner, "w"),
        "ILSVRC2012_img_val.tar": tar_of(val, "w"),
        "ILSVRC2012_devkit_t12.tar.gz": tar_of(kit),
    }
    known = []
    for name, data in archives.items():
        (place / name).write_bytes(data)
        known.append({"name": name, "bytes": len(data), "md5": hashlib.md5(data).hexdigest()})
    return known


def imagenet_parts(known: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [
        {"makes": ["train"], "layout": "imagenet_train", "archives": known[:1]},
        {"makes": ["val"], "layout": "imagenet_val", "archives": known[1:]},
    ]


def test_the_official_archives_of_imagenet_are_prepared(fetch: Fetch, tmp_path: Path) -> None:
    fetch.parts = imagenet_parts(imagenet_archives(tmp_path / "own"))
    with pytest.raises(DataError, match=r"not here: ILSVRC2012_img_train.tar, .*https://birds.example.*--from"):
        fetch()
    fetch("--from", tmp_path / "own")
    train = {f"train/{wnid}/{wnid}_{k}.JPEG" for wnid in ("n01440764", "n01443537") for k in range(3)}
    first, second = "val/n01443537/ILSVRC2012_val_0000000", "val/n01440764/ILSVRC2012_val_0000000"
    assert fetch.visible == train | {f"{first}1.JPEG", f"{second}2.JPEG", f"{second}3.JPEG", f"{first}4.JPEG"}
    assert (fetch.target / f"{first}4.JPEG").read_bytes() == picture(104)
    data = imagenet(root=str(fetch.target), size=24, resize=32)
    assert (len(data.train), len(data.val)) == (6, 4)
    assert len(list((tmp_path / "own").iterdir())) == 3 and fetch.hidden == set()


def test_classes_that_are_unpacked_are_not_unpacked_again(
    fetch: Fetch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from attnbench.data.fetching import imagenet as preparing

    fetch.parts = imagenet_parts(imagenet_archives(tmp_path / "own"))
    written: list[str] = []
    own_write = unpack.write

    def stopping(member: Any, *rest: Any) -> None:
        if len(written) == 4:
            written.append("")
            raise KeyboardInterrupt
        written.append(member.path)
        own_write(member, *rest)

    monkeypatch.setattr(preparing, "write", stopping)
    with pytest.raises(Failure, match="run the same command to continue"):
        fetch("--from", tmp_path / "own")
    assert fetch.visible == set()
    fetch("--from", tmp_path / "own")
    assert written.count("n01440764_0.JPEG") == 1 and written.count("n01443537_0.JPEG") == 2
    assert len([name for name in fetch.visible if name.startswith("train/")]) == 6


def test_a_list_that_does_not_fit_the_pictures_is_refused(fetch: Fetch, tmp_path: Path) -> None:
    fetch.parts = imagenet_parts(imagenet_archives(tmp_path / "own", missing=1))
    with pytest.raises(DataError, match=r"it holds ILSVRC2012_val_00000004.JPEG, but the list has 3 lines"):
        fetch("--from", tmp_path / "own")
    assert not (fetch.target / "val").exists()


# The file of addresses


def test_the_published_addresses_are_those_of_known_files() -> None:
    known = releases()
    assert set(known) == {"cifar10", "cifar100", "voc2007", "voc2012", "coco2017", "imagenette", "imagenet"}
    for name, cifar in (("cifar10", CIFAR10), ("cifar100", CIFAR100)):
        [archive] = known[name].parts[0].archives
        assert archive.sha256 == cifar.sha256[archive.name] and archive.name == cifar.archive
    for name, release in known.items():
        for archive in (one for part in release.parts for one in part.archives):
            assert archive.md5 if name == "imagenet" else archive.sha256 and archive.urls
    for release in known.values():
        assert release.use.split()[0].removeprefix("dataset=") in option_files.names("dataset")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"makes": ["../out"]}, "must be a path inside"),
        ({"makes": ["/out"]}, "must be a path inside"),
        ({"strip": ".."}, "must be a path inside"),
        ({"archives": [{"name": "a/../../b"}]}, "must be a path inside"),
        ({"archives": [{"name": "a", "urls": ["file:///etc/passwd"]}]}, "must be an http or https address"),
        ({"archives": [{"name": "a", "sha256": "short"}]}, "parts.0.archives.0.sha256"),
        ({"colour": "red"}, "Extra inputs are not permitted"),
    ],
)
def test_addresses_are_checked(change: dict[str, Any], message: str, fetch: Fetch) -> None:
    fetch.part("birds.bin", b"birds", ["birds.bin"], unpack=False)
    fetch.parts[0].update(change)
    with pytest.raises(ConfigError, match=message):
        fetch()
    assert fetch.server.asked == []


def test_unknown_names_and_files_are_refused(fetch: Fetch, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="unknown data set cifar .*did you mean cifar10"):
        fetch.run(["cifar", str(tmp_path / "x")])
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        fetch.run(["cifar10", str(tmp_path / "x"), "--addresses", str(tmp_path / "none.yaml")])
    (tmp_path / "bad.yaml").write_text("[1, 2")
    with pytest.raises(ConfigError, match="this file of addresses cannot be read"):
        fetch.run(["cifar10", str(tmp_path / "x"), "--addresses", str(tmp_path / "bad.yaml")])
    with pytest.raises(DataError, match="there is no such folder"):
        fetch.run(["imagenet", str(tmp_path / "x"), "--from", str(tmp_path / "none")])
    assert OURS.is_file() and not (tmp_path / "x").exists()
