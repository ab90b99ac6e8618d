"""SRCNN: Dong et al., "Image Super-Resolution Using Deep Convolutional Networks", IEEE TPAMI 2016."""

from __future__ import annotations

from torch import Tensor, nn

from bundle.networks.single_step import SingleStepNetwork, interpolate


class SRCNN(SingleStepNetwork):
    """Three convolutions on the interpolated image: 64 maps, 32 maps, image; ReLU between, no skip.

    As in the paper: widths, kernels, bicubic pre-upsampling. Different here: bicubic is grid-aligned, convolutions
    keep the size (zero padding), and weights are initialised as in PyTorch (the paper's standard deviation of 0.001
    needs its far longer training).
    57,281 parameters for 9-5-5 and one channel (8,129 for 9-1-5), 3.75 G multiply-adds.

    Args:
        scale, in_channels, image_skip: see :class:`bundle.networks.single_step.SingleStepNetwork`. With an image
            skip, the convolutions read that interpolation, otherwise the paper's bicubic one.
        kernel_sizes: the paper's 9-5-5; its first form was 9-1-5.
    """

    def __init__(
        self,
        scale: int = 2,
        in_channels: int = 1,
        kernel_sizes: tuple[int, int, int] = (9, 5, 5),
        image_skip: str = "none",
    ) -> None:
        super().__init__(scale, in_channels, image_skip)
        self.pre_upsampling = "bicubic" if image_skip == "none" else image_skip
        first, second, third = kernel_sizes
        self.layers = nn.Sequential(
            nn.Conv2d(in_channels, 64, first, padding="same"),
            nn.ReLU(),
            nn.Conv2d(64, 32, second, padding="same"),
            nn.ReLU(),
        )
        self.last = nn.Conv2d(32, in_channels, third, padding="same")
        self.start_near_skip(self.last)

    def estimate(self, image: Tensor) -> tuple[list[Tensor], Tensor]:
        return [], self.last(self.layers(interpolate(image, self.scale, self.pre_upsampling)))
