"""Backends that compute attention at a site: the reference, one affine map for a compiler, or fused eager code.

All backends give the same values, gradients, running statistics and state dict. A site uses the reference if it cannot
be fused: if its attention depends on more than pooled values, or if no batch norm ends its trunk or follows it.

Attention in front of a norm, BN(z + s) or BN(z s), is computed by the norm: the site's output carries z and s, and the
norm uses them if it is given this very tensor. The output is computed, too, so that others can use it. If none does, a
compiler drops it.
"""

from __future__ import annotations

import logging
from functools import cache, partial
from types import ModuleType
from typing import cast

import torch
from torch import Tensor, nn

from attnbench.config.options import Tail
from attnbench.models.attention.squeeze import ChannelFirst, PooledAttention
from attnbench.models.insertion import COMBINE, Attended, Backend, reference
from attnbench.models.ops import fused_norm

log = logging.getLogger("attnbench")


def choose(model: nn.Module, name: Tail = "auto") -> int:
    """Set the backend of every site of a model.

    Args:
        name: ``reference``; ``algebraic``, for a compiler; ``fused``, for eager execution; or ``auto``, which is
            ``algebraic`` under a compiler, else ``fused`` on a CPU and ``reference`` on a GPU.

    Returns:
        The number of sites that do not use the reference.
    """
    sites = [module for module in model.modules() if isinstance(module, Attended)]
    for site in sites:
        site.backend = BACKENDS[name] if name != "reference" and is_fusable(site) else reference
    fusing = [site for site in sites if site.backend is not reference]
    for norm in filter(fused_norm.is_plain, model.modules()):
        if getattr(vars(norm).get("forward"), "func", None) is normalised:
            del norm.forward
        if any(map(_is_in_front, fusing)) and "forward" not in vars(norm):
            norm.forward = partial(normalised, norm)  # type: ignore[method-assign]
    return len(fusing)


def is_fusable(site: Attended) -> bool:
    """Whether the norm and the attention (of CBAM, the channel gate) are one affine map with pooled coefficients."""
    pooled = isinstance(site.attention, PooledAttention) and site.combine in ("mul", "add")
    gated = isinstance(site.attention, ChannelFirst) and (site.reads, site.combine) == ("output", "replace")
    return _is_in_front(site) if _norm(site.trunk) is None else pooled or gated


def _is_in_front(site: Attended) -> bool:
    """Whether the attention is one affine map with the norm behind the site."""
    pooled = isinstance(site.attention, PooledAttention) and site.combine in ("mul", "add")
    return pooled and site.before_norm and _norm(site.trunk) is None


def _norm(trunk: nn.Module) -> fused_norm.Norm | None:
    """The plain batch norm that a trunk is or ends with; None if it has none."""
    last = trunk[-1] if isinstance(trunk, nn.Sequential) and len(trunk) else trunk
    return last if fused_norm.is_plain(last) else None


def _norm_input(trunk: nn.Module, x: Tensor) -> Tensor:
    """z, the input of a trunk's norm."""
    return trunk[:-1](x) if isinstance(trunk, nn.Sequential) else x


