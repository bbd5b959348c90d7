"""A run's checkpoints on disk. At any moment, the newest listed one is complete."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from attnbench.base import files
from attnbench.base.errors import NonFiniteError, StorageError, listed
from attnbench.training.state import tensors

log = logging.getLogger("attnbench")

# What a checkpoint holds.
ITEMS = ("model", "average", "optimizer", "scaler", "loss_sum", "epoch", "step", "seconds", "best", "rng", "config")

Differing = Callable[[Mapping[str, Any]], Mapping[str, tuple[Any, Any]]]


class Checkpoints:
    """A run's checkpoints: the last one (``last.pt``), the one before it (``previous.pt``), and ``best.pt``.

    ``SHA256SUMS``, in the format of ``sha256sum -c``, lists their hashes. A checkpoint is trusted if its hash is listed
    for ``last.pt`` or ``previous.pt``, whatever its own file name. A save writes ``next.pt``, then lists the hashes as
    they will be, and only then renames the files. So at any moment the newest listed checkpoint is complete.

    Args:
        folder: the folder of the checkpoints; created on the first write.
        identity: the configuration values that affect the result; stored in every checkpoint.
        differing: compares the values stored in a checkpoint with ``identity``. It returns, for each key that differs,
            the stored and the present value. None compares for equality.
    """

    def __init__(self, folder: Path, identity: Mapping[str, Any], differing: Differing | None = None) -> None:
        self.folder = folder
        self.identity = dict(identity)
        self.differing = differing or self._unequal
        self.last, self.previous, self.next, self.best = (
            folder / f"{name}.pt" for name in ("last", "previous", "next", "best")
        )

    def save(self, state: Mapping[str, Any]) -> None:
        """Save a state as ``last.pt``; the former last checkpoint becomes ``previous.pt``.

        Raises:
            NonFiniteError: the state contains a NaN or an infinite number; nothing is written.
            StorageError: the checkpoint cannot be written; the last one is unchanged.
        """
        _refuse_non_finite(state, f"epoch {state['epoch'] + 1}, step {state['step']}")
        self.settle()
        sums = files.read_sums(self.folder)
        older = "last.pt" if _hash(self.last) == sums.get("last.pt", "") else "previous.pt"
        new = files.write(self.next, lambda file: torch.save({**state, "config": self.identity}, file))
        files.write_sums(self.folder, {**sums, "previous.pt": sums.get(older, ""), "last.pt": new})
        self.settle()

    def save_best(self, weights: Mapping[str, Tensor], about: Mapping[str, float]) -> None:
        """Save the evaluated weights of the best epoch so far as ``best.pt``.

        Args:
            weights: a state dict of the model.
            about: that epoch and its metric.

        Raises:
            NonFiniteError: a weight is NaN or infinite; nothing is written.
            StorageError: the file cannot be written.
        """
        content = {"model": dict(weights), "config": self.identity, **about}
        _refuse_non_finite(content, f"epoch {about['epoch']}, after its last step")
        files.make_folder(self.folder)
        digest = files.write(self.best, lambda file: torch.save(content, file))
        files.write_sums(self.folder, {**files.read_sums(self.folder), "best.pt": digest})

    def load(self) -> dict[str, Any] | None:
        """Load the newest intact checkpoint; None if the run has no checkpoint.

        If the last checkpoint is damaged, log one warning and load the previous one.

        Raises:
            StorageError: checkpoints exist but none is intact; or the checkpoint belongs to another configuration or
                lacks an item.
        """
        sums = files.read_sums(self.folder)
        there = {_hash(path): path for path in (self.previous, self.last, self.next) if path.exists()}
        newest, older = (there.get(sums.get(name, "")) for name in ("last.pt", "previous.pt"))
        if newest is None and older is not None:
            log.warning("checkpoint %s is damaged or missing (see SHA256SUMS); falling back to %s", self.last, older)
        if path := newest or older:
            return self._read(path)
        if self.last.exists() or self.previous.exists() or "last.pt" in sums:
            raise StorageError("no intact checkpoint", self.folder, "restore one, or start again with resume=never")
        return None

    def settle(self) -> None:
        """Rename a ``next.pt`` whose hash is listed: the last step of a save, or of one that was interrupted."""
        files.make_folder(self.folder)
        sums = files.read_sums(self.folder)
        if _hash(self.next) == sums.get("last.pt", ""):
            if _hash(self.last) == sums.get("previous.pt", ""):
                self._move(self.last, self.previous)
            self._move(self.next, self.last)

    def _move(self, path: Path, to: Path) -> None:
        with files.changing(to):
            os.replace(path, to)

    def _read(self, path: Path) -> dict[str, Any]:
        try:
            state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # the hash is right but the content is not; torch raises many types of errors
            what = f"not a checkpoint ({type(error).__name__})"
            raise StorageError(what, path, "use resume=never") from error
        if missing := [item for item in ITEMS if item not in state]:
            raise StorageError(f"the checkpoint lacks {', '.join(missing)}", path, "use resume=never")
        if differ := self.differing(state["config"]):
            pairs = listed(f"{key}: {there} in the checkpoint, {here} now" for key, (there, here) in differ.items())
            what = f"the checkpoint belongs to another configuration: {pairs}"
            raise StorageError(what, path, "choose another paths.outputs, or use the run's values")
        return state

    def _unequal(self, kept: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
        keys = sorted(kept.keys() | self.identity.keys())
        return {k: (kept.get(k), self.identity.get(k)) for k in keys if kept.get(k) != self.identity.get(k)}


def _hash(path: Path) -> str | None:
    return files.sha256(path) if path.exists() else None


def _refuse_non_finite(content: Mapping[str, Any], where: str) -> None:
    floats = [(name, tensor) for name, tensor in tensors(content) if tensor.is_floating_point()]
    finite = torch.stack([tensor.isfinite().all() for _, tensor in floats]).tolist()  # waits for the device only once
    for (name, _), good in zip(floats, finite, strict=True):
        if not good:
            todo = "lower schedule.lr; the last checkpoint is unaffected"
            raise NonFiniteError(f"{name.lstrip('.')} is not finite", where, todo)


class Timer:
    """Decides when a checkpoint is due within an epoch: every ``steps`` steps, or ``minutes`` after the last save."""

    def __init__(self, steps: int | None, minutes: float) -> None:
        self.steps, self.seconds = steps, minutes * 60
        self.saved_at = time.monotonic()

    def due(self, step: int) -> bool:
        """Whether to save after this step of the epoch (from 1)."""
        by_steps = self.steps is not None and step % self.steps == 0
        return by_steps or time.monotonic() - self.saved_at > self.seconds

    def restart(self) -> None:
        """Start counting the minutes again, after a save."""
        self.saved_at = time.monotonic()
