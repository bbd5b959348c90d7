"""The kernels of the fused norm on a CPU, in C; see ``fused_norm.c``.

Maps are (N, C, H, W) in channels_last, of float32, float64 or bfloat16. Coefficients and sums are (N, C), of float64
for float64 and else of float32.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from attnbench.models.ops.c_library import Argument, Library

LIBRARY = Library("fused_norm.c", instead="attention is not computed together with its norm")
Activation = Literal["none", "relu", "relu6"]
ACTIVATIONS = {"none": 0, "relu": 1, "relu6": 2}


def normalises(z: Tensor, norm: nn.Module) -> bool:
    """Whether the kernels can be used for a map and its batch norm as a whole."""
    return type(norm) is nn.BatchNorm2d and norm.weight.dtype == _precision(z)


def moments(z: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance of each map, (N, C, H, W) to (N, C) twice."""
    m, v = sums_like(z), sums_like(z)
    _run("moments", z, m, v)
    return m, v


def sums(z: Tensor) -> Tensor:
    """The sum of each map, (N, C, H, W) to (N, C)."""
    total = sums_like(z)
    _run("sums", z, total)
    return total


def apply(z: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """A[n,c] z + B[n,c] in z's precision, A and B (N, C)."""
    y, _ = activated(z, a, b, "none", pooled=False, inplace=False)
    return y


def activated(
    z: Tensor, a: Tensor | None, b: Tensor, activation: Activation, *, pooled: bool, inplace: bool
) -> tuple[Tensor, Tensor | None]:
    """y = activation(A z + B) in z's precision, and if it is wanted its mean over each map, (N, C).

    Args:
        a, b: A and B, (N, C); A is 1 if it is None.
        pooled: whether the mean is wanted.
        inplace: whether y overwrites z.
    """
    y = z if inplace else torch.empty_like(z)
    gap = torch.empty(z.shape[:2], dtype=z.dtype) if pooled else None
    scale = None if a is None else _coefficients(a, z)
    _run("apply", z, scale, _coefficients(b, z), y, gap, ACTIVATIONS[activation])
    return y, gap


def reduce(dy: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
    """The gradients of A and B, (N, C): the sums of dy z and of dy over each map."""
    da, db = sums_like(z), sums_like(z)
    _run("reduce", z, _like(dy, z), da, db)
    return da, db


def back(dy: Tensor, z: Tensor, a: Tensor, slope: Tensor, offset: Tensor) -> Tensor:
    """A dy + slope z + offset in z's precision, coefficients (N, C)."""
    dz = torch.empty_like(z)
    _run("back", z, _like(dy, z), _coefficients(a, z), _coefficients(slope, z), _coefficients(offset, z), dz)
    return dz


class Statistics(NamedTuple):
    """What batch norm of z + s or z s computes from a batch: A and B of u = A z + B, and what its gradient needs.

    Attributes:
        a, b: A and B, (N, C).
        m, v: mean and biased variance of each map of z, (N, C).
        mean, r: mean and 1 / sqrt(var + eps) of each channel of z + s or z s, (C,).
    """

    a: Tensor
    b: Tensor
    m: Tensor
    v: Tensor
    mean: Tensor
    r: Tensor


def statistics(z: Tensor, s: Tensor, scaled: bool, norm: nn.BatchNorm2d) -> Statistics:
    """The coefficients of BN(z s) if ``scaled``, or else of BN(z + s), s (N, C); updates the running statistics."""
    assert norm.num_batches_tracked is not None and norm.running_mean is not None
    norm.num_batches_tracked.add_(1)
    momentum = 1 / norm.num_batches_tracked.item() if norm.momentum is None else norm.momentum
    a, b, m, v = torch.empty((4, *z.shape[:2]), dtype=_precision(z)).unbind()
    mean, r = torch.empty((2, z.shape[1]), dtype=_precision(z)).unbind()
    given = (_coefficients(s, z), norm.weight, norm.bias, norm.running_mean, norm.running_var)
    _run("coefficients", z, *given, m, v, mean, r, a, b, float(momentum), norm.eps, int(scaled))
    return Statistics(a, b, m, v, mean, r)


def gradients(
    dy: Tensor,
    dpooled: Tensor | None,
    z: Tensor,
    s: Tensor,
    weight: Tensor,
    found: Statistics,
    *,
    scaled: bool,
    activation: Activation,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The gradients of z, s, weight and bias from those of y = activation(BN(z + s or z s)) and of its mean."""
    dz, ds = torch.empty_like(z), sums_like(z)
    dw, db = torch.empty((2, z.shape[1]), dtype=_precision(z)).unbind()
    scratch = torch.empty((5, *z.shape[:2]), dtype=_precision(z))
    spread = None if dpooled is None else _coefficients(dpooled, z)
    given = (_like(dy, z), spread, _coefficients(s, z), *found, weight)
    _run("gradients", z, *given, dz, ds, dw, db, scratch, int(scaled), ACTIVATIONS[activation])
    return dz, ds, dw, db


def _run(name: str, z: Tensor, *given: Argument) -> None:
    """Call a function with a map, further arguments and N, P, C."""
    n, c, h, w = z.shape
    LIBRARY.call(name, z.dtype, z, *given, n, h * w, c)


def sums_like(z: Tensor) -> Tensor:
    """An empty tensor for a number of each map, (N, C)."""
    return torch.empty(z.shape[:2], dtype=_precision(z))


def _precision(z: Tensor) -> torch.dtype:
    return torch.float64 if z.dtype == torch.float64 else torch.float32


def _coefficients(values: Tensor, z: Tensor) -> Tensor:
    return values.to(_precision(z)).contiguous()


def _like(dy: Tensor, z: Tensor) -> Tensor:
    return dy.to(z.dtype).contiguous(memory_format=torch.channels_last)
