"""Truncation of k-space, zero filling and the smooth target: facts of Fourier theory, in float64."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from bundle.physics import (
    fft2c,
    fftc,
    fourier_upsample,
    ifft2c,
    smooth_truncate,
    truncate,
    truncate_kspace,
    zero_fill,
)
from bundle.physics.kspace import cosine_taper, crop_kspace, pad_kspace

few = settings(max_examples=20, deadline=None)
Size = tuple[int, int]


@st.composite
def small_and_large(draw: st.DrawFn) -> tuple[Size, Size]:
    """Two matrices of any parity, the first not above the second; their ratio need not be an integer."""
    small = draw(st.tuples(st.integers(1, 9), st.integers(1, 9)))
    extra = draw(st.tuples(st.integers(0, 12), st.integers(0, 12)))
    return small, (small[0] + extra[0], small[1] + extra[1])


seeds = st.integers(0, 2**31)


def random_image(shape: tuple[int, ...], seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def random_complex(shape: tuple[int, ...], seed: int = 0) -> Tensor:
    return random_image(shape, seed, torch.complex128)


# ---------------------------------------------------------------------------------------------- centred transforms


@few
@given(size=st.tuples(st.integers(1, 9), st.integers(1, 9)), seed=seeds)
def test_ifft2c_is_the_inverse_of_fft2c(size: Size, seed: int) -> None:
    x = random_complex((2, *size), seed)
    assert torch.allclose(ifft2c(fft2c(x)), x)
    assert torch.allclose(fft2c(ifft2c(x)), x)


@pytest.mark.parametrize("size", [(6, 8), (5, 7), (1, 4)])
def test_dc_is_in_the_middle_of_k_space_and_is_the_sum_of_the_image(size: Size) -> None:
    x = random_image((3, *size))
    dc = fft2c(x)[..., size[0] // 2, size[1] // 2]
    assert torch.allclose(dc, x.sum(dim=(-2, -1)).to(dc.dtype))


def test_only_k_space_is_shifted_so_a_point_at_the_first_voxel_has_no_phase() -> None:
    point = torch.zeros(6, 9, dtype=torch.float64)
    point[0, 0] = 1.0
    assert torch.equal(fft2c(point), torch.ones(6, 9, dtype=torch.complex128))


def test_the_transform_of_one_axis_is_the_sum_of_the_exponentials() -> None:
    x = random_image((7, 3))
    k, n = torch.arange(7) - 3, torch.arange(7)
    waves = torch.exp(-2j * math.pi * k[:, None] * n / 7).to(torch.complex128)
    assert torch.allclose(fftc(x, [0]), waves @ x.to(torch.complex128))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.int16])
def test_half_precision_and_integers_are_transformed_in_single(dtype: torch.dtype) -> None:
    x = torch.arange(12).view(3, 4).to(dtype)
    assert fft2c(x).dtype == torch.complex64 and torch.equal(fft2c(x), fft2c(x.float()))


@few
@given(sizes=small_and_large(), seed=seeds)
def test_cropping_takes_back_what_padding_added(sizes: tuple[Size, Size], seed: int) -> None:
    small, large = sizes
    k = random_complex(small, seed)
    assert torch.allclose(crop_kspace(pad_kspace(k, large), small), k)


def waves(size: Size, frequencies: list[Size], seed: int) -> Tensor:
    """A sum of plane waves, sampled at ``size`` points of the unit square: the same continuous image at any size."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.arange(size[0], dtype=torch.float64)[:, None] / size[0]
    x = torch.arange(size[1], dtype=torch.float64)[None, :] / size[1]
    image = torch.zeros(size, dtype=torch.float64)
    for fy, fx in frequencies:
        amplitude, phase = torch.rand(2, generator=generator, dtype=torch.float64)
        image += amplitude * torch.cos(2 * math.pi * (fy * y + fx * x + phase))
    return image


