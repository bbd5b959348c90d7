"""The kernels of the fused norm on a GPU, in Triton.

Maps are (N, C, H, W) in channels_last, so (N, P, C) in memory with P = H W. Coefficients and sums are (N, C) of
float32, results are rounded once.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

ROWS, CHANNELS = 64, 64  # size of a tile: positions and channels
TILE = {"ROWS": ROWS, "CHANNELS": CHANNELS}


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
def _sums(z, total, positions, channels, ROWS: tl.constexpr, CHANNELS: tl.constexpr):
    n, c = tl.program_id(0), tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    inside = c < channels
    found = tl.zeros((CHANNELS,), tl.float32)
    for start in range(0, positions, ROWS):
        p = start + tl.arange(0, ROWS)
        valid = (p[:, None] < positions) & inside[None, :]
        at = (n.to(tl.int64) * positions + p[:, None]) * channels + c[None, :]
        found += tl.sum(tl.load(z + at, mask=valid, other=0.0).to(tl.float32), 0)
    tl.store(total + n * channels + c, found, mask=inside)


@triton.jit
def _apply(z, a, b, y, positions, channels, ROWS: tl.constexpr, CHANNELS: tl.constexpr):
    n, c = tl.program_id(0), tl.program_id(2) * CHANNELS + tl.arange(0, CHANNELS)
    p = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    inside = c < channels
    valid = (p[:, None] < positions) & inside[None, :]
    at = (n.to(tl.int64) * positions + p[:, None]) * channels + c[None, :]
    scale = tl.load(a + n * channels + c, mask=inside, other=0.0)
    shift = tl.load(b + n * channels + c, mask=inside, other=0.0)
    out = tl.load(z + at, mask=valid, other=0.0).to(tl.float32) * scale[None, :] + shift[None, :]
    tl.store(y + at, out, mask=valid)


@triton.jit
def _reduce(dy, z, da, db, positions, channels, ROWS: tl.constexpr, CHANNELS: tl.constexpr):
    n, c = tl.program_id(0), tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    inside = c < channels
    scale, shift = tl.zeros((CHANNELS,), tl.float32), tl.zeros((CHANNELS,), tl.float32)
    for start in range(0, positions, ROWS):
        p = start + tl.arange(0, ROWS)
        valid = (p[:, None] < positions) & inside[None, :]
        at = (n.to(tl.int64) * positions + p[:, None]) * channels + c[None, :]
        grad = tl.load(dy + at, mask=valid, other=0.0).to(tl.float32)
        shift += tl.sum(grad, 0)
        scale += tl.sum(grad * tl.load(z + at, mask=valid, other=0.0).to(tl.float32), 0)
    tl.store(da + n * channels + c, scale, mask=inside)
    tl.store(db + n * channels + c, shift, mask=inside)


@triton.jit
def _back(dy, z, a, slope, offset, dz, positions, channels, ROWS: tl.constexpr, CHANNELS: tl.constexpr):
    n, c = tl.program_id(0), tl.program_id(2) * CHANNELS + tl.arange(0, CHANNELS)
    p = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    inside = c < channels
    valid = (p[:, None] < positions) & inside[None, :]
    at = (n.to(tl.int64) * positions + p[:, None]) * channels + c[None, :]
    scale = tl.load(a + n * channels + c, mask=inside, other=0.0)
    k = tl.load(slope + n * channels + c, mask=inside, other=0.0)
    d = tl.load(offset + n * channels + c, mask=inside, other=0.0)
    out = tl.load(dy + at, mask=valid, other=0.0).to(tl.float32) * scale[None, :] + d[None, :]
    out += tl.load(z + at, mask=valid, other=0.0).to(tl.float32) * k[None, :]
    tl.store(dz + at, out, mask=valid)


def moments(z: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance of each map, (N, C, H, W) to (N, C) twice."""
    z = _channels_last(z)
    m, v = _sums_like(z), _sums_like(z)
    _moments[_by_map(z)](z, m, v, *_sizes(z), **TILE)
    return m, v


def sums(z: Tensor) -> Tensor:
    """The sum of each map, (N, C, H, W) to (N, C)."""
    z = _channels_last(z)
    total = _sums_like(z)
    _sums[_by_map(z)](z, total, *_sizes(z), **TILE)
    return total


def apply(z: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """A[n,c] z + B[n,c] in z's precision, A and B (N, C)."""
    z = _channels_last(z)
    y = torch.empty_like(z)
    _apply[_by_tile(z)](z, _coefficients(a), _coefficients(b), y, *_sizes(z), **TILE)
    return y


def reduce(dy: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
    """The gradients of A and B, (N, C): the sums of dy z and of dy over each map."""
    z = _channels_last(z)
    da, db = _sums_like(z), _sums_like(z)
    _reduce[_by_map(z)](_channels_last(dy), z, da, db, *_sizes(z), **TILE)
    return da, db


def back(dy: Tensor, z: Tensor, a: Tensor, slope: Tensor, offset: Tensor) -> Tensor:
    """A dy + slope z + offset in z's precision, coefficients (N, C)."""
    z = _channels_last(z)
    dz = torch.empty_like(z)
    given = [_coefficients(values) for values in (a, slope, offset)]
    _back[_by_tile(z)](_channels_last(dy), z, *given, dz, *_sizes(z), **TILE)
    return dz


def _sizes(z: Tensor) -> tuple[int, int]:
    """P and C."""
    return z.shape[2] * z.shape[3], z.shape[1]


def _by_map(z: Tensor) -> tuple[int, int]:
    """A program for each sample and tile of channels."""
    return z.shape[0], triton.cdiv(z.shape[1], CHANNELS)


def _by_tile(z: Tensor) -> tuple[int, int, int]:
    """A program for each sample, tile of positions and tile of channels."""
    return z.shape[0], triton.cdiv(z.shape[2] * z.shape[3], ROWS), triton.cdiv(z.shape[1], CHANNELS)


def _sums_like(z: Tensor) -> Tensor:
    return torch.empty(z.shape[:2], dtype=torch.float32, device=z.device)


def _coefficients(values: Tensor) -> Tensor:
    return values.float().contiguous()


def _channels_last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)
