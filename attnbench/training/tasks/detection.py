"""Object detection and instance segmentation: the detector's losses, and average precision."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Literal

import numpy as np
import torch
from pydantic import ConfigDict
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from attnbench.base.draw_boxes import drawn
from attnbench.data.dataset import Batch, Target
from attnbench.models.detection.pasting import regions, unpasted
from attnbench.training.metrics.coco_ap import NAMES, coco_ap
from attnbench.training.metrics.detections import Found, found
from attnbench.training.metrics.voc_ap import voc_ap
from attnbench.training.runtime import Process

SHOWN = 4  # validation images that are drawn after each epoch


@dataclass(kw_only=True, config=ConfigDict(strict=True))
class Detection:
    """The options of ``task=detection``.

    Attributes:
        metric: decides which epoch is the best: COCO's ``AP``, or VOC's ``mAP``, which is then measured as well.
        class_names: the names of the classes; supplied by the data set.
    """

    metric: Literal["AP", "mAP"] = "AP"
    class_names: tuple[str, ...] = ()

    results = ("mAP", "mAP_area", *NAMES, *(f"mask_{name}" for name in NAMES))

    def __post_init__(self) -> None:
        self._pictures: dict[str, np.ndarray] = {}
        self._found: list[Found] = []

    def loss(self, network: nn.Module, batch: Batch) -> Tensor:
        """The sum of the detector's losses over a batch, times the batch's weight."""
        losses = network(batch.images, batch.targets)
        return torch.stack(list(losses.values())).sum() * batch.weight

    def evaluate(self, network: nn.Module, batches: Iterator[Batch], process: Process) -> dict[str, float]:
        """Average precisions in percent, the same in every process; each image counts once over all processes."""
        images: list[Found] = []
        self._pictures = {}
        with unpasted(network):
            for batch in batches:
                for image, answer, target in zip(batch.images, network(batch.images), batch.targets, strict=True):
                    images.append(found(answer, target))
                    if len(self._pictures) < SHOWN:
                        self._pictures[f"image{len(self._pictures)}"] = self._drawn(image, answer, target)
        self._found = sorted((one for part in process.gather(images) for one in part), key=lambda found: found.image)
        return self._measured(self._found)

    def _drawn(self, image: Tensor, answer: Mapping[str, Tensor], target: Target) -> np.ndarray:
        masks = list(regions(answer, *image.shape[-2:]))
        mask = masks.__getitem__ if masks else None
        return drawn(image, answer, self.class_names, truth=target["boxes"], mask=mask)

    def answers(self, samples: Tensor, process: Process) -> list[Found] | None:
        """What was found in the last evaluation, in the order of samples; None if there was none in this process."""
        return self._found or None

    def _measured(self, images: list[Found]) -> dict[str, float]:
        count = len(self.class_names)
        measures = coco_ap(images, count)
        if all(image.masks is not None for image in images):
            measures |= coco_ap(images, count, masks=True)
        return measures | (voc_ap(images, count) if self.metric == "mAP" else {})

    def pictures(self) -> dict[str, np.ndarray]:
        """A few validation images with their detections."""
        return self._pictures
