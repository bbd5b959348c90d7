"""The checkpoints of a run on disk: everything or nothing, at every instant."""

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
    """The checkpoints of a run: ``last.pt``, the one before it, and ``best.pt``.

    A checkpoint is trusted if ``SHA256SUMS`` (as ``sha256sum -c`` reads it) lists its hash as that of ``last.pt`` or
    ``previous.pt``, whichever of the names it has: a save stages ``next.pt``, lists what the files will be, and only
    then moves them, so that at every instant the newest listed checkpoint is there and whole.

    Args:
        folder: where they lie; made when first written to.
        identity: the configuration values that decide a result, kept in each checkpoint.
        differing: how these differ from the values kept in a checkpoint: key to value there and here; None for any
            value that is not equal.
    """

    def __init__(self, folder: Path, identity: Mapping[str, Any], differing: Differing | None = None) -> None:
        self.folder = folder
        self.identity = dict(identity)
        self.differing = differing or self._unequal
        self.last, self.previous, self.next, self.best = (
            folder / f"{name}.pt" for name in ("last", "previous", "next", "best")
        )

    def save(self, state: Mapping[str, Any]) -> None:
        """Make a state the last checkpoint; what was last becomes the previous one.

        Raises:
            NonFiniteError: the state holds a NaN or infinite number; nothing is written.
            StorageError: it cannot be written; the last checkpoint is as it was.
        """
        _refuse_non_finite(state, f"epoch {state['epoch'] + 1}, step {state['step']}")
        self.settle()
        sums = files.read_sums(self.folder)
        older = "last.pt" if _hash(self.last) == sums.get("last.pt", "") else "previous.pt"
        new = files.write(self.next, lambda file: torch.save({**state, "config": self.identity}, file))
        files.write_sums(self.folder, {**sums, "previous.pt": sums.get(older, ""), "last.pt": new})
        self.settle()

    def save_best(self, weights: Mapping[str, Tensor], about: Mapping[str, float]) -> None:
        """Keep the evaluated weights of the best epoch so far, and which that is.

        Raises:
            NonFiniteError: a weight is NaN or infinite; nothing is written.
            StorageError: they cannot be written.
        """
        content = {"model": dict(weights), "config": self.identity, **about}
        _refuse_non_finite(content, f"epoch {about['epoch']}, after its last step")
        files.make_folder(self.folder)
        digest = files.write(self.best, lambda file: torch.save(content, file))
        files.write_sums(self.folder, {**files.read_sums(self.folder), "best.pt": digest})

    def load(self) -> dict[str, Any] | None:
        """The newest whole checkpoint, or None if there is none.

        A damaged one is passed over with one warning.

        Raises:
            StorageError: checkpoints are there but none is whole, or it is of another configuration or lacks something.
        """
        sums = files.read_sums(self.folder)
        there = {_hash(path): path for path in (self.previous, self.last, self.next) if path.exists()}
        newest, older = (there.get(sums.get(name, "")) for name in ("last.pt", "previous.pt"))
        if newest is None and older is not None:
            log.warning("checkpoint %s is damaged or missing (see SHA256SUMS); falling back to %s", self.last, older)
        if path := newest or older:
            return self._read(path)
        if self.last.exists() or self.previous.exists() or "last.pt" in sums:
            raise StorageError("no checkpoint is whole", self.folder, "restore one, or start again with resume=never")
        return None

    def settle(self) -> None:
        """Move a staged checkpoint that is listed to its place, now or after an interrupted save."""
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
        except Exception as error:  # whole, but no checkpoint of ours: torch raises whatever it stumbles over
            what = f"not a checkpoint ({type(error).__name__})"
            raise StorageError(what, path, "use resume=never") from error
        if missing := [item for item in ITEMS if item not in state]:
            raise StorageError(f"the checkpoint lacks {', '.join(missing)}", path, "use resume=never")
        if differ := self.differing(state["config"]):
            pairs = listed(f"{key}: {there} there, {here} here" for key, (there, here) in differ.items())
            what = f"the checkpoint is of another configuration: {pairs}"
            raise StorageError(what, path, "choose other paths.outputs, or give the run's own values")
        return state

    def _unequal(self, kept: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
        keys = sorted(kept.keys() | self.identity.keys())
        return {k: (kept.get(k), self.identity.get(k)) for k in keys if kept.get(k) != self.identity.get(k)}


def _hash(path: Path) -> str | None:
    return files.sha256(path) if path.exists() else None


def _refuse_non_finite(content: Mapping[str, Any], where: str) -> None:
    floats = [(name, tensor) for name, tensor in tensors(content) if tensor.is_floating_point()]
    finite = torch.stack([tensor.isfinite().all() for _, tensor in floats]).tolist()  # one synchronisation for all
    for (name, _), good in zip(floats, finite, strict=True):
        if not good:
            todo = "lower schedule.lr; the last checkpoint is from before"
            raise NonFiniteError(f"{name.lstrip('.')} is not finite", where, todo)


class Timer:
    """When a checkpoint is due inside an epoch: after so many steps or minutes, whichever comes first."""

    def __init__(self, steps: int | None, minutes: float) -> None:
        self.steps, self.seconds = steps, minutes * 60
        self.saved_at = time.monotonic()

    def due(self, step: int) -> bool:
        """Whether to save after this step of the epoch."""
        by_steps = self.steps is not None and step % self.steps == 0
        return by_steps or time.monotonic() - self.saved_at > self.seconds

    def restart(self) -> None:
        """Begin to count the minutes anew: a checkpoint was saved."""
        self.saved_at = time.monotonic()
