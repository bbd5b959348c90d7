"""Every backend for a norm with attention against the reference, in float64: values, gradients, statistics."""

from __future__ import annotations

import copy
import itertools
import pickle
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.multiprocessing.spawn import spawn

from attnbench import create_model
from attnbench.models import fused
from attnbench.models.attention.branch import Branch
from attnbench.models.attention.cbam import ConvolutionalBlockAttention
from attnbench.models.attention.eca import EfficientChannelAttention
from attnbench.models.attention.sb import ShiftAndBalance
from attnbench.models.attention.se_gc import GroupGate
from attnbench.models.attention.se_var2 import ChannelwiseGate
from attnbench.models.folding import folded
from attnbench.models.insertion import Attended
from attnbench.models.ops import fused_norm as ops
from attnbench.models.ops import fused_norm_c

SIGNALS: dict[str, Callable[[int, int], nn.Module]] = {
    "eca": lambda i, o: EfficientChannelAttention(3),
    "se": lambda i, o: Branch(i, 3, o, gate="sigmoid", bias=True),
    "se norm": lambda i, o: Branch(i, 4, o, gate="sigmoid", norm=True),
    "sb": lambda i, o: ShiftAndBalance(i, 4, o, lambda_init=0.3, gate="tanh", dropout=0.0),
    "weights": lambda i, o: ChannelwiseGate(o),
    "groups": lambda i, o: GroupGate(o, o),
    "cbam": lambda i, o: ConvolutionalBlockAttention(o, 3, 3, bias=True, norm=False),
}
# What attention reads and how its signal is applied; N, C, H, W.
READS, COMBINE = ("output", "input"), ("mul", "add")
SHAPES = [(4, 7, 5, 6), (3, 5, 1, 1), (1, 7, 4, 4), (2, 1, 3, 2)]


class Block(nn.Module):
    """The end of a block: [convolution,] batch norm with attention, residual, activation."""

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
    if signal == "cbam":
        nn.init.uniform_(norm.weight, -1.5, 1.5)  # a negative weight makes the smallest value the maximum
        reads, combine = "output", "replace"
    return Attended(trunk, SIGNALS[signal](channels, channels), reads=reads, combine=combine).double()  # type: ignore[arg-type]


