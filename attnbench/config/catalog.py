"""Facts about data sets that do not need their files, and the setting at which a network is counted."""

from __future__ import annotations

from collections.abc import Sequence

from attnbench.config.configuration import Config

Size = int | tuple[int, int]  # a square image's side, or height and width

# The number of classes (other data sets have the option ``classes``), and of training and validation images.
CLASSES = {"digits": 10, "cifar10": 10, "cifar100": 100, "imagenet": 1000, "digits_det": 10, "voc": 20, "coco": 80}
IMAGES = {
    "digits": (1438, 359),
    "cifar10": (50_000, 10_000),
    "cifar100": (50_000, 10_000),
    "imagenet": (1_281_167, 50_000),
    "digits_det": (512, 128),
    "voc": (16_551, 4_952),
    "coco": (118_287, 5_000),
}


def setting(config: Config, overrides: Sequence[str]) -> tuple[int, Size]:
    """The number of classes and the image size at which a network is counted.

    They are those of the data set if the command line sets one, directly or by an experiment. Otherwise they are those
    that the backbone is made for: 1000 classes at 224 pixels, or 10 at 32. A detector has its own size.

    Returns:
        The number of classes, and the image's side or its height and width.
    """
    if "detector" in config.tree:
        return CLASSES[config.choices["dataset"]], config.build("detector").canvas
    if any(o.startswith(("dataset=", "dataset.", "experiment=")) for o in overrides):
        data = config.tree["dataset"]
        return data.get("classes") or CLASSES[config.choices["dataset"]], data.get("size", 32)
    small = "cifar" in config.tree["backbone"]["_target_"]
    return (10, 32) if small else (1000, 224)
