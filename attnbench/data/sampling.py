"""Random choices as pure functions of a key, so that samplers have no state to save.

No function here reads or advances a global random generator. So an epoch can be replayed from any step, by any number
of workers and processes, and dropout and initialisation do not change.
"""

from __future__ import annotations

import random

import torch
from torch import Tensor

from attnbench.data.dataset import Draw


def stream(*key: int | str) -> random.Random:
    """The random stream of a key; streams of different keys are independent.

    Use its ``random()`` only: this is the method whose sequence Python promises to keep between versions.
    """
    return random.Random("/".join(map(str, key)))


def generator(*key: int | str) -> torch.Generator:
    """A generator seeded by ``key``. It is on the CPU, so that all devices get the same numbers."""
    return torch.Generator().manual_seed(int(stream(*key).random() * 2**53))


def order(samples: int, draw: Draw | None) -> Tensor:
    """All indices, int64 (samples,): shuffled with the key ``draw``, or in order if it is None."""
    if draw is None:
        return torch.arange(samples)
    return torch.randperm(samples, generator=generator("order", *draw))


def balanced(labels: Tensor, draw: Draw) -> Tensor:
    """As many indices as there are labels, in random order, equally many of each class; int64 (samples,).

    A class's samples are shuffled and taken in turn. Those that are taken again get an index that is ``samples``
    higher each time, so that the same image is augmented differently. The numbers of draws of two classes differ by at
    most one, and which classes get one more is random.

    Args:
        labels: the class of each sample, int64 (samples,).
    """
    samples = len(labels)
    classes = labels.unique()
    random = generator("balanced", *draw)
    each, rest = divmod(samples, len(classes))
    more = torch.randperm(len(classes), generator=random) < rest
    drawn = []
    for label, extra in zip(classes, more.tolist(), strict=True):
        own = (labels == label).nonzero().flatten()
        turns = torch.arange(each + extra)
        shuffled = own[torch.randperm(len(own), generator=random)]
        drawn.append(shuffled[turns % len(own)] + turns // len(own) * samples)
    return torch.cat(drawn)[torch.randperm(samples, generator=random)]


def usable(samples: int, batch_size: int, smallest: int) -> int:
    """How many of ``samples`` are used when a last batch of fewer than ``smallest`` is left out."""
    last = samples % batch_size
    return samples - last if last < smallest else samples
