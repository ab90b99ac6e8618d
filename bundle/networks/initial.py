"""Weight initialisation shared by several networks."""

from __future__ import annotations

import torch
from torch import nn

from bundle.networks.convolution import Conv3x3


def start_small(last: nn.Conv2d) -> None:
    """Start a network close to its image skip: 0.003 of the usual weights in the last layer, and no bias.

    The first residuals are then thousandths or less, like interpolation errors; with the usual weights, the network
    would spend its first hundreds of updates unlearning noise.
    """
    nn.init.zeros_(last.get_parameter("bias"))
    with torch.no_grad():
        last.weight.mul_(0.003)


def he_convolution(before: int, after: int) -> Conv3x3:
    """3x3 convolution followed by a ReLU: He initialisation and zero bias."""
    layer = Conv3x3(before, after)
    nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
    nn.init.zeros_(layer.get_parameter("bias"))
    return layer
