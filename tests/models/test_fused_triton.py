"""The fused norm's CUDA kernels in Triton's interpreter, against plain operations.

In a process of their own: the interpreter is chosen when Triton is imported.
"""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

pytest.importorskip("triton", reason="no Triton on this platform")

SHAPES = [(3, 5, 7, 6), (1, 1, 1, 1), (2, 70, 9, 8), (1, 3, 1, 1)]
BOUNDS = {torch.float32: 1e-5, torch.bfloat16: 1e-2}


def relative(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return ((ours.double() - theirs.double()).norm() / theirs.double().norm().clamp_min(1e-6)).item()


def check() -> None:
    """Forward and backward of moments -> (A, B) -> act(A z + B + r), for all shapes, precisions and activations."""
    from attnbench.models.ops import fused_norm, fused_norm_triton

    torch.manual_seed(0)
    for shape in SHAPES:
        for dtype, bound in BOUNDS.items():
            for activation, residual in (("none", False), ("relu", True), ("relu6", False), ("none", True)):
                z = (torch.randn(shape) * 2 + 20).to(dtype).contiguous(memory_format=torch.channels_last)
                r = torch.randn(shape).to(dtype) if residual else None
                dy = torch.randn(shape).to(dtype)
                results = []
                for kind in ("triton", "plain"):
                    zi = z.clone().requires_grad_() if kind == "triton" else z.double().requires_grad_()
                    ri = None if r is None else (r if kind == "triton" else r.double()).clone().requires_grad_()
                    pair = fused_norm_triton.Pair()
                    same, m, v = pair.moments(zi) if kind == "triton" else (zi, *fused_norm.moments(zi))
                    a, b = torch.sigmoid(m - 20) / (v + 1).sqrt(), m.square() / 400 + v.sin() - m / 20
                    if kind == "triton":
                        y = pair.applied(same, a, b, ri, activation)
                    else:
                        y = a[:, :, None, None] * same + b[:, :, None, None] + (0 if ri is None else ri)
                        y = {"none": y, "relu": y.relu(), "relu6": y.clamp(0, 6)}[activation]
                    y.backward(dy.to(y.dtype))
                    results.append([m, v, y, zi.grad, *([] if ri is None else [ri.grad])])
                for name, ours, theirs in zip(("m", "v", "y", "dz", "dr"), *results, strict=False):
                    error = relative(ours.detach(), theirs.detach())
                    assert error < bound, (shape, dtype, activation, residual, name, error)


def test_kernels_equal_plain_operations() -> None:
    environment = {**os.environ, "TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-c", "from tests.models.test_fused_triton import check; check()"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=os.getcwd())
    assert done.returncode == 0, done.stderr[-2000:]
