"""Backends that compute attention at a site: the reference, one affine map for a compiler, or fused eager code.

All backends give the same values, gradients, running statistics and state dict. A site uses the reference if it cannot
be fused: if its attention depends on more than pooled values, or if no batch norm ends its trunk or follows it.

Attention in front of a norm, BN(z + s) or BN(z s), is computed by the norm: the site's output carries z and s, and the
norm uses them if it is given this very tensor. Everything else sees z + s or z s: a compiler drops that sum if nothing
uses it, and in eager execution it is computed when something does.
"""

from __future__ import annotations

from functools import partial
from typing import cast

import torch
from torch import Tensor, nn

from attnbench.config.options import Tail
from attnbench.models import deferred
from attnbench.models.attention.squeeze import ChannelFirst, PooledAttention
from attnbench.models.deferred import Combined, Normalised
from attnbench.models.insertion import Attended, Backend, Replacement, combined, reference
from attnbench.models.ops import fused_norm, fused_norm_c
from attnbench.models.ops import fused_norm_kernels as by_kernels
from attnbench.models.ops.fused_norm_kernels import Kernels, Pair, kernels


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
    replacements = [module for module in model.modules() if isinstance(module, Replacement)]
    for module in replacements:
        module.joined = name in ("fused", "auto") and module.before_norm
    joined = [module for module in replacements if module.joined]
    fusing = [site for site in sites if site.backend is not reference]
    for norm in filter(fused_norm.is_plain, model.modules()):
        if getattr(vars(norm).get("forward"), "func", None) is normalised:
            del norm.forward
        if (joined or any(map(_is_in_front, fusing))) and "forward" not in vars(norm):
            norm.forward = partial(normalised, norm)  # type: ignore[method-assign]
    return len(fusing) + len(joined)


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


def _signal_coefficients(site: Attended, pooled: Tensor, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """A and B of y = A z + B, (N, C), from the norm's a and b and what the attention pooled."""
    s = _attention(site).signal(pooled)
    return (a * s, b * s) if site.combine == "mul" else (a.expand_as(s), b + s)


def _attention(site: Attended) -> PooledAttention:
    return cast(PooledAttention, site.attention)


def normalised(norm: fused_norm.Norm, y: Tensor) -> Tensor:
    """BN(y), (N, C, H, W), as A z + B if y carries z and s; the forward function of norms behind attention."""
    if not hasattr(y, "carried"):
        usual: Tensor = type(norm).forward(norm, y)  # type: ignore[arg-type]
        return usual
    if isinstance(y, Combined):
        return _normalised_by_kernels(norm, y)
    z, s, combine = y.carried
    moments = fused_norm.moments(z) if norm.training else None
    return fused_norm.affine(z, *_carried_coefficients(norm, moments, s, combine, z.shape[2] * z.shape[3]))


def _carried_coefficients(
    norm: fused_norm.Norm, moments: tuple[Tensor, Tensor] | None, s: Tensor, combine: str, positions: int
) -> tuple[Tensor, Tensor]:
    """A and B of BN(z + s) or BN(z s) = A z + B, (N, C), from the moments of z or else from running statistics.

    The moments of y = z + s over a map are m + s and v, those of y = z s are m s and v s^2. With them BN(y) = a y + b,
    so BN(z + s) = a z + (a s + b) and BN(z s) = (a s) z + b.
    """
    if moments is None:
        a, b = fused_norm.running_coefficients(norm)
    else:
        m, v = moments
        m, v = (m * s, v * s.square()) if combine == "mul" else (m + s, v)
        a, b = fused_norm.coefficients(m, v, norm, positions)
    return (a * s, b.expand_as(s)) if combine == "mul" else (a.expand_as(s), a * s + b)


# For a compiler


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
    m = m if site.trunk is norm or site.reads == "output" else _attention(site).squeeze(x)
    pooled = a * m + b if site.reads == "output" else m
    return fused_norm.affine(z, *_signal_coefficients(site, pooled.to(z.dtype), a, b))


def _carrying(site: Attended, x: Tensor) -> Tensor:
    """The reference's y = z + s or z s, which carries z and s to the norm behind the site."""
    z = site.trunk(x)
    s = _attention(site).signal(_attention(site).squeeze(x if site.reads == "input" else z))
    y = combined(z, s, site.combine)
    y.carried = (z, s, site.combine)  # type: ignore[attr-defined]
    return y


# For eager execution


def fused(site: Attended, x: Tensor) -> Tensor:
    """Norm and attention by kernels: two passes over a map forward and two backward, as many as a norm needs.

    It is the reference for maps without kernels, and for norms that are trained with their running statistics.
    """
    if torch.compiler.is_compiling():
        return algebraic(site, x)
    norm, x = _norm(site.trunk), deferred.plain(x)
    if isinstance(site.attention, ChannelFirst) or (norm and norm.training != torch.is_grad_enabled()):
        return reference(site, x)
    # Pooled before the convolution, whose gradient then comes first, so that the gradient of pooling is added in place.
    gap = deferred.gap(x) if site.reads == "input" and site.trunk is not norm else None
    z = _norm_input(site.trunk, x) if norm else site.trunk(x)
    by = kernels(z)
    if norm and by:
        return _by_kernels(site, norm, z, gap, by)
    y = norm(z) if norm else z
    s = _attention(site).signal(deferred.gap(x if site.reads == "input" else y) if gap is None else gap)
    return Combined.of(y, s, site.combine, site.inner) if by else combined(y, s, site.combine)


def _by_kernels(site: Attended, norm: fused_norm.Norm, z: Tensor, pooled: Tensor | None, by: Kernels) -> Tensor:
    """A z + B of a site whose trunk ends with a norm; ``pooled`` is gap(x) if that is not gap(z)."""
    positions = z.shape[2] * z.shape[3]
    pair = Pair(by) if norm.training else None
    if pair:
        z, m, v = pair.moments(z)
        a, b = fused_norm.coefficients(m, v, norm, positions)
    else:
        m = by.sums(z) / positions if pooled is None else torch.zeros(())
        a, b = fused_norm.running_coefficients(norm)
    if pooled is None:
        pooled = (a * m + b if site.reads == "output" else m).to(z.dtype)
    coefficients = _signal_coefficients(site, pooled, a, b)
    return pair.applied(z, *coefficients) if pair else by.apply(z, *coefficients)


def _normalised_by_kernels(norm: fused_norm.Norm, y: Combined) -> Tensor:
    z, s, combine = y.carried
    by = kernels(z)
    if by is None or norm.training != torch.is_grad_enabled():
        usual: Tensor = type(norm).forward(norm, y.value)  # type: ignore[arg-type]
        return usual
    if not norm.training:
        return by.apply(z, *_carried_coefficients(norm, None, s, combine, z.shape[2] * z.shape[3]))
    if isinstance(norm, nn.BatchNorm2d) and fused_norm_c.normalises(z, norm):
        return Normalised.of(norm, y) if y.goes_on else Normalised.of(norm, y).value
    return by_kernels.normalised(z, s, combine, norm, by)


def auto(site: Attended, x: Tensor) -> Tensor:
    """``algebraic`` under a compiler, else ``fused`` on a CPU; the CUDA kernels are used only by ``fused``."""
    if torch.compiler.is_compiling():
        return algebraic(site, x)
    return fused(site, x) if x.is_cpu else reference(site, x)


BACKENDS: dict[str, Backend] = {"algebraic": algebraic, "fused": fused, "auto": auto}
