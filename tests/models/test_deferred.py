"""Maps that wait for the operation behind them: the same results as without waiting, whatever that operation is."""

from __future__ import annotations

import copy
import gc
import io
import weakref
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attnbench import create_model
from attnbench.models import deferred, fused
from attnbench.models.folding import folded
from attnbench.models.insertion import Attended
from attnbench.models.ops import fused_norm_c
from tests.models.test_fused import in_front

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "relu in place": lambda: nn.ReLU(inplace=True),
    "relu6": nn.ReLU6,
    "relu6 in place": lambda: nn.ReLU6(inplace=True),
    "hardtanh": lambda: nn.Hardtanh(0.0, 6.0),
    "another hardtanh": nn.Hardtanh,
    "silu": nn.SiLU,
    "none": nn.Identity,
}


@pytest.fixture(autouse=True)
def compiled() -> None:
    if fused_norm_c.LIBRARY.functions is None:
        pytest.skip("no C compiler")


def chain(activation: Callable[[], nn.Module], channels: int = 5) -> nn.Sequential:
    """Three convolutions with attention, norm and activation; the last norm's result leaves the block."""
    torch.manual_seed(0)
    kinds = [("sb", "add", True), ("se", "mul", True), ("se norm", "add", False)]
    layers = [
        part
        for signal, combine, inner in kinds
        for part in (*in_front(signal, channels=channels, combine=combine, kernel=3, inner=inner), activation())
    ]
    return nn.Sequential(*layers).double()


def images(*shape: int) -> Tensor:
    torch.manual_seed(1)
    return (torch.randn(shape, dtype=torch.float64) * 2 + 1).to(memory_format=torch.channels_last)


def step(model: nn.Module, x: Tensor) -> list[Tensor]:
    """The output, the gradients of input and weights, and the buffers of a step."""
    x = x.clone().requires_grad_()
    y = model(x * 1)
    weight = torch.linspace(-1, 2, y.numel(), dtype=y.dtype).view_as(y)
    grads = torch.autograd.grad((y * weight).sum(), [x, *model.parameters()], allow_unused=True)
    return [
        y.detach(),
        *(torch.zeros(()) if grad is None else grad for grad in grads),
        *(buffer.clone() for buffer in model.buffers()),
    ]


