"""T2Net: Feng et al., "Task Transformer Network for Joint MRI Reconstruction and Super-Resolution", MICCAI 2021."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from bundle.networks.convolution import Conv3x3
from bundle.networks.single_step import SingleStepNetwork
from bundle.ops import patch_match


class ResidualBlock(nn.Module):
    """``x + 0.1 * conv(relu(conv(x)))``, as in EDSR: no batch norm. (B, features, h, w), shape kept."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.body = nn.Sequential(Conv3x3(features, features), nn.ReLU(), Conv3x3(features, features))

    def forward(self, x: Tensor) -> Tensor:
        return x + 0.1 * self.body(x)


class TaskTransformer(nn.Module):
    """Transfer features from reconstruction to super-resolution: ``x + conv(cat[x, T]) * S``.

    ``T`` holds, for each patch of ``x``, the most similar patch of the other branch; ``S`` is that similarity.
    """

    def __init__(self, features: int) -> None:
        super().__init__()
        self.merge = nn.Conv2d(2 * features, features, 1)

    def forward(self, sr: Tensor, rec: Tensor) -> Tensor:
        """Two maps (B, features, h, w) -> the first with features transferred from the second, same shape."""
        query, key = sr.permute(0, 2, 3, 1).contiguous(), rec.permute(0, 2, 3, 1).contiguous()
        match = patch_match(query, key, key)
        transferred, score = match.features.permute(0, 3, 1, 2), match.score.permute(0, 3, 1, 2)
        return sr + self.merge(torch.cat([sr, transferred], dim=1)) * score


class JointStep(nn.Module):
    """One residual block in each branch, then the transfer from reconstruction to super-resolution."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.sr_block = ResidualBlock(features)
        self.rec_block = ResidualBlock(features)
        self.transformer = TaskTransformer(features)

    def forward(self, sr: Tensor, rec: Tensor) -> tuple[Tensor, Tensor]:
        """Two maps (B, features, h, w) -> the same shapes."""
        rec = self.rec_block(rec)
        return self.transformer(self.sr_block(sr), rec), rec


class T2Net(SingleStepNetwork):
    """Two EDSR branches, reconstruction and super-resolution, joined after every block by a task transformer.

    Both read the low-resolution image. The reconstruction, on the input grid, is the Rec of the output.

    Loss: :class:`bundle.training.losses.MultiStageL1Loss` with ``alpha`` 0.8 has the weights of its public code,
    ``0.8 L1(SR) + 0.2 L1(Rec)``. The target of the reconstruction differs: there it is the cropped k-space without the
    line mask of the input, here the smoothly truncated image that all networks use
    (:func:`bundle.training.losses.stage_targets`). Without a line mask, the plain crop would be the input itself.

    As in its public code: 5x5 heads, 8 blocks of 64 maps, hard attention without projections, feature skips from the
    heads, no image skip. Different here: overlapping patches are averaged at the border too (the public code divides
    by 9 everywhere, which darkens the border); the two convolutions that its code builds but never calls (73,856 of its
    1.473 M parameters for 2x) are left out.
    1,399,426 parameters for one channel, 2x; 22.9 G multiply-adds without the eight patch searches.

    Args:
        scale, in_channels, image_skip: see :class:`bundle.networks.single_step.SingleStepNetwork`. With an image
            skip, the input is added to the reconstruction too.
        num_blocks: residual blocks per branch.
        features: maps.
    """

    def __init__(
        self,
        scale: int = 2,
        in_channels: int = 1,
        num_blocks: int = 8,
        features: int = 64,
        image_skip: str = "none",
    ) -> None:
        super().__init__(scale, in_channels, image_skip)
        self.sr_head = nn.Conv2d(in_channels, features, 5, padding=2)
        self.rec_head = nn.Conv2d(in_channels, features, 5, padding=2)
        self.steps = nn.ModuleList(JointStep(features) for _ in range(num_blocks))
        doublings = [
            nn.Sequential(Conv3x3(features, 4 * features), nn.PixelShuffle(2)) for _ in range(int(math.log2(scale)))
        ]
        self.upsample = nn.Sequential(*doublings)
        self.last = Conv3x3(features, in_channels)
        self.rec_last = nn.Conv2d(features, in_channels, 1)
        self.start_near_skip(self.last)
        self.start_near_skip(self.rec_last)

    def estimate(self, image: Tensor) -> tuple[list[Tensor], Tensor]:
        sr = first_sr = self.sr_head(image)
        rec = first_rec = self.rec_head(image)
        for step in self.steps:
            sr, rec = step(sr, rec)
        reconstruction = self.rec_last(rec + first_rec)
        if self.image_skip != "none":
            reconstruction = reconstruction + image
        return [reconstruction], self.last(self.upsample(sr + first_sr))
