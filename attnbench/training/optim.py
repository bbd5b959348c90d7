"""SGD and the learning-rate laws, each a pure function of the epoch."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from pydantic import ConfigDict
from pydantic.dataclasses import dataclass
from torch import nn

from attnbench.config.options import Count, Fraction, Law, NonNegative, Pace, Positive


@dataclass(frozen=True, kw_only=True, config=ConfigDict(strict=True))
class Schedule:
    """How the weights move: SGD with a learning rate that depends on the epoch alone.

    Attributes:
        law: ``step`` lr * factor^(e // period), ``exponential`` lr * factor^e, ``linear`` lr (1 - e / E),
            ``cosine`` lr (1 + cos(pi e / E)) / 2, for epoch e of E.
        epochs: E.
        lr: the initial rate, for ``lr_reference_batch`` images a step if that is given, else as it is.
        lr_reference_batch: the rate is scaled by images per update / this (null: never).
        warmup_epochs: the rate first rises linearly over so many epochs.
        per: whether e is whole (``epoch``) or moves with every ``step``.
        factor, period: of the laws step and exponential; the period may be a list of the epochs after which the rate
            drops.
        accumulate: parts in which each process computes its share of a batch, one after the other, for one update;
            where batch norm trains, each has at least two samples.
        ema_decay: of the average of the weights that is evaluated in their stead (null: none).
    """

    law: Law
    epochs: Count
    lr: Positive
    lr_reference_batch: Count | None = None
    momentum: Fraction = 0.9
    nesterov: bool = False
    weight_decay: NonNegative = 0.0
    warmup_epochs: NonNegative = 0.0
    per: Pace = "epoch"
    factor: Positive = 0.1
    period: Count | list[Count] = 30
    accumulate: Count = 1
    ema_decay: Fraction | None = None

    def rate(self, epoch: float, batch_size: int) -> float:
        """The learning rate at an epoch, fractional inside it."""
        scale = batch_size / self.lr_reference_batch if self.lr_reference_batch else 1.0
        warmup = min(1.0, epoch / self.warmup_epochs) if self.warmup_epochs else 1.0
        at = math.floor(epoch) if self.per == "epoch" else epoch
        return self.lr * scale * warmup * LAWS[self.law](self, at)

    def optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        """SGD over all parameters that are trained, weight decay on every one of them as in both papers."""
        parameters = [p for p in model.parameters() if p.requires_grad]
        return torch.optim.SGD(
            parameters,
            lr=self.lr,
            momentum=self.momentum,
            weight_decay=self.weight_decay,
            nesterov=self.nesterov,
        )


def _drops(period: int | list[int], epoch: float) -> float:
    """How often the rate has dropped."""
    return epoch // period if isinstance(period, int) else sum(epoch >= at for at in period)


LAWS: dict[str, Callable[[Schedule, float], float]] = {
    "step": lambda s, e: s.factor ** _drops(s.period, e),
    "exponential": lambda s, e: s.factor**e,
    "linear": lambda s, e: max(0.0, 1.0 - e / s.epochs),
    "cosine": lambda s, e: (1.0 + math.cos(math.pi * min(1.0, e / s.epochs))) / 2,
}
