"""Exports trained weights: as safetensors, a state dict or a program (.pt2, ONNX), or for timm's and torchvision's.

The exported weights are those that the run evaluates: their moving average if the schedule has one. The network takes
float images (N, 3, H, W) that are normalised as in training, and returns logits (N, classes). All files but a plain
state dict hold the names of the classes, and how a picture is cropped, resized and normalised.
"""

from __future__ import annotations

import importlib.util
import json
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from attnbench import __version__
from attnbench.base import files
from attnbench.base.errors import ConfigError, DataError, StorageError, reason
from attnbench.config import stored
from attnbench.config.configuration import Config
from attnbench.models import factory
from attnbench.models.checkpoint import Which
from attnbench.runs import programs, stock_networks
from attnbench.runs.load import Trained, assembled, load_run
from attnbench.runs.preprocessing import preprocessing

log = logging.getLogger("attnbench")

Format = Literal["safetensors", "pt2", "onnx", "timm", "torchvision", "state_dict"]

SUFFIXES: dict[Format, str] = {
    "safetensors": ".safetensors",
    "pt2": ".pt2",
    "onnx": ".onnx",
    "timm": ".timm.safetensors",
    "torchvision": ".torchvision.safetensors",
    "state_dict": ".pt",
}
PROGRAMS = ("pt2", "onnx")

CIFAR_SIZE = 32  # the image size of data sets that have no option ``size``


def export(run: Path, format: Format = "safetensors", output: Path | None = None, which: Which = "last") -> Path:
    """Write a run's weights to a file in another format.

    Args:
        run: the run's folder. If the run is not finished, a warning is logged and the metadata say so.
        format: ``safetensors``, ``pt2`` and ``onnx`` include configuration, classes, preprocessing, result and version.
            ``pt2`` (``torch.export``) and ``onnx`` hold the network too. ``timm`` and ``torchvision`` are safetensors
            with the names of their networks. ``state_dict`` is a dictionary of tensors that
            ``torch.load(weights_only=True)`` accepts.
        output: the file; None for ``RUN/export/<which>`` with the format's suffix.
        which: ``last``: the last epoch's weights, whose accuracy is ``top1`` in result.json and is reported in the
            papers' tables. ``best``: those of the epoch with ``best_top1``, which was chosen on the validation images.

    Returns:
        The file, which is written completely or not at all.

    Raises:
        ConfigError: the file name has another format's suffix, ONNX's packages are missing, the run is of a detector
            and the format is ``onnx`` or ``pt2``, or timm or torchvision has no slot for the attention.
        StorageError: the folder is not a run's, the checkpoint is damaged or belongs to another network, or the file
            cannot be written.
    """
    path = output or run / "export" / f"{which}{SUFFIXES[format]}"
    _refuse_other_suffix(path, format)
    if format == "onnx":
        _need_onnx()
    trained = load_run(run, which)
    if format in PROGRAMS and "detector" in trained.config.tree:
        raise ConfigError(f"a detector cannot be exported as {format}", "--format", "use safetensors or state_dict")
    content = WRITERS[format](trained)
    files.make_folder(path.parent)
    files.write(path, lambda file: file.write(content))
    return path


def load_exported(path: Path) -> nn.Module:
    """Build the network of an exported safetensors file from the file's metadata, in evaluation mode.

    The configuration in the metadata is checked like a command line, and can call only attnbench's own builders.

    Raises:
        StorageError: the file does not exist, was not exported by attnbench, or has weights that do not fit its
            configuration.
    """
    tensors, written = _open_safetensors(path)
    try:
        record = json.loads(written["config"])
    except (KeyError, ValueError) as error:
        todo = "give a file that attnbench export wrote"
        raise StorageError("no configuration in this file's metadata", path, todo) from error
    config = stored.checked(stored.from_record(record, path), path)
    return assembled(config, tensors, _class_names(config, tensors, written), path, {}).model


