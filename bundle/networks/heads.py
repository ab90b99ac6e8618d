"""Heads: turn the features of a branch into a residual image, which is added to the image skip."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from bundle.networks.convolution import Conv3x3, convolve_in_bands
from bundle.networks.initial import he_convolution, start_small
from bundle.ops import is_plain


class ImageHead(nn.Module):
    """Image skip plus a 3x3 convolution of the features, for 2x after a pixel shuffle.

    The paper upsamples 2x per stage and names no operator for it; pixel shuffle is chosen here.

    Features are of order 10, and Adam's first steps change all weights of the last convolution by the same amount,
    which would turn the features into noise. The residual is therefore a tenth of the convolution's output, and the
    convolution starts with small weights.

    Args:
        features, channels: of the input and of the image.
        scale: 1, or 2 to put a convolution to four times as many features, pixel shuffle and leaky ReLU first.
    """

    def __init__(self, features: int, channels: int, scale: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        if scale == 2:
            layers = [Conv3x3(features, 4 * features), nn.PixelShuffle(2), nn.LeakyReLU(0.1)]
        last = Conv3x3(features, channels)
        start_small(last)
        self.residual = nn.Sequential(*layers, last)

    def forward(self, features: Tensor, skip: Tensor) -> Tensor:
        """(B, h, w, features) and the skip (B, channels, scale * h, scale * w) -> image with the skip's shape."""
        return skip + 0.1 * self.residual(features.permute(0, 3, 1, 2))


class FullResolutionHead(nn.Module):
    """From features and the interpolated image to an image of twice the size, by convolutions on the fine grid.

    Not in the paper. The frequencies that truncation removed lie beyond the band of the coarse grid; ReLUs on the
    interpolated image create such frequencies at its edges. At inference on the CPU the convolutions run in bands of
    rows, and the fine maps are never held whole.

    Args:
        features, channels: of the branch and of the image.
        width: feature maps on the fine grid.
        num_layers: 3x3 convolutions, at least 2.
    """

    def __init__(self, features: int, channels: int, width: int, num_layers: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(features)
        self.to_fine = nn.Linear(features, 4 * width, bias=False)
        with torch.no_grad():  # initially the image outweighs the features
            self.to_fine.weight.mul_(0.1)
        self.first = he_convolution(channels, width)
        body = [[he_convolution(width, width), nn.ReLU(inplace=True)] for _ in range(num_layers - 2)]
        self.body = nn.Sequential(*(layer for pair in body for layer in pair))
        self.last = Conv3x3(width, channels)
        start_small(self.last)

    def forward(self, features: Tensor, skip: Tensor) -> Tensor:
        """(B, h, w, features) and the interpolated image (B, channels, 2h, 2w) -> image of the latter's shape."""
        features = self.norm(features)
        if not torch.jit.is_scripting():
            image = self._in_bands(features, skip)
            if image is not None:
                return image
        # these maps are the largest tensors of the network: reusing the name frees each once the next exists
        maps = self.first(skip, torch.pixel_shuffle(self.to_fine(features).permute(0, 3, 1, 2), 2), relu=True)
        for layer in self.body:
            maps = layer(maps)
        return skip + self.last(maps)

    @torch.jit.unused
    def _in_bands(self, features: Tensor, skip: Tensor) -> Tensor | None:
        if not is_plain(self.to_fine, nn.Linear):
            return None
        layers = (self.first, nn.ReLU(), *self.body, self.last)
        return convolve_in_bands(skip, layers, skip, features, self.to_fine.weight)
