"""Double attention: y = T(x) + W Z(T(x)), where Z gathers and distributes features (arXiv:1810.11579)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from attnbench.config.options import Count, checked
from attnbench.models.insertion import Attended, Site


class DoubleAttention(nn.Module):
    """a = W Z,  Z = [A softmax_p(B)^T] softmax_n(V),  A, B, V = 1x1 convolutions of x to m, n and n channels.

    (N, C, H, W) to a signal (N, C, H, W). The softmax of B over the p = H W positions gives n pooling maps, which
    gather n descriptors G = A softmax_p(B)^T, (N, m, n). The softmax of V over n mixes them at each position.
    """

    def __init__(self, channels: int, features: int, maps: int) -> None:
        super().__init__()
        self.feature = nn.Conv2d(channels, features, 1, bias=False)
        self.gather = nn.Conv2d(channels, maps, 1, bias=False)
        self.distribute = nn.Conv2d(channels, maps, 1, bias=False)
        self.expand = nn.Conv2d(features, channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """The signal a, (N, C, H, W) to (N, C, H, W)."""
        maps, mixing = self.gather(x).flatten(2), self.distribute(x).flatten(2)
        pooling = torch.softmax(maps, dim=2, dtype=maps.dtype)  # without a dtype, CUDA's autocast keeps float32
        choice = torch.softmax(mixing, dim=1, dtype=mixing.dtype)
        descriptors = self.feature(x).flatten(2) @ pooling.mT
        distributed = (descriptors @ choice).unflatten(2, x.shape[2:])
        return self.expand(distributed)


@checked
def a2(site: Site, *, reduction: Count = 2) -> nn.Module:
    """Double attention on the output of a site, with a residual connection.

    The paper's ResNet-50 has it in the even blocks of stages 2 and 3. With m = n = C/2 in these five blocks the network
    has 32.90 M parameters (printed: 33.0 M), with C/4 it would have 29.23 M.

    Args:
        reduction: m = n = C // reduction.
    """
    inner = max(1, site.out_channels // reduction)
    attention = DoubleAttention(site.out_channels, inner, inner)
    return Attended(site.trunk, attention, reads="output", combine="add")