def below_nyquist(size: Size) -> list[Size]:
    return [
        (fy, fx) for fy in range(-((size[0] - 1) // 2), (size[0] - 1) // 2 + 1) for fx in range((size[1] - 1) // 2 + 1)
    ]


# ------------------------------------------------------------------------------------------------------ truncation


@few
@given(size=st.tuples(st.integers(1, 12), st.integers(1, 12)), seed=seeds)
def test_factor_one_is_the_identity(size: Size, seed: int) -> None:
    x = random_image(size, seed)
    assert torch.allclose(truncate_kspace(x, size), x.to(torch.complex128))
    assert torch.allclose(truncate(x.abs(), size), x.abs())
    assert torch.allclose(zero_fill(x, size), x.to(torch.complex128))
    assert torch.allclose(fourier_upsample(x, size), x)
    assert torch.allclose(smooth_truncate(x, size), x)


@few
@given(sizes=small_and_large(), seed=seeds)
def test_the_mean_is_kept(sizes: tuple[Size, Size], seed: int) -> None:
    small, large = sizes
    x, y = random_image(large, seed), random_image(small, seed)
    assert torch.allclose(truncate_kspace(x, small).mean(), x.mean().to(torch.complex128))
    assert torch.allclose(smooth_truncate(x, small).mean(), x.mean())
    assert torch.allclose(fourier_upsample(y, large).mean(), y.mean())


@few
@given(sizes=small_and_large(), seed=seeds)
def test_truncation_undoes_zero_filling(sizes: tuple[Size, Size], seed: int) -> None:
    small, large = sizes
    x = random_complex(small, seed)
    assert torch.allclose(truncate_kspace(zero_fill(x, large), small), x)


@few
@given(sizes=small_and_large(), seed=seeds)
def test_zero_filling_is_the_adjoint_of_truncation_up_to_the_gain(sizes: tuple[Size, Size], seed: int) -> None:
    small, large = sizes
    x, y = random_complex(large, seed), random_complex(small, seed + 1)
    left = torch.vdot(truncate_kspace(x, small).flatten(), y.flatten()) * math.prod(large)
    right = torch.vdot(x.flatten(), zero_fill(y, large).flatten()) * math.prod(small)
    assert torch.allclose(left, right)


@few
@given(scale=st.integers(1, 4), size=st.tuples(st.integers(1, 7), st.integers(1, 7)), data=st.data())
def test_an_impulse_at_scale_j_lands_on_j_alone(scale: int, size: Size, data: st.DataObject) -> None:
    r, c = data.draw(st.integers(0, size[0] - 1)), data.draw(st.integers(0, size[1] - 1))
    large = torch.zeros(scale * size[0], scale * size[1], dtype=torch.float64)
    large[scale * r, scale * c] = 1.0
    expected = torch.zeros(size, dtype=torch.float64)
    expected[r, c] = 1.0 / scale**2
    assert torch.allclose(truncate(large, size), expected, atol=1e-12)


@few
@given(sizes=small_and_large(), seed=seeds)
def test_a_band_limited_image_is_sampled_and_upsampled_exactly(sizes: tuple[Size, Size], seed: int) -> None:
    small, large = sizes
    coarse, fine = (waves(size, below_nyquist(small), seed) for size in sizes)
    assert torch.allclose(truncate_kspace(fine, small).real, coarse, atol=1e-10)
    assert torch.allclose(fourier_upsample(coarse, large), fine, atol=1e-10)


@few
@given(scale=st.integers(1, 4), size=st.tuples(st.integers(1, 7), st.integers(1, 7)), seed=seeds)
def test_an_upsampled_image_passes_through_its_samples(scale: int, size: Size, seed: int) -> None:
    x = random_image(size, seed)
    fine = fourier_upsample(x, (scale * size[0], scale * size[1]))
    assert torch.allclose(fine[::scale, ::scale], x)


def test_the_degradation_is_what_its_formula_says() -> None:
    x, scale = random_image((12, 20)).abs(), 2
    k = torch.fft.fftshift(torch.fft.fft2(x))
    kept = k[6 - 3 : 6 + 3, 10 - 5 : 10 + 5]
    expected = torch.fft.ifft2(torch.fft.ifftshift(kept)).abs() / scale**2
    assert torch.allclose(truncate(x, (6, 10)), expected)


def test_a_linear_phase_in_k_space_moves_the_small_image_by_whole_samples() -> None:
    x = random_complex((12, 15))
    moved = truncate_kspace(x.roll((4, 3), dims=(0, 1)), (6, 5))  # two and one coarse samples
    assert torch.allclose(moved, truncate_kspace(x, (6, 5)).roll((2, 1), dims=(0, 1)))


def test_magnitude_of_truncated_is_real_and_not_negative() -> None:
    out = truncate(random_image((2, 8, 10)), (4, 5))
    assert out.dtype == torch.float64 and bool((out >= 0).all())


def test_complex_images_stay_complex_when_upsampled() -> None:
    x = random_complex((4, 5))
    assert torch.allclose(fourier_upsample(x, (8, 10)), zero_fill(x, (8, 10)))


# --------------------------------------------------------------------------------------------- the smooth target


@few
@given(sizes=small_and_large(), seed=seeds, fraction=st.floats(0.05, 1.0))
def test_smooth_truncation_of_a_real_image_loses_nothing_by_being_real(
    sizes: tuple[Size, Size], seed: int, fraction: float
) -> None:
    small, large = sizes
    x = random_image(large, seed)
    k = torch.fft.fftshift(torch.fft.fft2(truncate_kspace(x, small)))
    for axis in (0, 1):
        if small[axis] < large[axis]:
            window = cosine_taper(small[axis], fraction)
            k = k * (window[:, None] if axis == 0 else window)
    image = torch.fft.ifft2(torch.fft.ifftshift(k))
    out = smooth_truncate(x, small, fraction)
    assert out.dtype == torch.float64
    assert torch.allclose(out.to(image.dtype), image, atol=1e-10)


def test_smooth_truncation_rings_less_far_from_an_edge() -> None:
    box = torch.zeros(256, 2, dtype=torch.float64)
    box[64:192] = 1.0
    place = torch.arange(256) / 2  # in samples of the small image
    far = torch.stack([(place - edge).abs() for edge in (31.75, 95.75, 159.75, -32.25)]).amin(0) > 10

    def ringing(small: Tensor) -> Tensor:
        return (fourier_upsample(small, (256, 2)) - box)[far].abs().max()

    assert ringing(smooth_truncate(box, (128, 2))) < 0.2 * ringing(truncate_kspace(box, (128, 2)).real)


def test_smooth_truncation_leaves_low_frequencies_alone() -> None:
    low = [(fy, fx) for fy in range(-5, 6) for fx in range(6)]  # below 0.75 of the Nyquist frequency of 16 samples
    coarse, fine = waves((16, 16), low, 3), waves((32, 32), low, 3)
    assert torch.allclose(smooth_truncate(fine, (16, 16)), coarse, atol=1e-10)


def test_an_axis_that_keeps_its_size_is_left_as_it_is() -> None:
    x = waves((8, 9), [(0, 4), (0, 1)], 1)  # nothing along the rows, up to the highest frequency along the columns
    assert torch.allclose(smooth_truncate(x, (4, 9)), x[::2], atol=1e-12)


@pytest.mark.parametrize("n", [1, 2, 7, 8, 33])
def test_the_taper_is_one_inside_symmetric_and_zero_at_nyquist(n: int) -> None:
    window = cosine_taper(n, 0.25)
    f = (torch.arange(n) - n // 2) / max(n / 2, 1)
    assert window.shape == (n,) and window.dtype == torch.float64
    assert torch.equal(window[f.abs() <= 0.75], torch.ones(int((f.abs() <= 0.75).sum()), dtype=torch.float64))
    assert n % 2 or n == 1 or window[0] == 0.0
    symmetric = window if n % 2 else window[1:]
    assert torch.allclose(symmetric, symmetric.flip(0))


@pytest.mark.parametrize("fraction", [0.0, -0.1, 1.01])
def test_a_taper_outside_the_band_is_an_error(fraction: float) -> None:
    with pytest.raises(ValueError, match="fraction"):
        smooth_truncate(torch.zeros(8, 8), (4, 4), fraction)


# ------------------------------------------------------------------------------------- tensors of any kind and shape

OPERATORS: dict[str, tuple[Callable[[Tensor], Tensor], Size]] = {
    "truncate": (lambda x: truncate(x, (3, 4)), (6, 5)),
    "truncate_kspace": (lambda x: truncate_kspace(x, (3, 4)), (6, 5)),
    "smooth_truncate": (lambda x: smooth_truncate(x, (3, 4)), (6, 5)),
    "zero_fill": (lambda x: zero_fill(x, (7, 8)), (4, 5)),
    "fourier_upsample": (lambda x: fourier_upsample(x, (7, 8)), (4, 5)),
}
operators = pytest.mark.parametrize("name", OPERATORS)


@operators
def test_gradients_are_right(name: str) -> None:
    operator, size = OPERATORS[name]
    x = (random_image(size, 5) + 4.0).requires_grad_()  # far from 0, where a magnitude has no derivative
    assert torch.autograd.gradcheck(operator, x)


@operators
def test_a_batch_equals_its_images_one_by_one(name: str) -> None:
    operator, size = OPERATORS[name]
    x = random_image((2, 3, *size))
    assert torch.allclose(operator(x), torch.stack([torch.stack([operator(i) for i in row]) for row in x]))


@operators
def test_single_precision_agrees_with_double(name: str) -> None:
    operator, size = OPERATORS[name]
    x = random_image(size).float()
    out = operator(x)
    assert out.dtype in (torch.float32, torch.complex64)
    assert torch.allclose(out.to(torch.complex128), operator(x.double()).to(torch.complex128), atol=1e-5)


@operators
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.int16, torch.uint8])
def test_half_and_integer_images_are_raised_to_single_precision(name: str, dtype: torch.dtype) -> None:
    operator, size = OPERATORS[name]
    x = (random_image(size).abs() * 20).to(dtype)
    assert torch.equal(operator(x), operator(x.float()))


@operators
def test_the_input_is_not_changed(name: str) -> None:
    operator, size = OPERATORS[name]
    x = random_image(size)
    before = x.clone()
    operator(x)
    assert torch.equal(x, before)


@pytest.mark.parametrize("size", [(9, 8), (8, 9), (0, 4), (4, -1)])
@pytest.mark.parametrize("operator", [truncate, truncate_kspace, smooth_truncate])
def test_a_truncation_that_does_not_fit_is_an_error(operator: Callable[..., Tensor], size: Size) -> None:
    with pytest.raises(ValueError, match="cannot keep"):
        operator(torch.zeros(8, 8), size)


@pytest.mark.parametrize("operator", [zero_fill, fourier_upsample])
def test_zero_filling_to_less_is_an_error(operator: Callable[..., Tensor]) -> None:
    with pytest.raises(ValueError, match="cannot zero-fill"):
        operator(torch.zeros(8, 8), (16, 7))


@pytest.mark.parametrize("operator", [truncate, truncate_kspace, smooth_truncate, zero_fill, fourier_upsample])
def test_a_line_is_not_an_image(operator: Callable[..., Tensor]) -> None:
    with pytest.raises(ValueError, match="at least two axes"):
        operator(torch.zeros(8), (8, 8))
