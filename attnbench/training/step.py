"""One update of the weights, run operation by operation, or recorded once as a CUDA graph and replayed."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import cached_property

import torch
from torch import Tensor
from torch.nn.utils import clip_grad_norm_

from attnbench.data.dataset import Batch
from attnbench.training.parts import fewest
from attnbench.training.runtime import Process
from attnbench.training.state import TrainState

log = logging.getLogger("attnbench")

EAGER_STEPS = 3  # before a recording, so that everything that is created on first use exists


class Update:
    """One update: forward pass, backward pass and optimizer step.

    Args:
        loss: computes the network's loss for a part of a batch.
        parts: the number of parts into which a batch is split. A smaller batch, such as an epoch's last one, is split
            into as many parts as it has samples for. The number is the same in every process.
        clip: the largest L2 norm of the gradients of all parameters together; None for no limit.
    """

    def __init__(
        self,
        state: TrainState,
        loss: Callable[[Batch], Tensor],
        process: Process,
        parts: int,
        clip: float | None = None,
    ) -> None:
        self.state, self.loss, self.process, self.parts, self.clip = state, loss, process, parts, clip

    def __call__(self, batch: Batch) -> Tensor:
        """Update the weights once and return the batch's loss, a scalar on its device."""
        total = self.state.loss_sum.new_zeros(())
        parts = batch.parts(max(1, min(self.parts, batch.smallest // self.fewest)))
        for number, part in enumerate(parts, 1):
            with self.process.gradients(last=number == len(parts)):
                total += self._backward(part)
        if self.clip is not None:
            self.state.scaler.unscale_(self.state.optimizer)  # the limit is for gradients of the unscaled loss
            clip_grad_norm_(self.state.model.parameters(), self.clip)
        self.state.scaler.step(self.state.optimizer)
        self.state.scaler.update()
        self.state.optimizer.zero_grad()
        return total

    @cached_property
    def fewest(self) -> int:
        """The fewest samples that a part may have."""
        return fewest(self.state.model)

    def _backward(self, part: Batch) -> Tensor:
        """Add a part's gradients to those of earlier parts, and return the part's loss."""
        with self.process.autocast():
            loss = self.loss(part)
        self.state.scaler.scale(loss).backward()
        return loss.detach()


class Recorded:
    """An update as a CUDA graph, which replaces about a thousand kernel launches by one.

    A recording is valid for one learning rate and one batch shape, and is repeated when one of them changes. Batches of
    another kind, such as an epoch's last one, run operation by operation.
    """

    def __init__(self, update: Update) -> None:
        self.update = update
        self.kind: object = None  # shape and weight of the last batch, and the learning rate
        self.seen = 0  # updates of that kind so far
        self.graph: torch.cuda.CUDAGraph | None = None
        self.stream = torch.cuda.Stream()

    def __call__(self, batch: Batch) -> Tensor:
        """Update the weights once and return the batch's loss, which is valid until the next call."""
        if not isinstance(batch.images, Tensor) or not isinstance(batch.targets, Tensor):
            return self.update(batch)
        kind = (batch.images.shape, batch.weight, self.update.state.lr)
        if kind != self.kind:
            self.kind, self.seen, self.graph = kind, 0, None
        self.seen += 1
        if self.graph is None:
            if self.seen <= EAGER_STEPS:
                return self._aside(batch)
            self._record(batch)
        assert self.graph is not None
        self.images.copy_(batch.images)
        self.targets.copy_(batch.targets)
        self.graph.replay()
        return self.total

    def _aside(self, batch: Batch) -> Tensor:
        """Run an update on a side stream, as CUDA requires before a recording."""
        self.stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self.stream):
            total = self.update(batch)
        torch.cuda.current_stream().wait_stream(self.stream)
        return total

    def _record(self, batch: Batch) -> None:
        assert isinstance(batch.images, Tensor) and isinstance(batch.targets, Tensor)
        self.images, self.targets = batch.images.clone(), batch.targets.clone()
        graph = torch.cuda.CUDAGraph()
        mine = "thread_local"  # the thread that pins the next batches may allocate memory meanwhile
        with torch.cuda.graph(graph, stream=self.stream, capture_error_mode=mine):  # records without running
            self.total = self.update(Batch(self.images, self.targets, batch.weight))
        self.graph = graph


def recordable(state: TrainState, process: Process, per: str, clip: float | None = None) -> str | None:
    """Why a run's updates cannot be recorded; None if they can."""
    if process.device.type != "cuda":
        return "there is no CUDA device"
    if process.world_size > 1:
        return "several processes share the gradients"
    if process.packed > 1:
        return "packed runs compute each of them together"
    if state.scaler.is_enabled():
        return "fp16 may skip updates"
    if state.annealing:
        return "the attention anneals"
    if clip is not None:
        return "gradients are clipped"  # which nobody has tried in a graph
    return "the learning rate changes with every step" if per == "step" else None


def recorded(update: Update, per: str) -> Update | Recorded:
    """The update as a CUDA graph; if that is not possible, log why and return the update itself.

    Args:
        per: whether the learning rate changes with every ``epoch`` or every ``step``.
    """
    if reason := recordable(update.state, update.process, per, update.clip):
        log.info("runtime.graph: updates run operation by operation, because %s", reason)
        return update
    return Recorded(update)
