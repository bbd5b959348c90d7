"""Global pooling, and base classes for attention that depends on pooled values of a feature map."""

from __future__ import annotations

from torch import Tensor, nn

from attnbench.models import deferred


class Squeeze(nn.Module):
    """gap(x), (N, C, H, W) to (N, C), as a module, so that operation counters find it by its type."""

    def forward(self, x: Tensor) -> Tensor:
        """The mean over the map, (N, C, H, W) to (N, C)."""
        return deferred.gap(x)


class PooledAttention(nn.Module):
    """a = signal(gap(x)), (N, C_in, H, W) to a signal (N, C_out, 1, 1).

    Attention that depends only on gap(x) needs no additional pass over a feature map: see ``attnbench.models.fused``.
    """

    def __init__(self) -> None:
        super().__init__()
        self.squeeze = Squeeze()

    def signal(self, pooled: Tensor) -> Tensor:
        """The method's equation, (N, C_in) to (N, C_out)."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        """The signal in a shape that broadcasts over maps, (N, C_in, H, W) to (N, C_out, 1, 1)."""
        return self.signal(self.squeeze(x))[:, :, None, None]


class ChannelFirst(nn.Module):
    """y = rest(x * signal(gap(x), max(x))), (N, C, H, W): a channel gate, then another operation on the gated map.

    After a batch norm, gap(x) and max(x) can be computed from the norm's input: see ``attnbench.models.fused``.
    """

    def __init__(self) -> None:
        super().__init__()
        self.squeeze = Squeeze()

    def signal(self, pooled: Tensor, peak: Tensor) -> Tensor:
        """The gate of each channel from its mean and its maximum, (N, C) each, to (N, C)."""
        raise NotImplementedError

    def rest(self, x: Tensor) -> Tensor:
        """The operation on the gated map, (N, C, H, W) to (N, C, H, W)."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        """The refined map, (N, C, H, W) to (N, C, H, W)."""
        gate = self.signal(self.squeeze(x), x.amax((2, 3)))[:, :, None, None]
        return self.rest(x * gate.to(x.dtype))