@pytest.mark.parametrize("shape", [(4, 5, 6, 7), (3, 5, 1, 1), (2, 5, 8, 8)], ids=str)
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_a_chain_of_layers_trains_and_infers_as_the_reference(name: str, shape: tuple[int, ...]) -> None:
    plain = chain(ACTIVATIONS[name])
    joined = copy.deepcopy(plain)
    assert fused.choose(joined, "fused") == 3
    x = images(*shape)
    for _ in range(2):
        for ours, theirs in zip(step(joined, x), step(plain, x), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)
    for mode in (True, False):
        with torch.no_grad():
            torch.testing.assert_close(joined.train(mode)(x) + 0, plain.train(mode)(x), rtol=1e-10, atol=1e-10)
    frozen = [step(model.eval(), x) for model in (joined, plain)]
    for ours, theirs in zip(*frozen, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The kernels that were called."""
    names: list[str] = []
    run = fused_norm_c._run

    def noted(name: str, *given: Tensor | float | None) -> None:
        names.append(name)
        run(name, *given)  # type: ignore[arg-type]

    monkeypatch.setattr(fused_norm_c, "_run", noted)
    return names


def test_a_layer_makes_two_passes_forward_and_one_call_backward(calls: list[str]) -> None:
    """Only the first layer's input has to be pooled by itself."""
    model = chain(nn.ReLU)
    fused.choose(model, "fused")
    step(model, images(4, 5, 6, 7))
    assert calls == ["sums", *["coefficients", "apply"] * 3, *["gradients"] * 3]


def test_a_folded_layer_makes_one_pass(calls: list[str]) -> None:
    plain = chain(nn.ReLU)
    step(plain, images(4, 5, 6, 7))  # running statistics that are not those of a new network
    fast = folded(plain)
    x = images(4, 5, 6, 7)
    with torch.no_grad():
        expected = plain.eval()(x)
        calls.clear()
        torch.testing.assert_close(fast(x), expected, rtol=1e-10, atol=1e-10)
    assert calls == ["sums", *["apply"] * 3]


def test_a_folded_map_that_its_activation_overwrote_cannot_be_read() -> None:
    z, shift = images(2, 3, 4, 4), torch.ones(2, 3, dtype=torch.float64)
    expected = F.relu(z + 1)
    with torch.no_grad():
        y = deferred.affine(z, None, shift, inner=True)
        torch.testing.assert_close(F.relu(y), expected)
        with pytest.raises(RuntimeError, match="overwritten"):
            y + 1


class Used(nn.Module):
    """A layer whose deferred maps are used in another way than a block uses them."""

    def __init__(self, use: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.site, self.norm = in_front("sb", channels=3, combine="add", kernel=3, inner=True)
        self.next, self.last = in_front("se", channels=3, combine="mul", kernel=3, inner=True)
        self.use = use

    def forward(self, x: Tensor) -> Tensor:
        y = self.site(x)
        z = self.use(y, self.norm(y))
        return self.last(self.next(z)).exp().clamp(max=5)


def in_place(y: Tensor, u: Tensor) -> Tensor:
    """u itself is activated, too."""
    x = F.relu(u, inplace=True)
    assert torch.equal(x, u)
    return x + u


USES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "the map itself": lambda y, u: y * 2,
    "the map beside its norm": lambda y, u: y + F.relu(u),
    "the norm twice": lambda y, u: u + F.relu(u) + F.relu6(u),
    "the norm, activated last": lambda y, u: torch.cat([u[:, :1], F.relu(u)[:, 1:]], 1),
    "methods": lambda y, u: u.relu() + torch.relu(u) + u.clamp(0, 1),
    "keywords": lambda y, u: F.relu(input=u) + F.hardtanh(u, 0.0, 6.0),
    "in place": in_place,
    "indices": lambda y, u: u[:, [1, 0, 2]].contiguous(memory_format=torch.channels_last),
    "another dtype": lambda y, u: u.float().double(),
}


@pytest.mark.parametrize("name", USES)
def test_every_other_use_of_a_deferred_map_finds_its_value(name: str) -> None:
    plain = Used(USES[name]).double()
    joined = copy.deepcopy(plain)
    assert fused.choose(joined, "fused") == 2
    x = images(4, 3, 6, 5)
    for ours, theirs in zip(step(joined, x), step(plain, x), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-7, atol=1e-7)


def test_a_map_that_was_changed_is_pooled_anew(calls: list[str]) -> None:
    with torch.no_grad():
        x = F.relu(deferred.affine(images(2, 3, 4, 4), None, torch.ones(2, 3, dtype=torch.float64), inner=True))
        torch.testing.assert_close(deferred.gap(x), x.mean((2, 3)))
        assert calls == ["apply"]
        x += 1
        torch.testing.assert_close(deferred.gap(x), x.mean((2, 3)))
        assert calls == ["apply", "sums"]


def test_hooks_see_the_usual_values() -> None:
    seen: dict[str, list[Tensor]] = {"reference": [], "fused": []}
    for backend, values in seen.items():
        model = chain(nn.ReLU)
        fused.choose(model, backend)  # type: ignore[arg-type]
        for layer in model:
            layer.register_forward_hook(lambda layer, x, y, values=values: values.append(y.detach().clone()))
            layer.register_forward_pre_hook(lambda layer, x, values=values: values.append(x[0].detach().sum()))
        values.append(model(images(2, 5, 4, 4)).detach())
    for ours, theirs in zip(seen["fused"], seen["reference"], strict=True):
        assert type(ours) is Tensor
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)


def test_a_deferred_map_is_saved_and_shown_as_its_value() -> None:
    model = chain(nn.ReLU)
    fused.choose(model, "fused")
    y = model[0](images(2, 5, 4, 4))
    assert isinstance(y, deferred.Combined)
    expected = chain(nn.ReLU)[0](images(2, 5, 4, 4))
    file = io.BytesIO()
    torch.save(y.detach(), file)
    file.seek(0)
    torch.testing.assert_close(torch.load(file), expected.detach())
    torch.testing.assert_close(torch.from_numpy(y.detach().numpy()), expected.detach())
    assert repr(y) == repr(y.value)


def test_a_network_ends_with_a_usual_tensor() -> None:
    for backbone in ("mobilenetv2", "resnet20", "shufflenetv2"):
        model = create_model(backbone, "sb", num_classes=3).to(memory_format=torch.channels_last)
        assert fused.choose(model, "fused")
        outputs: list[Tensor] = []
        for module in model.modules():
            if type(module).__name__ in ("InvertedResidual", "BasicBlock", "Linear"):
                module.register_forward_hook(lambda module, x, y, outputs=outputs: outputs.append(y))
        outputs.append(model(images(2, 3, 32, 32).float()))
        assert outputs and all(type(y) is Tensor for y in outputs)


def test_memory_is_free_after_a_step_without_the_garbage_collector() -> None:
    """A map that refers to its own graph is kept until Python looks for cycles; steps then need twice the memory."""
    stage = create_model("resnet20", "se", num_classes=3).get_submodule("layer1")
    model = nn.Sequential(nn.Conv2d(5, 5, 1), chain(nn.ReLU), nn.Conv2d(5, 16, 1), stage).double()
    model.to(memory_format=torch.channels_last)
    assert fused.choose(model, "fused") == 6
    alive: list[weakref.ref[Tensor]] = []
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(lambda module, x, y: alive.append(weakref.ref(y)))
    gc.collect()
    gc.disable()
    try:
        model(images(2, 5, 8, 8)).sum().backward()
        assert len(alive) == 11 and all(reference() is None for reference in alive)
    finally:
        gc.enable()


