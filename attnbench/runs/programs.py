"""Trained networks as programs that need no code of attnbench: a ``torch.export`` program (.pt2), and ONNX.

Both take normalised float images (N, 3, H, W) for any N and return logits (N, classes). H and W may be any size that
the network allows; if torch can trace the network for sizes up to a limit only, they are fixed, and the log says so.
"""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.export import Dim, ExportedProgram
from torch.utils._sympy.numbers import int_oo

from attnbench.base.errors import ConfigError, reason

log = logging.getLogger("attnbench")

METADATA = "metadata.json"  # the file in a .pt2 with what is known about the network
AXES = {0: "batch", 2: "height", 3: "width"}  # of the images


def traced(model: nn.Module, size: int) -> ExportedProgram:
    """A network in evaluation mode as a program, dynamic in the batch and, if possible, in the size of the images.

    Args:
        size: the side of the images that the network was trained for.

    Raises:
        ConfigError: torch cannot trace the network.
    """
    images = torch.zeros(2, 3, size, size)  # with a batch of 1, torch would make the batch size a constant
    try:
        program = torch.export.export(model, (images,), dynamic_shapes=(dict.fromkeys(AXES, Dim.AUTO),))
        if not _any_size(program):
            log.warning("the exported network takes %dx%d images only: torch cannot trace it for any size", size, size)
            program = torch.export.export(model, (images,), dynamic_shapes=({0: Dim("batch")},))
    except Exception as error:  # torch raises many types of errors for operations that it cannot trace
        what = f"torch.export cannot trace this network: {reason(error)}"
        raise ConfigError(what, "--format", "use safetensors or state_dict") from error
    return program


def _any_size(program: ExportedProgram) -> bool:
    """Whether height and width have no upper limit."""
    shape = _input_shape(program)
    ranges = {str(symbol): limits for symbol, limits in program.range_constraints.items()}
    limits = [ranges.get(str(shape[axis])) for axis in (2, 3)]
    return all(one is not None and one.upper == int_oo for one in limits)


def _input_shape(program: ExportedProgram) -> Any:
    (name,) = program.graph_signature.user_inputs
    node = next(node for node in program.graph.nodes if node.name == name)
    return node.meta["val"].shape


def pt2(model: nn.Module, size: int, about: Mapping[str, Any]) -> bytes:
    """The content of a .pt2 file, for ``torch.export.load``; it holds ``about`` as the extra file METADATA."""
    file = io.BytesIO()
    torch.export.save(traced(model, size), file, extra_files={METADATA: json.dumps(dict(about))})
    return file.getvalue()


def onnx(model: nn.Module, size: int, about: Mapping[str, str]) -> bytes:
    """The content of an ONNX file: a graph ``images`` -> ``logits`` with ``about`` as its metadata."""
    program = traced(model, size)
    names = {str(symbol): AXES[axis] for axis, symbol in enumerate(_input_shape(program)) if axis in AXES}
    written = torch.onnx.export(program, dynamo=True, input_names=["images"], output_names=["logits"], verbose=False)
    assert written is not None  # it is None only if torch writes the file itself
    written.rename_axes({symbol: name for symbol, name in names.items() if not symbol.isdigit()})
    written.model.metadata_props.update(about)
    return bytes(written.model_proto.SerializeToString())
