"""The passes of batch norm with attention as CUDA kernels: two for y = act(A z + B + r), two for its gradient.

With q = dy act'(y), the gradients are dB = sum q and dA = sum q z over each map, and with the gradients dm and dv of
the moments dz = A q + dm / P + 2 dv (z - m) / P. Maps are (N, C, H, W) in channels_last, so (N, P, C) in memory with
P = H W. Sums are computed in float32, results are rounded once.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

ROWS, CHANNELS = 64, 64  # size of a tile: positions and channels
ACTIVATIONS = {"none": 0, "relu": 1, "relu6": 2}


@triton.jit
def _moments(z, m, v, positions, channels, ROWS: tl.constexpr, CHANNELS: tl.constexpr):
    """One program per sample and tile of channels; Chan's formula merges tiles without cancellation."""
    n, c = tl.program_id(0), tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    inside = c < channels
    mean, spread, count = tl.zeros((CHANNELS,), tl.float32), tl.zeros((CHANNELS,), tl.float32), 0.0
    for start in range(0, positions, ROWS):
        p = start + tl.arange(0, ROWS)
        valid = (p[:, None] < positions) & inside[None, :]
        at = (n.to(tl.int64) * positions + p[:, None]) * channels + c[None, :]
        tile = tl.load(z + at, mask=valid, other=0.0).to(tl.float32)
        rows = tl.minimum(positions - start, ROWS).to(tl.float32)
        here = tl.sum(tile, 0) / rows
        off = tl.where(valid, tile - here[None, :], 0.0)
        step = here - mean
        spread += tl.sum(off * off, 0) + step * step * (count * rows / (count + rows))
        mean += step * (rows / (count + rows))
        count += rows
    tl.store(m + n * channels + c, mean, mask=inside)
    tl.store(v + n * channels + c, spread / positions, mask=inside)


@triton.jit
def _apply(z, a, b, r, y, positions, channels, ACT: tl.constexpr, RESIDUAL: tl.constexpr, ROWS: tl.constexpr,
           CHANNELS: tl.constexpr):  # fmt: skip
    n, c = tl.program_id(0), tl.program_id(2) * CHANNELS + tl.arange(0, CHANNELS)
    p = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    inside = c < channels
    valid = (p[:, None] < positions) & inside[None, :]
    at = (n.to(tl.int64) * positions + p[:, None]) * channels + c[None, :]
    scale = tl.load(a + n * channels + c, mask=inside, other=0.0)
    shift = tl.load(b + n * channels + c, mask=inside, other=0.0)
    out = tl.load(z + at, mask=valid, other=0.0).to(tl.float32) * scale[None, :] + shift[None, :]
    if RESIDUAL:
        out += tl.load(r + at, mask=valid, other=0.0).to(tl.float32)
    if ACT > 0:
        out = tl.maximum(out, 0.0)
    if ACT > 1:
        out = tl.minimum(out, 6.0)
    tl.store(y + at, out, mask=valid)


@triton.jit
def _reduce(dy, y, z, q, da, db, positions, channels, ACT: tl.constexpr, ROWS: tl.constexpr, CHANNELS: tl.constexpr):
    n, c = tl.program_id(0), tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    inside = c < channels
    scale, shift = tl.zeros((CHANNELS,), tl.float32), tl.zeros((CHANNELS,), tl.float32)
    for start in range(0, positions, ROWS):
        p = start + tl.arange(0, ROWS)
        valid = (p[:, None] < positions) & inside[None, :]
        at = (n.to(tl.int64) * positions + p[:, None]) * channels + c[None, :]
        grad = tl.load(dy + at, mask=valid, other=0.0).to(tl.float32)
        if ACT > 0:
            out = tl.load(y + at, mask=valid, other=0.0).to(tl.float32)
            grad = tl.where(out > 0.0, grad, 0.0)
            if ACT > 1:
                grad = tl.where(out < 6.0, grad, 0.0)
            tl.store(q + at, grad, mask=valid)
        shift += tl.sum(grad, 0)
        scale += tl.sum(grad * tl.load(z + at, mask=valid, other=0.0).to(tl.float32), 0)
    tl.store(da + n * channels + c, scale, mask=inside)
    tl.store(db + n * channels + c, shift, mask=inside)


