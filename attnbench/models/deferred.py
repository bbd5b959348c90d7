"""Tensors whose last operation waits for the module behind, in eager execution, so that both are one pass over a map.

A convolution with attention returns z for z + s or z s. The norm behind it computes the statistics of that sum from
those of z, and returns a map that is not yet normalised. The activation behind it then normalises and activates in one
pass, and takes gap(x) of its result in the same pass, for the attention of the next convolution. Any other operation on
a deferred tensor first computes its value.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.utils._pytree import tree_map_only

from attnbench.models.insertion import combined
from attnbench.models.ops import fused_norm_c
from attnbench.models.ops.fused_norm_c import Activation, Statistics
from attnbench.models.ops.fused_norm_kernels import kernels, pool


class Deferred(Tensor):
    """A map (N, C, H, W) that is computed at its first use; it holds the memory of the map z that it is made of."""

    _value: Tensor

    @property
    def value(self) -> Tensor:
        """The map as a usual tensor."""
        if "_value" not in vars(self):
            self._value = self.compute()
        return self._value

    def compute(self) -> Tensor:
        """The waiting operation."""
        raise NotImplementedError

    @classmethod
    def __torch_function__(
        cls, function: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Called by torch for every function and method of a tensor."""
        args, kwargs = tree_map_only(Deferred, lambda y: y.value, (tuple(args), dict(kwargs or {})))
        return function(*args, **kwargs)


class Combined(Deferred):
    """z + s or z s of a map z and a signal s, (N, C).

    Attributes:
        carried: z, s, and ``add`` or ``mul``.
        goes_on: whether the norm behind is not the last layer of its block.
    """

    carried: tuple[Tensor, Tensor, str]
    goes_on: bool

    @classmethod
    def of(cls, z: Tensor, s: Tensor, combine: str, goes_on: bool) -> Combined:
        """A map and a signal that are to be combined."""
        y = z.as_subclass(cls)
        y.carried, y.goes_on = (z, s, combine), goes_on
        return y

    def compute(self) -> Tensor:
        """z + s or z s."""
        return combined(*self.carried)


