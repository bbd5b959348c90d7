"""How the samples of a training step are divided: over processes, and in each over parts (``schedule.accumulate``).

Every process computes the same number of parts: a pass of one may wait for the others, as synchronised batch norm does.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from attnbench.base.errors import ConfigError
from attnbench.data.loader import FEWEST, refuse_small


def fewest(model: nn.Module) -> int:
    """Samples that a model in training mode needs at once: two where a batch norm trains, else one.

    Batch norm takes no variance of one value, which a map of one pixel, such as gap(x), has of one sample.
    """
    norms = (module for module in model.modules() if isinstance(module, _BatchNorm))
    return FEWEST if any(norm.training for norm in norms) else 1


@dataclass(frozen=True)
class Division:
    """A full batch, as a run divides it.

    Attributes:
        batch_size: samples, over all processes.
        processes: of the run.
        accumulate: parts that a process computes its share in.
        fewest: samples that a part needs.
    """

    batch_size: int
    processes: int
    accumulate: int
    fewest: int

    @property
    def most(self) -> int:
        """The most parts in which the process with the fewest samples can compute them."""
        return max(1, self.batch_size // self.processes // self.fewest)

    def refuse(self) -> None:
        """Refuse processes or parts with too few samples.

        Raises:
            ConfigError: names the smallest batch or the most parts that there can be.
        """
        refuse_small(self.batch_size, self.processes)
        if self.accumulate > self.most:
            share = f"{self.batch_size // self.processes} samples"
            each = f" in each of {self.processes} processes" if self.processes > 1 else ""
            needs = f"batch norm needs {FEWEST} in each part" if self.fewest == FEWEST else "each part needs one"
            what = f"{share}{each} cannot be {self.accumulate} parts: {needs}"
            raise ConfigError(what, "schedule.accumulate", f"use at most {self.most}")

    def saving(self) -> str:
        """What to do where memory does not suffice."""
        smaller = ["a smaller batch_size"] if self.batch_size > FEWEST * self.processes else []
        parts = [f"schedule.accumulate={min(2 * self.accumulate, self.most)}"] if self.accumulate < self.most else []
        return "use " + ", or ".join([*smaller, *parts] or ["smaller images or a smaller network"])
