"""Faster copies of networks for evaluation: batch norms are folded into convolutions, signals are computed early."""

from __future__ import annotations

import copy
import logging
import operator
from collections import Counter
from typing import cast

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval

from attnbench.models import deferred
from attnbench.models.attention.branch import Branch
from attnbench.models.attention.mixing import MixedConv2d
from attnbench.models.attention.squeeze import PooledAttention
from attnbench.models.insertion import COMBINE, Attended, Replacement, reference
from attnbench.models.ops import fused_norm

log = logging.getLogger("attnbench")

IN_PLACE = {"mul": operator.imul, "add": operator.iadd}  # on a map that nothing else reads
PRODUCTS = (nn.Conv1d, nn.Conv2d, nn.Linear)  # layers that autocast runs in its dtype; by exact type


def folded(model: nn.Module, dtype: torch.dtype | None = None) -> nn.Module:
    """A copy of a network for evaluation without gradients: the same outputs up to rounding, in fewer passes.

    Each batch norm u = a z + b, with its running statistics, is folded into the convolution before it, even if SB's
    shift or a gate comes between them (`Shifted`). A gate that depends on gap(u) of a pointwise convolution is
    computed before u (`Foreseen`). A network that cannot be traced is not copied: it is returned in evaluation mode.

    Args:
        dtype: the autocast dtype in which the copy is called. Weights are cast to it once; autocast would cast them
            for each batch.
    """
    network = copy.deepcopy(model).eval()
    for module in network.modules():
        if isinstance(module, Attended):
            module.backend = _unrounded
    try:
        calls = [node for node in _Tracer().trace(network).nodes if node.op == "call_module"]
    except Exception as error:  # tracing runs the network's code without values, which may fail in any way
        log.debug("%s is evaluated without folding: it cannot be traced (%s)", type(model).__name__, error)
        return model.eval()
    for module in network.modules():
        if isinstance(module, Attended):
            module.backend = reference
    times = Counter(call.target for call in calls)
    for norm in [call for call in calls if fused_norm.is_plain(network.get_submodule(str(call.target)))]:
        if times[norm.target] == 1:
            _fold(network, norm, times)
    _prepare(network, dtype)
    return network


def _prepare(network: nn.Module, dtype: torch.dtype | None) -> None:
    """Fold attention's own batch norms, and cast the weights of layers that autocast runs in its dtype."""
    for module in network.modules():
        if isinstance(module, Branch):
            _fold_branch(module)
    for module in network.modules():
        if dtype is not None and type(module) in PRODUCTS:
            module.to(dtype)


def _fold_branch(branch: Branch) -> None:
    """Fold an attention's own batch norms into its layers."""
    for layer, norm in (("reduce", "norm1"), ("expand", "norm2")):
        batch_norm = getattr(branch, norm)
        if type(batch_norm) is nn.BatchNorm1d and batch_norm.track_running_stats:
            setattr(branch, layer, fuse_linear_bn_eval(getattr(branch, layer), batch_norm))
            setattr(branch, norm, nn.Identity())


def _unrounded(site: Attended, x: Tensor) -> Tensor:
    """The reference, but for the rounding of the signal, which a trace would show as one more use of the trunk."""
    y = site.trunk(x)
    return COMBINE[site.combine](y, site.attention(x if site.reads == "input" else y))


class _Tracer(fx.Tracer):
    """Traces the inside of a site, but not of its attention."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        inserted = module_qualified_name.endswith(".attention")
        replaced = type(m).__module__.startswith("attnbench.models.attention.")  # as DyConv replaces a convolution
        return inserted or replaced or super().is_leaf_module(m, module_qualified_name)


def _fold(network: nn.Module, norm: fx.Node, times: Counter[object]) -> None:
    """Fold one batch norm into the convolution before it, if nothing else uses that convolution's output."""
    source = cast(fx.Node, norm.args[0])
    between = source.target in COMBINE.values()
    layer = cast(fx.Node, source.args[0]) if between else source
    alone = len(source.users) == len(layer.users) == times[layer.target] == 1
    if layer.op != "call_module" or not alone:
        return
    path, name = str(layer.target), str(norm.target)
    conv, batch_norm = network.get_submodule(path), cast(nn.BatchNorm2d, network.get_submodule(name))
    if isinstance(conv, Replacement) and isinstance(mixed := getattr(conv, "conv", None), MixedConv2d):
        network.set_submodule(name, _scaled(mixed, batch_norm, conv.inner))
    if type(conv) is not nn.Conv2d:
        return
    if not between:
        network.set_submodule(path, fuse_conv_bn_eval(conv, batch_norm))
    elif _is_shiftable(site := network.get_submodule(path.removesuffix(".trunk"))):
        network.set_submodule(path.removesuffix(".trunk"), Shifted(conv, cast(Attended, site), batch_norm))
    else:
        return
    network.set_submodule(name, nn.Identity())
    if not between:
        _foresee(network, path, name.partition(".trunk")[0])


