"""Heads: they turn the features of a branch into a residual image, which is added to the image skip."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from bundle.networks.initial import he_convolution, start_small


class ImageHead(nn.Module):
    """Features and an image skip to an image by a 3x3 convolution, for 2x after a pixel shuffle.

    The paper upsamples 2x per stage and names no operator for it; pixel shuffle is chosen here.

    Features are of order 10, and Adam's first steps change all weights of the last convolution by the same amount,
    which would turn them into an image of noise: the residual is a tenth of the convolution's output. The convolution
    also starts with small weights.

    Args:
        features, channels: of the input and of the image.
        scale: 1, or 2 for a convolution to four times as many features, pixel shuffle and a leaky rectifier before.
    """

    def __init__(self, features: int, channels: int, scale: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        if scale == 2:
            layers = [nn.Conv2d(features, 4 * features, 3, padding=1), nn.PixelShuffle(2), nn.LeakyReLU(0.1)]
        last = nn.Conv2d(features, channels, 3, padding=1)
        start_small(last)
        self.residual = nn.Sequential(*layers, last)

    def forward(self, features: Tensor, skip: Tensor) -> Tensor:
        """(B, h, w, features) and the skip (B, channels, scale * h, scale * w) -> an image like the skip."""
        return skip + 0.1 * self.residual(features.permute(0, 3, 1, 2))


class FullResolutionHead(nn.Module):
    """Features and the interpolated image to an image of twice the size, by convolutions on the fine grid.

    Not in the paper. The frequencies that truncation removed lie beyond the band of the coarse grid; rectifiers on the
    interpolated image make such frequencies where its edges are.

    Args:
        features, channels: of the branch and of the image.
        width: feature maps on the fine grid.
        num_layers: 3x3 convolutions, at least 2.
    """

    def __init__(self, features: int, channels: int, width: int, num_layers: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(features)
        self.to_fine = nn.Linear(features, 4 * width, bias=False)
        with torch.no_grad():  # at first the image counts more than the features
            self.to_fine.weight.mul_(0.1)
        self.first = he_convolution(channels, width)
        body = [[he_convolution(width, width), nn.ReLU(inplace=True)] for _ in range(num_layers - 2)]
        self.body = nn.Sequential(*(layer for pair in body for layer in pair))
        self.last = nn.Conv2d(width, channels, 3, padding=1)
        start_small(self.last)

    def forward(self, features: Tensor, skip: Tensor) -> Tensor:
        """(B, h, w, features) and the interpolated image (B, channels, 2h, 2w) -> an image like the latter."""
        # the maps are the largest tensors of the network: one name, so that each is freed once the next exists
        maps = self.first(skip)
        maps += torch.pixel_shuffle(self.to_fine(self.norm(features)).permute(0, 3, 1, 2), 2)
        maps = maps.relu_()
        for layer in self.body:
            maps = layer(maps)
        return skip + self.last(maps)
