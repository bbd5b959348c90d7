"""Global pooling, and attention that begins with it: how attention says what it has to know of a feature map."""

from __future__ import annotations

from torch import Tensor, nn


class Squeeze(nn.Module):
    """gap(x), (N, C, H, W) to (N, C): a module, so that whoever counts or speeds up attention finds it."""

    def forward(self, x: Tensor) -> Tensor:
        """The mean over the map, (N, C, H, W) to (N, C)."""
        # Not x.mean: its gradient is a full tensor, in another memory format than x, and all that it meets follows it.
        return x.sum((2, 3)) / (x.shape[2] * x.shape[3])


class PooledAttention(nn.Module):
    """a = signal(gap(x)), (N, C_in, H, W) to a signal (N, C_out, 1, 1).

    What depends on gap(x) alone costs no pass over a feature map of its own: see ``attnbench.models.fused``.
    """

    def __init__(self) -> None:
        super().__init__()
        self.squeeze = Squeeze()

    def signal(self, pooled: Tensor) -> Tensor:
        """The method's equation, (N, C_in) to (N, C_out)."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        """The signal as it meets a map, (N, C_in, H, W) to (N, C_out, 1, 1)."""
        return self.signal(self.squeeze(x))[:, :, None, None]


class ChannelFirst(nn.Module):
    """y = rest(x * signal(gap(x), max(x))), (N, C, H, W): a gate of each channel, and what is done to the gated map.

    Gap and maximum are known of a batch norm's output before it is there: see ``attnbench.models.fused``.
    """

    def __init__(self) -> None:
        super().__init__()
        self.squeeze = Squeeze()

    def signal(self, pooled: Tensor, peak: Tensor) -> Tensor:
        """The channels' gate, (N, C) and (N, C) to (N, C)."""
        raise NotImplementedError

    def rest(self, x: Tensor) -> Tensor:
        """What follows, (N, C, H, W)."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        """The refined map, (N, C, H, W) to (N, C, H, W)."""
        return self.rest(x * self.signal(self.squeeze(x), x.amax((2, 3)))[:, :, None, None])
