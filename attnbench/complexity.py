"""Parameters and multiply-adds."""

from __future__ import annotations

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode


def params(model: nn.Module) -> int:
    """Numbers that are learned: weights, biases, norm scales and shifts; not running statistics."""
    return sum(p.numel() for p in model.parameters())


def macs(model: nn.Module, size: int) -> int:
    """Multiply-adds of convolutions and matrix products for one image (1, 3, size, size), in evaluation mode."""
    device = next(model.parameters()).device
    training = model.training
    model.eval()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(torch.zeros(1, 3, size, size, device=device))
    model.train(training)
    return counter.get_total_flops() // 2
