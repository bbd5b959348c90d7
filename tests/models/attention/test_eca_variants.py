"""The gates of the ECA paper's Table 1 against plain matrices, and the three kernel size presets."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attnbench.base.errors import ConfigError
from attnbench.config.composition import compose
from attnbench.models.attention.eca_ns import eca_ns
from attnbench.models.attention.se_gc import se_gc
from attnbench.models.attention.se_var1 import se_var1
from attnbench.models.attention.se_var2 import se_var2
from attnbench.models.attention.se_var3 import se_var3
from attnbench.models.insertion import Attended
from tests.models.attention import block_site

C = 16


def expected(x: Tensor, matrix: Tensor) -> Tensor:
    """y = x * sigmoid(M gap(x)) with the variant's C x C matrix."""
    return x * torch.sigmoid(x.mean((2, 3)) @ matrix.T)[:, :, None, None]


def banded(weight: Tensor) -> Tensor:
    """Row i of the matrix holds channel i's weights around the diagonal, cut at both ends."""
    size, k = weight.shape
    rows = [F.pad(weight[i], (i, size - 1 - i))[k // 2 : k // 2 + size] for i in range(size)]
    return torch.stack(rows)


@pytest.mark.parametrize(
    ("layer", "matrix"),
    [
        (se_var1(block_site(C)), lambda a: torch.eye(C)),
        (se_var2(block_site(C)), lambda a: torch.diag(a.weight)),
        (se_var3(block_site(C)), lambda a: a.mix.weight),
        (se_gc(block_site(C), size=4), lambda a: torch.block_diag(*a.mix.weight[:, :, 0].split(C // 4))),
        (
            se_gc(block_site(C), size=2, unit="channels"),
            lambda a: torch.block_diag(*a.mix.weight[:, :, 0].split(2)),
        ),
        (eca_ns(block_site(C), kernel_size=5), lambda a: banded(a.weight)),
    ],
    ids=["se_var1", "se_var2", "se_var3", "se_gc groups", "se_gc channels", "eca_ns"],
)
def test_gate_is_its_matrix(layer: Attended, matrix: Callable[[nn.Module], Tensor]) -> None:
    x = torch.randn(2, C, 3, 5)
    torch.testing.assert_close(layer(x), expected(x, matrix(layer.attention)))


def test_groups_must_divide_the_channels() -> None:
    with pytest.raises(ConfigError, match="24 channels of block cannot be divided into 16 groups .attention.size"):
        se_gc(block_site(24))


@pytest.mark.parametrize(
    ("preset", "sizes"),
    [("eca_paper", [5, 5, 5, 5]), ("eca_released", [3, 5, 5, 7]), ("eca_formula", [5, 5, 5, 7])],
)
def test_kernel_sizes_of_the_presets(preset: str, sizes: list[int]) -> None:
    """For ResNet-50's stages of 256 to 2048 channels."""
    config = compose([f"attention={preset}"])
    sites = [block_site(128 * 2**stage, stage=stage) for stage in (1, 2, 3, 4)]
    assert [config.build("attention", site).attention.conv.weight.shape[-1] for site in sites] == sizes
