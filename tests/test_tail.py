"""Every way to compute a tail against the one that is written: values, all gradients, running statistics, in float64."""

from __future__ import annotations

import copy
import multiprocessing
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from attnbench import create_model, list_attentions, tail
from attnbench.attention.branch import Branch
from attnbench.attention.eca import EfficientChannelAttention
from attnbench.attention.sb import ShiftAndBalance
from attnbench.attention.se_gc import GroupGate
from attnbench.attention.se_var2 import ChannelwiseGate
from attnbench.insertion import Attended, reference
from attnbench.ops import tail as ops

SIGNALS: dict[str, Callable[[int, int], nn.Module]] = {
    "eca": lambda i, o: EfficientChannelAttention(3),
    "se": lambda i, o: Branch(i, 3, o, gate="sigmoid", bias=True),
    "se norm": lambda i, o: Branch(i, 4, o, gate="sigmoid", norm=True),
    "sb": lambda i, o: ShiftAndBalance(i, 4, o, lambda_init=0.3, gate="tanh", dropout=0.0),
    "weights": lambda i, o: ChannelwiseGate(o),
    "groups": lambda i, o: GroupGate(o, o),
}
# Where a norm stands: it is the trunk, or ends it; what is read; N, C, H, W.
SHAPES = [(4, 7, 5, 6), (3, 5, 1, 1), (1, 7, 4, 4), (2, 1, 3, 2)]


class Block(nn.Module):
    """conv, BN with attention, residual, activation: the tail as a block has it."""

    def __init__(self, site: nn.Module, residual: bool, activation: nn.Module) -> None:
        super().__init__()
        self.site, self.residual, self.activation = site, residual, activation

    def forward(self, x: Tensor, r: Tensor) -> Tensor:
        y = self.site(x)
        if self.residual:
            y += r
        return self.activation(y)


def site(signal: str, *, channels: int, ends: bool, reads: str, combine: str) -> Attended:
    norm = nn.BatchNorm2d(channels, momentum=0.3)
    nn.init.uniform_(norm.weight, 0.5, 1.5)
    nn.init.uniform_(norm.bias)
    nn.init.uniform_(norm.running_mean)  # type: ignore[arg-type]
    trunk = nn.Sequential(nn.Conv2d(channels, channels, 1), norm) if ends else norm
    return Attended(trunk, SIGNALS[signal](channels, channels), reads=reads, combine=combine).double()  # type: ignore[arg-type]


def outcome(block: nn.Module, x: Tensor, r: Tensor) -> list[Tensor]:
    """Everything that a step leaves: the output, the gradients of both inputs and all weights, the buffers."""
    x, r = x.clone().requires_grad_(), r.clone().requires_grad_()
    torch.manual_seed(1)
    y = block(x * 1, r * 1)
    weight = torch.randn(y.shape, dtype=y.dtype)
    inputs = [x, r, *block.parameters()]
    grads = torch.autograd.grad((y * weight).sum(), inputs, allow_unused=True)
    return [y.detach(), *(torch.zeros(()) if g is None else g for g in grads), *block.buffers()]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("signal", SIGNALS)
@pytest.mark.parametrize("backend", ["algebraic", "fused"])
def test_a_backend_equals_the_reference(backend: str, signal: str, shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    x, r = torch.randn(2, *shape, dtype=torch.float64) * 3 + 5
    batch_statistics = shape[0] * shape[2] * shape[3] > 1 and (shape[0] > 1 or signal not in ("se norm", "sb"))
    compared = 0
    for training in (True, False) if batch_statistics else (False,):
        for ends in (False, True):
            for reads in ("output", "input"):
                for combine in ("mul", "add"):
                    for residual, activation in ((False, nn.ReLU()), (True, nn.ReLU6()), (True, nn.Identity())):
                        made = site(signal, channels=shape[1], ends=ends, reads=reads, combine=combine)
                        block = Block(made, residual, activation).train(training)
                        other = copy.deepcopy(block)
                        assert tail.choose(other, backend) == 1  # type: ignore[arg-type]
                        for ours, theirs in zip(outcome(other, x, r), outcome(block, x, r), strict=True):
                            torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)
                        with torch.no_grad():
                            torch.testing.assert_close(other(x, r), block(x, r), rtol=1e-10, atol=1e-10)
                        compared += 1
    assert compared == (48 if batch_statistics else 24)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_a_whole_network_trains_alike_by_each_backend(memory_format: torch.memory_format) -> None:
    for attention, sites in {"se": 9, "eca": 9, "sb": 18, "se_layer": 18, "cbam": 0}.items():
        torch.manual_seed(0)
        kwargs = {"placement_kwargs": {"wrap": "conv_norm"}} if attention in ("sb", "se_layer") else {}
        plain = create_model("resnet20", attention, num_classes=3, **kwargs).double()  # type: ignore[arg-type]
        x = torch.randn(4, 3, 12, 12, dtype=torch.float64).to(memory_format=memory_format)
        models = {}
        for backend in ("reference", "algebraic", "fused", "auto"):
            model = models[backend] = copy.deepcopy(plain).to(memory_format=memory_format)  # type: ignore[call-overload]
            count = tail.choose(model, backend)  # type: ignore[arg-type]
            assert count == (0 if backend == "reference" else sites)
            optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
            for _ in range(2):
                model(x).square().mean().backward()
                optimizer.step()
                optimizer.zero_grad()
        for model in models.values():
            assert model.state_dict().keys() == plain.state_dict().keys()
            for ours, theirs in zip(
                model.state_dict().values(), models["reference"].state_dict().values(), strict=True
            ):
                torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-9)
