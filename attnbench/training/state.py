"""Everything that a run needs to continue, and the checkpoints that hold it."""

from __future__ import annotations

import hashlib
import logging
import os
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from attnbench.base import files
from attnbench.base.errors import NonFiniteError, StorageError

log = logging.getLogger("attnbench")

# What a checkpoint holds.
ITEMS = ("model", "average", "optimizer", "scaler", "loss_sum", "epoch", "step", "seconds", "best", "rng", "config")


@dataclass
class TrainState:
    """A run between two updates.

    Attributes:
        model: the network itself, never a wrapper of it.
        average: the moving average of its weights, if the schedule has one.
        epoch, step: updates done in full: ``step`` of them in epoch ``epoch``, both from 0.
        loss_sum: the sum of this epoch's losses, on the model's device.
        seconds: training time so far, evaluation and earlier starts included.
        best: the best validation metric so far and its epoch.
        resumed_from_step: the update that this process continued after; 0 if it began.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    average: AveragedModel | None
    loss_sum: Tensor
    epoch: int = 0
    step: int = 0
    seconds: float = 0.0
    best: dict[str, float] = field(default_factory=dict)
    resumed_from_step: int = 0

    @property
    def evaluated(self) -> nn.Module:
        """The weights that are evaluated: the average where there is one."""
        return self.model if self.average is None else self.average.module

    @cached_property
    def annealing(self) -> list[Callable[[float], None]]:
        """The ``set_progress`` of modules that depend on the epoch."""
        modules = [module for network in {self.model, self.evaluated} for module in network.modules()]
        return [module.set_progress for module in modules if hasattr(module, "set_progress")]  # type: ignore[misc]

    @property
    def lr(self) -> float:
        """The learning rate of the last step."""
        return float(self.optimizer.param_groups[0]["lr"])

    def mean_loss(self) -> float:
        """The mean loss of this epoch's steps.

        Raises:
            NonFiniteError: it is NaN or infinite.
        """
        loss = float(self.loss_sum) / max(1, self.step)
        if loss - loss != 0:
            raise NonFiniteError(
                f"the loss became {loss}",
                f"epoch {self.epoch + 1}, step {self.step}",
                "lower schedule.lr, or use runtime.precision=fp32; the last checkpoint is from before",
            )
        return loss

    def next_epoch(self) -> None:
        """Go to the start of the next epoch; its loss begins at zero."""
        self.epoch, self.step = self.epoch + 1, 0
        self.loss_sum.zero_()

    def state_dict(self, rng: list[Any]) -> dict[str, Any]:
        """What a checkpoint holds, in types that ``torch.load(weights_only=True)`` admits."""
        return {
            "model": self.model.state_dict(),
            "average": self.average.state_dict() if self.average is not None else None,
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "loss_sum": self.loss_sum,
            "epoch": self.epoch,
            "step": self.step,
            "seconds": self.seconds,
            "best": dict(self.best),
            "rng": rng,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a checkpoint; the model's own weights are loaded before it reaches its device."""
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        if self.average is not None:
            self.average.load_state_dict(state["average"])
        self.loss_sum.copy_(state["loss_sum"])
        self.epoch, self.step = state["epoch"], state["step"]
        self.seconds, self.best = state["seconds"], dict(state["best"])

    def digest(self) -> str:
        """A SHA-256 over weights, buffers, average and optimizer: equal runs have equal digests."""
        sha = hashlib.sha256()
        average = self.average.state_dict() if self.average is not None else {}
        for name, tensor in _tensors([self.model.state_dict(), average, self.optimizer.state_dict()]):
            sha.update(name.encode())
            sha.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
        return sha.hexdigest()


def load_weights(model: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Load the weights that a checkpoint holds.

    Raises:
        StorageError: they are of another network, as after a change of the code.
    """
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        reason = str(error).splitlines()[1].strip()
        raise StorageError(f"the checkpoint is of another network: {reason}", "model", "use resume=never") from error


def moving_average(model: nn.Module, decay: float | None) -> AveragedModel | None:
    """An exponential moving average of the weights; batch norm's statistics are those of the model itself."""
    return AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(decay)) if decay is not None else None


def rng_state() -> dict[str, Any]:
    """The random number generators of this process."""
    cuda = torch.cuda.get_rng_state() if torch.cuda.is_available() else None
    return {"torch": torch.get_rng_state(), "cuda": cuda, "python": random.getstate()}


def set_rng_state(state: Mapping[str, Any]) -> None:
    """Put the random number generators into the state that ``rng_state`` returned."""
    torch.set_rng_state(state["torch"])
    random.setstate(state["python"])
    if state["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])


def _tensors(value: Any, name: str = "") -> Any:
    """All tensors in nested dictionaries and lists, with their dotted names, in a fixed order."""
    if isinstance(value, Tensor):
        yield name, value
    elif isinstance(value, Mapping):
        for key in sorted(value, key=str):
            yield from _tensors(value[key], f"{name}.{key}")
    elif isinstance(value, (list, tuple)):
        for i, item in enumerate(value):
            yield from _tensors(item, f"{name}.{i}")


class Checkpoints:
    """The checkpoints of a run: ``last.pt``, the one before it, and ``best.pt``.

    A checkpoint is trusted if ``SHA256SUMS`` (as ``sha256sum -c`` reads it) lists its hash as that of ``last.pt`` or
    ``previous.pt``, whichever of the names it has: a save stages ``next.pt``, lists what the files will be, and only
    then moves them, so that at every instant the newest listed checkpoint is there and whole.

    Args:
        folder: where they lie; made when first written to.
        identity: the configuration values that decide a result, kept in each checkpoint.
    """

    def __init__(self, folder: Path, identity: Mapping[str, Any]) -> None:
        self.folder = folder
        self.identity = dict(identity)
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
        sums = self._sums()
        older = "last.pt" if _hash(self.last) == sums.get("last.pt", "") else "previous.pt"
        new = files.write(self.next, lambda file: torch.save({**state, "config": self.identity}, file))
        self._write_sums({**sums, "previous.pt": sums.get(older, ""), "last.pt": new})
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
        self._write_sums({**self._sums(), "best.pt": digest})

    def load(self) -> dict[str, Any] | None:
        """The newest whole checkpoint, or None if there is none.

        A damaged one is passed over with one warning.

        Raises:
            StorageError: checkpoints are there but none is whole, or it is of another configuration or lacks something.
        """
        sums = self._sums()
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
        sums = self._sums()
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
        theirs = state["config"]
        differ = sorted(k for k in theirs.keys() | self.identity.keys() if theirs.get(k) != self.identity.get(k))
        if differ:
            pairs = ", ".join(f"{k}: {theirs.get(k)} there, {self.identity.get(k)} here" for k in differ[:5])
            raise StorageError(f"the checkpoint is of another configuration: {pairs}", path, "use resume=never")
        return state

    def _sums(self) -> dict[str, str]:
        path = self.folder / "SHA256SUMS"
        lines = path.read_text(errors="replace").splitlines() if path.exists() else []
        return {name: digest for digest, _, name in (line.partition("  ") for line in lines)}

    def _write_sums(self, sums: Mapping[str, str]) -> None:
        text = "".join(f"{digest}  {name}\n" for name, digest in sorted(sums.items()) if digest)
        files.write(self.folder / "SHA256SUMS", lambda file: file.write(text.encode()))


def _hash(path: Path) -> str | None:
    return files.sha256(path) if path.exists() else None


def _refuse_non_finite(content: Mapping[str, Any], where: str) -> None:
    floats = [(name, tensor) for name, tensor in _tensors(content) if tensor.is_floating_point()]
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
