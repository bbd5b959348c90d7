"""Every way of mixing kernels equals the equation y_n = (sum_k pi_nk W_k) * x_n."""

from __future__ import annotations

import functools
from collections.abc import Callable
from copy import deepcopy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attnbench.models.attention.mixing import MixedConv2d, grouped, matrices, per_sample, stacked, stencil
from attnbench.models.ops import depthwise

CONVOLUTIONS = {
    "dense": nn.Conv2d(6, 8, 3, padding=1),
    "strided": nn.Conv2d(6, 8, (3, 5), stride=(2, 3), padding=(1, 2), bias=False),
    "dilated": nn.Conv2d(6, 8, 3, padding=2, dilation=2),
    "same": nn.Conv2d(6, 8, 3, padding="same"),
    "groups": nn.Conv2d(6, 8, 3, padding=1, groups=2),
    "pointwise": nn.Conv2d(6, 8, 1),
    "pointwise wide": nn.Conv2d(6, 4, 1),
    "pointwise strided": nn.Conv2d(6, 8, 1, stride=2, bias=False),
    "depthwise": nn.Conv2d(6, 6, 3, padding=1, groups=6),
    "depthwise strided": nn.Conv2d(6, 6, (3, 5), stride=(2, 3), padding=(1, 2), groups=6, bias=False),
    "depthwise dilated": nn.Conv2d(6, 6, 3, padding=2, dilation=2, groups=6),
    "depthwise multiplied": nn.Conv2d(6, 12, 3, padding=1, groups=6),
    "depthwise narrow": nn.Conv2d(6, 12, (1, 3), stride=(1, 2), padding=(0, 1), groups=6, bias=False),
}


def definition(conv: nn.Conv2d, weight: Tensor, bias: Tensor | None, x: Tensor, mixture: Tensor) -> Tensor:
    """The equation, computed sample by sample and kernel by kernel."""
    rows = []
    for sample, weights in zip(x, mixture, strict=True):
        mixed = sum(p * w for p, w in zip(weights, weight, strict=True))
        shift = None if bias is None else sum(p * b for p, b in zip(weights, bias, strict=True))
        rows.append(F.conv2d(sample[None], mixed, shift, conv.stride, conv.padding, conv.dilation, conv.groups))
    return torch.cat(rows)


def ways(conv: MixedConv2d) -> list[Callable[[MixedConv2d, Tensor, Tensor], Tensor]]:
    compiled = conv.depthwise and conv.weight.shape[0] == 3 * conv.groups and depthwise.LIBRARY.functions is not None
    special = [*conv.pointwise * [matrices], *conv.depthwise * [stencil], *compiled * [per_sample]]
    return [stacked, grouped, *special]


