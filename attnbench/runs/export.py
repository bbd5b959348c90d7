"""Exports trained weights as safetensors, ONNX or a plain state dict.

The exported weights are those that the run evaluates: their moving average if the schedule has one. The network takes
float images (N, 3, H, W) that are normalised as in training, and returns logits (N, classes).
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from attnbench import __version__
from attnbench.base import files
from attnbench.base.errors import ConfigError, StorageError, first_line
from attnbench.config import stored
from attnbench.config.configuration import Config
from attnbench.models import factory
from attnbench.models.checkpoint import Which
from attnbench.runs.load import Trained, assembled, load_run

Format = Literal["safetensors", "onnx", "state_dict"]

SUFFIXES: dict[Format, str] = {"safetensors": ".safetensors", "onnx": ".onnx", "state_dict": ".pt"}

CIFAR_SIZE = 32  # the image size of data sets that have no option ``size``


def export(run: Path, format: Format = "safetensors", output: Path | None = None, which: Which = "last") -> Path:
    """Write a run's weights to a file in another format.

    Args:
        run: the run's folder. If the run is not finished, a warning is logged and the metadata say so.
        format: ``safetensors`` and ``onnx`` include configuration, result and version; ``state_dict`` is a dictionary
            of tensors that ``torch.load(weights_only=True)`` accepts.
        output: the file; None for ``RUN/export/<which>`` with the format's suffix.
        which: ``last``: the last epoch's weights, whose accuracy is ``top1`` in result.json and is reported in the
            papers' tables. ``best``: those of the epoch with ``best_top1``, which was chosen on the validation images.

    Returns:
        The file, which is written completely or not at all.

    Raises:
        ConfigError: the file name has another format's suffix, ONNX's packages are missing, or the run is of a detector
            and the format is ``onnx``.
        StorageError: the folder is not a run's, the checkpoint is damaged or belongs to another network, or the file
            cannot be written.
    """
    path = output or run / "export" / f"{which}{SUFFIXES[format]}"
    _refuse_other_suffix(path, format)
    if format == "onnx":
        _need_onnx()
    trained = load_run(run, which)
    if format == "onnx" and "detector" in trained.config.tree:
        raise ConfigError("a detector cannot be exported to ONNX", "--format", "use safetensors or state_dict")
    content = {"safetensors": _safetensors, "onnx": _onnx, "state_dict": _state_dict}[format](trained)
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
        raise StorageError(f"cannot be read as safetensors: {first_line(error)}", path) from error


def metadata(trained: Trained) -> dict[str, str]:
    """A file's metadata: configuration, class names, result and version, each as a string."""
    facts = {"config": trained.config.record(), "classes": trained.classes, **trained.about}
    return {"format": "pt", "attnbench": __version__, **{key: json.dumps(value) for key, value in facts.items()}}


def _plain(model: nn.Module) -> dict[str, Tensor]:
    return {key: value.detach().cpu().contiguous() for key, value in model.state_dict().items()}


def _safetensors(trained: Trained) -> bytes:
    from safetensors.torch import save

    return save(_plain(trained.model), metadata(trained))


def _state_dict(trained: Trained) -> bytes:
    import io

    file = io.BytesIO()
    torch.save(_plain(trained.model), file)
    return file.getvalue()


def _onnx(trained: Trained) -> bytes:
    """The network as an ONNX graph ``images`` -> ``logits`` for any batch size and the run's image size."""
    size = trained.config.tree["dataset"].get("size", CIFAR_SIZE)
    program = torch.onnx.export(
        trained.model,
        (torch.zeros(2, 3, size, size),),  # with a batch of 1, torch would make the batch size a constant
        dynamo=True,
        dynamic_shapes=({0: torch.export.Dim("batch")},),
        input_names=["images"],
        output_names=["logits"],
        verbose=False,
    )
    assert program is not None  # it is None only if torch writes the file itself
    program.model.metadata_props.update(metadata(trained))
    return program.model_proto.SerializeToString()


def _need_onnx() -> None:
    if missing := [name for name in ("onnx", "onnxscript") if importlib.util.find_spec(name) is None]:
        todo = "pip install 'attnbench[onnx]'"
        raise ConfigError(f"format=onnx needs {' and '.join(missing)}", "command line", todo)


def _refuse_other_suffix(path: Path, format: Format) -> None:
    own = SUFFIXES[format]
    if path.suffix in set(SUFFIXES.values()) - {own}:
        meant = next(name for name, suffix in SUFFIXES.items() if suffix == path.suffix)
        raise ConfigError(
            f"{path.name} has the suffix of {meant}, not of {format}", "--output", f"use {own}, or --format {meant}"
        )
