"""FMISR: Zhang et al., "A Fast Medical Image Super Resolution Method Based on Deep Learning Network".

IEEE Access 7 (2019), doi 10.1109/ACCESS.2018.2871626.
"""

from __future__ import annotations

from torch import Tensor, nn

from bundle.networks.convolution import Conv3x3
from bundle.networks.single_step import SingleStepNetwork


class FMISR(SingleStepNetwork):
    """Hidden layers with mini-networks on the low-resolution grid, then one sub-pixel layer: an INTERPRETATION.

    No code is public, and the text available to us gives only an outline: a fast network like ESPCN whose hidden layers
    hold a mini-network (1x1 convolutions, "network in network") and whose last layer is a sub-pixel convolution.
    Widths, kernels and activation are therefore ours: ESPCN's 5x5-64, 3x3-32, 3x3-shuffle, each hidden layer followed
    by a 1x1 convolution of its width, ReLU. Its results are not the paper's results.
    26,500 parameters for one channel, 2x; 0.43 G multiply-adds.

    Args:
        scale, in_channels, image_skip: see :class:`bundle.networks.single_step.SingleStepNetwork`.
    """

    def __init__(self, scale: int = 2, in_channels: int = 1, image_skip: str = "none") -> None:
        super().__init__(scale, in_channels, image_skip)
        layers: list[nn.Module] = []
        for first, width in ((nn.Conv2d(in_channels, 64, 5, padding="same"), 64), (Conv3x3(64, 32), 32)):
            layers += [first, nn.ReLU(), nn.Conv2d(width, width, 1), nn.ReLU()]
        self.layers = nn.Sequential(*layers)
        self.last = Conv3x3(32, in_channels * scale**2)
        self.shuffle = nn.PixelShuffle(scale)
        self.start_near_skip(self.last)

    def estimate(self, image: Tensor) -> tuple[list[Tensor], Tensor]:
        return [], self.shuffle(self.last(self.layers(image)))
