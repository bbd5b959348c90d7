"""Double attention against its equations, place by place."""

from __future__ import annotations

from typing import Any

import torch

from attnbench.models.attention.a2 import a2
from tests.models.attention import block_site


def test_a2_is_its_equation() -> None:
    torch.manual_seed(0)
    layer: Any = a2(block_site(8), reduction=2).double()
    x = torch.randn(2, 8, 3, 5, dtype=torch.float64)
    phi, theta, rho, w = (
        m.weight[:, :, 0, 0]
        for m in (
            layer.attention.feature,
            layer.attention.gather,
            layer.attention.distribute,
            layer.attention.expand,
        )
    )
    expected = x.clone()
    for n in range(2):
        places = [x[n, :, i, j] for i in range(3) for j in range(5)]
        pooling = torch.softmax(torch.stack([theta @ p for p in places]), 0)  # over places, for each map
        gathered = [sum(a[m] * (phi @ p) for a, p in zip(pooling, places, strict=True)) for m in range(4)]
        for i in range(3):
            for j in range(5):
                choice = torch.softmax(rho @ x[n, :, i, j], 0)  # over descriptors, at each place
                expected[n, :, i, j] += w @ sum(c * g for c, g in zip(choice, gathered, strict=True))
    torch.testing.assert_close(layer(x), expected)
