"""What all detectors share: the interface of their options, and a forward pass that needs no boxes."""

from __future__ import annotations

from typing import Any, Protocol

from torch import Tensor, nn

IMAGENET = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])  # mean and standard deviation of pixels in [0, 1]


class Detector(Protocol):
    """The options of the group ``detector``."""

    masks: bool

    def network(self, body: nn.Module, num_classes: int) -> nn.Module:
        """The detector around a stock classification network; ``num_classes`` excludes the background."""
        ...

    def settle(self, network: nn.Module) -> None:
        """Freeze parts of the backbone, once attention has been inserted."""
        ...

    @property
    def canvas(self) -> tuple[int, int]:
        """Height and width at which the network is counted."""
        ...


class Dense:
    """A mixin for torchvision's detectors: given a batch instead of a list of images, it runs ``dense``.

    The losses and detections of a network depend on the content of the images. ``dense`` computes the rest, which has
    the same cost for all images. It serves to count operations, also on the meta device.
    """

    def forward(self, images: list[Tensor] | Tensor, targets: list[dict[str, Tensor]] | None = None) -> Any:
        """Losses by name in training mode; else boxes (n, 4), labels (n,), scores (n,) and masks of each image.

        Args:
            images: a list of N images (3, H, W) in [0, 1]; or a batch (N, 3, H, W) for ``dense``.
            targets: see ``attnbench.data.detection.scenes``.
        """
        if isinstance(images, Tensor):
            return self.dense(images)
        return super().forward(images, targets)  # type: ignore[misc]

    def dense(self, images: Tensor) -> Any:
        """Everything that the network computes from a batch before boxes are chosen."""
        raise NotImplementedError