def _coefficients(site: Attended, x: Tensor, a: Tensor, b: Tensor, m: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
    """A and B of y = A z + B, (N, C), from the norm's a and b and the means m of z."""
    attention = cast(PooledAttention, site.attention)
    is_norm = not isinstance(site.trunk, nn.Sequential)  # then z is x, and m is gap(x)
    pooled = a * m + b if site.reads == "output" else m if is_norm else attention.squeeze(x)
    s = attention.signal(pooled.to(z.dtype))
    return (a * s, b * s) if site.combine == "mul" else (a.expand_as(s), b + s)


def algebraic(site: Attended, x: Tensor) -> Tensor:
    """y = A[n,c] z + B[n,c] in plain operations, with no more passes over a map than batch norm."""
    norm = _norm(site.trunk)
    if norm is None:
        return _carrying(site, x)
    z = _norm_input(site.trunk, x)
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


def _carrying(site: Attended, x: Tensor) -> Tensor:
    """The reference's y = z + s or z s, which carries z and s to the norm behind the site."""
    attention = cast(PooledAttention, site.attention)
    z = site.trunk(x)
    s = attention.signal(attention.squeeze(x if site.reads == "input" else z))
    y = COMBINE[site.combine](z, s[:, :, None, None].to(z.dtype))
    y.carried = (z, s, site.combine)  # type: ignore[attr-defined]
    return y


def normalised(norm: fused_norm.Norm, y: Tensor) -> Tensor:
    """BN(y), (N, C, H, W), as A z + B if y carries z and s; the forward function of norms behind attention.

    The moments of y = z + s over a map are m + s and v, those of y = z s are m s and v s^2. With them BN(y) = a y + b,
    so BN(z + s) = a z + (a s + b) and BN(z s) = (a s) z + b.
    """
    if not hasattr(y, "carried"):
        usual: Tensor = type(norm).forward(norm, y)  # type: ignore[arg-type]
        return usual
    z, s, combine = y.carried
    if norm.training:
        m, v = fused_norm.moments(z)
        m, v = (m * s, v * s.square()) if combine == "mul" else (m + s, v)
        a, b = fused_norm.coefficients(m, v, norm, z.shape[2] * z.shape[3])
    else:
        a, b = fused_norm.running_coefficients(norm)
    scale, shift = (a * s, b.expand_as(s)) if combine == "mul" else (a.expand_as(s), a * s + b)
    return fused_norm.affine(z, scale, shift)


def fused(site: Attended, x: Tensor) -> Tensor:
    """Fused code for eager execution; in front of a norm the reference, since no eager code was found to be faster.

    On a CPU it makes the passes of batch norm, one to pool and one to apply the signal; on CUDA it runs four kernels.
    Without gradients, one pass applies norm and signal.
    """
    norm = _norm(site.trunk)
    if norm is None or isinstance(site.attention, ChannelFirst):
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
    z = _norm_input(site.trunk, x)
    u, pooled = pair.normalised(z, norm)
    return pair.combined(u, cast(PooledAttention, site.attention).signal(pooled), z)


def _by_kernels(site: Attended, norm: fused_norm.Norm, x: Tensor) -> Tensor:
    kernels = _triton()
    assert kernels is not None
    pair = kernels.Pair()
    z, m, v = pair.moments(_norm_input(site.trunk, x))
    a, b = fused_norm.coefficients(m, v, norm, z.shape[2] * z.shape[3])
    scale, shift = _coefficients(site, x, a, b, m, z)
    return pair.applied(z, scale, shift)


@cache
def _triton() -> ModuleType | None:
    """The module with the CUDA kernels; None, with a log line, if Triton is not installed."""
    try:
        from attnbench.models.ops import fused_norm_triton
    except ImportError:
        log.info("Triton is not installed: attention uses its reference implementation")
        return None
    return fused_norm_triton


def _evaluated(site: Attended, norm: fused_norm.Norm, x: Tensor) -> Tensor:
    """Norm and signal in one pass: with fixed statistics, gap(u) follows from gap(z)."""
    z = _norm_input(site.trunk, x)
    a, b = fused_norm.running_coefficients(norm)
    scale, shift = _coefficients(site, x, a, b, fused_norm.pool(z), z)
    return torch.addcmul(shift.to(z.dtype)[:, :, None, None], z, scale.to(z.dtype)[:, :, None, None])


def auto(site: Attended, x: Tensor) -> Tensor:
    """``algebraic`` under a compiler, else ``fused`` on a CPU; the CUDA kernels are used only by ``fused``."""
    if torch.compiler.is_compiling():
        return algebraic(site, x)
    return fused(site, x) if x.is_cpu else reference(site, x)


BACKENDS: dict[str, Backend] = {"algebraic": algebraic, "fused": fused, "auto": auto}
