"""VDSR: Kim et al., "Accurate Image Super-Resolution Using Very Deep Convolutional Networks", CVPR 2016."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn

from bundle.networks.convolution import Conv3x3, convolve_in_bands
from bundle.networks.initial import he_convolution
from bundle.networks.single_step import SingleStepNetwork, check_interpolation, interpolate
from bundle.ops import is_unwatched


class VDSR(SingleStepNetwork):
    """Twenty 3x3 convolutions of 64 maps with ReLU that estimate the residual of the interpolated image.

    As in the paper: depth, width, bicubic pre-upsampling that is also the skip, He initialisation. Different here:
    bicubic is grid-aligned, and the last layer starts with small weights (the paper trained at a learning rate of 0.1
    with gradient clipping).
    665,921 parameters for one channel, 43.6 G multiply-adds.

    Args:
        scale, in_channels: see :class:`bundle.networks.single_step.SingleStepNetwork`.
        num_layers: convolutions, at least 2.
        features: maps.
        image_skip: pre-upsampling and skip in one, ``bicubic`` (the paper) or ``fourier``.
    """

    def __init__(
        self,
        scale: int = 2,
        in_channels: int = 1,
        num_layers: int = 20,
        features: int = 64,
        image_skip: str = "bicubic",
    ) -> None:
        check_interpolation(image_skip)
        super().__init__(scale, in_channels, image_skip)
        if num_layers < 2:
            raise ValueError(f"num_layers must be at least 2, got {num_layers}")
        widths = [in_channels, *[features] * (num_layers - 1)]
        layers: list[nn.Module] = []
        for before, after in pairwise(widths):
            layers += [he_convolution(before, after), nn.ReLU()]
        self.layers = nn.Sequential(*layers)
        self.last = Conv3x3(features, in_channels)
        self.start_near_skip(self.last)

    def estimate(self, image: Tensor) -> tuple[list[Tensor], Tensor]:
        image = interpolate(image, self.scale, self.image_skip)
        if not torch.jit.is_scripting():
            residual = self._in_bands(image)
            if residual is not None:
                return [], residual
        return [], self.last(self.layers(image))

    @torch.jit.unused
    def _in_bands(self, image: Tensor) -> Tensor | None:
        return convolve_in_bands(image, (*self.layers, self.last)) if is_unwatched(self.layers) else None
