"""Data consistency: measured k-space is restored, the rest is kept, and lost signs are recovered."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from bundle.physics import (
    agreed_weight,
    band_edge_gain,
    consistency_residual,
    fourier_upsample,
    measured_as,
    restore_agreed,
    restore_magnitude,
    restore_measured,
    truncate,
    truncate_kspace,
)
from bundle.physics.consistency import FILTERED, TRUSTED
from bundle.physics.degradation import acquire, kspace_window

few = settings(max_examples=20, deadline=None)
Size = tuple[int, int]
seeds = st.integers(0, 2**31)
sizes_of_any_parity = st.tuples(st.integers(1, 9), st.integers(1, 9)).flatmap(
    lambda small: st.tuples(st.just(small), st.tuples(*(st.integers(n, n + 12) for n in small)))
)


def random_image(shape: tuple[int, ...], seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def box(size: int = 48) -> Tensor:
    """Bright box on zero background: its truncation rings below zero all around."""
    image = torch.zeros(size, size, dtype=torch.float64)
    image[size // 4 : size // 2 + 1, size // 3 : 3 * size // 4] = 1.0
    return image


# ------------------------------------------------------------------------------------------------- signed measurement


@few
@given(sizes=sizes_of_any_parity, seed=seeds)
def test_truncating_the_restored_image_gives_what_was_measured(sizes: tuple[Size, Size], seed: int) -> None:
    small, large = sizes
    image, measured = random_image(large, seed), random_image(small, seed + 1)
    out = restore_measured(image, measured)
    assert out.shape == image.shape and not out.is_complex()
    assert torch.allclose(truncate_kspace(out, small), measured.to(torch.complex128), atol=1e-10)
    assert torch.allclose(out.mean(), measured.mean())
    assert torch.allclose(restore_measured(out, measured), out)


@few
@given(sizes=sizes_of_any_parity, seed=seeds)
def test_restoring_leaves_all_frequencies_alone_that_were_not_measured(sizes: tuple[Size, Size], seed: int) -> None:
    small, large = sizes
    image = random_image(large, seed)
    change = torch.fft.fft2(restore_measured(image, random_image(small, seed + 1)) - image)
    measured = torch.zeros(large, dtype=torch.bool)
    rows, cols = ([(i - n // 2) % size for i in range(n)] for n, size in zip(small, large, strict=True))
    measured[torch.tensor(rows)[:, None], torch.tensor(cols)] = True
    partner = measured.flip(0, 1).roll((1, 1), dims=(0, 1))  # -k for every k
    assert bool((change[~(measured | partner)].abs() < 1e-8).all())


def test_an_image_that_agrees_with_the_measurement_is_not_changed() -> None:
    image = fourier_upsample(random_image((5, 7)), (12, 15))
    assert torch.allclose(restore_measured(image, truncate_kspace(image, (6, 7)).real), image)


@pytest.mark.parametrize("restore", [restore_measured, restore_magnitude])
def test_a_weight_goes_that_part_of_the_way(restore) -> None:
    image, measured = random_image((8, 9)), random_image((4, 5), 1).abs()
    whole = restore(image, measured)
    assert torch.equal(restore(image, measured, 0.0), image)
    assert torch.allclose(restore(image, measured, 0.25), 0.75 * image + 0.25 * whole)


# ---------------------------------------------------------------------------------------------- magnitude measurement


@few
@given(sizes=sizes_of_any_parity, seed=seeds)
def test_the_truth_is_consistent_with_its_own_magnitude(sizes: tuple[Size, Size], seed: int) -> None:
    small, large = sizes
    truth = random_image(large, seed)
    magnitude = truncate(truth, small)
    assert torch.allclose(restore_magnitude(truth, magnitude), truth)
    assert consistency_residual(truth, magnitude) < 1e-12


@few
@given(sizes=sizes_of_any_parity, seed=seeds, gain=st.floats(0.2, 5.0))
def test_a_wrong_gain_is_mended_wholly_also_where_the_signal_is_negative(
    sizes: tuple[Size, Size], seed: int, gain: float
) -> None:
    small, large = sizes
    truth = random_image(large, seed)
    out = restore_magnitude(gain * truth, truncate(truth, small))
    assert torch.allclose(truncate_kspace(out, small), truncate_kspace(truth, small), atol=1e-9)


@few
@given(sizes=sizes_of_any_parity, seed=seeds)
def test_an_image_never_ends_further_from_the_measured_magnitude(sizes: tuple[Size, Size], seed: int) -> None:
    small, large = sizes
    image, magnitude = random_image(large, seed), random_image(small, seed + 1).abs()
    before, after = (consistency_residual(x, magnitude) for x in (image, restore_magnitude(image, magnitude)))
    assert after <= before + 1e-12


@pytest.mark.parametrize("n", [12, 13, 24])
def test_signs_from_a_fair_estimate_beat_taking_the_magnitude_for_the_signal(n: int) -> None:
    truth = box()
    magnitude = truncate(truth, (n, n))
    estimate = truth + 0.02 * random_image((48, 48))
    error = [float((r(estimate, magnitude) - truth).norm()) for r in (restore_magnitude, restore_measured)]
    assert error[0] < 0.7 * error[1]


def test_nothing_measured_leaves_nothing_in_the_band() -> None:
    out = restore_magnitude(random_image((9, 11)), torch.zeros(5, 5, dtype=torch.float64))
    assert truncate(out, (5, 5)).abs().max() < 1e-12
    assert torch.equal(restore_magnitude(torch.zeros(8, 8), torch.zeros(4, 4)), torch.zeros(8, 8))


def test_a_black_estimate_takes_the_magnitude_as_it_is() -> None:
    magnitude = random_image((4, 5)).abs()
    assert torch.allclose(
        restore_magnitude(torch.zeros(8, 9).double(), magnitude),
        restore_measured(torch.zeros(8, 9).double(), magnitude),
    )


# --------------------------------------------------------------------------------------------------- tensors, errors


@pytest.mark.parametrize("restore", [restore_measured, restore_magnitude])
def test_gradients_to_image_and_measurement_are_right(restore) -> None:
    image, measured = random_image((6, 7)).requires_grad_(), (random_image((3, 4), 1) + 4.0).requires_grad_()
    assert torch.autograd.gradcheck(restore, (image, measured))


@pytest.mark.parametrize("restore", [restore_measured, restore_magnitude])
def test_a_black_slice_has_a_finite_gradient(restore) -> None:
    image = torch.zeros(8, 8, requires_grad=True)
    restore(image, torch.zeros(4, 4)).sum().backward()
    assert image.grad is not None and bool(image.grad.isfinite().all())


@pytest.mark.parametrize("restore", [restore_measured, restore_magnitude])
def test_a_batch_equals_its_images_and_keeps_its_dtype(restore) -> None:
    image, measured = random_image((2, 3, 8, 9)).float(), random_image((2, 3, 4, 3), 1).abs().float()
    out = restore(image, measured)
    pairs = zip(image.flatten(0, 1), measured.flatten(0, 1), strict=True)
    alone = torch.stack([restore(i, m) for i, m in pairs]).view_as(image)
    assert out.dtype == torch.float32 and torch.allclose(out, alone, atol=1e-6)
    assert restore(image.half(), measured.half()).dtype == torch.float16


@pytest.mark.parametrize("restore", [restore_measured, restore_magnitude])
def test_a_measurement_larger_than_the_image_is_an_error(restore) -> None:
    with pytest.raises(ValueError, match="cannot keep"):
        restore(torch.zeros(4, 4), torch.zeros(5, 4))


def test_the_residual_is_relative_and_zero_for_nothing() -> None:
    image = random_image((8, 8)).abs()
    assert consistency_residual(2.0 * image, truncate(image, (4, 4))) == pytest.approx(1.0)
    assert consistency_residual(torch.zeros(8, 8), torch.zeros(4, 4)) == 0.0


def test_a_magnitude_is_restored_as_what_it_was_before() -> None:
    image, magnitude = random_image((12, 10)), random_image((6, 5), 1).abs()
    measured = measured_as(image, magnitude)
    assert torch.allclose(measured.abs(), magnitude)
    assert torch.allclose(restore_measured(image, measured), restore_magnitude(image, magnitude))


# ------------------------------------------------------------------------------------------------- filtered k-space


def brain_like(size: int = 64) -> Tensor:
    """Boxes of different size and brightness, so that all frequencies are present."""
    image = box(size)
    image[size // 3 : size // 3 + 4, size // 2 : size // 2 + 9] = 0.4
    image[size // 2 : size // 2 + 2] += 0.2
    return image


def test_the_band_edge_gain_of_an_image_and_its_own_truncation_is_one() -> None:
    image = brain_like()
    assert band_edge_gain(image, truncate(image, (32, 32))) == pytest.approx(1.0, abs=0.05)
    assert agreed_weight(image, truncate(image, (32, 32))).shape == (1, 1)
    assert float(agreed_weight(image, truncate(image, (32, 32)))) == 1.0


@pytest.mark.parametrize("kind", ["hamming", "hann", "gaussian"])
def test_samples_that_a_filter_made_smaller_are_not_put_back(kind: str) -> None:
    image = brain_like()
    line = kspace_window(kind, 32, 0.4 if kind == "gaussian" else None).double()
    low = acquire(image, (32, 32), window=line[:, None] * line)
    assert float(band_edge_gain(image, low)) > 2
    weight = agreed_weight(image, low)
    assert float(weight) == 0.0
    assert torch.equal(restore_magnitude(image, low, weight), image)


def test_the_weight_falls_from_one_to_zero_between_the_two_gains() -> None:
    low = torch.rand(17, 17, dtype=torch.float64) + 1.0  # odd: no unpaired row; positive: no sign is lost
    image = fourier_upsample(low, (34, 34))
    gains = [1.0, TRUSTED, (TRUSTED * FILTERED) ** 0.5, FILTERED, 3.0]
    weights = [float(agreed_weight(gain * image, low)) for gain in gains]
    assert weights == pytest.approx([1.0, 1.0, 0.5, 0.0, 0.0], abs=0.02)


def test_an_interpolated_image_with_an_empty_edge_is_not_taken_for_filtered() -> None:
    smooth = fourier_upsample(truncate(brain_like(), (9, 9)), (32, 32)) + 1.0
    sharper = fourier_upsample(smooth + 0.1 * torch.rand(32, 32, dtype=torch.float64), (64, 64))
    assert float(band_edge_gain(sharper, smooth)) > FILTERED
    assert float(agreed_weight(sharper, smooth)) == 1.0


def test_small_images_tell_too_little_to_take_them_for_filtered() -> None:
    image = brain_like()[20:50, 20:50]
    assert float(agreed_weight(3.0 * image, truncate(image, (15, 15)))) == 1.0


def test_each_image_of_a_batch_has_its_own_weight_and_an_empty_one_keeps_it() -> None:
    image = brain_like()
    low = truncate(image, (32, 32))
    batch = torch.stack([image, 3.0 * image, 0.0 * image])[:, None]
    measured = torch.stack([low, low, 0.0 * low])[:, None]
    assert agreed_weight(batch, measured).flatten().tolist() == [1.0, 0.0, 1.0]
    out = restore_magnitude(batch, measured, agreed_weight(batch, measured))
    assert torch.equal(out[1], batch[1]) and not torch.equal(out[0], batch[0])


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("weight", ["auto", 0.3])
def test_the_step_of_the_product_is_weight_and_restoration_one_after_the_other(signed: bool, weight) -> None:
    batch = torch.stack([random_image((40, 35), 0), 3.0 * random_image((40, 35), 1)])[:, None]
    measured = truncate(torch.stack([random_image((40, 35), 0), random_image((40, 35), 1)])[:, None], (20, 17))
    out, weights = restore_agreed(batch, measured, weight, signed)
    expected = (
        agreed_weight(batch, measured) if weight == "auto" else torch.full((2, 1, 1, 1), 0.3, dtype=torch.float64)
    )
    assert torch.equal(weights, expected) and (weight != "auto" or weights.unique().numel() == 2)
    assert torch.equal(out, (restore_measured if signed else restore_magnitude)(batch, measured, expected))
