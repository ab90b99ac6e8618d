"""Undoing zero filling: the acquired image from the stored one."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bundle.physics import fourier_upsample, truncate, truncate_kspace, zero_fill
from bundle.physics.cut import cut_kspace, cut_magnitude

sizes = st.tuples(st.integers(8, 20), st.integers(8, 20))
few = settings(max_examples=40, deadline=None)


def phantom(size: tuple[int, int], phase: float = 0.0) -> torch.Tensor:
    """A complex image (H, W) with edges, a dark background and a slowly varying phase."""
    y, x = torch.meshgrid(torch.linspace(-1, 1, size[0]), torch.linspace(-1, 1, size[1]), indexing="ij")
    image = 100.0 * ((x / 0.7) ** 2 + (y / 0.8) ** 2 < 1) + 60.0 * ((x - 0.2) ** 2 + (y + 0.1) ** 2 < 0.04)
    image = image + 20.0 * (torch.sin(9 * x) * torch.cos(7 * y) + 1) * (image > 0)
    return torch.polar(image.double(), phase * (x + y * y).double())


@few
@given(size=sizes, more=st.tuples(st.integers(0, 13), st.integers(0, 13)), seed=st.integers(0, 9))
def test_cutting_undoes_fourier_interpolation_for_every_parity(size, more, seed):
    image = torch.randn(*size, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    # One axis after the other: the sample at both Nyquist frequencies has no unique interpolation.
    taller = fourier_upsample(image, (size[0] + more[0], size[1]))
    stored = fourier_upsample(taller, (size[0] + more[0], size[1] + more[1]))
    torch.testing.assert_close(cut_kspace(stored, size), image)


def test_of_a_complex_image_the_cut_is_a_truncation_if_the_matrix_is_odd():
    image = torch.randn(3, 20, 22, dtype=torch.complex128)
    torch.testing.assert_close(cut_kspace(image, (11, 13)), truncate_kspace(image, (11, 13)))


@pytest.mark.parametrize("size", [(0, 4), (4, 9), (9, 4)])
def test_a_matrix_that_does_not_fit_is_refused(size):
    with pytest.raises(ValueError, match="cannot cut an image of 8x8 samples"):
        cut_kspace(torch.zeros(8, 8), size)
    with pytest.raises(ValueError, match="cannot cut"):
        cut_magnitude(torch.zeros(8, 8), size)


@pytest.mark.parametrize("stored", [(96, 96), (80, 64), (64, 90), (150, 129)])
@pytest.mark.parametrize("phase", [0.0, 2.0])
def test_the_acquired_magnitude_is_found_again_behind_zero_filling(stored, phase):
    acquired = truncate_kspace(phantom((128, 128), phase), (64, 64))
    image = zero_fill(acquired, stored).abs()
    wanted = acquired.abs()

    def error(found: torch.Tensor) -> float:
        return float((found - wanted).norm() / wanted.norm())

    plain, searched = error(truncate(image, (64, 64))), error(cut_magnitude(image, (64, 64)))
    assert searched < 0.6 * plain
    assert searched < 0.03


def test_signs_that_the_magnitude_has_lost_are_found_again():
    """Ringing below zero is rectified in the stored image; cutting that off smears it, searching its sign does not."""
    acquired = truncate_kspace(phantom((128, 128)), (63, 63))
    image = zero_fill(acquired, (126, 126)).abs()
    wanted = acquired.abs()
    plain, searched = ((cut_magnitude(image, (63, 63), n) - wanted).norm() for n in (0, 10))
    assert searched < 0.7 * plain


def test_nothing_changes_where_nothing_is_cut_and_an_empty_image_stays_empty():
    image = phantom((24, 31)).abs()
    torch.testing.assert_close(cut_magnitude(image, (24, 31)), image)
    assert not cut_magnitude(torch.zeros(2, 16, 16), (8, 9)).any()


def test_the_mean_and_the_scale_are_kept():
    image = zero_fill(truncate_kspace(phantom((128, 96)), (60, 50)), (90, 75)).abs()
    torch.testing.assert_close(cut_kspace(image, (60, 50)).mean(), image.mean())
    torch.testing.assert_close(cut_magnitude(1e6 * image, (60, 50)), 1e6 * cut_magnitude(image, (60, 50)))