def in_front(
    signal: str, *, channels: int, combine: str, reads: str = "input", kernel: int = 1, inner: bool = False
) -> nn.Sequential:
    """A convolution with attention, in front of a batch norm."""
    conv = nn.Conv2d(channels, channels, kernel, padding=kernel // 2, bias=False)
    placed = Attended(conv, SIGNALS[signal](channels, channels), reads=reads, combine=combine)  # type: ignore[arg-type]
    placed.before_norm, placed.inner = True, inner
    norm = nn.BatchNorm2d(channels, momentum=0.3)
    nn.init.uniform_(norm.weight, 0.5, 1.5)
    nn.init.uniform_(norm.bias)
    nn.init.uniform_(norm.running_mean)  # type: ignore[arg-type]
    return nn.Sequential(placed, norm)


def outcome(block: nn.Module, x: Tensor, r: Tensor) -> list[Tensor]:
    """All results of a step: the output, the gradients of both inputs and of all weights, and the buffers."""
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
    x, r = (
        image.to(memory_format=torch.channels_last) for image in torch.randn(2, *shape, dtype=torch.float64) * 3 + 5
    )
    batch_statistics = shape[0] * shape[2] * shape[3] > 1 and (shape[0] > 1 or signal not in ("se norm", "sb"))
    ways = itertools.cycle([(False, nn.ReLU()), (True, nn.ReLU6()), (True, nn.Identity())])
    kinds = itertools.product((True, False) if batch_statistics else (False,), (False, True), READS, COMBINE)
    for training, ends, reads, combine in kinds:
        made = site(signal, channels=shape[1], ends=ends, reads=reads, combine=combine)
        block = Block(made, *next(ways)).train(training)
        other = copy.deepcopy(block)
        assert fused.choose(other, backend) == 1  # type: ignore[arg-type]
        for ours, theirs in zip(outcome(other, x, r), outcome(block, x, r), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)
        with torch.no_grad():
            torch.testing.assert_close(other(x, r), block(x, r), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    "memory_format", [torch.channels_last, pytest.param(torch.contiguous_format, marks=pytest.mark.slow)]
)
def test_a_whole_network_trains_the_same_with_each_backend(memory_format: torch.memory_format) -> None:
    for attention, sites in {"se": 9, "eca": 9, "sb": 18, "se_layer": 18, "cbam": 9, "gsop": 0}.items():
        torch.manual_seed(0)
        kwargs = {"placement_kwargs": {"wrap": "conv_norm"}} if attention in ("sb", "se_layer") else {}
        plain = create_model("resnet20", attention, num_classes=3, **kwargs).double()  # type: ignore[arg-type]
        x = torch.randn(4, 3, 12, 12, dtype=torch.float64).to(memory_format=memory_format)
        models = {}
        for backend in ("reference", "algebraic", "fused", "auto"):
            model = models[backend] = copy.deepcopy(plain).to(memory_format=memory_format)
            count = fused.choose(model, backend)
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


@pytest.mark.parametrize("attention", ["sb", pytest.param("se_layer", marks=pytest.mark.slow)])
@pytest.mark.parametrize("backbone", ["mobilenetv2_cifar", pytest.param("resnet18", marks=pytest.mark.slow)])
def test_a_network_with_attention_at_every_convolution_trains_the_same(backbone: str, attention: str) -> None:
    """To rounding, which these networks amplify: as much as changes of the weights in their last bits."""
    torch.manual_seed(0)
    kwargs = {"backbone_kwargs": {"width": 0.35}} if backbone == "mobilenetv2_cifar" else {}
    plain = create_model(backbone, attention, num_classes=3, **kwargs).double()  # type: ignore[arg-type]
    x = torch.randn(4, 3, 32, 32, dtype=torch.float64)
    joined, rounded = copy.deepcopy(plain), copy.deepcopy(plain)
    assert fused.choose(joined, "algebraic") == sum(isinstance(module, Attended) for module in plain.modules())
    with torch.no_grad():
        for weight in rounded.parameters():
            weight.mul_(1 + 1e-15 * torch.randn_like(weight))
    for model in (plain, joined, rounded):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
        for _ in range(3):
            model(x).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
    assert list(joined.state_dict()) == list(plain.state_dict())

    def distance(model: nn.Module) -> float:
        ours, theirs = (torch.cat([t.flatten() for t in m.state_dict().values()]) for m in (model, plain))
        return float((ours - theirs).norm() / theirs.norm())

    assert distance(joined) < 20 * distance(rounded) + 1e-12
    with torch.no_grad():
        torch.testing.assert_close(folded(joined)(x), joined.eval()(x), rtol=1e-9, atol=1e-9)


class Twice(nn.Module):
    """Two convolutions before one norm, whose first input is also used by others."""

    def __init__(self) -> None:
        super().__init__()
        (self.conv1, self.norm), (self.conv2, _) = (in_front("sb", channels=3, combine="add") for _ in range(2))

    def forward(self, x: Tensor, r: Tensor) -> Tensor:
        y = self.conv1(x)
        u = self.norm(y)
        return y * self.norm(self.conv2(u) * 2) + self.norm(self.conv2(u)) + r


def norms_that_used_what_their_input_carries(block: nn.Module, x: Tensor, monkeypatch: pytest.MonkeyPatch) -> int:
    """How many batch norms computed their moments from those of z."""
    calls: list[Tensor] = []
    moments = ops.moments

    def counted(z: Tensor) -> tuple[Tensor, Tensor]:
        calls.append(z)
        return moments(z)

    monkeypatch.setattr(ops, "moments", counted)
    block(x, x)
    monkeypatch.undo()
    return len(calls)


@pytest.mark.parametrize(("signal", "combine"), [("sb", "add"), ("se", "mul")])
def test_attention_in_front_of_a_norm_is_as_precise_in_bfloat16_as_the_reference(signal: str, combine: str) -> None:
    torch.manual_seed(0)
    block = Block(in_front(signal, channels=8, combine=combine, kernel=3), True, nn.ReLU())
    x, r = torch.randn(2, 4, 8, 12, 12) * 2 + 3
    exact = outcome(copy.deepcopy(block).double(), x.double(), r.double())
    errors = []
    for name in ("reference", "algebraic", "fused"):
        other = copy.deepcopy(block)
        assert fused.choose(other, name) == (name != "reference")
        with torch.autocast("cpu", torch.bfloat16):
            y = outcome(other, *(image.bfloat16().to(memory_format=torch.channels_last) for image in (x, r)))
        assert y[0].dtype == torch.bfloat16
        errors.append([float((a.double() - b).norm() / b.double().norm()) for a, b in zip(y, exact, strict=True)])
    for reference_error, *others in zip(*errors, strict=True):
        assert max(others) < 1.5 * reference_error + 2e-3


def test_the_norm_behind_attention_uses_z_and_s_only_of_its_own_input(monkeypatch: pytest.MonkeyPatch) -> None:
    def used(block: nn.Module) -> int:
        return norms_that_used_what_their_input_carries(block, x, monkeypatch)

    torch.manual_seed(0)
    x = torch.randn(4, 3, 5, 6, dtype=torch.float64)
    plain = Twice().double()
    joined = copy.deepcopy(plain)
    assert fused.choose(joined, "algebraic") == 2
    copied, pickled = copy.deepcopy(joined), pickle.loads(pickle.dumps(joined))
    with torch.no_grad():  # stock batch norms cannot be called twice before a backward pass
        expected = [plain(x, x), *plain.buffers()]
        for block in (joined, copied, pickled):
            for ours, theirs in zip([block(x, x), *block.buffers()], expected, strict=True):
                torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)
            assert used(block) == 2
    hooked = copy.deepcopy(joined)
    hooked.conv2.register_forward_hook(lambda site, x, y: y + 1)
    assert used(hooked) == 1
    exchanged = copy.deepcopy(joined)
    exchanged.norm = nn.BatchNorm2d(3).double()
    assert used(exchanged) == 0
    assert fused.choose(joined, "reference") == 0
    assert used(joined) == 0
    assert "forward" not in vars(joined.norm)
    joined.norm.forward = foreign = lambda y: y
    for backend in ("algebraic", "reference"):
        fused.choose(joined, backend)
        assert vars(joined.norm)["forward"] is foreign


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(("signal", "combine"), [("se", "mul"), ("eca", "mul"), ("weights", "mul"), ("se", "add")])
def test_the_default_backend_fuses_the_norm_with_its_attention_on_a_cpu(
    signal: str, combine: str, training: bool
) -> None:
    """Seen by the norm's forward hook, which only the reference triggers."""
    calls = {}
    for name in ("auto", "reference"):
        made = site(signal, channels=4, ends=True, reads="output", combine=combine).train(training)
        assert fused.choose(made, *([] if name == "auto" else [name])) == (name == "auto")  # type: ignore[arg-type]
        called: list[nn.Module] = []
        trunk = made.trunk
        assert isinstance(trunk, nn.Sequential)
        trunk[-1].register_forward_hook(lambda norm, x, y, called=called: called.append(norm))
        for layout in (torch.channels_last, torch.contiguous_format):  # kernels are for channels_last
            with torch.set_grad_enabled(training):
                made(torch.randn(3, 4, 5, 6, dtype=torch.float64).to(memory_format=layout))
            calls[name, layout] = len(called)
    assert list(calls.values()) == ([0, 1, 1, 2] if fused_norm_c.LIBRARY.functions else [1, 2, 1, 2])


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("signal", [name for name in SIGNALS if name != "cbam"])
@pytest.mark.parametrize("backend", ["algebraic", "fused"])
def test_attention_in_front_of_a_norm_equals_the_reference(backend: str, signal: str, shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    x, r = (
        image.to(memory_format=torch.channels_last) for image in torch.randn(2, *shape, dtype=torch.float64) * 3 + 5
    )
    batch_statistics = shape[0] * shape[2] * shape[3] > 1 and (shape[0] > 1 or signal not in ("se norm", "sb"))
    momenta = itertools.cycle([0.3, None])
    for training, reads, combine in itertools.product({batch_statistics, False}, READS, COMBINE):
        made = in_front(signal, channels=shape[1], reads=reads, combine=combine).double()
        made[1].momentum = next(momenta)  # type: ignore[assignment]
        block = Block(made, True, nn.ReLU()).train(training)
        other = copy.deepcopy(block)
        assert fused.choose(other, backend) == 1  # type: ignore[arg-type]
        other = copy.deepcopy(other)
        for _ in range(2):
            for ours, theirs in zip(outcome(other, x, r), outcome(block, x, r), strict=True):
                torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)
        with torch.no_grad():
            torch.testing.assert_close(other(x, r), block(x, r), rtol=1e-10, atol=1e-10)