def _class_names(config: Config, tensors: Mapping[str, Tensor], written: Mapping[str, str]) -> list[str]:
    """The class names in a file's metadata; numbers for files of release 0.1.0, which have no names."""
    if "classes" in written:
        return [str(name) for name in json.loads(written["classes"])]
    ten, eleven = (factory.sketch(config, number)[0].state_dict() for number in (10, 11))
    for key in ten.keys() & tensors.keys():
        for axis, (one, other) in enumerate(zip(ten[key].shape, eleven[key].shape, strict=True)):
            if one != other and tensors[key].ndim == ten[key].ndim:
                return list(map(str, range(10 + (tensors[key].shape[axis] - one) // (other - one))))
    return list(map(str, range(10)))  # the weights belong to another network; loading them reports that


def _open_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            return {key: file.get_tensor(key) for key in file.keys()}, file.metadata() or {}  # noqa: SIM118 - no mapping
    except (OSError, SafetensorError) as error:
        raise StorageError(f"cannot be read as safetensors: {reason(error)}", path) from error


def about(trained: Trained) -> dict[str, Any]:
    """What a file says about its network: classes, preprocessing, configuration, result and version."""
    facts = {"config": trained.config.record(), "classes": trained.classes, **_input(trained), **trained.about}
    return {"attnbench": __version__, **facts}


def _input(trained: Trained) -> dict[str, Any]:
    """How a picture becomes the network's input: size, crop, mean and std; empty if that is not known.

    ``crop.resize`` is what torchvision's ``Resize`` takes: one number for the shorter side, two for both sides. The
    centre of ``size`` pixels is cropped from the result. ``mean`` and ``std`` are of pixels in [0, 1].
    """
    if "detector" in trained.config.tree:
        return {"input": "images (3, H, W) in [0, 1]; the network resizes and normalises them"}
    try:
        found = preprocessing(trained.config)
    except DataError as error:
        log.warning("size, mean and std are left out, because the data cannot be opened: %s", error)
        return {}
    crops = found.crops
    resize = crops.resize if crops.resize_mode == "shorter" else [crops.resize, crops.resize]
    crop = {"resize": resize, "interpolation": "bilinear", "antialias": True, "crop": "centre"}
    return {"size": crops.size, "crop": crop, "mean": list(found.mean), "std": list(found.std)}


def image_size(trained: Trained) -> int:
    """The side of the images that a classification network was trained for."""
    return int(trained.config.tree["dataset"].get("size", CIFAR_SIZE))


def metadata(trained: Trained, **more: Any) -> dict[str, str]:
    """A file's metadata: what ``about`` says, and more, each value as JSON; the version is plain text."""
    facts = about(trained) | more
    version = facts.pop("attnbench")
    return {"format": "pt", "attnbench": version, **{key: json.dumps(value) for key, value in facts.items()}}


def plain(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors on the CPU, contiguous, without gradients."""
    return {key: value.detach().cpu().contiguous() for key, value in tensors.items()}


def safetensors(trained: Trained) -> bytes:
    """The content of a safetensors file with the run's own names."""
    from safetensors.torch import save

    return save(plain(trained.model.state_dict()), metadata(trained))


def _state_dict(trained: Trained) -> bytes:
    import io

    file = io.BytesIO()
    torch.save(plain(trained.model.state_dict()), file)
    return file.getvalue()


def _pt2(trained: Trained) -> bytes:
    return programs.pt2(trained.model, image_size(trained), about(trained))


def _onnx(trained: Trained) -> bytes:
    return programs.onnx(trained.model, image_size(trained), metadata(trained))


def _timm(trained: Trained) -> bytes:
    from safetensors.torch import save

    found = stock_networks.timm_network(trained, image_size(trained))
    more = {"architecture": found.architecture, "model_args": found.arguments}
    return save(plain(found.model.state_dict()), metadata(trained, **more))


def _torchvision(trained: Trained) -> bytes:
    from safetensors.torch import save

    return save(plain(stock_networks.torchvision_weights(trained)), metadata(trained))


WRITERS: dict[Format, Callable[[Trained], bytes]] = {
    "safetensors": safetensors,
    "pt2": _pt2,
    "onnx": _onnx,
    "timm": _timm,
    "torchvision": _torchvision,
    "state_dict": _state_dict,
}


def _need_onnx() -> None:
    if missing := [name for name in ("onnx", "onnxscript") if importlib.util.find_spec(name) is None]:
        todo = "pip install 'attnbench[onnx]'"
        raise ConfigError(f"format=onnx needs {' and '.join(missing)}", "command line", todo)


def _refuse_other_suffix(path: Path, format: Format) -> None:
    own = f".{SUFFIXES[format].rpartition('.')[2]}"
    others = {suffix: name for name, suffix in SUFFIXES.items() if suffix.count(".") == 1 and suffix != own}
    if path.suffix in others:
        meant = others[path.suffix]
        raise ConfigError(
            f"{path.name} has the suffix of {meant}, not of {format}", "--output", f"use {own}, or --format {meant}"
        )