def test_without_kernels_the_results_are_the_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fused_norm_c.LIBRARY, "functions", None)
    plain = chain(nn.ReLU)
    joined = copy.deepcopy(plain)
    fused.choose(joined)
    x = images(2, 5, 4, 4)
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(step(joined, x), step(plain, x), strict=True))


def test_results_do_not_depend_on_the_number_of_threads() -> None:
    threads, results = torch.get_num_threads(), []
    try:
        for count in (1, 3):
            torch.set_num_threads(count)
            z, dy = images(5, 70, 9, 8).split(35, 1)
            z, dy = (part.contiguous(memory_format=torch.channels_last) for part in (z, dy))
            s, norm = torch.ones(5, 35, dtype=torch.float64), nn.BatchNorm2d(35).double()
            found = fused_norm_c.statistics(z, s, True, norm)
            given = (dy, s, z, s, norm.weight, found)
            y, gap = fused_norm_c.activated(z, found.a, found.b, "relu", pooled=True, inplace=False)
            back = fused_norm_c.gradients(*given, scaled=True, activation="relu")
            results.append([*found, y, gap, *back, *fused_norm_c.moments(z), fused_norm_c.sums(z)])
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(one, three) for one, three in zip(*results, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", [(2, 3, 16, 16), (1, 70, 5, 3), (3, 130, 2, 2), (2, 64, 1, 1), (1, 1, 7, 9)], ids=str)
def test_kernels_are_as_exact_as_their_precision(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    z = (torch.randn(shape) * 2 + 20).to(dtype).contiguous(memory_format=torch.channels_last)
    dy = torch.randn(shape).to(dtype).contiguous(memory_format=torch.channels_last)
    a, b, k = torch.randn(3, *shape[:2]).unbind()
    wide, slope, shift, rise = (t.double() for t in (z, a[..., None, None], b[..., None, None], k[..., None, None]))
    rounding = 1e-6 if dtype == torch.float32 else 5e-3

    def close(ours: Tensor, theirs: Tensor, bound: float) -> None:
        assert (ours.double() - theirs).norm() <= bound * theirs.norm() + 1e-12

    m, v = fused_norm_c.moments(z)
    close(m, wide.mean((2, 3)), 1e-6)
    close(v, wide.var((2, 3), correction=0), 2e-5)
    close(fused_norm_c.sums(z), wide.sum((2, 3)), 1e-6)
    close(fused_norm_c.apply(z, a, b), slope * wide + shift, rounding)
    da, db = fused_norm_c.reduce(dy, z)
    close(da, (dy.double() * wide).sum((2, 3)), 1e-5)
    close(db, dy.double().sum((2, 3)), 1e-5)
    close(fused_norm_c.back(dy, z, a, k, b), slope * dy.double() + rise * wide + shift, rounding)


def test_bfloat16_is_rounded_as_torch_rounds_it() -> None:
    values = torch.cat([torch.randn(4096) * 10.0**e for e in range(-30, 30)] + [torch.tensor([torch.inf, -torch.inf])])
    values = torch.cat([values, torch.tensor([torch.nan, 0.0, -0.0, 3.3895e38])]).view(1, -1, 1, 1)
    z = torch.zeros(values.shape, dtype=torch.bfloat16).contiguous(memory_format=torch.channels_last)
    rounded = fused_norm_c.apply(z, torch.ones(values.shape[:2]), values[:, :, 0, 0])
    torch.testing.assert_close(rounded, values.bfloat16(), rtol=0, atol=0, equal_nan=True)


def test_a_value_that_is_not_a_number_stays_one() -> None:
    z = images(1, 2, 3, 3)
    z[0, 1, 2, 2] = torch.nan
    ones = torch.ones(1, 2, dtype=torch.float64)
    for activation in ("none", "relu", "relu6"):
        y, gap = fused_norm_c.activated(z, ones, ones, activation, pooled=True, inplace=False)
        assert y.isnan().sum() == 1 and gap is not None and gap.isnan().tolist() == [[False, True]]
    assert [part.isnan().tolist() for part in fused_norm_c.moments(z)] == [[[False, True]]] * 2


def test_attention_everywhere_is_deferred_in_every_family_of_backbones() -> None:
    """Sites in front of a norm whose block goes on with an activation; the others end a block."""
    inner = {}
    for backbone in ("resnet50", "mobilenetv2_cifar", "shufflenetv2"):
        model = create_model(backbone, "sb", num_classes=3)
        sites = [module for module in model.modules() if isinstance(module, Attended)]
        inner[backbone] = (sum(site.before_norm and site.inner for site in sites), sum(s.before_norm for s in sites))
    assert inner == {"resnet50": (32, 48), "mobilenetv2_cifar": (34, 51), "shufflenetv2": (38, 54)}
