"""Opens the data that a run is evaluated on, also where there is nothing to train on."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from attnbench.config.configuration import Config
from attnbench.config.naming import TARGET
from attnbench.data.dataset import Dataset
from attnbench.data.image_folders import parquet
from attnbench.data.image_folders.alone import evaluation_only, has_training
from attnbench.data.image_folders.own import VALIDATION
from attnbench.data.image_folders.shards import are_here
from attnbench.runs.data import root_of
from attnbench.runs.preprocessing import OURS, preprocessing

DIVIDED = ("holdout", "fold")  # options by which one folder of classes is divided


def evaluation_data(config: Config, moved: bool, own: str = "") -> Dataset:
    """The data set of a configuration; without pictures to train on, only those to evaluate on.

    Args:
        moved: whether the folder is another one than the run's own. It may then be a folder of classes itself.
        own: the fingerprint of the run's data. A folder of classes that the run divides is divided only if it is a copy
            of these; of other data, all pictures are evaluated.

    Raises:
        DataError: the data cannot be opened.
    """
    root, options = root_of(config), config.tree["dataset"]
    if root is None or not root.is_dir():
        return config.build("dataset")
    module = str(options[TARGET]).removeprefix(OURS).rpartition(".")[0]
    if module in ("image_folders.datasets", "in_memory.cifar") and _alone(config, root, moved):
        if any(options.get(key) is not None for key in DIVIDED):
            divided: Dataset = config.build("dataset")
            if divided.fingerprint == own:
                return divided
        how = preprocessing(config)
        return evaluation_only(root, how.crops, how.mean, how.std, options.get("orientation") == "upright")
    if moved and any(options.get(key) is not None for key in DIVIDED):
        return _undivided(config, own)
    if (module == "detection.coco" and not _has_coco(root, options["train"])) or (
        module == "detection.voc" and not all(_has_voc(root, split) for split in options["train"])
    ):
        data: Dataset = config.updated({"dataset": {"train": options["val"]}}).build("dataset")
        return replace(data, source=f"{root.resolve().name}, evaluation only: {len(data.val)} images")
    return config.build("dataset")


def _undivided(config: Config, own: str) -> Dataset:
    """Another folder with ``train/``: divided only if it is a copy of the run's data, else its validation folder."""
    divided: Dataset = config.build("dataset")
    if divided.fingerprint == own:
        return divided
    usual = {key: config.declared.get(f"dataset.{key}") for key in (*DIVIDED, "folds", "division_seed")}
    whole: Dataset = config.updated({"dataset": usual}).build("dataset")
    return whole


def _alone(config: Config, root: Path, moved: bool) -> bool:
    """Whether an image folder has only pictures to evaluate on."""
    if has_training(root) or are_here(root) or _has_release(config, root):
        return False
    return moved or parquet.are_here(root) or any((root / name).is_dir() for name in VALIDATION)


def _has_release(config: Config, root: Path) -> bool:
    """Whether a folder holds CIFAR's official files."""
    from attnbench.data.in_memory.cifar_batches import CIFAR10, CIFAR100, find_files

    releases: dict[str, Any] = {"cifar10": CIFAR10, "cifar100": CIFAR100}
    release = releases.get(str(config.tree["dataset"][TARGET]).rpartition(".")[2])
    return bool(release and find_files(release, root))


def _has_coco(root: Path, split: str) -> bool:
    return (root / "annotations" / f"instances_{split}.json").is_file()


def _has_voc(root: Path, split: str) -> bool:
    year, _, name = split.rpartition("/")
    lists = (base / year / "ImageSets" / "Main" / f"{name}.txt" for base in (root, root / "VOCdevkit"))
    return any(path.is_file() for path in lists)
