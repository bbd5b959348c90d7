"""The fused norm's CUDA kernels in Triton's interpreter, against plain operations.

They run in a separate process, because the interpreter is chosen when Triton is imported.
"""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("triton", reason="no Triton on this platform")

SHAPES = [(3, 5, 7, 6), (1, 1, 1, 1), (2, 70, 9, 8), (1, 3, 1, 1)]
BOUNDS = {torch.float32: 1e-5, torch.bfloat16: 1e-2}


def relative(ours: Tensor, theirs: Tensor) -> float:
    return ((ours.double() - theirs.double()).norm() / theirs.double().norm().clamp_min(1e-6)).item()


def compare(case: object, bound: float, ours: list[Tensor | None], theirs: list[Tensor | None]) -> None:
    for i, (one, other) in enumerate(zip(ours, theirs, strict=True)):
        assert one is not None and other is not None
        error = relative(one.detach(), other.detach())
        assert error < bound, (case, i, error)


def check() -> None:
    """Check the kernels for all shapes and dtypes."""
    torch.manual_seed(0)
    for shape in SHAPES:
        for dtype, bound in BOUNDS.items():
            z = (torch.randn(shape) * 2 + 20).to(dtype).contiguous(memory_format=torch.channels_last)
            dy = torch.randn(shape).to(dtype)
            check_pair(z, dy, bound)
            if len(z) * z[0, 0].numel() > 1:
                for combine in ("add", "mul"):
                    check_norm(z, dy, combine, bound)


def check_pair(z: Tensor, dy: Tensor, bound: float) -> None:
    """Forward and backward of moments -> (A, B) -> A z + B."""
    from attnbench.models.ops import fused_norm, fused_norm_kernels, fused_norm_triton

    def coefficients(m: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        return torch.sigmoid(m - 20) / (v + 1).sqrt(), m.square() / 400 + v.sin() - m / 20

    ours, theirs = z.clone().requires_grad_(), z.double().requires_grad_()
    pair = fused_norm_kernels.Pair(fused_norm_triton)
    same, m, v = pair.moments(ours)
    y = pair.applied(same, *coefficients(m, v))
    y.backward(dy)
    plain_m, plain_v = fused_norm.moments(theirs)
    plain = fused_norm.affine(theirs, *coefficients(plain_m, plain_v))
    plain.backward(dy.double())
    found = [m, v, y, ours.grad, fused_norm_triton.sums(z)]
    compare((z.shape, z.dtype), bound, found, [plain_m, plain_v, plain, theirs.grad, z.double().sum((2, 3))])


def check_norm(z: Tensor, dy: Tensor, combine: str, bound: float) -> None:
    """Forward and backward of BN(z + s) and BN(z s), and its running statistics."""
    from attnbench.models.insertion import combined
    from attnbench.models.ops import fused_norm_kernels, fused_norm_triton

    s = torch.rand(z.shape[:2]) + 0.5
    norm, plain = nn.BatchNorm2d(z.shape[1]), nn.BatchNorm2d(z.shape[1]).double()
    zi, si = z.clone().requires_grad_(), s.clone().requires_grad_()
    u = fused_norm_kernels.normalised(zi, si, combine, norm, fused_norm_triton)
    u.backward(dy)
    zp, sp = z.double().requires_grad_(), s.double().requires_grad_()
    expected = plain(combined(zp, sp, combine))
    expected.backward(dy.double())
    ours = [u, zi.grad, si.grad, norm.weight.grad, norm.bias.grad, norm.running_mean, norm.running_var]
    theirs = [expected, zp.grad, sp.grad, plain.weight.grad, plain.bias.grad, plain.running_mean, plain.running_var]
    compare((z.shape, z.dtype, combine), 3 * bound, ours, theirs)


def test_kernels_equal_plain_operations() -> None:
    environment = {**os.environ, "TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-c", "from tests.models.test_fused_triton import check; check()"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=os.getcwd())
    assert done.returncode == 0, done.stderr[-2000:]
