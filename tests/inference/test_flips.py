"""The average over flips keeps the grid."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from bundle.inference.flips import flip_average
from bundle.networks.upsample import fourier_image_upsample


class Fourier(nn.Module):
    """Zero-filled Fourier interpolation, which is the same for every flip."""

    def __init__(self, scale: int) -> None:
        super().__init__()
        self.scale = scale

    def forward(self, image: Tensor) -> Tensor:
        return fourier_image_upsample(image, self.scale)


class Repeat(Fourier):
    """Every coarse sample held for `scale` fine ones: shifted by (scale - 1) / 2 fine samples."""

    def forward(self, image: Tensor) -> Tensor:
        return image.repeat_interleave(self.scale, -2).repeat_interleave(self.scale, -1)


@pytest.mark.parametrize("scale", [2, 4])
@pytest.mark.parametrize("size", [(7, 9), (9, 12)])  # with two even sizes, the corner of k-space has no partner
def test_flips_change_nothing_where_the_network_has_no_preferred_direction(scale: int, size: tuple[int, int]) -> None:
    image = torch.rand(2, 1, *size, dtype=torch.float64)
    torch.testing.assert_close(flip_average(Fourier(scale), image, scale), Fourier(scale)(image))


@pytest.mark.parametrize("scale", [2, 4])
def test_the_average_of_a_network_that_shifts_is_not_shifted(scale: int) -> None:
    ramp = torch.arange(12.0, dtype=torch.float64).expand(1, 1, 12, 12)
    out = flip_average(Repeat(scale), ramp, scale)
    inner = slice(scale, -2 * scale)
    assert torch.equal(out[0, 0, :, ::scale][:, 1:-1], ramp[0, 0, :1, 1:-1].expand(12 * scale, -1))
    slope = out[0, 0, 0, inner].diff().mean()
    assert float(slope) == pytest.approx(1 / scale, rel=0.2)


def test_the_network_sees_all_eight_orientations() -> None:
    seen = []

    class Watches(Fourier):
        def forward(self, image: Tensor) -> Tensor:
            seen.append(image.clone())
            return super().forward(image)

    image = torch.arange(16.0).view(1, 1, 4, 4)
    flip_average(Watches(2), image, 2)
    assert len({tuple(one.flatten().tolist()) for one in seen}) == 8
