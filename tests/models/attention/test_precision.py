"""Under autocast, attention makes and keeps no float32 map that the plain network does not.

A map has at least 64 positions. CUDA's rules of autocast are seen on fake tensors, which have a device and no memory.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from attnbench.models import fused
from attnbench.models.attention.squeeze import Squeeze
from attnbench.models.folding import folded
from attnbench.models.ops.fused_norm_kernels import pool
from tests.models.attention.test_every_attention import ATTENTIONS, PAIRS, VARIANTS, configured, network

SIZE, BATCH = 64, 2
SLOW = pytest.mark.slow
FAMILIES = ("resnet18", "mobilenetv2_cifar backbone.width=0.35", "shufflenetv2 backbone.width=0.5")

# By default, every method on ResNet and SB on all families; the others are slow tests.
FITTING = [
    pytest.param(*pair, marks=() if pair[0] == "sb" or (pair[1] == FAMILIES[0] and pair[0] not in VARIANTS) else SLOW)
    for pair in PAIRS
    if pair[1] in FAMILIES
]
AT_LAYERS = ("sb", "se_layer")
Maps = Counter[tuple[int, ...]]


def is_map(tensor: object) -> bool:
    """Whether this is a float32 tensor (N, C, H, W) or (N, C, H W), C > 1, with at least 64 positions."""
    if not isinstance(tensor, Tensor) or tensor.dtype != torch.float32 or tensor.ndim not in (3, 4):
        return False
    return tensor.shape[0] == BATCH and tensor.shape[1] > 1 and tensor.shape[2:].numel() >= 64


class Made(TorchDispatchMode):
    """Counts the float32 maps that operations make, and those that are kept for the backward pass, by shape."""

    def __init__(self) -> None:
        super().__init__()
        self.made: Maps = Counter()
        self.kept: Maps = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self.made.update(tuple(leaf.shape) for leaf in tree_leaves(out) if is_map(leaf))
        return out

    def keep(self, tensor: Tensor) -> Tensor:
        self.kept.update([tuple(tensor.shape)] if is_map(tensor) else [])
        return tensor


def on_cpu(model: nn.Module, dtype: torch.dtype, call: Callable[[Tensor], object] | None = None) -> Made:
    images = torch.randn(BATCH, 3, SIZE, SIZE).to(dtype)
    hooks = torch.autograd.graph.saved_tensors_hooks
    with Made() as maps, hooks(maps.keep, lambda kept: kept), torch.autocast("cpu", dtype):
        (model if call is None else call)(images)
    return maps


def on_cuda(model: nn.Module, dtype: torch.dtype) -> Made:
    """The same on fake CUDA tensors; ``torch.autocast`` would switch itself off without a GPU."""
    hooks = torch.autograd.graph.saved_tensors_hooks
    with FakeTensorMode(allow_non_fake_inputs=True):
        fake: dict[str, Tensor] = {}
        for name, one in (*model.named_parameters(), *model.named_buffers()):
            trains = isinstance(one, nn.Parameter)
            fake[name] = torch.empty(one.shape, dtype=one.dtype, device="cuda", requires_grad=trains)
        images = torch.empty(BATCH, 3, SIZE, SIZE, dtype=dtype, device="cuda")
        torch.set_autocast_enabled("cuda", True)
        torch.set_autocast_dtype("cuda", dtype)
        try:
            with Made() as maps, hooks(maps.keep, lambda kept: kept):
                torch.func.functional_call(model, fake, images)
        finally:
            torch.set_autocast_enabled("cuda", False)
    return maps


def built(attention: str, backbone: str, backend: Any = "reference", wrap: str = "conv") -> nn.Module:
    config = configured(attention, backbone)
    if wrap != "conv":
        config = config.updated({"placement": {"wrap": wrap}})
    model, _ = network(config)
    fused.choose(model, backend)
    return model.train()


@cache
def plain(backbone: str) -> nn.Module:
    torch.manual_seed(0)
    return configured("se", backbone).build("backbone", num_classes=5).train()


def refuse_more(maps: Made, stock: Made) -> None:
    assert not maps.kept - stock.kept
    assert not maps.made - stock.made


@pytest.mark.parametrize("backend", ["reference", pytest.param("fused", marks=SLOW)])
@pytest.mark.parametrize(("attention", "backbone"), FITTING)
def test_no_map_is_float32_on_a_cpu(attention: str, backbone: str, backend: str) -> None:
    refuse_more(on_cpu(built(attention, backbone, backend), torch.bfloat16), on_cpu(plain(backbone), torch.bfloat16))


@pytest.mark.parametrize("dtype", [torch.bfloat16, pytest.param(torch.float16, marks=SLOW)], ids=str)
@pytest.mark.parametrize(("attention", "backbone"), FITTING)
def test_no_map_is_float32_on_a_gpu(attention: str, backbone: str, dtype: torch.dtype) -> None:
    refuse_more(on_cuda(built(attention, backbone), dtype), on_cuda(plain(backbone), dtype))


@pytest.mark.parametrize("wrap", ["conv_norm", "conv_norm_act"])
@pytest.mark.parametrize("attention", AT_LAYERS)
def test_no_map_is_float32_wherever_attention_joins(attention: str, wrap: str) -> None:
    backbone = FAMILIES[1] if wrap == "conv_norm" else "mobilenetv2 backbone.width=0.35"
    for backend in ("reference", "fused"):
        if wrap == "conv_norm_act" and backbone.startswith("mobilenetv2 "):
            config = configured(attention, backbone).updated({"placement": {"wrap": wrap, "roles": ["expand"]}})
            model, _ = network(config)
            fused.choose(model, backend)
            model.train()
        else:
            model = built(attention, backbone, backend, wrap)
        refuse_more(on_cpu(model, torch.bfloat16), on_cpu(plain(backbone), torch.bfloat16))
        if backend == "reference":
            refuse_more(on_cuda(model, torch.bfloat16), on_cuda(plain(backbone), torch.bfloat16))


@pytest.mark.parametrize("attention", [name for name in ATTENTIONS if name not in VARIANTS])
def test_no_map_is_float32_in_a_folded_network(attention: str) -> None:
    with torch.no_grad():
        network = folded(built(attention, "resnet18"), torch.bfloat16)
        stock = folded(plain("resnet18"), torch.bfloat16)
        refuse_more(on_cpu(network, torch.bfloat16), on_cpu(stock, torch.bfloat16))


@pytest.mark.parametrize("attention", ["sb", *(pytest.param(name, marks=SLOW) for name in ("se", "eca_ns", "cbam"))])
def test_no_map_is_kept_in_float32_by_compiled_code(attention: str) -> None:
    """Inductor's partition into forward and backward, without its code."""
    backbone = FAMILIES[1]
    kept = []
    for model in (built(attention, backbone, "algebraic"), plain(backbone)):
        torch._dynamo.reset()
        compiled = torch.compile(model, backend="aot_eager_decomp_partition", dynamic=False)
        kept.append(on_cpu(model, torch.bfloat16, compiled).kept)
    assert not kept[0] - kept[1]


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
def test_pooled_sums_of_float16_do_not_overflow(layout: torch.memory_format) -> None:
    """112 x 112 positions of about 6 sum up to 75,264, above float16's 65,504."""
    x = (6 + torch.randn(2, 8, 112, 112)).half().to(memory_format=layout)
    expected = x.double().mean((2, 3))
    for pooled in (Squeeze()(x), pool(x)):
        assert pooled.dtype == torch.float16 and torch.allclose(pooled.double(), expected, rtol=2e-3)
