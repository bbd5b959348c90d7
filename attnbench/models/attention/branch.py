"""The attention branch that SE and SB share: GAP, FC, (BN,) ReLU, (dropout,) FC, (BN,) gate."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from attnbench.config.options import DropoutPlace, Gate
from attnbench.models.attention.squeeze import PooledAttention

GATES: dict[str, Callable[[Tensor], Tensor]] = {
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "softmax": lambda z: torch.softmax(z, dim=1),  # over channels
    "relu": torch.relu,
    "none": lambda z: z,
}


class Gated(nn.Module):
    """gate(z), as a module, so that networks with different gates differ only in their leaf modules."""

    def __init__(self, gate: Gate) -> None:
        super().__init__()
        self.gate = gate

    def forward(self, z: Tensor) -> Tensor:
        """The gate of z, of any shape; ``softmax`` runs over dimension 1."""
        return GATES[self.gate](z)


class Branch(PooledAttention):
    """a = gate(F(x)),  F(x) = [BN](W2 dropout(relu([BN](W1 gap(x))))).

    (N, C_in, H, W) to a signal (N, C_out, 1, 1).

    Args:
        in_channels, hidden, out_channels: widths of the two fully connected layers.
        gate: the function on the output; ``softmax`` runs over the channels.
        norm: batch norm after each layer, as in the SB paper; the SE and ECA papers have none.
        bias: biases in the layers.
        dropout: its probability.
        dropout_at: ``hidden``: on the hidden layer, after its ReLU; ``linear``: on the first layer's output, before its
            norm; ``input``: on the pooled input. Before the ReLU, dropout would be the same as after it.
    """

    def __init__(
        self,
        in_channels: int,
        hidden: int,
        out_channels: int,
        *,
        gate: Gate,
        norm: bool = False,
        bias: bool = False,
        dropout: float = 0.0,
        dropout_at: DropoutPlace = "hidden",
    ) -> None:
        super().__init__()
        self.reduce = nn.Linear(in_channels, hidden, bias=bias)
        self.norm1 = nn.BatchNorm1d(hidden) if norm else nn.Identity()
        self.relu = nn.ReLU()
        self.dropout = nn.Dropout(dropout)
        self.dropout_at = dropout_at
        self.expand = nn.Linear(hidden, out_channels, bias=bias)
        self.norm2 = nn.BatchNorm1d(out_channels) if norm else nn.Identity()
        self.gated = Gated(gate)

    @property
    def gate(self) -> str:
        """The name of the gate, a key of ``GATES``."""
        return self.gated.gate

    def signal(self, pooled: Tensor) -> Tensor:
        """The signal a, (N, C_in) to (N, C_out)."""
        hidden = self.reduce(self._dropped(pooled, "input"))
        hidden = self.relu(self.norm1(self._dropped(hidden, "linear")))
        return self.gated(self.norm2(self.expand(self._dropped(hidden, "hidden"))))

    def _dropped(self, x: Tensor, place: DropoutPlace) -> Tensor:
        """The values at a place, with dropout if this is the place for it."""
        return self.dropout(x) if place == self.dropout_at else x

    def extra_repr(self) -> str:
        """What ``print(model)`` shows in addition to the layers: the gate."""
        return f"gate={self.gate}"
