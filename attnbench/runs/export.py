"""Trained weights for others: safetensors, ONNX or a plain state dict.

What is exported is what a run evaluates: the moving average of the weights where its schedule keeps one. The network
takes float images (N, 3, H, W) that are normalised as in training, and returns logits (N, classes).
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

CIFAR_SIZE = 32  # of the data sets that have no ``size`` to choose


def export(run: Path, format: Format = "safetensors", output: Path | None = None, which: Which = "last") -> Path:
    """Write the weights of a run in a form for others.

    Args:
        run: the run's folder; it may be unfinished, which is said and noted in the metadata.
        format: ``safetensors`` and ``onnx`` carry configuration, result and version with them; ``state_dict`` is a
            dictionary of tensors that ``torch.load(weights_only=True)`` admits.
        output: the file; None for ``RUN/export/<which>`` and the format's suffix.
        which: ``last``, the weights of ``top1`` in result.json, which the papers' tables report; or ``best``, those
            of ``best_top1``, an epoch that was chosen by the images it is reported on.

    Returns:
        The file that was written, whole or not at all.

    Raises:
        ConfigError: a file name of another format; ``onnx`` without its packages, or of a detector.
        StorageError: not a run's folder, a damaged checkpoint, or one of another network; the file cannot be written.
    """
    path = output or run / "export" / f"{which}{SUFFIXES[format]}"
    _refuse_other_suffix(path, format)
    if format == "onnx":
        _need_onnx()
    trained = load_run(run, which)
    if format == "onnx" and "detector" in trained.config.tree:
        raise ConfigError("a detector has no ONNX form here", "--format", "use safetensors or state_dict")
    content = {"safetensors": _safetensors, "onnx": _onnx, "state_dict": _state_dict}[format](trained)
    files.make_folder(path.parent)
    files.write(path, lambda file: file.write(content))
    return path


def load_exported(path: Path) -> nn.Module:
    """The network of an exported safetensors file, in evaluation mode, built from the file's own metadata.

    The configuration in it is data: it is checked as what a user types, and calls no builder but attnbench's.

    Raises:
        StorageError: no such file, not attnbench's, or its weights are not of its configuration.
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
    """The class names in a file's metadata; numbers for files of release 0.1.0, which has none in them."""
    if "classes" in written:
        return [str(name) for name in json.loads(written["classes"])]
    ten, eleven = (factory.sketch(config, number)[0].state_dict() for number in (10, 11))
    for key in ten.keys() & tensors.keys():
        for axis, (one, other) in enumerate(zip(ten[key].shape, eleven[key].shape, strict=True)):
            if one != other and tensors[key].ndim == ten[key].ndim:
                return list(map(str, range(10 + (tensors[key].shape[axis] - one) // (other - one))))
    return list(map(str, range(10)))  # whatever they are, they are not this network's: loading them says so


def _open_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            return {key: file.get_tensor(key) for key in file.keys()}, file.metadata() or {}  # noqa: SIM118 - no mapping
    except (OSError, SafetensorError) as error:
        raise StorageError(f"no safetensors file: {first_line(error)}", path) from error


def metadata(trained: Trained) -> dict[str, str]:
    """The configuration, the class names, the result and the version, each as a string."""
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
        (torch.zeros(2, 3, size, size),),  # a batch of 1 would be taken for a constant
        dynamo=True,
        dynamic_shapes=({0: torch.export.Dim("batch")},),
        input_names=["images"],
        output_names=["logits"],
        verbose=False,
    )
    assert program is not None  # it is when a file is written
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
            f"{path.name} is no name for {format}", "--output", f"end it with {own}, or use --format {meant}"
        )
