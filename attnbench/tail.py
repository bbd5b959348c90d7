"""How the attention at a site is computed: as written, as one affine map for a compiler, or fused for eager execution.

All backends give the same values, gradients, running statistics and state dict. What cannot be fused, an attention
that sees more than gap(x) or a trunk without a batch norm at its end, stays as it is written.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from attnbench.attention.squeeze import PooledAttention
from attnbench.insertion import Attended, Backend, reference
from attnbench.ops import tail
from attnbench.options import Tail


def choose(model: nn.Module, name: Tail = "auto") -> int:
    """Set the backend of every site of a model.

    Args:
        name: ``reference``; ``algebraic``, for a compiler; ``fused``, for eager execution; or ``auto``, which is
            algebraic when it is compiled, and else fused.

    Returns:
        How many sites do not run as they are written.
    """
    sites = [module for module in model.modules() if isinstance(module, Attended)]
    for site in sites:
        site.backend = BACKENDS[name] if name != "reference" and is_fusable(site) else reference
    return sum(site.backend is not reference for site in sites)


def is_fusable(site: Attended) -> bool:
    """Whether y is an affine map of a convolution's output, with coefficients that gap(x) or gap(T(x)) decides."""
    pooled = isinstance(site.attention, PooledAttention) and site.combine in ("mul", "add")
    return pooled and _norm(site.trunk) is not None


def _norm(trunk: nn.Module) -> tail.Norm | None:
    """The batch norm that a trunk is, or ends with."""
    last = trunk[-1] if isinstance(trunk, nn.Sequential) and len(trunk) else trunk
    return last if tail.is_plain(last) else None  # type: ignore[return-value]


def _before(trunk: nn.Module, x: Tensor) -> Tensor:
    """z, what a trunk's norm is given."""
    return trunk[:-1](x) if isinstance(trunk, nn.Sequential) else x


def _attention(site: Attended) -> PooledAttention:
    return cast(PooledAttention, site.attention)


def algebraic(site: Attended, x: Tensor) -> Tensor:
    """y = A[n,c] z + B[n,c] in plain operations, no pass over a map but those of batch norm."""
    norm = _norm(site.trunk)
    assert norm is not None
    z = _before(site.trunk, x)
    if norm.training:
        m, v = tail.moments(z)
        a, b = tail.coefficients(m, v, norm, z.shape[2] * z.shape[3])
    else:
        m = tail.mean(z)
        a, b = tail.running_coefficients(norm)
    pooled = a * m + b if site.reads == "output" else m if x is z else _attention(site).squeeze(x)
    s = _attention(site).signal(pooled.to(z.dtype))
    return tail.affine(z, a * s, b * s) if site.combine == "mul" else tail.affine(z, a.expand_as(s), b + s)


def fused(site: Attended, x: Tensor) -> Tensor:
    """In training the passes of batch norm, one that pools and one that applies the signal; else a pass less."""
    norm = _norm(site.trunk)
    assert norm is not None
    if not torch.is_grad_enabled() and not norm.training:
        return _applied(site, norm, x)
    if not _can_pair(site, norm, x):
        return reference(site, x)
    pair = tail.Pair(site.combine)  # type: ignore[arg-type]
    z = _before(site.trunk, x)
    u, pooled = pair.normalised(z, norm)  # type: ignore[arg-type]
    return pair.combined(u, _attention(site).signal(pooled), z)


def _can_pair(site: Attended, norm: tail.Norm, x: Tensor) -> bool:
    usual = type(norm) is nn.BatchNorm2d and norm.momentum is not None and norm.training
    return usual and site.reads == "output" and torch.is_grad_enabled() and x.device.type == "cpu"


def _applied(site: Attended, norm: tail.Norm, x: Tensor) -> Tensor:
    """Evaluation: gap(u) is known before u is, so norm and signal are one pass."""
    z = _before(site.trunk, x)
    a, b = tail.running_coefficients(norm)
    pooled = tail.pool(x if site.reads == "input" else z)
    s = _attention(site).signal(pooled if site.reads == "input" else (a * pooled + b).to(z.dtype))
    scale, shift = (a * s, b * s) if site.combine == "mul" else (a.expand_as(s), b + s)
    return torch.addcmul(shift.to(z.dtype)[:, :, None, None], z, scale.to(z.dtype)[:, :, None, None])


def auto(site: Attended, x: Tensor) -> Tensor:
    """What fits how the network is called."""
    return algebraic(site, x) if torch.compiler.is_compiling() else fused(site, x)


BACKENDS: dict[str, Backend] = {"algebraic": algebraic, "fused": fused, "auto": auto}
