"""Initial weights that several networks share."""

from __future__ import annotations

import torch
from torch import nn


def start_small(last: nn.Conv2d) -> None:
    """Let a network begin close to its image skip: 0.003 of the usual weights in its last layer, and no bias.

    The first residuals are thousandths or less, as errors of interpolation are; with the usual weights the first
    hundreds of updates would unlearn noise.
    """
    nn.init.zeros_(last.get_parameter("bias"))
    with torch.no_grad():
        last.weight.mul_(0.003)


def he_convolution(before: int, after: int) -> nn.Conv2d:
    """3x3 convolution to be followed by a rectifier: He's initial weights and no bias."""
    layer = nn.Conv2d(before, after, 3, padding=1)
    nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
    nn.init.zeros_(layer.get_parameter("bias"))
    return layer
