"""How a batch is divided: over processes, and within each process into parts.

``schedule.accumulate`` gives the number of parts, ``runtime.norm_batch`` the largest part that batch norm may see.

Every process computes the same number of parts, because a pass in one process may wait for the others, as in
synchronised batch norm.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from attnbench.base.errors import ConfigError
from attnbench.data.loader import FEWEST, refuse_small


def fewest(model: nn.Module) -> int:
    """The fewest samples that a model in training mode can compute at once: two if a batch norm trains, else one.

    Batch norm needs at least two values per channel. A map of one pixel, such as gap(x), has one value per sample.
    """
    norms = (module for module in model.modules() if isinstance(module, _BatchNorm))
    return FEWEST if any(norm.training for norm in norms) else 1


def number(accumulate: int, norm_batch: int | None, batch_size: int, processes: int) -> int:
    """The number of parts into which each process splits its share of a batch."""
    needed = math.ceil(batch_size / processes / norm_batch) if norm_batch else 1
    return max(accumulate, needed)


@dataclass(frozen=True)
class Division:
    """How a run divides a full batch.

    Attributes:
        batch_size: the number of samples over all processes.
        processes: the number of processes of the run.
        accumulate: the number of parts into which each process splits its share.
        fewest: the fewest samples that a part may have.
        together: the number of processes whose batch norms share their statistics.
    """

    batch_size: int
    processes: int
    accumulate: int
    fewest: int
    together: int = 1

    @property
    def part(self) -> int:
        """The number of samples that a process computes at once."""
        return max(1, self.batch_size // self.processes // self.accumulate)

    @property
    def norm_images(self) -> int | None:
        """The number of images over which a batch norm computes its statistics; None if no batch norm trains."""
        return self.part * self.together if self.fewest >= FEWEST else None

    @property
    def most(self) -> int:
        """The largest possible number of parts in the process that has the fewest samples."""
        return max(1, self.batch_size // self.processes // self.fewest)

    def refuse(self) -> None:
        """Refuse processes or parts with too few samples.

        Raises:
            ConfigError: names the smallest possible batch, or the largest possible number of parts.
        """
        refuse_small(self.batch_size, self.processes)
        if self.accumulate > self.most:
            share = f"{self.batch_size // self.processes} samples"
            each = f" in each of {self.processes} processes" if self.processes > 1 else ""
            needs = f"batch norm needs {FEWEST} in each part" if self.fewest == FEWEST else "each part needs one"
            what = f"{share}{each} cannot be split into {self.accumulate} parts: {needs}"
            raise ConfigError(what, "schedule.accumulate", f"use at most {self.most}")

    def saving(self) -> str:
        """What to do when memory does not suffice."""
        smaller = ["a smaller batch_size"] if self.batch_size > FEWEST * self.processes else []
        parts = [f"schedule.accumulate={min(2 * self.accumulate, self.most)}"] if self.accumulate < self.most else []
        return "use " + ", or ".join([*smaller, *parts] or ["smaller images or a smaller network"])
