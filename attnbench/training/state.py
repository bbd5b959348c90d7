"""Everything that a run needs in order to continue."""

from __future__ import annotations

import hashlib
import logging
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from attnbench.base.errors import NonFiniteError, StorageError

log = logging.getLogger("attnbench")


@dataclass
class TrainState:
    """The state of a run between two updates.

    Attributes:
        model: the network itself, not wrapped in DDP.
        average: the moving average of its weights, if the schedule has one.
        frozen: the modules that are frozen, which stay in evaluation mode.
        epoch, step: the position: ``step`` updates of epoch ``epoch`` (counted from 0) are done.
        loss_sum: the sum of this epoch's losses, on the model's device.
        seconds: the training time so far, including evaluation and earlier starts.
        best: the best validation metric so far and its epoch.
        resumed_from_step: the number of updates that were done when this process continued the run; 0 for a new run.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    average: AveragedModel | None
    loss_sum: Tensor
    frozen: Sequence[str] = ()
    epoch: int = 0
    step: int = 0
    seconds: float = 0.0
    best: dict[str, float] = field(default_factory=dict)
    resumed_from_step: int = 0

    @property
    def evaluated(self) -> nn.Module:
        """The network that is evaluated: the average if there is one, else the model."""
        return self.model if self.average is None else self.average.module

    @cached_property
    def annealing(self) -> list[Callable[[float], None]]:
        """The ``set_progress`` methods of modules that depend on the epoch."""
        modules = [module for network in {self.model, self.evaluated} for module in network.modules()]
        return [module.set_progress for module in modules if hasattr(module, "set_progress")]  # type: ignore[misc]

    @property
    def lr(self) -> float:
        """The learning rate of the last step, before it is scaled for parts of the network."""
        first = self.optimizer.param_groups[0]
        return float(first.get("lr_unscaled", first["lr"]))

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
                "lower schedule.lr, or use runtime.precision=fp32; the last checkpoint is unaffected",
            )
        return loss

    def next_epoch(self) -> None:
        """Go to the start of the next epoch and reset the sum of losses."""
        self.epoch, self.step = self.epoch + 1, 0
        self.loss_sum.zero_()

    def state_dict(self, rng: list[Any]) -> dict[str, Any]:
        """The content of a checkpoint, in types that ``torch.load(weights_only=True)`` accepts.

        Args:
            rng: the random number generators of all processes, by rank.
        """
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
        """Restore all but the model's weights, which are loaded before the model moves to its device."""
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        if self.average is not None:
            self.average.load_state_dict(state["average"])
        self.loss_sum.copy_(state["loss_sum"])
        self.epoch, self.step = state["epoch"], state["step"]
        self.seconds, self.best = state["seconds"], dict(state["best"])

    def digest(self) -> str:
        """A SHA-256 of weights, buffers, average and optimizer; equal runs have equal digests."""
        sha = hashlib.sha256()
        average = self.average.state_dict() if self.average is not None else {}
        for name, tensor in tensors([self.model.state_dict(), average, self.optimizer.state_dict()]):
            sha.update(name.encode())
            sha.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
        return sha.hexdigest()


def load_weights(model: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Load a checkpoint's weights into a model.

    Raises:
        StorageError: the weights belong to another network, for instance because the code has changed.
    """
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        reason = str(error).splitlines()[1].strip()
        what = f"the checkpoint belongs to another network: {reason}"
        raise StorageError(what, "model", "use resume=never") from error


def moving_average(model: nn.Module, decay: float | None) -> AveragedModel | None:
    """An exponential moving average of the weights, with the model's batch norm statistics; None without a decay."""
    return AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(decay)) if decay is not None else None


def rng_state() -> dict[str, Any]:
    """The states of this process's random number generators."""
    cuda = torch.cuda.get_rng_state() if torch.cuda.is_available() else None
    return {"torch": torch.get_rng_state(), "cuda": cuda, "python": random.getstate()}


def set_rng_state(state: Mapping[str, Any]) -> None:
    """Restore the states that ``rng_state`` returned."""
    torch.set_rng_state(state["torch"])
    random.setstate(state["python"])
    if state["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])


def tensors(value: Any, name: str = "") -> Any:
    """All tensors in nested dictionaries and lists, with their dotted names, in a fixed order."""
    if isinstance(value, Tensor):
        yield name, value
    elif isinstance(value, Mapping):
        for key in sorted(value, key=str):
            yield from tensors(value[key], f"{name}.{key}")
    elif isinstance(value, (list, tuple)):
        for i, item in enumerate(value):
            yield from tensors(item, f"{name}.{i}")
