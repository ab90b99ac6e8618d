"""Upsampling on the grid of k-space truncation."""

from __future__ import annotations

import pytest
import torch

from bundle.networks.upsample import aligned_bicubic_upsample, fourier_image_upsample
from bundle.physics import fourier_upsample


def image(*shape: int) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize("scale", [1, 2, 4])
@pytest.mark.parametrize("upsample", [fourier_image_upsample, aligned_bicubic_upsample])
@pytest.mark.parametrize("size", [(1, 1), (1, 6), (7, 1), (5, 8)])
def test_samples_stay_where_they_were(upsample, scale: int, size: tuple[int, int]) -> None:
    x = image(2, 3, *size)
    out = upsample(x, scale)
    assert out.shape == (2, 3, scale * size[0], scale * size[1])
    assert torch.allclose(out[..., ::scale, ::scale], x)


@pytest.mark.parametrize("upsample", [fourier_image_upsample, aligned_bicubic_upsample])
def test_a_constant_stays_constant(upsample) -> None:
    x = torch.full((1, 1, 5, 6), 3.25, dtype=torch.float64)
    assert torch.allclose(upsample(x, 4), torch.full((1, 1, 20, 24), 3.25, dtype=torch.float64))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_the_dtype_is_kept(dtype: torch.dtype) -> None:
    x = image(1, 1, 4, 5).to(dtype)
    assert fourier_image_upsample(x, 2).dtype == dtype
    assert torch.equal(fourier_image_upsample(x, 2), fourier_upsample(x, (8, 10)).to(dtype))


def test_bicubic_weights_between_samples_are_those_of_keys() -> None:
    x = torch.zeros(1, 1, 1, 9, dtype=torch.float64)
    x[..., 4] = 1.0
    a = -0.75
    at_half, at_three_halves = (a + 2) / 8 - (a + 3) / 4 + 1, a * (27 / 8 - 5 * 9 / 4 + 8 * 3 / 2 - 4)
    row = aligned_bicubic_upsample(x, 2)[0, 0, 0]
    assert torch.allclose(
        row[[5, 7, 9, 11]], torch.tensor([at_three_halves, at_half, at_half, at_three_halves]).double()
    )


def test_borders_are_replicated() -> None:
    x = torch.cat([torch.zeros(1, 1, 4, 4), torch.ones(1, 1, 4, 4)], dim=-1).double()
    out = aligned_bicubic_upsample(x, 2)
    assert torch.allclose(out[..., -2:], torch.ones(1, 1, 8, 2).double())
    assert torch.allclose(out[..., :3], torch.zeros(1, 1, 8, 3).double())
