"""Divides one side of an image folder into training and validation, class by class."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from random import Random

from attnbench.base.errors import ConfigError, DataError
from attnbench.data import sampling
from attnbench.data.image_folders.folder import Side


@dataclass(frozen=True)
class Division:
    """How pictures are divided: a share is held out for validation, or one of several folds is.

    Attributes:
        holdout: the share of every class that is held out; None for folds.
        fold: the fold that is held out, from 0; None for a share.
        folds: the number of folds.
        seed: another seed gives another division.
    """

    holdout: float | None
    fold: int | None
    folds: int
    seed: int

    def __str__(self) -> str:
        seed = f", seed {self.seed}" if self.seed else ""
        if self.holdout is not None:
            return f"{self.holdout:.4g} of each class held out{seed}"
        return f"fold {self.fold} of 0 to {self.folds - 1} held out{seed}"

    def apply(self, side: Side, classes: tuple[str, ...]) -> tuple[Side, Side]:
        """Training and validation. Every class has a picture for training.

        The order of a class's pictures depends on the seed and the class's name. Folds differ by at most one picture,
        in each class and in all.

        Raises:
            DataError: a class has a single picture.
        """
        of_class: dict[int, list[int]] = defaultdict(list)
        for number, label in enumerate(side.labels):
            of_class[label].append(number)
        held: set[int] = set()
        dealt = 0
        for label, numbers in sorted(of_class.items()):
            if len(numbers) < 2:
                todo = "add pictures, or remove the class"
                raise DataError(
                    "this class has a single picture: none is left to hold out", side.path(numbers[0]), todo
                )
            shuffled = _shuffled(numbers, sampling.stream("division", self.seed, classes[label]))
            held.update(self._held(shuffled, dealt))
            dealt += len(numbers)
        every = range(len(side.files))
        train = side.chosen([k for k in every if k not in held], "train")
        return train, side.chosen([k for k in every if k in held], "val")

    def _held(self, shuffled: list[int], dealt: int) -> list[int]:
        """The held-out pictures of a class; ``dealt`` pictures of other classes have been dealt to the folds before."""
        if self.holdout is not None:
            return shuffled[: min(len(shuffled) - 1, max(1, round(self.holdout * len(shuffled))))]
        return [number for at, number in enumerate(shuffled, start=dealt) if at % self.folds == self.fold]


def _shuffled(numbers: list[int], random: Random) -> list[int]:
    return sorted(numbers, key=lambda _: random.random())


def division(holdout: float | None, fold: int | None, folds: int, seed: int) -> Division | None:
    """The division that these options ask for; None for none.

    Raises:
        ConfigError: a share and a fold are given, or there is no such fold.
    """
    if holdout is None and fold is None:
        return None
    if holdout is not None and fold is not None:
        raise ConfigError("dataset.holdout is set too", "dataset.fold", "set one of them to null")
    if fold is not None and fold >= folds:
        raise ConfigError(f"fold={fold}, but there are {folds} folds", "dataset.fold", f"use 0 to {folds - 1}")
    return Division(holdout, fold, folds, seed)
