"""What makes an image of the features of a branch: a residual, added to the image skip."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from bundle.networks.initial import he_convolution, start_small


class ImageHead(nn.Module):
    """Features and an image skip to an image, by a 3x3 convolution; by 2 after the paper's shuffled pixels.

    Features are of order 10, and Adam's first steps move all weights of the last convolution alike, which would make an
    image of noise of them: a tenth of the convolution's output is the residual. The convolution starts small besides.

    Args:
        features, channels: of the input and of the image.
        scale: 2 convolves to four times as many features, shuffles them to the finer grid and rectifies them first (the
            paper's upsampler); 1 does not.
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
    """Features and the interpolated image to an image by 2, by convolutions on the fine grid. Not in the paper.

    What truncation took lies beyond the band of the coarse grid. Rectifiers on the interpolated image make such
    frequencies where its edges are.

    Args:
        features, channels: of the branch and of the image.
        width: feature maps on the fine grid.
        num_layers: 3x3 convolutions, at least 2.
    """

    def __init__(self, features: int, channels: int, width: int, num_layers: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(features)
        self.to_fine = nn.Linear(features, 4 * width, bias=False)
        with torch.no_grad():  # the image leads at first
            self.to_fine.weight.mul_(0.1)
        self.first = he_convolution(channels, width)
        body = [[he_convolution(width, width), nn.ReLU(inplace=True)] for _ in range(num_layers - 2)]
        self.body = nn.Sequential(*(layer for pair in body for layer in pair))
        self.last = nn.Conv2d(width, channels, 3, padding=1)
        start_small(self.last)

    def forward(self, features: Tensor, skip: Tensor) -> Tensor:
        """(B, h, w, features) and the interpolated image (B, channels, 2h, 2w) -> an image like the latter."""
        # maps are the largest tensors of the network: one name, so that each is freed when the next is there
        maps = self.first(skip)
        maps += torch.pixel_shuffle(self.to_fine(self.norm(features)).permute(0, 3, 1, 2), 2)
        maps = maps.relu_()
        for layer in self.body:
            maps = layer(maps)
        return skip + self.last(maps)