def test_a_compiled_network_trains_as_the_reference() -> None:
    torch.manual_seed(0)
    first = site("se", channels=3, ends=True, reads="output", combine="mul")
    pairs = (("sb", "add"), ("se", "mul"))
    front = [in_front(signal, channels=3, combine=combine).double() for signal, combine in pairs]
    plain = nn.Sequential(first, nn.ReLU(), site("sb", channels=3, ends=True, reads="input", combine="add"), *front)
    x = torch.randn(4, 3, 6, 6, dtype=torch.float64)
    compiled = copy.deepcopy(plain)
    assert fused.choose(compiled) == 4
    torch.compile(compiled, backend="aot_eager", fullgraph=True)(x).square().mean().backward()
    plain(x).square().mean().backward()
    for (name, ours), theirs in zip(compiled.named_parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-10, atol=1e-10, msg=name)
    for moved, still in zip(compiled.buffers(), plain.buffers(), strict=True):
        torch.testing.assert_close(moved, still, rtol=1e-10, atol=1e-10)


# Passes over whole maps in compiled code


def passes(site: Callable[[int], nn.Module], backend: str) -> float:
    """Passes over a map in the compiled forward and backward code of a site of c channels, residual and ReLU."""
    compile_fx = pytest.importorskip("torch._inductor.compile_fx")
    graphs = pytest.importorskip("torch._inductor.graph")
    debug = pytest.importorskip("torch._inductor.debug")
    post_grad = pytest.importorskip("torch._inductor.fx_passes.post_grad")
    virtualized = pytest.importorskip("torch._inductor.virtualized").V
    n, c, side = 4, 8, 40  # large maps: the compiler computes mean and variance in one pass
    seen: list[Any] = []

    def inner(graph: Any, inputs: Any, **options: Any) -> Any:
        mode = torch._guards.detect_fake_mode(inputs)
        compile_fx.record_original_output_strides(graph)
        with virtualized.set_fake_mode(mode), virtualized.set_debug_handler(debug.DebugContext()):
            post_grad.post_grad_passes(graph, False)
            lowered = graphs.GraphLowering(graph, example_inputs=inputs)
            with virtualized.set_graph_handler(lowered):
                lowered.run(*inputs)
                lowered._update_scheduler()
                seen.extend(node.get_read_write_buffers_sizes() for node in lowered.scheduler.nodes)
        return graph.forward

    torch.manual_seed(0)
    block = Block(site(c), True, nn.ReLU()).to(memory_format=torch.channels_last)
    fused.choose(block, backend)  # type: ignore[arg-type]
    z, r, dy = (torch.randn(n, c, side, side).contiguous(memory_format=torch.channels_last) for _ in range(3))
    with torch._inductor.config.patch(force_disable_caches=True):
        torch._dynamo.reset()
        compiled = torch.compile(
            block, fullgraph=True, backend=lambda *graph: compile_fx.compile_fx(*graph, inner_compile=inner)
        )
        compiled(z.requires_grad_() * 1, r.requires_grad_() * 1).backward(dy)
    return sum(seen) / (z.numel() * z.element_size())


