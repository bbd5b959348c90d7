"""An attention that fails in all the ways in which a member of a sweep can fail."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from attnbench.config.options import Index, checked
from attnbench.models.insertion import Attended, Site


def _raise(error: BaseException) -> Callable[[Tensor], Tensor]:
    def fault(x: Tensor) -> Tensor:
        raise error

    return fault


def _kill(x: Tensor) -> Tensor:
    os.kill(os.getpid(), signal.SIGKILL)
    return x


def _exit(x: Tensor) -> Tensor:
    sys.exit(3)


def _crowded(most: int, error: Exception) -> Callable[[Tensor], Tensor]:
    def fault(x: Tensor) -> Tensor:
        if len(x) > most:
            raise error
        return x.new_ones(())

    return fault


FAULTS: dict[int, Callable[[Tensor], Tensor]] = {
    **dict.fromkeys((3, 13, 23), _raise(ZeroDivisionError("a member's own mistake"))),
    **dict.fromkeys((5, 15, 25), _kill),
    **dict.fromkeys((7, 17), _exit),
    9: lambda x: x * float("nan"),
    11: _raise(torch.OutOfMemoryError("no more")),
    51: _crowded(2 * 128, torch.OutOfMemoryError("no more")),
    52: _crowded(2 * 128, ZeroDivisionError("a mistake of many")),
    53: lambda x: torch.sigmoid(x.mean(0, keepdim=True)),  # of all samples in the batch, whosesoever they are
    54: lambda x: os._exit(143),  # as a member that is asked to save for the second time
}


class Faulty(nn.Module):
    """a = 1, but for the faults."""

    def __init__(self, member: int) -> None:
        super().__init__()
        self.member = member

    def forward(self, x: Tensor) -> Tensor:
        if self.training and not x.is_meta and self.member in FAULTS and Path(os.environ["ATTNBENCH_FAULTS"]).exists():
            return FAULTS[self.member](x)
        return x.new_ones(())


@checked
def faulty(site: Site, *, member: Index = 0) -> nn.Module:
    """The identity, by number."""
    return Attended(site.trunk, Faulty(member), reads="output", combine="mul")
