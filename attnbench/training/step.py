"""One update of the weights: operation by operation, or recorded once as a CUDA graph and replayed."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import cached_property

import torch
from torch import Tensor

from attnbench.data.dataset import Batch
from attnbench.training.parts import fewest
from attnbench.training.runtime import Process
from attnbench.training.state import TrainState

log = logging.getLogger("attnbench")

EAGER_STEPS = 3  # before a recording: whatever is made at first use is there then


class Update:
    """Forward pass, backward pass and optimizer step.

    Args:
        loss: of a part of a batch, by the network.
        parts: in how many parts a batch is computed; a smaller batch, such as an epoch's last one, comes in as many
            as it has samples for, in every process the same number.
    """

    def __init__(self, state: TrainState, loss: Callable[[Batch], Tensor], process: Process, parts: int) -> None:
        self.state, self.loss, self.process, self.parts = state, loss, process, parts

    def __call__(self, batch: Batch) -> Tensor:
        """Update the weights once; the batch's loss, a scalar on its device."""
        total = self.state.loss_sum.new_zeros(())
        parts = batch.parts(max(1, min(self.parts, batch.smallest // self.fewest)))
        for number, part in enumerate(parts, 1):
            with self.process.gradients(last=number == len(parts)):
                total += self._backward(part)
        self.state.scaler.step(self.state.optimizer)
        self.state.scaler.update()
        self.state.optimizer.zero_grad()
        return total

    @cached_property
    def fewest(self) -> int:
        """Samples that a part needs."""
        return fewest(self.state.model)

    def _backward(self, part: Batch) -> Tensor:
        """Add a part's gradients to those that are there; the part's loss."""
        with self.process.autocast():
            loss = self.loss(part)
        self.state.scaler.scale(loss).backward()
        return loss.detach()


class Recorded:
    """An update as a CUDA graph: one call of the device where an update has a thousand.

    A recording holds a learning rate and a batch's shape, and is made anew when one of them changes. Other batches
    than the recorded kind, such as an epoch's last one, are computed operation by operation.
    """

    def __init__(self, update: Update) -> None:
        self.update = update
        self.kind: object = None  # of the last batch, with the learning rate
        self.seen = 0  # updates of that kind
        self.graph: torch.cuda.CUDAGraph | None = None
        self.stream = torch.cuda.Stream()

    def __call__(self, batch: Batch) -> Tensor:
        """Update the weights once; the batch's loss, valid until the next call."""
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
        """An update on a stream of its own, as what precedes a recording has to be."""
        self.stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self.stream):
            total = self.update(batch)
        torch.cuda.current_stream().wait_stream(self.stream)
        return total

    def _record(self, batch: Batch) -> None:
        assert isinstance(batch.images, Tensor) and isinstance(batch.targets, Tensor)
        self.images, self.targets = batch.images.clone(), batch.targets.clone()
        graph = torch.cuda.CUDAGraph()
        mine = "thread_local"  # meanwhile the thread that pins the next batches may ask for memory
        with torch.cuda.graph(graph, stream=self.stream, capture_error_mode=mine):  # recorded, changes nothing
            self.total = self.update(Batch(self.images, self.targets, batch.weight))
        self.graph = graph


def recordable(state: TrainState, process: Process, per: str) -> str | None:
    """Why the updates of a run cannot be recorded; None if they can."""
    if process.device.type != "cuda":
        return "there is no CUDA device"
    if process.world_size > 1:
        return "several processes share the gradients"
    if process.packed > 1:
        return "the runs of a pack meet in each of them"
    if state.scaler.is_enabled():
        return "fp16 skips updates"
    if state.annealing:
        return "the attention anneals"
    return "the learning rate moves with every step" if per == "step" else None


def recorded(update: Update, per: str) -> Update | Recorded:
    """The update as a CUDA graph; as it is, with a line that says why, where that cannot be.

    Args:
        per: whether the learning rate moves with every ``epoch`` or every ``step``.
    """
    if reason := recordable(update.state, update.process, per):
        log.info("runtime.graph: updates run operation by operation, as %s", reason)
        return update
    return Recorded(update)
