"""Trained weights for others: ``attnbench export RUN`` writes safetensors, ONNX or a plain state dict.

What is exported is what a run evaluates: the moving average of the weights where its schedule keeps one. The network
takes float images (N, 3, H, W) that are normalised as in training, and returns logits (N, classes).
"""

from __future__ import annotations

import importlib.util
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from attnbench import __version__, build, storage, weights
from attnbench.config import Config
from attnbench.errors import ConfigError, StorageError
from attnbench.folder import RunFolder
from attnbench.trained import Which, checkpoint, evaluated, refuse_other_config, run_config, stored_config
from attnbench.words import Words

log = logging.getLogger("attnbench")

Format = Literal["safetensors", "onnx", "state_dict"]

SUFFIXES: dict[Format, str] = {"safetensors": ".safetensors", "onnx": ".onnx", "state_dict": ".pt"}

CIFAR_SIZE = 32  # of the data sets that have no ``size`` to choose


@dataclass(frozen=True)
class Trained:
    """What a run's folder holds.

    Attributes:
        model: the network with its weights, in evaluation mode.
        config: its configuration, checked again.
        about: what else is worth knowing, as text that JSON admits: ``checkpoint`` and ``result``.
    """

    model: nn.Module
    config: Config
    about: dict[str, Any]

    @property
    def metadata(self) -> dict[str, str]:
        """The resolved configuration, the result and the version, each as a string."""
        config = {"choices": self.config.choices, "hash": self.config.hash, **self.config.tree}
        facts = {"config": config, **self.about}
        return {"format": "pt", "attnbench": __version__, **{key: json.dumps(value) for key, value in facts.items()}}


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
    storage.make_folder(path.parent)
    storage.write(path, lambda file: file.write(content))
    return path


def load_run(run: Path, which: Which = "last") -> Trained:
    """The trained network of a run's folder.

    Raises:
        StorageError: not a run's folder, a damaged checkpoint, or one of another network.
    """
    config = run_config(run)
    state, digest = checkpoint(run / "checkpoints", which)
    refuse_other_config(config, state, run)
    model = _network(config, evaluated(state), run / "checkpoints" / f"{which}.pt")
    result = RunFolder(run).result()
    if result is None:
        epochs = config.tree["schedule"].get("epochs")
        log.warning(
            "this run is not finished: these are its %s weights after %d of %s epochs", which, state["epoch"], epochs
        )
    about = {"which": which, "epoch": state["epoch"], "finished": result is not None, "sha256": digest}
    return Trained(model, config, {"checkpoint": about, "result": result})


def load_exported(path: Path) -> nn.Module:
    """The network of an exported safetensors file, in evaluation mode, built from the file's own metadata.

    The configuration in it is data: it is checked as what a user types, and calls no builder but attnbench's.

    Raises:
        StorageError: no such file, not attnbench's, or its weights are not of its configuration.
    """
    tensors, metadata = _open_safetensors(path)
    try:
        record = json.loads(metadata["config"])
    except (KeyError, ValueError) as error:
        todo = "give a file that attnbench export wrote"
        raise StorageError("no configuration in this file's metadata", path, todo) from error
    return _network(stored_config(record, path), tensors, path)


def _open_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            return {key: file.get_tensor(key) for key in file.keys()}, file.metadata() or {}  # noqa: SIM118 - no mapping
    except (OSError, SafetensorError) as error:
        raise StorageError(f"no safetensors file: {weights.first_line(error)}", path) from error


def _network(config: Config, tensors: Mapping[str, Tensor], where: Path) -> nn.Module:
    """The network of a configuration with given weights; stock weights are not looked for."""
    try:
        model, _ = build.network(build.without_weights(config), _classes(config, tensors))
    except ConfigError as error:
        raise StorageError(f"its network cannot be built: {error}", where) from error
    weights.load(model, tensors, where)
    return model.eval()


def _classes(config: Config, tensors: Mapping[str, Tensor]) -> int:
    """How many classes a network's weights tell apart: the size of what depends on their number."""
    ten, eleven = (build.sketch(config, number)[0].state_dict() for number in (10, 11))
    for key in ten.keys() & tensors.keys():
        for axis, (one, other) in enumerate(zip(ten[key].shape, eleven[key].shape, strict=True)):
            if one != other and tensors[key].ndim == ten[key].ndim:
                return 10 + (tensors[key].shape[axis] - one) // (other - one)
    return 10  # whatever they are, they are not this network's: loading them says so


def _plain(model: nn.Module) -> dict[str, Tensor]:
    return {key: value.detach().cpu().contiguous() for key, value in model.state_dict().items()}


def _safetensors(trained: Trained) -> bytes:
    from safetensors.torch import save

    return save(_plain(trained.model), trained.metadata)


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
    program.model.metadata_props.update(trained.metadata)
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


def export_command() -> None:
    """``attnbench export RUN [--format F] [--output FILE] [--which last|best]``; prints the file's path."""
    parser = Words(prog="attnbench export", description="Write a run's weights for others.")
    parser.add_argument("run", metavar="RUN", type=Path, help="a run's folder, such as outputs/runs/.../seed0")
    parser.add_argument("--format", choices=get_args(Format), default="safetensors", help="default: %(default)s")
    parser.add_argument("--output", type=Path, metavar="FILE", help="default: RUN/export/<which>.<suffix>")
    parser.add_argument(
        "--which",
        choices=get_args(Which),
        default="last",
        help="last: result.json's top1; best: best_top1 (default: last)",
    )
    words = parser.taken()
    print(export(words.run, words.format, words.output, words.which))