class Unactivated(Deferred):
    """A map that an activation behind it computes together with itself."""

    def activated(self, activation: Activation, inplace: bool) -> tuple[Tensor, Tensor | None]:
        """The activated map, and its mean over each map, (N, C), unless there is no activation."""
        raise NotImplementedError

    def compute(self) -> Tensor:
        """The map without an activation."""
        y, _ = self.activated("none", inplace=False)
        return y

    @classmethod
    def __torch_function__(
        cls, function: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Called by torch for every function and method of a tensor."""
        x, activation = args[0] if args else None, _activation(function, args[1:], kwargs or {})
        if activation is None or not isinstance(x, Unactivated) or "_value" in vars(x):
            return super().__torch_function__(function, types, args, kwargs)
        inplace = bool(kwargs and kwargs.get("inplace"))
        y, gap = x.activated(activation, inplace)
        if not y.is_inference():  # whose changes are not counted
            y.pooled = gap, y._version  # type: ignore[attr-defined]
        if inplace:
            x._value = y
        return y


class Normalised(Unactivated):
    """BN(z + s) or BN(z s) in training, of which the statistics are known."""

    parts: tuple[Tensor, Tensor, bool, nn.BatchNorm2d, Statistics]

    @classmethod
    def of(cls, norm: nn.BatchNorm2d, y: Combined) -> Normalised:
        """The norm of y; updates the running statistics."""
        z, s, combine = y.carried
        u = z.as_subclass(cls)
        with torch.no_grad():
            u.parts = (z, s, combine == "mul", norm, fused_norm_c.statistics(z, s, combine == "mul", norm))
        return u

    def activated(self, activation: Activation, inplace: bool) -> tuple[Tensor, Tensor | None]:
        """The activated map, and its mean over each map, (N, C), unless there is no activation."""
        z, s, scaled, norm, found = self.parts
        y, gap = _Activated.apply(z, s, norm.weight, norm.bias, scaled, activation, found)
        return y, gap


class Affine(Unactivated):
    """A z + B, A and B (N, C), without gradients, in the memory of z; A is 1 if it is None."""

    parts: tuple[Tensor, Tensor | None, Tensor]
    overwritten = False

    @classmethod
    def of(cls, z: Tensor, a: Tensor | None, b: Tensor) -> Affine:
        """The map; z must not be used any more."""
        y = z.as_subclass(cls)
        y.parts = (z, a, b)
        return y

    def activated(self, activation: Activation, inplace: bool) -> tuple[Tensor, Tensor | None]:
        """The activated map, and its mean over each map, (N, C), unless there is no activation."""
        if self.overwritten:
            raise RuntimeError("this map was overwritten by its activation; use a copy of it before")
        self.overwritten = True
        return fused_norm_c.activated(*self.parts, activation, pooled=activation != "none", inplace=True)


def _activation(function: Callable[..., Any], given: Sequence[Any], named: Mapping[str, Any]) -> Activation | None:
    """The activation that a function of torch is, when called as torch's modules call it."""
    if given:
        return None
    if function is F.hardtanh and (named.get("min_val"), named.get("max_val")) == (0, 6):
        return "relu6"
    return {F.relu: "relu", F.relu6: "relu6"}.get(function)  # type: ignore[return-value]


def plain(x: Tensor) -> Tensor:
    """The value of a tensor that may be deferred."""
    return x.value if isinstance(x, Deferred) else x


def gap(x: Tensor) -> Tensor:
    """The mean of each map, (N, C, H, W) to (N, C), which may have been computed together with x."""
    if torch.compiler.is_compiling():
        return pool(x)
    x = plain(x)
    known, version = getattr(x, "pooled", (None, 0))
    return known if known is not None and version == x._version else pool(x)


def for_norm(z: Tensor, goes_on: bool) -> Tensor:
    """z (N, C, H, W), which waits for the norm behind it where there are kernels for both.

    Args:
        goes_on: whether that norm is not the last layer of its block.
    """
    waits = torch.is_grad_enabled() and kernels(z) is fused_norm_c
    return Combined.of(z, z.new_zeros(z.shape[:2]), "add", goes_on) if waits else z


def affine(z: Tensor, a: Tensor | None, b: Tensor, inner: bool) -> Tensor:
    """A z + B, (N, C, H, W), without gradients, in the memory of z, which must not be used any more.

    Args:
        a, b: A and B, (N, C); A is 1 if it is None.
        inner: whether an activation follows, which is then computed with it.
    """
    if kernels(z) is fused_norm_c and not torch.is_grad_enabled():
        y = Affine.of(z, a, b)
        return y if inner else y.activated("none", inplace=True)[0]
    shift = b.to(z.dtype)[:, :, None, None]
    return z + shift if a is None else torch.addcmul(shift, z, a.to(z.dtype)[:, :, None, None])


class _Activated(Function):
    @staticmethod
    def forward(
        ctx: Any,
        z: Tensor,
        s: Tensor,
        weight: Tensor,
        bias: Tensor,
        scaled: bool,
        activation: Activation,
        found: Statistics,
    ) -> tuple[Tensor, Tensor | None]:
        wanted = activation != "none"
        y, gap = fused_norm_c.activated(z, found.a, found.b, activation, pooled=wanted, inplace=False)
        ctx.save_for_backward(z, s, weight, *found)
        ctx.scaled, ctx.activation = scaled, activation
        ctx.set_materialize_grads(False)
        return y, gap

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor | None, dpooled: Tensor | None) -> tuple[Tensor | None, ...]:
        z, s, weight, *found = ctx.saved_tensors
        given = (torch.zeros_like(z) if dy is None else dy, dpooled, z, s, weight, Statistics(*found))
        dz, ds, dw, db = fused_norm_c.gradients(*given, scaled=ctx.scaled, activation=ctx.activation)
        return dz, ds.to(s.dtype), dw, db, None, None, None
