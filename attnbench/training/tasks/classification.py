"""Image classification: cross-entropy loss, top-1 and top-5 accuracy."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import ConfigDict
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from attnbench.config.options import Fraction
from attnbench.data.dataset import Batch
from attnbench.training.metrics.answers import Answers, answered
from attnbench.training.runtime import Process


@dataclass(kw_only=True, config=ConfigDict(strict=True))
class Classification:
    """The options of ``task=classification``.

    Attributes:
        label_smoothing: the fraction of each target that is spread over all classes.
        class_names: the names of the classes; supplied by the data set.
    """

    label_smoothing: Fraction = 0.0
    class_names: tuple[str, ...] = ()

    metric = "top1"
    results = ("top1", "top5")

    def __post_init__(self) -> None:
        self._rows: list[Tensor] = []

    def loss(self, network: nn.Module, batch: Batch) -> Tensor:
        """Mean cross-entropy of a batch, times the batch's weight."""
        logits = network(batch.images)
        assert isinstance(batch.targets, Tensor)
        return F.cross_entropy(logits, batch.targets, label_smoothing=self.label_smoothing) * batch.weight

    def evaluate(self, network: nn.Module, batches: Iterator[Batch], process: Process) -> dict[str, float]:
        """Top-1 and top-5 in percent, and the mean loss; each sample counts once over all processes."""
        sums = torch.zeros(4, dtype=torch.float64, device=process.device)
        self._rows = []
        for batch in batches:
            assert isinstance(batch.targets, Tensor)
            logits = network(batch.images)
            sums += tally(logits, batch.targets)
            self._rows.append(answered(logits, batch.targets))
        top1, top5, loss, count = process.total(sums).tolist()
        return {"top1": 100 * top1 / count, "top5": 100 * top5 / count, "val_loss": loss / count}

    def answers(self, samples: Tensor, process: Process) -> Answers | None:
        """What was answered in the last evaluation, over all processes; None if there was none in this process.

        Args:
            samples: the numbers of the samples that this process evaluated, int64 (N,), in their order.
        """
        rows = torch.cat(self._rows).cpu().numpy() if self._rows else np.zeros((0, 5))
        parts = process.gather((samples.numpy()[: len(rows)], rows))
        samples_of_all, rows_of_all = (np.concatenate(part) for part in zip(*parts, strict=True))
        return Answers.of(samples_of_all, rows_of_all) if len(rows_of_all) else None

    def pictures(self) -> dict[str, np.ndarray]:
        """No images: a label cannot be drawn."""
        return {}


def tally(logits: Tensor, targets: Tensor) -> Tensor:
    """Sums over a batch, float64 (4,): correct in top 1, correct in top 5, loss, samples.

    Logits that are not finite count as wrong, so that a diverged network never scores.
    """
    logits = logits.float()
    ranked = logits.topk(min(5, logits.shape[1])).indices
    hits = (ranked == targets[:, None]) & logits.isfinite().all(1, keepdim=True)
    loss = F.cross_entropy(logits, targets, reduction="sum")
    return torch.stack([hits[:, 0].sum(), hits.sum(), loss, torch.tensor(len(targets), device=loss.device)]).double()
