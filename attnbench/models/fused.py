"""How the attention at a site is computed: as written, as one affine map for a compiler, or fused for eager execution.

All backends give the same values, gradients, running statistics and state dict. What cannot be fused, an attention
that sees more than gap(x) or a trunk without a batch norm at its end, stays as it is written.
"""

from __future__ import annotations

import logging
from functools import cache
from types import ModuleType
from typing import cast

import torch
from torch import Tensor, nn

from attnbench.config.options import Tail
from attnbench.models.attention.squeeze import ChannelFirst, PooledAttention
from attnbench.models.insertion import Attended, Backend, reference
from attnbench.models.ops import fused_norm

log = logging.getLogger("attnbench")


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
    """Whether attention begins with an affine map of a convolution's output, whose coefficients pooling decides."""
    pooled = isinstance(site.attention, PooledAttention) and site.combine in ("mul", "add")
    gated = isinstance(site.attention, ChannelFirst) and (site.reads, site.combine) == ("output", "replace")
    return (pooled or gated) and _norm(site.trunk) is not None


def _norm(trunk: nn.Module) -> fused_norm.Norm | None:
    """The batch norm that a trunk is, or ends with."""
    last = trunk[-1] if isinstance(trunk, nn.Sequential) and len(trunk) else trunk
    return last if fused_norm.is_plain(last) else None  # type: ignore[return-value]


def _before(trunk: nn.Module, x: Tensor) -> Tensor:
    """z, what a trunk's norm is given."""
    return trunk[:-1](x) if isinstance(trunk, nn.Sequential) else x


def _coefficients(site: Attended, x: Tensor, a: Tensor, b: Tensor, m: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
    """A and B of y = A z + B, (N, C), from those of the norm and the means of z."""
    attention = cast(PooledAttention, site.attention)
    inside = not isinstance(site.trunk, nn.Sequential)  # then z is what the site is given
    pooled = a * m + b if site.reads == "output" else m if inside else attention.squeeze(x)
    s = attention.signal(pooled.to(z.dtype))
    return (a * s, b * s) if site.combine == "mul" else (a.expand_as(s), b + s)


def algebraic(site: Attended, x: Tensor) -> Tensor:
    """y = A[n,c] z + B[n,c] in plain operations, no pass over a map but those of batch norm."""
    norm = _norm(site.trunk)
    assert norm is not None
    z = _before(site.trunk, x)
    if norm.training:
        m, v = fused_norm.moments(z)
        a, b = fused_norm.coefficients(m, v, norm, z.shape[2] * z.shape[3])
    else:
        m = fused_norm.mean(z)
        a, b = fused_norm.running_coefficients(norm)
    if isinstance(site.attention, ChannelFirst):
        s = site.attention.signal((a * m + b).to(z.dtype), fused_norm.peak(z, a, b).to(z.dtype))
        return site.attention.rest(fused_norm.affine(z, a * s, b * s))
    return fused_norm.affine(z, *_coefficients(site, x, a, b, m, z))


def fused(site: Attended, x: Tensor) -> Tensor:
    """On a CPU the passes of batch norm, one that pools and one that applies the signal; on CUDA none but four kernels.

    Without gradients norm and signal are one pass.
    """
    norm = _norm(site.trunk)
    assert norm is not None
    if isinstance(site.attention, ChannelFirst):
        return reference(site, x)
    if not torch.is_grad_enabled() and not norm.training:
        return _evaluated(site, norm, x)
    if not (norm.training and torch.is_grad_enabled()):
        return reference(site, x)
    if x.is_cuda and _triton() is not None:
        return _by_kernels(site, norm, x)
    if x.is_cpu and site.reads == "output" and type(norm) is nn.BatchNorm2d and norm.momentum is not None:
        return _paired(site, norm, x)
    return reference(site, x)


def _paired(site: Attended, norm: nn.BatchNorm2d, x: Tensor) -> Tensor:
    pair = fused_norm.Pair(site.combine)  # type: ignore[arg-type]
    z = _before(site.trunk, x)
    u, pooled = pair.normalised(z, norm)
    return pair.combined(u, cast(PooledAttention, site.attention).signal(pooled), z)


def _by_kernels(site: Attended, norm: fused_norm.Norm, x: Tensor) -> Tensor:
    kernels = _triton()
    assert kernels is not None
    pair = kernels.Pair()
    z, m, v = pair.moments(_before(site.trunk, x))
    a, b = fused_norm.coefficients(m, v, norm, z.shape[2] * z.shape[3])
    scale, shift = _coefficients(site, x, a, b, m, z)
    return pair.applied(z, scale, shift)


@cache
def _triton() -> ModuleType | None:
    """The CUDA kernels; None, and a line that says so, where there is no Triton."""
    try:
        from attnbench.models.ops import fused_norm_triton
    except ImportError:
        log.info("no Triton: attention runs as it is written")
        return None
    return fused_norm_triton


def _evaluated(site: Attended, norm: fused_norm.Norm, x: Tensor) -> Tensor:
    """gap(u) is known before u is."""
    z = _before(site.trunk, x)
    a, b = fused_norm.running_coefficients(norm)
    scale, shift = _coefficients(site, x, a, b, fused_norm.pool(z), z)
    return torch.addcmul(shift.to(z.dtype)[:, :, None, None], z, scale.to(z.dtype)[:, :, None, None])


def auto(site: Attended, x: Tensor) -> Tensor:
    """What fits how the network is called; CUDA's kernels have to be asked for, by ``fused``."""
    if torch.compiler.is_compiling():
        return algebraic(site, x)
    return fused(site, x) if x.is_cpu else reference(site, x)


BACKENDS: dict[str, Backend] = {"algebraic": algebraic, "fused": fused, "auto": auto}
