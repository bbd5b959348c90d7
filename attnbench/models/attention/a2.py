"""Double attention: y = T(x) + W Z(T(x)), features gathered and handed out again (arXiv:1810.11579)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from attnbench.config.options import Count, checked
from attnbench.models.insertion import Attended, Site


class DoubleAttention(nn.Module):
    """a = W Z,  Z = [A softmax_p(B)^T] softmax_n(V),  A, B, V = 1x1 convolutions of x to m, n and n channels.

    (N, C, H, W) to a signal (N, C, H, W). B's softmax over the p = H W places makes n pooling maps and
    G = A softmax_p(B)^T, (N, m, n), n gathered descriptors; V's over n lets each place choose among them.
    """

    def __init__(self, channels: int, features: int, maps: int) -> None:
        super().__init__()
        self.feature = nn.Conv2d(channels, features, 1, bias=False)
        self.gather = nn.Conv2d(channels, maps, 1, bias=False)
        self.distribute = nn.Conv2d(channels, maps, 1, bias=False)
        self.expand = nn.Conv2d(features, channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """The signal a, (N, C, H, W) to (N, C, H, W)."""
        pooling = torch.softmax(self.gather(x).flatten(2), dim=2)
        choice = torch.softmax(self.distribute(x).flatten(2), dim=1)
        descriptors = self.feature(x).flatten(2) @ pooling.mT
        handed_out = (descriptors @ choice).unflatten(2, x.shape[2:])
        return self.expand(handed_out)


@checked
def a2(site: Site, *, reduction: Count = 2) -> nn.Module:
    """Double attention on the output of a site, with its residual.

    The paper's ResNet-50 has it in the even blocks of stages 2 and 3. With m = n = C/2 those five blocks make
    32.90 M parameters, printed 33.0; with C/4 it would be 29.23.

    Args:
        reduction: m = n = C // reduction.
    """
    inner = max(1, site.out_channels // reduction)
    attention = DoubleAttention(site.out_channels, inner, inner)
    return Attended(site.trunk, attention, reads="output", combine="add")
