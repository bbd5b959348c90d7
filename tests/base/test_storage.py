"""Files are written completely or not at all; a full disk gives one error line and no checkpoint is lost."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import IO, Any

import pytest

from attnbench.base import files
from attnbench.base.errors import NonFiniteError, StorageError
from attnbench.runs import run
from attnbench.runs.folder import RunFolder
from attnbench.training.parts import Division
from tests.small_runs import ENVIRONMENT, ROOT, SMALL, ForkServer, folder, killed_at, result, strays

MOUNT = ["unshare", "-rm", "sh", "-c"]  # a shell with its own namespaces, which may mount file systems


def test_a_file_is_written_whole_with_its_hash(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    assert files.write(path, lambda file: file.write(b"one")) == files.sha256(path)
    assert path.read_bytes() == b"one"
    assert list(tmp_path.iterdir()) == [path]


def test_contents_reach_the_disk_before_their_name_does_and_the_name_reaches_it_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that a power failure leaves either the old file or the new one."""
    events = []
    fsync, replace = os.fsync, os.replace

    def flushed(descriptor: int) -> None:
        about = os.fstat(descriptor)
        is_folder = os.path.samestat(about, tmp_path.stat())
        events.append("flush the folder" if is_folder else f"flush {about.st_size} bytes")
        fsync(descriptor)

    def moved(source: Path, target: Path) -> None:
        events.append(f"move to {target.name}")
        replace(source, target)

    monkeypatch.setattr(os, "fsync", flushed)
    monkeypatch.setattr(os, "replace", moved)
    files.write(tmp_path / "a.bin", lambda file: file.write(b"one"))
    assert events == ["flush 3 bytes", "move to a.bin", "flush the folder"]


@pytest.mark.parametrize("error", [OSError(28, "No space"), RuntimeError("unexpected pos 576 vs 534"), RuntimeError()])
def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path, error: Exception) -> None:
    def fill(file: IO[bytes]) -> None:
        file.write(b"tw")
        raise error

    path = tmp_path / "a.bin"
    path.write_bytes(b"one")
    with pytest.raises(StorageError, match=r"cannot write: .*a\.bin.*; make space") as refused:
        files.write(path, fill)
    assert refused.value.code == 5
    assert path.read_bytes() == b"one"
    assert list(tmp_path.iterdir()) == [path]


def test_an_interrupted_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    def fill(file: IO[bytes]) -> None:
        raise KeyboardInterrupt

    path = tmp_path / "a.bin"
    path.write_bytes(b"one")
    with pytest.raises(KeyboardInterrupt):
        files.write(path, fill)
    assert [p.read_bytes() for p in tmp_path.iterdir()] == [b"one"]


def test_the_temporary_file_of_a_killed_process_is_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    pid = os.fork()
    if pid == 0:
        files.write(path, lambda file: os._exit(0))
    os.waitpid(pid, 0)
    assert [p.suffix for p in tmp_path.iterdir()] == [".tmp"]
    files.write(path, lambda file: file.write(b"one"))
    assert list(tmp_path.iterdir()) == [path]


def test_a_path_that_cannot_be_created_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match=r"Not a directory.*file/folder"):
        files.make_folder(tmp_path / "file" / "folder")
    with pytest.raises(StorageError, match=r"No such file.*missing/a\.json"):
        files.write_json(tmp_path / "missing" / "a.json", {})


def test_json_is_read_back_and_damage_is_none(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    assert files.read_json(path) is None
    files.write_json(path, {"top1": 12.5})
    assert files.read_json(path) == {"top1": 12.5}
    path.write_text('{"top1": 12')
    assert files.read_json(path) is None
    with pytest.raises(ValueError, match="JSON compliant"):
        files.write_json(path, {"top1": float("nan")})


def limited(size: int) -> None:
    """Limit files of the run's process to ``size`` bytes, like a disk that fills up."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


@pytest.mark.parametrize("size", [500_000, 5_000, 2_000, 0])
def test_a_disk_that_fills_up_gives_one_error_line_and_loses_no_checkpoint(
    forks: ForkServer, reference: dict[str, Any], tmp_path: Path, size: int
) -> None:
    """The first limit affects the checkpoint; smaller ones affect TensorBoard's file, the log and the first files."""
    assert forks.run(tmp_path, before=partial(killed_at, 0, 5)).code == -signal.SIGKILL
    before = files.sha256(folder(tmp_path) / "checkpoints" / "last.pt")
    end = forks.run(tmp_path, before=partial(limited, size))
    assert end.code == 5, end.stderr
    assert len(end.errors) == 1 and "cannot write: File too large" in end.errors[0]
    assert "Traceback" not in end.stderr
    assert files.sha256(folder(tmp_path) / "checkpoints" / "last.pt") == before
    assert strays(tmp_path) == []
    assert forks.run(tmp_path).code == 0
    assert result(tmp_path)["resumed_from_step"] == 3
    assert result(tmp_path)["state_sha256"] == reference["state_sha256"]


def test_a_status_that_cannot_be_written_does_not_hide_the_error(tmp_path: Path) -> None:
    with pytest.raises(NonFiniteError), run._reported(RunFolder(tmp_path / "missing"), Division(8, 1, 1, 1)):
        raise NonFiniteError("the loss became nan")


@pytest.mark.slow
def test_a_full_file_system_keeps_the_last_checkpoint_and_the_run_continues_when_it_has_space(
    reference: dict[str, Any], tmp_path: Path
) -> None:
    """Uses a tmpfs with room for one checkpoint, then with room for all files."""
    if not shutil.which("unshare") or subprocess.run([*MOUNT, f"mount -t tmpfs none {tmp_path}"]).returncode:
        pytest.skip("users may not mount file systems on this machine")
    train = f"{sys.executable} train.py {' '.join(SMALL)} paths.outputs={tmp_path}"
    script = f"""
        mount -t tmpfs -o size=2m none {tmp_path}
        {train}; echo full $?
        cd {tmp_path}/runs/*/*/*/seed0/checkpoints && ls -A && sha256sum -c SHA256SUMS && cd {ROOT}
        mount -o remount,size=60m {tmp_path}
        {train}; echo space $?
        cat {tmp_path}/runs/*/*/*/seed0/result.json
    """
    command = [*MOUNT, script.replace("[", r"\[").replace("]", r"\]")]
    end = subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, timeout=100)
    (error,) = [line for line in end.stderr.splitlines() if line.startswith("error:")]
    assert "cannot write: No space left on device" in error
    assert "Traceback" not in end.stderr
    assert "full 5\nSHA256SUMS\nlast.pt\nlast.pt: OK\n" in end.stdout
    assert "space 0" in end.stdout
    assert "resumed from step 3" in end.stderr
    assert reference["state_sha256"] in end.stdout
