"""SGD, and learning-rate laws that are pure functions of the position in a run."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from fnmatch import fnmatchcase
from typing import Any

import torch
from pydantic import ConfigDict
from pydantic.dataclasses import dataclass
from torch import nn

from attnbench.base.errors import ConfigError
from attnbench.config.options import Count, Fraction, Law, Names, NonNegative, Pace, Positive
from attnbench.models import regions


@dataclass(frozen=True, kw_only=True, config=ConfigDict(strict=True))
class Schedule:
    """SGD with a learning rate that depends only on the position: epochs and updates done.

    Attributes:
        law: the learning rate at epoch e of E. ``step``: lr * factor^(e // period); ``exponential``: lr * factor^e;
            ``linear``: lr (1 - e / E); ``cosine``: lr (1 + cos(pi e / E)) / 2.
        epochs: E.
        lr: the initial rate. If ``lr_reference_batch`` is given, it is the rate for batches of that size.
        lr_reference_batch: the rate is multiplied by batch_size / lr_reference_batch; null leaves it unchanged.
        warmup_epochs: the number of epochs over which the rate first rises linearly.
        warmup_steps: the same as a number of updates; ``warmup_epochs`` is then 0.
        warmup_from: the share of the rate at which the warm-up begins.
        per: whether e is a whole number (``epoch``) or grows with every ``step``.
        factor, period: parameters of the laws step and exponential. The period is the number of epochs between drops,
            or a list of the epochs after which the rate drops.
        accumulate: the number of parts into which each process splits its share of a batch. They are computed one after
            the other and make one update. Where batch norm trains, each part has at least two samples.
        ema_decay: the decay of a moving average of the weights, which is evaluated instead of the weights; null: no
            average.
        clip_grad_norm: before an update, gradients whose L2 norm over all parameters exceeds this are scaled down to
            it; null: they are not.
        no_decay: parameters without weight decay: their names, or the last parts of their names, such as ``lambda_``,
            with ``*`` for any text. null: all parameters have weight decay.
        freeze: parts that are not trained; their parameters get no gradient, and their batch norms keep their
            statistics. Parts are ``stem``, ``stage1`` and so on, ``attention``, ``head``, ``trunk``, or modules by
            their names; see ``attnbench.models.regions``. null: nothing is frozen.
        lr_scale: factors of the learning rate, by part. Where parts overlap, the more special one counts: a module
            before attention, attention before head, stem and stages, and these before the trunk. null: all have the
            same rate.
    """

    law: Law
    epochs: Count
    lr: Positive
    lr_reference_batch: Count | None = None
    momentum: Fraction = 0.9
    nesterov: bool = False
    weight_decay: NonNegative = 0.0
    warmup_epochs: NonNegative = 0.0
    warmup_steps: Count | None = None
    warmup_from: Fraction = 0.0
    per: Pace = "epoch"
    factor: Positive = 0.1
    period: Count | list[Count] = 30
    accumulate: Count = 1
    ema_decay: Fraction | None = None
    clip_grad_norm: Positive | None = None
    no_decay: Names | None = None
    freeze: Names | None = None
    lr_scale: dict[str, Positive] | None = None

    @property
    def open_ended(self) -> bool:
        """Whether the rate at an epoch does not depend on the number of epochs, so that a run can go on for more."""
        return self.law in OPEN_ENDED

    def rate(self, epoch: float, batch_size: int, steps: int = 0) -> float:
        """The learning rate of an update.

        Args:
            epoch: how many epochs are done, a whole number or a fraction.
            steps: how many updates are done, over all epochs.
        """
        scale = batch_size / self.lr_reference_batch if self.lr_reference_batch else 1.0
        at = math.floor(epoch) if self.per == "epoch" else epoch
        return self.lr * scale * self._warmup(epoch, steps) * LAWS[self.law](self, at)

    def _warmup(self, epoch: float, steps: int) -> float:
        """The share of the rate that the warm-up allows."""
        done, length = (steps, self.warmup_steps) if self.warmup_steps else (epoch, self.warmup_epochs)
        risen = min(1.0, done / length) if length else 1.0
        return self.warmup_from + (1.0 - self.warmup_from) * risen

    def optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        """SGD over all trainable parameters, with weight decay on each of them (as in both papers) but ``no_decay``.

        Raises:
            ConfigError: a pattern of ``no_decay`` matches no parameter, or a part in ``lr_scale`` does not exist.
        """
        return torch.optim.SGD(
            self.groups(model),
            lr=self.lr,
            momentum=self.momentum,
            weight_decay=self.weight_decay,
            nesterov=self.nesterov,
        )

    def groups(self, model: nn.Module) -> list[dict[str, Any]]:
        """The trainable parameters as groups: by factor of the rate, and first those with weight decay.

        Raises:
            ConfigError: as ``optimizer``.
        """
        spared = _matching(model, self.no_decay or [])
        factors = _factors(model, self.lr_scale or {})
        parts: dict[tuple[float, bool], list[nn.Parameter]] = {}
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                parts.setdefault((factors.get(name, 1.0), name in spared), []).append(parameter)
        return [
            {"params": parts[factor, free], **({"weight_decay": 0.0} if free else {}), **_scaled(factor, self.lr_scale)}
            for factor, free in sorted(parts)
        ]


def _scaled(factor: float, scales: Mapping[str, float] | None) -> dict[str, float]:
    """What a group holds in addition if parts of the network have rates of their own."""
    return {"lr_scale": factor} if scales else {}


def _factors(model: nn.Module, scales: Mapping[str, float]) -> dict[str, float]:
    """The factor of each parameter in a part that has one; a more special part counts before a general one.

    Raises:
        ConfigError: there is no such part.
    """
    known = regions.regions(model) if scales else {}
    order = ["trunk", *(name for name in known if name not in ("trunk", "attention")), "attention"]
    names = sorted(scales, key=lambda name: order.index(name) if name in known else len(order))
    return {
        parameter: scales[name]
        for name in names
        for parameter in regions.parameters(model, regions.find(model, name, "schedule.lr_scale"))
    }


def _matching(model: nn.Module, patterns: list[str]) -> set[str]:
    """The names of the parameters that patterns match, as a whole or in their last part.

    Raises:
        ConfigError: a pattern matches none.
    """
    names = [name for name, _ in model.named_parameters()]
    found = {
        pattern: {name for name in names if fnmatchcase(name, pattern) or fnmatchcase(name.rpartition(".")[2], pattern)}
        for pattern in patterns
    }
    for pattern, matched in found.items():
        if not matched:
            todo = "use names such as lambda_ or bias, or parts of them with *"
            raise ConfigError(f"no parameter is named {pattern}", "schedule.no_decay", todo)
    return set().union(*found.values())


def _drops(period: int | list[int], epoch: float) -> float:
    """How many times the rate has dropped by an epoch."""
    return epoch // period if isinstance(period, int) else sum(epoch >= at for at in period)


OPEN_ENDED = ("step", "exponential")

LAWS: dict[str, Callable[[Schedule, float], float]] = {
    "step": lambda s, e: s.factor ** _drops(s.period, e),
    "exponential": lambda s, e: s.factor**e,
    "linear": lambda s, e: max(0.0, 1.0 - e / s.epochs),
    "cosine": lambda s, e: (1.0 + math.cos(math.pi * min(1.0, e / s.epochs))) / 2,
}
