"""A residual network on the coarse grid whose output scales exactly with its input."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from bundle.networks.single_step import SingleStepNetwork


class ResidualBlock(nn.Module):
    """``x + conv(relu(conv(x)))``, 3x3, without biases.

    Args:
        features: maps.
        blocks: of the whole network; the second convolution starts at ``1 / blocks ** 0.5`` of the usual weights, so
            that the variance of the features does not grow with depth.
    """

    def __init__(self, features: int, blocks: int) -> None:
        super().__init__()
        self.first = _convolution(features, features)
        self.second = _convolution(features, features)
        with torch.no_grad():
            self.second.weight.mul_(blocks**-0.5)

    def forward(self, maps: Tensor) -> Tensor:
        """(B, features, h, w), same shape out."""
        return maps + self.second(self.first(maps).relu())


class ResidualSR(SingleStepNetwork):
    """Residual blocks of 3x3 convolutions on the grid of the input, pixel shuffle, Fourier image skip.

    The body is that of EDSR (Lim et al., CVPR workshops 2017), with no parts that depend on absolute brightness: no
    biases, no normalisation. Convolutions and ReLU are positively homogeneous, so ``f(a * x) = a * f(x)`` for every
    a > 0 (for denoising: Mohan et al., ICLR 2020). A slice at the end of a coil, or the tissue beside a bright bladder,
    is therefore treated exactly as it would be at full brightness.

    1,182,528 parameters for one channel at 2x with the defaults.

    Args:
        scale, in_channels: see :class:`bundle.networks.single_step.SingleStepNetwork`.
        features: maps.
        blocks: residual blocks of two convolutions.
    """

    def __init__(self, scale: int = 2, in_channels: int = 1, features: int = 64, blocks: int = 16) -> None:
        super().__init__(scale, in_channels, image_skip="fourier")
        if features < 1 or blocks < 1:
            raise ValueError(f"features and blocks must be at least 1, got {features} and {blocks}")
        self.first = _convolution(in_channels, features)
        self.body = nn.Sequential(*(ResidualBlock(features, blocks) for _ in range(blocks)))
        self.last = nn.Conv2d(features, in_channels * scale**2, 3, padding=1, bias=False)
        with torch.no_grad():
            self.last.weight.mul_(0.003)  # close to the image skip, see bundle.networks.initial.start_small

    def estimate(self, image: Tensor) -> tuple[list[Tensor], Tensor]:
        maps = self.first(image).contiguous(memory_format=torch.channels_last)  # which the convolutions keep
        return [], torch.pixel_shuffle(self.last(self.body(maps) + maps), self.scale)


def _convolution(before: int, after: int) -> nn.Conv2d:
    layer = nn.Conv2d(before, after, 3, padding=1, bias=False)
    nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
    return layer
