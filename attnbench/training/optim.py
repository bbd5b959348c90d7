"""SGD, and learning-rate laws that are pure functions of the epoch."""

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
    """SGD with a learning rate that depends only on the epoch.

    Attributes:
        law: the learning rate at epoch e of E. ``step``: lr * factor^(e // period); ``exponential``: lr * factor^e;
            ``linear``: lr (1 - e / E); ``cosine``: lr (1 + cos(pi e / E)) / 2.
        epochs: E.
        lr: the initial rate. If ``lr_reference_batch`` is given, it is the rate for batches of that size.
        lr_reference_batch: the rate is multiplied by batch_size / lr_reference_batch; null leaves it unchanged.
        warmup_epochs: the number of epochs over which the rate first rises linearly.
        per: whether e is a whole number (``epoch``) or grows with every ``step``.
        factor, period: parameters of the laws step and exponential. The period is the number of epochs between drops,
            or a list of the epochs after which the rate drops.
        accumulate: the number of parts into which each process splits its share of a batch. They are computed one after
            the other and make one update. Where batch norm trains, each part has at least two samples.
        ema_decay: the decay of a moving average of the weights, which is evaluated instead of the weights; null: no
            average.
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
        """The learning rate at an epoch, a whole number or a fraction."""
        scale = batch_size / self.lr_reference_batch if self.lr_reference_batch else 1.0
        warmup = min(1.0, epoch / self.warmup_epochs) if self.warmup_epochs else 1.0
        at = math.floor(epoch) if self.per == "epoch" else epoch
        return self.lr * scale * warmup * LAWS[self.law](self, at)

    def optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        """SGD over all trainable parameters, with weight decay on each of them, as in both papers."""
        parameters = [p for p in model.parameters() if p.requires_grad]
        return torch.optim.SGD(
            parameters,
            lr=self.lr,
            momentum=self.momentum,
            weight_decay=self.weight_decay,
            nesterov=self.nesterov,
        )


def _drops(period: int | list[int], epoch: float) -> float:
    """How many times the rate has dropped by an epoch."""
    return epoch // period if isinstance(period, int) else sum(epoch >= at for at in period)


LAWS: dict[str, Callable[[Schedule, float], float]] = {
    "step": lambda s, e: s.factor ** _drops(s.period, e),
    "exponential": lambda s, e: s.factor**e,
    "linear": lambda s, e: max(0.0, 1.0 - e / s.epochs),
    "cosine": lambda s, e: (1.0 + math.cos(math.pi * min(1.0, e / s.epochs))) / 2,
}
