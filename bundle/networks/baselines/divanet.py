"""DiVANet: Behjati et al., "Single Image Super-Resolution Based on Directional Variance Attention Network", 2023.

Pattern Recognition 133, 108997.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from bundle.networks.convolution import Conv3x3
from bundle.networks.single_step import SingleStepNetwork

EXPANSION, REDUCTION = 6.0, 0.8
"""Widths inside a residual block, relative to its features."""


def conv(before: int, after: int, kernel_size: int, groups: int = 1) -> nn.Module:
    """Convolution with weight normalisation that keeps the size."""
    if kernel_size == 3 and groups == 1:
        return weight_norm(Conv3x3(before, after))
    return weight_norm(nn.Conv2d(before, after, kernel_size, padding="same", groups=groups))


class DirectionalVarianceAttention(nn.Module):
    """DiVA: ``x * a_rows * a_columns``, from the variance of each row and each column. (B, C, h, w), shape kept."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.rows = nn.Conv2d(features, features, 1)
        self.columns = nn.Conv2d(features, features, 1)

    def forward(self, x: Tensor) -> Tensor:
        of_rows = torch.sigmoid(self.rows(x.var(dim=3, correction=0, keepdim=True)))
        of_columns = torch.sigmoid(self.columns(x.var(dim=2, correction=0, keepdim=True)))
        return x * of_rows * of_columns


class ResidualBlock(nn.Module):
    """Wide activation (1x1 up, ReLU, 1x1 down, 3x3) with a skip, and the attention on the branch beside the skip."""

    def __init__(self, features: int) -> None:
        super().__init__()
        wide, narrow = int(features * EXPANSION), int(features * REDUCTION)
        self.body = nn.Sequential(conv(features, wide, 1), nn.ReLU(), conv(wide, narrow, 1), conv(narrow, features, 3))
        self.attention = DirectionalVarianceAttention(features)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(B, features, h, w) -> features and attention, same shapes."""
        out = self.body(x)
        return out + x, self.attention(out)


class TwoBanks(nn.Module):
    """Three consecutive steps; features and attentions are collected in two banks, each fused by a 1x1 convolution.

    ``x + relu(conv(cat[x, b1, b2, b3])) + relu(conv(cat[a1, a2, a3]))``: with residual blocks as steps it is the
    paper's RAFG, with RAFGs as steps the body of the network.
    """

    def __init__(self, features: int, steps: list[nn.Module]) -> None:
        super().__init__()
        self.steps = nn.ModuleList(steps)
        self.fuse_features = nn.Sequential(conv((len(steps) + 1) * features, features, 1), nn.ReLU())
        self.fuse_attention = nn.Sequential(conv(len(steps) * features, features, 1), nn.ReLU())

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(B, features, h, w) -> features and attention, same shapes."""
        features, attentions = [x], []
        for step in self.steps:
            out, attention = step(features[-1])
            features.append(out)
            attentions.append(attention)
        fused = self.fuse_attention(torch.cat(attentions, dim=1))
        return self.fuse_features(torch.cat(features, dim=1)) + x + fused, fused


class DiVANet(SingleStepNetwork):
    """Residual blocks with directional variance attention, banks of features and attentions, a bicubic image skip.

    As in its public code: 64 maps, three groups of three blocks, weight normalisation, 2x steps by grouped convolutions
    and pixel shuffle. Different here: the bicubic skip is grid-aligned (centred there), and the last layer starts
    with small weights. Weight normalisation cannot be scripted: export by tracing.
    900,056 parameters for one channel, 2x (published: 0.902 M for three channels); 13.4 G multiply-adds.

    Args:
        scale, in_channels, image_skip: see :class:`bundle.networks.single_step.SingleStepNetwork`.
        features: maps, a multiple of 4.
    """

    def __init__(self, scale: int = 2, in_channels: int = 1, features: int = 64, image_skip: str = "bicubic") -> None:
        super().__init__(scale, in_channels, image_skip)
        if features < 4 or features % 4:
            raise ValueError(f"features must be a multiple of 4, got {features}")
        self.head = conv(in_channels, features, 3)
        groups = [TwoBanks(features, [ResidualBlock(features) for _ in range(3)]) for _ in range(3)]
        self.body = TwoBanks(features, list(groups))
        steps = [
            nn.Sequential(conv(features, 4 * features, 3, groups=4), nn.ReLU(), nn.PixelShuffle(2))
            for _ in range(int(math.log2(scale)))
        ]
        self.upsample = nn.Sequential(*steps)
        last = Conv3x3(features, in_channels)
        self.start_near_skip(last)
        self.last = weight_norm(last)

    def estimate(self, image: Tensor) -> tuple[list[Tensor], Tensor]:
        features, _ = self.body(self.head(image))
        return [], self.last(self.upsample(features))