@pytest.mark.filterwarnings("ignore:Your compiler for AOTAutograd")
def test_compiled_attention_makes_no_more_passes_over_a_map_than_batch_norm() -> None:
    def at_norm(signal: str) -> Callable[[int], nn.Module]:
        reads, combine = ("input", "add") if signal == "sb" else ("output", "mul")
        return lambda c: Attended(nn.BatchNorm2d(c), SIGNALS[signal](c, c), reads=reads, combine=combine)  # type: ignore[arg-type]

    plain = passes(nn.BatchNorm2d, "reference")
    assert plain > 8
    assert passes(at_norm("se"), "reference") > plain + 4  # the count notices additional passes
    for signal in ("se", "eca", "sb"):
        assert passes(at_norm(signal), "auto") < plain + 0.5, signal


@pytest.mark.filterwarnings("ignore:Your compiler for AOTAutograd")
def test_compiled_attention_in_front_of_a_norm_makes_one_pass_more_to_pool_its_input() -> None:
    def layer(signal: str, combine: str) -> Callable[[int], nn.Module]:
        return lambda c: nn.Sequential(nn.ReLU(), in_front(signal, channels=c, combine=combine, kernel=3))

    def without(c: int) -> nn.Module:
        return nn.Sequential(nn.ReLU(), nn.Conv2d(c, c, 3, padding=1, bias=False), nn.BatchNorm2d(c))

    plain = passes(without, "reference")
    for signal, combine in (("sb", "add"), ("se", "mul")):
        assert passes(layer(signal, combine), "reference") > plain + 1.5
        assert plain + 0.5 < passes(layer(signal, combine), "auto") < plain + 1.5


