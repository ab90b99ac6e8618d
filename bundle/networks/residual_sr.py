"""A residual network on the coarse grid whose output scales exactly with its input."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from bundle.networks.convolution import Conv3x3
from bundle.networks.single_step import SingleStepNetwork
from bundle.ops import is_plain, is_unwatched


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

    def forward(self, maps: Tensor, in_place: bool = False) -> Tensor:
        """(B, features, h, w), same shape out; ``in_place``: its memory may take the result."""
        return self.second(self.first(maps, relu=True), maps, in_place=in_place)


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
        self.last = Conv3x3(features, in_channels * scale**2, bias=False)
        with torch.no_grad():
            self.last.weight.mul_(0.003)  # close to the image skip, see bundle.networks.initial.start_small

    def estimate(self, image: Tensor) -> tuple[list[Tensor], Tensor]:
        maps = self.first(image)
        if not torch.jit.is_scripting():
            result = self._in_place(image, maps)
            if result is not None:
                return [], result
        return [], torch.pixel_shuffle(self.last(self.body(maps) + maps), self.scale)

    @torch.jit.unused
    def _in_place(self, image: Tensor, maps: Tensor) -> Tensor | None:
        """The same with fewer maps, if nobody sees them again: neither autograd nor hooks, which may keep them."""
        if torch.jit.is_tracing() or torch.is_grad_enabled():
            return None
        if not is_unwatched(self.first, self.body) or not all(is_plain(block, ResidualBlock) for block in self.body):
            return None
        for block in self.body:
            maps = block(maps, in_place=True)
        # the first layer again costs little; its result kept would be a third map beside the two of a block
        maps = self.first(image, maps, in_place=True)
        return torch.pixel_shuffle(self.last(maps), self.scale)


def _convolution(before: int, after: int) -> Conv3x3:
    layer = Conv3x3(before, after, bias=False)
    nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
    return layer
