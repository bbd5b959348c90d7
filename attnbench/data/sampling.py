"""Random choices as pure functions of their key, so that no sampler has a state to save.

Nothing here reads or advances a global random generator: an epoch can be replayed from any step, by
any number of workers and processes, without disturbing dropout or initialisation.
"""

from __future__ import annotations

import random

import torch
from torch import Tensor

from attnbench.data.dataset import Draw


def stream(*key: int | str) -> random.Random:
    """The random stream named by ``key``: streams of different keys are independent.

    Draw from it with ``random()`` only, the one method whose sequence Python promises to keep
    between versions.
    """
    return random.Random("/".join(map(str, key)))


def generator(*key: int | str) -> torch.Generator:
    """A generator seeded by ``key``; on the CPU, so that every device draws the same."""
    return torch.Generator().manual_seed(int(stream(*key).random() * 2**53))


def order(samples: int, draw: Draw | None) -> Tensor:
    """All indices, int64 (samples,): shuffled for the epoch ``draw``, in order for None."""
    if draw is None:
        return torch.arange(samples)
    return torch.randperm(samples, generator=generator("order", *draw))


def usable(samples: int, batch_size: int, smallest: int) -> int:
    """How many of ``samples`` fill batches if a last one of fewer than ``smallest`` is left out."""
    last = samples % batch_size
    return samples - last if last < smallest else samples
