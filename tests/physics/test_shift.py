"""The measured shift is 0 for aligned upsamplers and (scale - 1) / 2 for those that keep edges."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import interpolate

from bundle.networks.upsample import aligned_bicubic_upsample, fourier_image_upsample
from bundle.physics import fourier_upsample, measure_grid_shift

scales = pytest.mark.parametrize("scale", [2, 3, 4, 8])


@scales
def test_fourier_upsampling_does_not_move_the_image(scale: int) -> None:
    shift = measure_grid_shift(lambda x: fourier_upsample(x, (scale * x.shape[2], scale * x.shape[3])), scale)
    assert shift == pytest.approx((0.0, 0.0), abs=1e-6)
    assert measure_grid_shift(lambda x: fourier_image_upsample(x, scale), scale) == pytest.approx((0, 0), abs=1e-6)


@scales
def test_aligned_bicubic_upsampling_does_not_move_the_image(scale: int) -> None:
    shift = measure_grid_shift(lambda x: aligned_bicubic_upsample(x, scale), scale)
    assert shift == pytest.approx((0.0, 0.0), abs=1e-3)


@scales
@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
def test_upsampling_that_keeps_edges_moves_it_by_half_the_difference(scale: int, mode: str) -> None:
    def centred(x: torch.Tensor) -> torch.Tensor:
        return interpolate(x, scale_factor=scale, mode=mode, align_corners=False)

    assert measure_grid_shift(centred, scale) == pytest.approx([(scale - 1) / 2] * 2, abs=1e-3)


def test_a_known_shift_is_measured_with_its_sign() -> None:
    def moved(x: torch.Tensor) -> torch.Tensor:
        return fourier_image_upsample(x, 2).roll((1, -2), dims=(2, 3))

    assert measure_grid_shift(moved, 2) == pytest.approx((1.0, -2.0), abs=1e-6)


def test_the_upsampler_gets_the_dtype_that_was_asked_for() -> None:
    seen = []

    def upsample(x: torch.Tensor) -> torch.Tensor:
        seen.append(x.dtype)
        return fourier_image_upsample(x, 2)

    shift = measure_grid_shift(upsample, 2, dtype=torch.float32)
    assert seen == [torch.float32] and shift == pytest.approx((0, 0), abs=1e-4)


def test_a_result_of_another_size_is_an_error() -> None:
    with pytest.raises(ValueError, match="expected 3 times"):
        measure_grid_shift(lambda x: fourier_image_upsample(x, 2), 3)
