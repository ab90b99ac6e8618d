"""The architecture of SwinIR, reused by MambaIR: groups of blocks between two convolutions, then a pixel shuffle."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from bundle.networks.convolution import Conv3x3
from bundle.networks.single_step import SingleStepNetwork


class ResidualGroup(nn.Module):
    """``x + conv3x3(blocks(x))`` on channels-last maps (B, h, w, features)."""

    def __init__(self, features: int, blocks: Sequence[nn.Module]) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*blocks)
        self.conv = Conv3x3(features, features)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(self.blocks(x).permute(0, 3, 1, 2), x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


class ResidualGroupNetwork(SingleStepNetwork):
    """``shuffle(conv(f + conv(LN(groups(LN(f))))))`` with ``f = conv(image)``: the lightweight form of both papers.

    Args:
        scale, in_channels, image_skip: see :class:`bundle.networks.single_step.SingleStepNetwork`.
        features: maps.
        groups: the blocks of each group; a block maps (B, h, w, features) to the same shape.
    """

    def __init__(
        self, scale: int, in_channels: int, features: int, groups: Sequence[Sequence[nn.Module]], image_skip: str
    ) -> None:
        super().__init__(scale, in_channels, image_skip)
        self.head = Conv3x3(in_channels, features)
        self.first_norm = nn.LayerNorm(features)
        self.groups = nn.Sequential(*(ResidualGroup(features, blocks) for blocks in groups))
        self.last_norm = nn.LayerNorm(features)
        self.conv = Conv3x3(features, features)
        self.last = Conv3x3(features, in_channels * scale**2)
        self.shuffle = nn.PixelShuffle(scale)
        self.start_near_skip(self.last)

    def estimate(self, image: Tensor) -> tuple[list[Tensor], Tensor]:
        shallow = self.head(image)
        deep = self.groups(self.first_norm(shallow.permute(0, 2, 3, 1)))
        deep = self.conv(self.last_norm(deep).permute(0, 3, 1, 2), shallow)
        return [], self.shuffle(self.last(deep))