@pytest.mark.parametrize("name", CONVOLUTIONS)
@pytest.mark.parametrize(("samples", "size"), [(1, (9, 8)), (3, (9, 8)), (4, (13, 14))])
def test_all_ways_equal_the_equation(name: str, samples: int, size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    trunk = deepcopy(CONVOLUTIONS[name]).double()
    conv = MixedConv2d(trunk, 3).double()
    x = torch.randn(samples, 6, *size, dtype=torch.float64, requires_grad=True)
    mixture = torch.rand(samples, 3, dtype=torch.float64, requires_grad=True)
    leaves = [x, mixture, conv.weight]
    expected = definition(trunk, conv.kernels, None, x, mixture)
    expected_gradients = torch.autograd.grad(expected.sin().sum(), leaves)
    for way in ways(conv):
        for image in (x, x.to(memory_format=torch.channels_last))[way is per_sample :]:
            y = way(conv, image, mixture)
            torch.testing.assert_close(y, expected, msg=functools.partial("{}: {}".format, way.__name__))
        torch.testing.assert_close(torch.autograd.grad(y.sin().sum(), leaves), expected_gradients)
    with_bias = definition(trunk, conv.kernels, conv.bias, x, mixture)
    torch.testing.assert_close(conv(x, mixture), with_bias)


WIDE = [pytest.param(f"depthwise {name}", marks=pytest.mark.slow) for name in ("strided", "multiplied")]


@pytest.mark.parametrize("name", ["groups", "pointwise strided", "depthwise narrow", *WIDE])
def test_compiles_as_one_graph_at_any_size(name: str) -> None:
    """With dynamic shapes: small and large maps, which are computed in different ways, and a single sample."""
    torch._dynamo.reset()
    torch.manual_seed(0)
    conv = MixedConv2d(deepcopy(CONVOLUTIONS[name]), 3).double()
    compiled = torch.compile(conv, backend="aot_eager", fullgraph=True, dynamic=True)
    for samples, size in ((3, (5, 7)), (2, (25, 24)), (1, (9, 9))):
        x = torch.randn(samples, 6, *size, dtype=torch.float64, requires_grad=True)
        mixture = torch.rand(samples, 3, dtype=torch.float64)
        outputs = compiled(x, mixture), conv(x, mixture)
        torch.testing.assert_close(*outputs)
        gradients = [torch.autograd.grad(y.sin().sum(), [x, conv.weight]) for y in outputs]
        torch.testing.assert_close(*gradients)


@pytest.mark.slow
def test_inductor_agrees() -> None:
    torch._dynamo.reset()
    conv = MixedConv2d(nn.Conv2d(6, 8, 1), 3)
    x, mixture = torch.randn(2, 6, 12, 12), torch.rand(2, 3)
    torch.testing.assert_close(torch.compile(conv, fullgraph=True)(x, mixture), conv(x, mixture))


def test_ways_are_chosen_by_shape() -> None:
    """One kernel per sample if maps are large; depthwise convolutions never use K copies."""
    large, small, one = torch.randn(2, 6, 16, 16), torch.randn(2, 6, 3, 3), torch.randn(1, 6, 3, 3)
    choice = {name: [MixedConv2d(CONVOLUTIONS[name], 2).route(x) for x in (large, small, one)] for name in CONVOLUTIONS}
    assert choice["pointwise"] == [matrices, stacked, grouped]
    assert choice["dense"] == [grouped, stacked, grouped]
    assert choice["depthwise"] == [grouped, grouped, grouped]
    last = MixedConv2d(CONVOLUTIONS["depthwise"], 2).route(large.to(memory_format=torch.channels_last))
    assert last is (per_sample if depthwise.LIBRARY.functions else grouped)


@pytest.mark.skipif(depthwise.LIBRARY.functions is None, reason="no C compiler")
def test_kernels_in_c_are_exact_in_bfloat16_and_with_any_number_of_threads() -> None:
    torch.manual_seed(0)
    trunk, threads, results = nn.Conv2d(40, 40, 3, stride=2, padding=1, groups=40), torch.get_num_threads(), []
    images, mixture = torch.randn(5, 40, 9, 8).bfloat16(), torch.rand(5, 3)
    conv = MixedConv2d(trunk, 3).bfloat16()
    for count in (1, 3, None):
        torch.set_num_threads(count or threads)
        x = images.to(memory_format=torch.channels_last).requires_grad_()
        y = (per_sample if count else grouped)(conv, x, mixture.bfloat16())
        results.append([y, *torch.autograd.grad(y.float().sin().sum(), [x, conv.weight])])
    assert all(torch.equal(one, three) for one, three in zip(results[0], results[1], strict=True))
    for ours, theirs in zip(results[0], results[2], strict=True):
        assert (ours.float() - theirs.float()).norm() < 0.01 * theirs.float().norm()


def test_kernel_0_is_the_trunks_and_the_others_have_its_standard_deviation() -> None:
    torch.manual_seed(0)
    trunk = nn.Conv2d(64, 64, 3)
    conv = MixedConv2d(trunk, 4)
    assert conv.bias is not None and trunk.bias is not None
    assert torch.equal(conv.kernels[0], trunk.weight) and torch.equal(conv.bias[0], trunk.bias)
    assert conv.kernels[0].data_ptr() != trunk.weight.data_ptr()
    for other in conv.kernels[1:]:
        assert not torch.equal(other, trunk.weight)
        torch.testing.assert_close(other.std(), trunk.weight.std(), rtol=0.02, atol=0)
    assert not torch.equal(conv.kernels[1], conv.kernels[2])
