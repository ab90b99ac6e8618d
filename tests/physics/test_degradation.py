"""Simulated acquisitions: closed forms of the windows, second moments of the noise, what phase leaves alone."""

from __future__ import annotations

import math

import pytest
import torch

from bundle.physics import fft2c, truncate, truncate_kspace
from bundle.physics.degradation import WINDOWS, acquire, kspace_window, smooth_phase, with_phase
from bundle.physics.kspace import cosine_taper

SIZES = (1, 2, 7, 8, 31, 32)


@pytest.fixture
def image():
    return 50.0 + 100.0 * torch.rand(3, 24, 20, generator=torch.Generator().manual_seed(0))


def complex_noise(*shape, seed=0):
    """Real and imaginary part of standard deviation 1."""
    return math.sqrt(2.0) * torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.complex64)


# ---------------------------------------------------------------------------------------------------------- windows


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("kind", WINDOWS)
def test_a_window_is_one_at_the_centre_and_nowhere_larger(kind, n):
    window = kspace_window(kind, n)
    assert window.shape == (n,) and window.dtype == torch.float32
    assert float(window[n // 2]) == pytest.approx(1.0, abs=1e-6)
    assert float(window.min()) >= 0.0 and float(window.max()) <= 1.0 + 1e-6


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("kind", WINDOWS)
def test_a_window_falls_alike_on_both_sides_of_the_centre(kind, n):
    window, centre = kspace_window(kind, n), n // 2
    right = window[centre:]
    left = window[: centre + 1].flip(0)  # an even window has one more sample here, at the band edge
    assert torch.equal(left[: len(right)], right)
    assert bool((right[1:] <= right[:-1]).all()) and bool((left[1:] <= left[:-1]).all())


@pytest.mark.parametrize(
    ("kind", "parameter", "centre_half_edge"),
    [
        ("hamming", None, (1.0, 0.54, 0.08)),
        ("hann", None, (1.0, 0.5, 0.0)),
        ("tukey", None, (1.0, 1.0, 0.0)),
        ("tukey", 1.0, (1.0, 0.5, 0.0)),
        ("fermi", None, (1.0, 1 / (1 + math.exp(-6.0)), 1 / (1 + math.exp(4.0)))),
        ("fermi", 0.5, (1.0, 0.5, 1 / (1 + math.exp(10.0)))),
        ("gaussian", None, (1.0, math.exp(-0.5), math.exp(-2.0))),
        ("gaussian", 1.0, (1.0, math.exp(-0.125), math.exp(-0.5))),
    ],
)
def test_a_window_has_its_closed_form_at_the_centre_half_way_and_at_the_edge(kind, parameter, centre_half_edge):
    window = kspace_window(kind, 16, parameter)
    assert [float(window[i]) for i in (8, 4, 0)] == pytest.approx(centre_half_edge, abs=2e-4)


@pytest.mark.parametrize("n", [8, 15, 16])
def test_tukey_is_the_taper_of_the_smooth_target_and_hann_its_widest(n):
    assert torch.allclose(kspace_window("tukey", n, 0.25), cosine_taper(n, 0.25).float())
    assert torch.allclose(kspace_window("tukey", n, 1.0), kspace_window("hann", n), atol=1e-6)


def test_a_window_that_cannot_be_is_an_error():
    with pytest.raises(ValueError, match="must be one of.*got 'kaiser'"):
        kspace_window("kaiser", 8)
    for parameter in (0.0, -1.0, math.nan):
        with pytest.raises(ValueError, match="must be positive"):
            kspace_window("tukey", 8, parameter)


# ------------------------------------------------------------------------------------------------------------ phase


def test_a_phase_map_goes_through_its_corners_and_varies_slowly():
    coefficients = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    phase = smooth_phase(coefficients, (40, 52))
    assert phase.shape == (2, 3, 40, 52)
    assert torch.allclose(phase[..., [0, 0, -1, -1], [0, -1, 0, -1]], coefficients[..., [0, 0, -1, -1], [0, -1, 0, -1]])
    reach = float(coefficients.abs().max())
    assert float(phase.diff(dim=-1).abs().max()) < reach / 4 and float(phase.diff(dim=-2).abs().max()) < reach / 4


def test_a_constant_phase_stays_constant():
    assert torch.allclose(smooth_phase(torch.full((1, 4, 4), 0.75), (9, 17)), torch.full((1, 9, 17), 0.75), atol=1e-6)


def test_phase_keeps_the_magnitude_and_is_random_only_where_there_is_no_signal(image):
    image[:, :8] = 0.5
    phase = smooth_phase(torch.randn(3, 4, 4, generator=torch.Generator().manual_seed(1)), (24, 20))
    turned = with_phase(image, phase, 2.0, complex_noise(3, 24, 20))
    assert turned.is_complex() and torch.allclose(turned.abs(), image, rtol=1e-5)
    moved = (turned * torch.polar(torch.ones_like(phase), -phase)).angle().abs()
    assert float(moved[:, 8:].max()) < 8.0 / 50.0  # four standard deviations of both parts over the least signal
    assert float(moved[:, :8].mean()) > 0.8  # near pi / 2, as any angle is equally likely
    still = with_phase(image, phase, 0.0, complex_noise(3, 24, 20))
    assert torch.allclose(still, torch.polar(image, phase))


# ------------------------------------------------------------------------------------------------------ acquisition


@pytest.mark.parametrize("size", [(12, 10), (11, 9), (24, 20)])
def test_without_options_an_acquisition_is_truncation(image, size):
    assert torch.equal(acquire(image, size), truncate(image, size))


def test_a_constant_phase_does_not_show_in_the_magnitude(image):
    turned = image * complex(math.cos(1.0), math.sin(1.0))
    assert torch.allclose(acquire(turned, (12, 10)), truncate(image, (12, 10)), rtol=1e-4)


@pytest.mark.parametrize("kind", WINDOWS)
def test_a_filter_keeps_the_mean_and_weighs_kspace(image, kind):
    size = (11, 9)  # odd: the filtered image of a real one stays real, and it is above 0 here
    window = kspace_window(kind, size[0])[:, None] * kspace_window(kind, size[1])
    low = acquire(image, size, window)
    assert torch.allclose(low.mean(dim=(1, 2)), image.mean(dim=(1, 2)), rtol=1e-4)
    expected = fft2c(truncate_kspace(image, size)) * window
    assert torch.allclose(fft2c(low), expected, atol=1e-2)


def test_noise_of_strength_zero_changes_nothing(image):
    noisy = acquire(image, (12, 10), sigma=0.0, noise=complex_noise(4, 3, 12, 10))
    assert torch.allclose(noisy, truncate(image, (12, 10)))


@pytest.mark.parametrize("coils", [1, 4])
@pytest.mark.parametrize("signal", [0.0, 3.0, 20.0])
def test_noise_adds_its_power_to_the_square_of_the_signal(coils, signal):
    """Second moment of a non-central chi variable: signal^2 + 2 coils sigma^2, sigma that of one of the parts."""
    flat, sigma = torch.full((1, 200, 200), signal), 2.0
    low = acquire(flat, (200, 200), sigma=sigma, noise=complex_noise(coils, 1, 200, 200))
    assert float(low.square().mean()) == pytest.approx(signal**2 + 2 * coils * sigma**2, rel=0.02)
    assert float(low.min()) >= 0.0


def test_noise_without_signal_has_the_mean_of_rayleigh():
    low = acquire(torch.zeros(1, 200, 200), (200, 200), sigma=3.0, noise=complex_noise(1, 1, 200, 200))
    assert float(low.mean()) == pytest.approx(3.0 * math.sqrt(math.pi / 2), rel=0.02)


def test_one_strength_per_image_of_a_batch(image):
    sigma = torch.tensor([0.0, 1.0, 4.0])[:, None, None]
    off = (acquire(image, (12, 10), sigma=sigma, noise=complex_noise(1, 3, 12, 10)) - truncate(image, (12, 10))).abs()
    by_image = off.mean(dim=(1, 2)).tolist()
    assert by_image[0] == pytest.approx(0.0, abs=1e-4) and by_image[1] < by_image[2]


def test_a_matrix_that_does_not_fit_is_an_error(image):
    with pytest.raises(ValueError, match="cannot keep 25x20 samples of a 24x20 k-space"):
        acquire(image, (25, 20))