# Batch norm over processes


def _sync(rank: int, port: int, folder: Path, backend: str) -> None:
    dist.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    blocks, x = torch.load(folder / "whole.pt", weights_only=False)
    results = []
    for block in blocks:
        (norm,) = (module for module in block.modules() if type(module) is nn.SyncBatchNorm)
        assert fused.choose(block, backend) == 1  # type: ignore[arg-type]
        part = x[:2] if rank == 0 else x[2:]  # of different sizes
        part = part.clone(memory_format=torch.channels_last).requires_grad_()
        y = block(part)
        (y * torch.arange(1.0, y.numel() + 1, dtype=y.dtype).view_as(y)).sum().backward()
        results.append((y.detach(), part.grad, norm.running_var))
    torch.save(results, folder / f"{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.parametrize("backend", ["algebraic", "fused"])
def test_statistics_over_two_processes_are_those_of_the_whole_batch(backend: str, tmp_path: Path) -> None:
    if backend == "fused" and fused_norm_c.LIBRARY.functions is None:
        pytest.skip("no C compiler, and torch's synchronised norm is for GPUs")
    torch.manual_seed(0)
    behind = site("eca", channels=6, ends=False, reads="output", combine="mul")
    front = [in_front("eca", channels=6, combine=combine).double() for combine in COMBINE]
    split = [nn.SyncBatchNorm.convert_sync_batchnorm(copy.deepcopy(whole)) for whole in (behind, *front)]
    images = torch.randn(5, 6, 3, 4, dtype=torch.float64)
    torch.save((split, images), tmp_path / "whole.pt")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    spawn(_sync, (port, tmp_path, backend), nprocs=2)
    for whole, *parts in zip(
        (behind, *front), *(torch.load(tmp_path / f"{rank}.pt") for rank in range(2)), strict=True
    ):
        (norm,) = (module for module in whole.modules() if type(module) is nn.BatchNorm2d)
        x = images.clone().requires_grad_()
        y = whole(x)
        weights = [torch.arange(1.0, part[0].numel() + 1, dtype=y.dtype).view_as(part[0]) for part in parts]
        (y * torch.cat(weights)).sum().backward()
        for i, ours in enumerate((y.detach(), x.grad)):
            torch.testing.assert_close(torch.cat([part[i] for part in parts]), ours, rtol=1e-10, atol=1e-10)
        for part in parts:
            torch.testing.assert_close(part[2], norm.running_var, rtol=1e-10, atol=1e-10)


def test_sites_that_cannot_be_fused_are_recognised() -> None:
    frozen = nn.BatchNorm2d(4, affine=False)
    assert not ops.is_plain(frozen)
    eca = EfficientChannelAttention(3)
    for trunk in (frozen, nn.Conv2d(4, 4, 1), nn.Sequential(nn.BatchNorm2d(4), nn.ReLU())):
        assert not fused.is_fusable(Attended(trunk, eca, reads="output", combine="mul"))
    assert not fused.is_fusable(Attended(nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1), reads="output", combine="mul"))
    assert fused.is_fusable(Attended(nn.BatchNorm2d(4), eca, reads="output", combine="mul"))
    for before_norm in (False, True):
        made = Attended(nn.Conv2d(4, 4, 1), eca, reads="input", combine="add")
        made.before_norm = before_norm
        assert fused.is_fusable(made) == before_norm
