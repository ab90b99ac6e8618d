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


@pytest.mark.parametrize("scale", [2, 4])
def test_rows_beyond_the_last_coarse_one_come_from_slices_that_are_not_flipped_there(scale: int) -> None:
    class Counts(Fourier):
        """Marks its own last rows, which lie before the first row of a flipped slice."""

        def forward(self, image: Tensor) -> Tensor:
            out = torch.zeros(1, 1, scale * image.shape[-2], scale * image.shape[-1])
            out[..., 1 - scale :, :] = 1.0
            return out

    out = flip_average(Counts(scale), torch.rand(1, 1, 6, 6), scale)[0, 0]
    edge = 6 * scale - (scale - 1)
    assert torch.equal(out[edge:, :edge], torch.full_like(out[edge:, :edge], 0.5))  # transposed ones mark columns
    assert torch.equal(out[:edge, :edge], torch.zeros_like(out[:edge, :edge]))
