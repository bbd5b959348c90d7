"""Facts about data sets that do not need their files, and the setting at which a network is counted."""

from __future__ import annotations

from collections.abc import Sequence

from attnbench.base import files
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


def class_count(config: Config) -> int:
    """The number of classes of a configuration's data set.

    For a data set that is not in the catalog, it comes from classes.json of a run; without a run, the data are opened.

    Raises:
        DataError: the data cannot be opened.
    """
    declared: int | list[str] | str | None = config.tree["dataset"].get("classes")
    if isinstance(declared, list):
        return len(declared)
    if isinstance(declared, str):  # found in the data
        return _classes_of_runs(config) or len(config.build("dataset").classes)
    known = declared or CLASSES.get(config.choices["dataset"]) or _classes_of_runs(config)
    return known or len(config.build("dataset").classes)


def _classes_of_runs(config: Config) -> int | None:
    """The number of classes of a run of the same name, of any seed; None if there is no such run."""
    written = (path for group in config.group_folders for path in sorted(group.glob("seed*/classes.json")))
    names = next((found for found in map(files.read_json, written) if isinstance(found, list) and found), None)
    return len(names) if names else None


def setting(config: Config, overrides: Sequence[str]) -> tuple[int, Size]:
    """The number of classes and the image size at which a network is counted.

    They are those of the data set if the command line sets one, directly or by an experiment. Otherwise they are those
    that the backbone is made for: 1000 classes at 224 pixels, or 10 at 32. A detector has its own size.

    Returns:
        The number of classes, and the image's side or its height and width.
    """
    if "detector" in config.tree:
        return class_count(config), config.build("detector").canvas
    if any(o.startswith(("dataset=", "dataset.", "experiment=")) for o in overrides):
        data = config.tree["dataset"]
        return class_count(config), data.get("size", 32)
    small = "cifar" in config.tree["backbone"]["_target_"]
    return (10, 32) if small else (1000, 224)