@triton.jit
def _back(q, z, a, slope, offset, dz, positions, channels, ROWS: tl.constexpr, CHANNELS: tl.constexpr):
    n, c = tl.program_id(0), tl.program_id(2) * CHANNELS + tl.arange(0, CHANNELS)
    p = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    inside = c < channels
    valid = (p[:, None] < positions) & inside[None, :]
    at = (n.to(tl.int64) * positions + p[:, None]) * channels + c[None, :]
    scale = tl.load(a + n * channels + c, mask=inside, other=0.0)
    k = tl.load(slope + n * channels + c, mask=inside, other=0.0)
    d = tl.load(offset + n * channels + c, mask=inside, other=0.0)
    out = tl.load(q + at, mask=valid, other=0.0).to(tl.float32) * scale[None, :] + d[None, :]
    out += tl.load(z + at, mask=valid, other=0.0).to(tl.float32) * k[None, :]
    tl.store(dz + at, out, mask=valid)


def moments(z: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance of each map, (N, C, H, W) to (N, C) float32 twice; not differentiable."""
    n, c, positions = _sizes(z)
    m, v = torch.empty((2, n, c), dtype=torch.float32, device=z.device)
    _moments[(n, triton.cdiv(c, CHANNELS))](z, m, v, positions, c, ROWS=ROWS, CHANNELS=CHANNELS)
    return m, v


def apply(z: Tensor, a: Tensor, b: Tensor, r: Tensor | None = None, activation: str = "none") -> Tensor:
    """act(A[n,c] z + B[n,c] + r) in z's precision, A and B (N, C) float32; not differentiable."""
    n, c, positions = _sizes(z)
    y = torch.empty_like(z)
    grid = (n, triton.cdiv(positions, ROWS), triton.cdiv(c, CHANNELS))
    kinds = {"ACT": ACTIVATIONS[activation], "RESIDUAL": r is not None, "ROWS": ROWS, "CHANNELS": CHANNELS}
    _apply[grid](z, a.contiguous(), b.contiguous(), z if r is None else _channels_last(r), y, positions, c, **kinds)
    return y


class Pair:
    """The moments of z and the affine map, as two differentiable functions that share A.

    ``moments`` returns z, to be used only by ``applied``, with m and v. The caller computes A and B from m and v in
    ordinary operations.
    """

    a: Tensor

    def moments(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """z (N, C, H, W), m and v (N, C) float32."""
        same, m, v = _Moments.apply(_channels_last(z), self)
        return same, m, v

    def applied(self, z: Tensor, a: Tensor, b: Tensor, r: Tensor | None = None, activation: str = "none") -> Tensor:
        """act(A z + B + r), A and B (N, C)."""
        y: Tensor = _Applied.apply(z, a.float(), b.float(), r, activation, self)
        return y


class _Moments(Function):
    """z and its moments; ``_Applied`` passes q on unscaled, and the backward here computes dz in one pass."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, pair: Pair) -> tuple[Tensor, Tensor, Tensor]:
        m, v = moments(z)
        ctx.save_for_backward(z, m)
        ctx.pair = pair
        return z.view_as(z), m, v

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, q: Tensor, dm: Tensor, dv: Tensor) -> tuple[Tensor, None]:
        z, m = ctx.saved_tensors
        n, c, positions = _sizes(z)
        slope = dv * (2 / positions)
        offset = dm / positions - slope * m
        dz = torch.empty_like(z)
        grid = (n, triton.cdiv(positions, ROWS), triton.cdiv(c, CHANNELS))
        _back[grid](_channels_last(q), z, ctx.pair.a, slope, offset, dz, positions, c, ROWS=ROWS, CHANNELS=CHANNELS)
        return dz, None


class _Applied(Function):
    @staticmethod
    def forward(ctx: Any, z: Tensor, a: Tensor, b: Tensor, r: Tensor | None, activation: str, pair: Pair) -> Tensor:
        pair.a = a.contiguous()
        y = apply(z, a, b, r, activation)
        ctx.save_for_backward(z, None if activation == "none" else y)
        ctx.activation, ctx.residual = activation, r is not None
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        z, y = ctx.saved_tensors
        dy = _channels_last(dy)
        n, c, positions = _sizes(z)
        q = dy if y is None else torch.empty_like(dy)
        da, db = torch.empty((2, n, c), dtype=torch.float32, device=z.device)
        kinds = {"ACT": ACTIVATIONS[ctx.activation], "ROWS": ROWS, "CHANNELS": CHANNELS}
        _reduce[(n, triton.cdiv(c, CHANNELS))](dy, z if y is None else y, z, q, da, db, positions, c, **kinds)
        return q, da, db, q if ctx.residual else None, None, None


def _sizes(z: Tensor) -> tuple[int, int, int]:
    """N, C and P."""
    n, c, h, w = z.shape
    return n, c, h * w


def _channels_last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)
