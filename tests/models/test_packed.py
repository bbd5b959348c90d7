"""Layers and networks packed are the same ones alone."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attnbench.config.configuration import Config
from attnbench.models import factory, fused
from attnbench.models.ops import packed
from attnbench.models.ops.packed import PackedConv, PackedDropout, PackedNorm, matrices, side_by_side, stencils
from attnbench.models.stacking import PACKED, Stack, mistake

S, N = 3, 4
EXACT: dict[str, Any] = {"rtol": 0, "atol": 1e-10}


def generators() -> list[torch.Generator]:
    return [torch.Generator().manual_seed(s) for s in range(S)]


def members(make: Callable[[], nn.Module]) -> list[nn.Module]:
    """S modules in float64, every parameter and statistic drawn."""
    torch.manual_seed(0)
    modules = [make().double() for _ in range(S)]
    for module in modules:
        for name, tensor in module.state_dict().items():
            if tensor.is_floating_point():
                tensor.copy_(torch.rand_like(tensor) + 0.5 if "var" in name else torch.randn_like(tensor))
    return modules


def learned(modules: Sequence[nn.Module]) -> list[Tensor]:
    parameters = [p.grad for m in modules for p in m.parameters()]
    return [*parameters, *(b for m in modules for b in m.buffers())]  # type: ignore[list-item]


def check(make: Callable[[], nn.Module], x: Tensor, forward: Callable[..., Tensor] | None = None) -> None:
    """Outputs, gradients of inputs, gradients handed out and statistics, against the modules alone."""
    own = members(make)
    alone = copy.deepcopy(own)
    stack = Stack(own, generators())
    assert isinstance(stack.network, PACKED[type(own[0])])
    inputs = [x.clone().requires_grad_() for _ in range(2)]
    got = stack.network(inputs[0]) if forward is None else forward(stack.network, inputs[0])
    expected = torch.cat([module(part) for module, part in zip(alone, inputs[1].chunk(S), strict=True)])
    assert got.shape == expected.shape
    slope = torch.randn_like(expected)
    for y in (got, expected):
        y.backward(slope)
    stack.hand_out()
    pairs = zip([got, inputs[0].grad, *learned(own)], [expected, inputs[1].grad, *learned(alone)], strict=True)
    for a, b in pairs:
        torch.testing.assert_close(a, b, **EXACT)


def images(channels: int, size: int = 7, layout: torch.memory_format = torch.channels_last) -> Tensor:
    torch.manual_seed(1)
    return torch.randn(S * N, channels, size, size, dtype=torch.float64).contiguous(memory_format=layout)


POINTWISE = {"kernel_size": 1}
DEPTHWISE = {"kernel_size": 3, "groups": 6}


@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
@pytest.mark.parametrize(
    ("form", "options"),
    [
        (matrices, POINTWISE | {"bias": False}),
        (matrices, POINTWISE | {"stride": 2}),
        (stencils, DEPTHWISE | {"padding": 1, "bias": False}),
        (stencils, DEPTHWISE | {"padding": (2, 1), "stride": 2, "dilation": (2, 1)}),
        (side_by_side, DEPTHWISE | {"padding": 1, "stride": 2}),
        (side_by_side, {"kernel_size": 3, "groups": 2, "padding": "same"}),
        (side_by_side, {"kernel_size": (1, 3), "stride": (2, 1), "bias": False}),
    ],
)
def test_a_convolution_in_every_form(
    form: Callable[[PackedConv, Tensor], Tensor], options: dict[str, Any], layout: torch.memory_format
) -> None:
    check(lambda: nn.Conv2d(6, 12, **options), images(6, layout=layout), form)


def test_the_forms_are_taken_where_they_belong(monkeypatch: pytest.MonkeyPatch) -> None:
    def form(inputs: int, outputs: int, **options: Any) -> object:
        conv = PackedConv([nn.Conv2d(inputs, outputs, **options) for _ in range(S)], generators())
        return conv.route(torch.ones(S, inputs, 5, 5))

    assert form(4, 8, kernel_size=1, stride=2) is matrices
    assert form(4, 8, kernel_size=1, groups=2) is side_by_side
    assert form(4, 8, kernel_size=1, padding=1) is side_by_side
    assert form(4, 4, kernel_size=3, groups=4) is side_by_side
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    assert form(4, 4, kernel_size=3, groups=4) is stencils
    assert form(4, 4, kernel_size=3) is side_by_side


@pytest.mark.parametrize(
    ("make", "shape"),
    [
        (lambda: nn.Linear(5, 3), (5,)),
        (lambda: nn.Linear(5, 3, bias=False), (2, 5)),
        (lambda: nn.Conv1d(1, 1, 3, padding=1, bias=False), (1, 9)),
        (lambda: nn.Conv1d(4, 4, 1, groups=2), (4, 1)),
        (lambda: nn.BatchNorm1d(5), (5,)),
        (lambda: nn.BatchNorm1d(5, affine=False, momentum=None), (5, 3)),
        (lambda: nn.BatchNorm2d(5, eps=0.1, momentum=0.3), (5, 2, 3)),
        (lambda: nn.BatchNorm2d(5, track_running_stats=False), (5, 1, 1)),
        (lambda: nn.BatchNorm2d(5).eval(), (5, 2, 2)),
    ],
)
def test_a_layer(make: Callable[[], nn.Module], shape: tuple[int, ...]) -> None:
    torch.manual_seed(1)
    check(make, torch.randn(S * N, *shape, dtype=torch.float64))


def test_a_norm_of_numbers_far_from_zero_keeps_its_digits() -> None:
    x = (torch.randn(S * 64, 2, 4, 4) + 1000).requires_grad_()
    norm = PackedNorm([nn.BatchNorm2d(2) for _ in range(S)], generators())
    own = x.detach().double().chunk(S)
    expected = torch.cat([F.batch_norm(part, None, None, training=True) for part in own])
    packed_rows = packed.Normalised.apply(norm._rows(x), norm.weight, norm.bias, norm.eps)[0]
    assert (norm._maps(packed_rows, x) - expected).abs().max() < 1e-3


def test_low_precision_goes_through_float32() -> None:
    x = images(3).bfloat16().requires_grad_()
    norm = PackedNorm([nn.BatchNorm2d(3) for _ in range(S)], generators())
    y, mean, _ = packed.Normalised.apply(norm._rows(x), norm.weight, norm.bias, norm.eps)
    y.sum().backward()
    assert (y.dtype, mean.dtype, x.grad.dtype) == (torch.bfloat16, torch.float32, torch.bfloat16)  # type: ignore[union-attr]
    torch.testing.assert_close(mean, norm._rows(x).float().mean(1), rtol=0, atol=1e-6)


def test_each_network_draws_what_it_would_draw_alone() -> None:
    rates = [0.2, 0.0, 0.5]
    dropout = PackedDropout([nn.Dropout(rate) for rate in rates], generators())
    x = torch.randn(S * N, 50)
    got = torch.cat([dropout(x), dropout(x)], dim=1)
    for s, (rate, mine) in enumerate(zip(rates, x.chunk(S), strict=True)):
        torch.manual_seed(s)
        expected = torch.cat([F.dropout(mine, rate), F.dropout(mine, rate)], dim=1)
        assert torch.equal(got.chunk(S)[s], expected)
        assert torch.equal(dropout.generators[s].get_state(), torch.get_rng_state())
    assert torch.equal(PackedDropout([nn.Dropout(1.0)] * S, generators())(x), torch.zeros_like(x))


def test_parameters_and_buffers_are_slices_in_their_own_format() -> None:
    convs = [nn.Conv2d(4, 4, 3).to(memory_format=torch.channels_last) for _ in range(S)]
    values = [conv.weight.clone() for conv in convs]
    stacked = PackedConv(convs, generators())
    for s, (conv, value) in enumerate(zip(convs, values, strict=True)):
        assert torch.equal(conv.weight, value) and conv.weight.stride() == value.stride()
        assert conv.weight.data_ptr() == stacked.weight[s].data_ptr()
    norms = [nn.BatchNorm2d(2) for _ in range(S)]
    PackedNorm(norms, generators())(torch.randn(S * N, 2, 3, 3))
    assert [int(norm.num_batches_tracked) for norm in norms] == [1] * S  # type: ignore[arg-type]


# Networks


class Two(nn.Module):
    """A network that packing would get wrong, one way or another."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.first = nn.Conv2d(3, 3, 1)
        self.second = self.first if kind == "tied" else nn.Conv2d(3, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.second(self.first(x))
        if self.kind == "mixing":
            x = x - x.mean(0)
        if self.kind == "drawing":
            x = F.dropout(x)
        if self.kind == "peeking":
            x = x * self.first.weight.shape[0]
        return x.mean((2, 3))


@pytest.mark.parametrize("kind", ["honest", "tied", "mixing", "drawing", "peeking"])
def test_a_network_that_cannot_be_packed_is_found_out(kind: str) -> None:
    models = [Two(kind) for _ in range(2)]
    before = copy.deepcopy(models[0].state_dict())
    found = mistake(models, torch.randn(2, 2, 3, 4, 4))
    assert bool(found) == (kind != "honest"), found
    assert all(torch.equal(value, before[name]) for name, value in models[0].state_dict().items())


NETWORKS: dict[str, list[str]] = {
    "sb": ["attention=sb", "placement.stages=[3]", "attention.dropout=0.2"],
    "se": ["attention=se_original", "placement.stages=[3]"],
    "eca": ["attention=eca", "placement.stages=[3]"],
    "dyconv": ["attention=dyconv", "placement.stages=[3]", "attention.annealing_epochs=2.0"],
    "depthwise": ["attention=sb", "backbone=mobilenetv2_cifar", "backbone.width=0.1", "placement.stages=[7]"],
}
TAKE_TURNS = {"dyconv": {"DynamicConvolution"}}


def networks(
    compose: Callable[..., Config], words: Sequence[str], varied: Sequence[str] = ("",) * S
) -> list[nn.Module]:
    made = []
    for s, more in enumerate(varied):
        torch.manual_seed(s)
        config = compose("backbone=resnet20", *words, *more.split())
        made.append(factory.network(config, 10)[0].double().train())
        fused.choose(made[-1])  # as a run does; a stack has norms of its own kind, and computes attention as written
    return made


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_take_five_steps_as_they_would_alone(compose: Callable[..., Config], name: str) -> None:
    varied = ["", "", ""]
    if name == "sb":
        varied = ["attention.lambda_init=0.3", "attention.gate=sigmoid", "attention.dropout=0.5"]
    own = networks(compose, NETWORKS[name], varied)
    alone = copy.deepcopy(own)
    draws = generators()
    stack = Stack(own, draws)
    assert set(stack.in_turns.values()) == TAKE_TURNS.get(name, set())
    torch.manual_seed(7)
    size = 16 if name == "depthwise" else 8  # a norm of few values multiplies rounding at every step
    batches = torch.randn(5, S, 8, 3, size, size, dtype=torch.float64)

    def together(batch: Tensor) -> Tensor:
        return stack.network(batch.flatten(0, 1)).unflatten(0, (S, -1))

    def apart(batch: Tensor) -> Tensor:
        outputs = []
        for model, mine, draw in zip(alone, batch, draws_alone, strict=True):
            with packed.drawing(draw):
                outputs.append(model(mine))
        return torch.stack(outputs)

    draws_alone = generators()
    for models, forward in ((own, together), (alone, apart)):
        optimizers = [torch.optim.SGD(m.parameters(), lr=0.005 * (s + 1), momentum=0.9) for s, m in enumerate(models)]
        for batch in batches:
            forward(batch).square().mean((1, 2)).sum().backward()
            stack.hand_out()
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad()
    for a, b in zip(own, alone, strict=True):
        for (key, x), (_, y) in zip(a.state_dict().items(), b.state_dict().items(), strict=True):
            torch.testing.assert_close(x, y, **EXACT, msg=key)


def test_a_networks_nan_stays_its_own(compose: Callable[..., Config]) -> None:
    models = networks(compose, NETWORKS["sb"])
    poisoned = copy.deepcopy(models)
    next(poisoned[1].parameters()).data.fill_(float("nan"))
    batch = torch.randn(S * 8, 3, 8, 8, dtype=torch.float64)
    for some in (models, poisoned):
        stack = Stack(some, generators())
        stack.network(batch).square().sum().backward()
        stack.hand_out()
    for s in (0, 2):
        pairs = zip(learned([models[s]]), learned([poisoned[s]]), strict=True)
        assert all(torch.equal(a, b) for a, b in pairs)
    assert any(gradient.isnan().any() for gradient in learned([poisoned[1]]))


def test_a_packed_step_looks_at_no_number(compose: Callable[..., Config]) -> None:
    """On the meta device there are none; a step that asks for one cannot become a CUDA graph."""
    with torch.device("meta"):
        models = [factory.network(compose(*NETWORKS["depthwise"]), 10)[0] for _ in range(2)]
    stack = Stack(models, generators()[:2])
    stack.network(torch.empty(8, 3, 8, 8, device="meta")).sum().backward()
    stack.hand_out()
    assert all(p.grad is not None for model in models for p in model.parameters())