def _scaled(conv: MixedConv2d, norm: nn.BatchNorm2d, inner: bool) -> nn.Module:
    """Multiply all kernels by a of u = a z + b; the module that adds b, which no mixture of biases is."""
    a, b = fused_norm.running_coefficients(norm)
    conv.weight = nn.Parameter(conv.weight * a.repeat(conv.count)[:, None, None, None])
    conv.bias = None if conv.bias is None else nn.Parameter(conv.bias * a)
    return Plus(b.detach(), inner)


class Plus(nn.Module):
    """y = x + b, b per channel, where x is not used again; (N, C, H, W) to (N, C, H, W)."""

    def __init__(self, b: Tensor, inner: bool) -> None:
        super().__init__()
        self.b, self.inner = nn.Buffer(b), inner

    def forward(self, x: Tensor) -> Tensor:
        """x + b, which may wait for the activation behind it."""
        return deferred.affine(x, None, self.b.expand(x.shape[:2]), self.inner)


def _is_shiftable(site: nn.Module) -> bool:
    if not isinstance(site, Attended) or not isinstance(site.attention, PooledAttention):
        return False
    return site.reads == "input" and site.combine in ("mul", "add")


def _foresee(network: nn.Module, conv: str, path: str) -> None:
    """Compute a site's signal from the input of the pointwise convolution before it, if that is the smaller map."""
    site, layer = network.get_submodule(path), cast(nn.Conv2d, network.get_submodule(conv))
    if not (isinstance(site, Attended) and _is_foreseeable(site, layer)):
        return
    if conv.startswith(f"{path}."):
        network.set_submodule(path, Foreseen(layer, site))
    else:
        network.set_submodule(conv, Foreseen(layer, site))
        network.set_submodule(path, nn.Identity())


def _is_foreseeable(site: Attended, conv: nn.Conv2d) -> bool:
    if not isinstance(site.attention, PooledAttention) or site.reads != "output" or site.combine == "replace":
        return False
    pointwise = conv.kernel_size == conv.stride == (1, 1) and conv.padding == (0, 0) and conv.groups == 1
    parts = list(site.trunk) if isinstance(site.trunk, nn.Sequential) else [site.trunk]
    alone = all(part is conv or isinstance(part, nn.Identity) for part in parts)
    return pointwise and alone and conv.in_channels < conv.out_channels


class Foreseen(nn.Module):
    """u = W h + b, y = u s or u + s with s = signal(gap(u)), where gap(u) = W gap(h) + b is known before u.

    Args:
        conv: W and b, pointwise, (N, C, H, W) to (N, C', H, W).
        site: has the attention, and how its signal is combined with u.
    """

    def __init__(self, conv: nn.Conv2d, site: Attended) -> None:
        super().__init__()
        self.conv, self.attention, self.combine = conv, cast(PooledAttention, site.attention), site.combine

    def forward(self, h: Tensor) -> Tensor:
        """The attended output y, (N, C, H, W) to (N, C', H, W)."""
        # Calling self.conv here would convert its weights to the layout of large maps, for each batch.
        pooled = F.linear(deferred.gap(h), self.conv.weight.flatten(1), self.conv.bias)
        s = self.attention.signal(pooled)[:, :, None, None]
        u = self.conv(h)
        return IN_PLACE[self.combine](u, s.to(u.dtype))


class Shifted(nn.Module):
    """y = a (W x + s) + b = (a W) x + (a s + b), where the signal is a bias per sample; or y = (a W) x s + b.

    Args:
        conv: W, (N, C, H, W) to (N, C', H', W').
        site: has the attention, which reads x, and how its signal is combined with W x.
        norm: the batch norm; its running statistics give a and b.
    """

    def __init__(self, conv: nn.Conv2d, site: Attended, norm: nn.Module) -> None:
        super().__init__()
        self.attention, self.combine, self.inner = cast(PooledAttention, site.attention), site.combine, site.inner
        a, b = fused_norm.running_coefficients(cast(fused_norm.Norm, norm))
        self.conv = copy.deepcopy(conv)
        self.conv.weight = nn.Parameter(conv.weight * a[:, None, None, None])
        self.conv.bias = nn.Parameter(conv.bias * a) if conv.bias is not None else None
        self.a, self.b = nn.Buffer(a.detach()), nn.Buffer(b.detach())

    def forward(self, x: Tensor) -> Tensor:
        """The attended and normalised output y, (N, C, H, W) to (N, C', H', W')."""
        s = self.attention.signal(deferred.gap(x))
        u = self.conv(x)
        if self.combine == "mul":
            return deferred.affine(u, s, self.b.expand_as(s), self.inner)
        return deferred.affine(u, None, self.a * s + self.b, self.inner)
