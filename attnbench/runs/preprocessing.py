"""How a run's network gets a picture to evaluate: cropped, resized and normalised, as far as its configuration says."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from attnbench.config.configuration import Config
from attnbench.config.naming import TARGET
from attnbench.data.dataset import RGB, Dataset
from attnbench.data.images.crops import Crops
from attnbench.data.images.files import Files
from attnbench.data.images.pillow import draw

OURS = "attnbench.data."


@dataclass(frozen=True)
class Preprocessing:
    """What is done to a picture.

    Attributes:
        crops: how it is cropped and resized to the network's size.
        mean, std: of pixels in [0, 1], per channel.
    """

    crops: Crops
    mean: RGB
    std: RGB

    def cropped(self, image: Image.Image) -> Tensor:
        """The crop of an RGB picture that evaluation uses, uint8 (3, size, size)."""
        return torch.from_numpy(draw(image, self.crops.evaluate(*image.size))).permute(2, 0, 1)

    def normalised(self, images: Tensor) -> Tensor:
        """Images (N, 3, H, W), uint8, as the network takes them, float32."""
        mean, std = (torch.tensor(of, device=images.device).view(-1, 1, 1) for of in (self.mean, self.std))
        return (images.float() / 255 - mean) / std


def preprocessing(config: Config) -> Preprocessing:
    """A configuration's preprocessing. The data are opened only for a data set that is not one of attnbench's own.

    Raises:
        DataError: those data cannot be opened.
    """
    options = config.tree["dataset"]
    module, _, builder = str(options[TARGET]).removeprefix(OURS).rpartition(".")
    known = _KNOWN.get(module)
    return known(options, builder) if known else _of_opened(config.build("dataset"))


def _of_folder(options: dict[str, Any], builder: str) -> Preprocessing:
    from attnbench.data.image_folders.datasets import MEAN, STD

    crops = Crops(options["size"], options["resize"], options["resize_mode"], options["min_area"])
    return Preprocessing(crops, MEAN, STD)


def _of_cifar(options: dict[str, Any], builder: str) -> Preprocessing:
    from attnbench.data.in_memory.cifar_batches import CIFAR10, CIFAR100, SIDE

    release = CIFAR100 if builder == "cifar100" else CIFAR10
    return Preprocessing(_whole(SIDE), release.mean, release.std)


def _of_digits(options: dict[str, Any], builder: str) -> Preprocessing:
    from attnbench.data.in_memory.digits import MEAN, STD

    return Preprocessing(_whole(options["size"]), (MEAN,) * 3, (STD,) * 3)


def _of_opened(data: Dataset) -> Preprocessing:
    crops = data.val.crops if isinstance(data.val, Files) else _whole(data.size)
    return Preprocessing(crops, data.mean, data.std)


def _whole(size: int) -> Crops:
    """The whole picture, resized to a square."""
    return Crops(size, size, "square", 1.0)


_KNOWN: dict[str, Callable[[dict[str, Any], str], Preprocessing]] = {
    "image_folders.datasets": _of_folder,
    "in_memory.cifar": _of_cifar,
    "in_memory.digits": _of_digits,
}
