"""Global second-order pooling: gates from the channels' covariance (GSoP, Gao et al., arXiv:1811.12006)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from attnbench.config.options import Count, checked
from attnbench.models.insertion import Attended, Site


class SecondOrderPooling(nn.Module):
    """The gate a = sigmoid(W2 rowconv(BN(cov(relu(BN(W1 relu(x))))))).

    (N, C, H, W) to a signal (N, C, 1, 1). W1 reduces to d channels, cov is their d x d covariance over the map, and
    rowconv, a group convolution, maps each row of it to four values. The biases and the ReLU on x, which comes before
    the block's ReLU, are those of the released code.
    """

    def __init__(self, channels: int, reduced: int, *, activation: bool) -> None:
        super().__init__()
        self.reduce = nn.Conv2d(channels, reduced, 1)
        self.norm = nn.BatchNorm2d(reduced)
        self.row_norm = nn.BatchNorm2d(reduced)
        self.row_conv = nn.Conv2d(reduced, 4 * reduced, (1, reduced), groups=reduced)
        self.activation = nn.ReLU() if activation else nn.Identity()
        self.expand = nn.Conv2d(4 * reduced, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """The gate of each channel, (N, C, H, W) to (N, C, 1, 1) in [0, 1]."""
        reduced = torch.relu(self.norm(self.reduce(torch.relu(x))))
        rows = self.row_norm(covariance(reduced)[:, :, None])
        return torch.sigmoid(self.expand(self.activation(self.row_conv(rows))))


def covariance(x: Tensor) -> Tensor:
    """(1/P) sum_p (x_p - mean)(x_p - mean)^T over the P = H W positions, (N, d, H, W) to (N, d, d)."""
    centred = x.flatten(2) - x.mean((2, 3))[:, :, None]
    return centred @ centred.mT / centred.shape[2]


@checked
def gsop(site: Site, *, channels: Count = 128, activation: bool = False) -> nn.Module:
    """GSoP on the output of a site.

    GSoP-Net1 has it at the last block of stages 2, 3 and 4: 28,054,440 parameters with ResNet-50.

    Args:
        channels: d, the number of channels whose covariance is computed.
        activation: a ReLU after the row-wise convolution; the paper's text has it, the released code does not.
    """
    attention = SecondOrderPooling(site.out_channels, channels, activation=activation)
    return Attended(site.trunk, attention, reads="output", combine="mul")
