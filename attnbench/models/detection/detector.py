"""What every detector has beside what torchvision gives it: options of one form, a forward pass without boxes."""

from __future__ import annotations

from typing import Any, Protocol

from torch import Tensor, nn

IMAGENET = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])  # mean and deviation of pixels in [0, 1]


class Detector(Protocol):
    """The options of the group ``detector``."""

    backbone_from: str | None
    masks: bool

    def network(self, body: nn.Module, num_classes: int) -> nn.Module:
        """The detector around a stock classification network, for so many classes without the background."""
        ...

    def settle(self, network: nn.Module) -> None:
        """What is done once attention stands in the backbone: parts of it are frozen."""
        ...

    @property
    def canvas(self) -> tuple[int, int]:
        """Height and width at which the network is counted."""
        ...


class Dense:
    """Before one of torchvision's detectors: a batch in place of a list of images gives what needs no boxes.

    The losses and the answers of a detector depend on what is in the images. ``dense`` is the rest, which takes the
    same time for all: for counting, on the meta device too.
    """

    def forward(self, images: list[Tensor] | Tensor, targets: list[dict[str, Tensor]] | None = None) -> Any:
        """Losses by name in training mode; else boxes (n, 4), labels (n,), scores (n,) and masks of each image.

        Args:
            images: N times (3, H, W) in [0, 1]; or a batch (N, 3, H, W) for ``dense``.
            targets: see ``attnbench.data.detection.scenes``.
        """
        if isinstance(images, Tensor):
            return self.dense(images)
        return super().forward(images, targets)  # type: ignore[misc]

    def dense(self, images: Tensor) -> Any:
        """Everything that the network computes of a batch before boxes are chosen."""
        raise NotImplementedError
