"""The acquired matrix is found behind k-space filters too, and weighed against what the file states."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from bundle.physics import fft2c, ifft2c
from bundle.physics.degradation import kspace_window
from bundle.physics.kspace import pad_kspace
from bundle.physics.matrix import KnownMatrix, StatedMatrix
from bundle.trust import CONFIDENT, find_interpolation, find_matrix

few = settings(max_examples=8, deadline=None)
WINDOWS = {"none": None, "Hamming": ("hamming", None), "Fermi": ("fermi", 0.9), "raised cosine": ("tukey", 0.3)}


def anatomy(size: tuple[int, int], slices: int = 6, seed: int = 0) -> Tensor:
    """(slices, H, W): tissue with the spectrum of real images inside a bright ellipse on an empty background."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn((slices, *size), generator=generator)
    rows, cols = (torch.fft.fftfreq(n) for n in size)
    texture = torch.fft.ifft2(torch.fft.fft2(noise) / (0.03 + torch.hypot(rows[:, None], cols))).real
    y, x = torch.meshgrid(torch.linspace(-1, 1, size[0]), torch.linspace(-1, 1, size[1]), indexing="ij")
    body = torch.sigmoid(40 * (0.75 - torch.hypot(y, x)))
    return (600 + 150 * texture / texture.std()).clamp(min=0) * body


def scanned(
    acquired: tuple[int, int],
    stored: tuple[int, int],
    window: str = "none",
    snr: float = 40.0,
    seed: int = 0,
    partial: float = 1.0,
    elliptical: bool = False,
) -> np.ndarray:
    """(X, Y, slices) whole numbers: noise, filter, zero filling and magnitude in the order of a scanner."""
    image, generator = anatomy(acquired, seed=seed), torch.Generator().manual_seed(seed + 1)
    y, x = torch.meshgrid(*(torch.linspace(-1, 1, n) for n in acquired), indexing="ij")
    noise = torch.randn(image.shape, generator=generator, dtype=torch.complex64) * (600 / snr * 2**0.5)
    kspace = fft2c(torch.polar(image, (0.5 * y + 0.8 * x * y).expand_as(image).contiguous()) + noise)
    if (filtering := WINDOWS[window]) is not None:
        rows, cols = (kspace_window(filtering[0], n, filtering[1]) for n in acquired)
        kspace = kspace * rows[:, None] * cols
    kspace[:, : round((1 - partial) * acquired[0])] = 0
    if elliptical:
        kspace = kspace * (y**2 + x**2 <= 1)
    return ifft2c(pad_kspace(kspace, stored)).abs().round().movedim(0, 2).numpy()


def stated(*samples: float | None) -> StatedMatrix:
    return StatedMatrix((samples[0], samples[1], None), "DICOM header")


@few
@given(
    acquired=st.tuples(st.integers(64, 110), st.integers(64, 110)),
    ratio=st.tuples(st.floats(1.25, 2.3), st.floats(1.25, 2.3)),
    seed=st.integers(0, 2**20),
)
def test_any_ratio_is_found_to_the_sample_behind_noise_and_magnitude(acquired, ratio, seed):
    stored = (round(acquired[0] * ratio[0]), round(acquired[1] * ratio[1]))
    found = find_matrix(scanned(acquired, stored, seed=seed), 2)
    assert found.stored == stored
    assert np.allclose(found.acquired, acquired, atol=1)
    assert found.source == "image"
    assert found.kinds == ("zero-filled", "zero-filled")


@few
@given(
    window=st.sampled_from(["Hamming", "Fermi", "raised cosine"]),
    acquired=st.tuples(st.integers(84, 110), st.integers(84, 110)),
    ratio=st.floats(1.3, 2.0),
)
def test_a_soft_edge_is_found_and_never_placed_outside_the_acquired_band(window, acquired, ratio):
    stored = (round(acquired[0] * ratio), round(acquired[1] * ratio))
    found = find_matrix(scanned(acquired, stored, window), 2)
    for n, true in zip(found.acquired, acquired, strict=True):
        assert 0.86 * true <= n <= true + 3


@pytest.mark.parametrize("how", [{"partial": 0.75}, {"elliptical": True}, {"partial": 0.625, "window": "Fermi"}])
def test_partial_fourier_and_elliptical_supports_are_found_with_their_full_width(how):
    found = find_matrix(scanned((96, 104), (160, 150), **how), 2)
    assert np.allclose(found.acquired, (96, 104), rtol=0.05, atol=1)


@pytest.mark.parametrize("how", [{"partial": 0.75}, {"window": "Hamming"}, {"window": "raised cosine"}, {"snr": 10}])
def test_a_scan_that_was_not_interpolated_is_left_alone_whatever_its_k_space_lacks(how):
    found = find_matrix(scanned((120, 128), (120, 128), **how), 2)
    assert (found.acquired, found.interpolated, found.kinds) == ((120, 128), False, (None, None))


def test_only_the_interpolated_axis_is_cut():
    found = find_matrix(scanned((128, 80), (128, 128)), 2)
    assert found.acquired == (128, 80)
    assert found.kinds == (None, "zero-filled")


def test_orientation_scale_and_offset_of_the_voxels_do_not_matter():
    volume = scanned((80, 96), (128, 132), "Fermi")
    found = find_matrix(volume, 2)
    assert found.interpolated
    for same in (volume[::-1], volume[:, ::-1, ::-1], volume * 0.003, volume * 7e4, volume.astype(np.int32)):
        assert find_matrix(same, 2).acquired == found.acquired
    assert np.allclose(find_matrix(volume - 900.0, 2).acquired, found.acquired, atol=2)
    assert find_matrix(volume.transpose(1, 0, 2), 2).acquired == found.acquired[::-1]
    assert find_matrix(volume.transpose(2, 0, 1), 0).acquired == found.acquired
    assert find_matrix(volume.transpose(1, 2, 0), 1).acquired == found.acquired[::-1]


def test_a_mask_or_a_crop_does_not_hide_the_edge():
    volume = scanned((96, 96), (150, 150))
    y, x = np.meshgrid(*[np.linspace(-1, 1, 150)] * 2, indexing="ij")
    assert np.allclose(find_matrix(volume * (np.hypot(y, x) < 0.6)[..., None], 2).acquired, 96, atol=6)
    cropped = find_matrix(volume[10:-10, 4:-7], 2)
    assert np.allclose(cropped.acquired, (130 * 0.64, 139 * 0.64), atol=4)


# ------------------------------------------------------------------------------------------------- image and header


def test_a_header_that_agrees_makes_it_more_certain():
    volume = scanned((96, 104), (150, 150), "Fermi")
    alone, both = find_matrix(volume, 2), find_matrix(volume, 2, stated(96, 104))
    assert both.source == "image and header"
    assert np.allclose(both.acquired, (96, 104), atol=2)
    assert both.confidence >= alone.confidence
    assert both.notes == ()


def test_percent_sampling_and_rounding_still_agree():
    found = find_matrix(scanned((96, 104), (150, 150)), 2, stated(97.4, 102.7))
    assert found.source == "image and header"
    assert found.acquired == (96, 104), "a sharp edge is measured"


@pytest.mark.parametrize("samples", [(60, 75), (150, 150), (300, 300)])
def test_where_they_disagree_the_image_is_believed_and_both_numbers_are_named(samples):
    found = find_matrix(scanned((96, 104), (150, 150)), 2, stated(*samples))
    assert (found.acquired, found.source) == ((96, 104), "image")
    assert len(found.notes) == 2
    for note, said, seen in zip(found.notes, samples, found.acquired, strict=True):
        assert f"states {said}" in note
        assert f"shows {seen}" in note


def test_a_header_is_not_believed_against_signal_beyond_its_matrix():
    volume = scanned((128, 128), (128, 128))
    found = find_matrix(volume, 2, stated(80, 64))
    assert not found.interpolated
    assert all("signal beyond: not cut" in note for note in found.notes)
    assert len(found.notes) == 2


def test_a_header_is_believed_where_the_image_has_only_a_floor_beyond():
    generator = torch.Generator().manual_seed(0)
    frequency = torch.hypot(torch.fft.fftfreq(128)[:, None], torch.fft.fftfreq(128))
    smooth = torch.fft.ifft2(torch.fft.fft2(anatomy((128, 128))) * torch.exp(-((frequency / 0.09) ** 2))).real
    volume = (smooth + torch.randn(smooth.shape, generator=generator) * 2).movedim(0, 2).numpy()
    assert not find_matrix(volume, 2).interpolated, "a blurred image is not interpolated"
    found = find_matrix(volume, 2, stated(96, None))
    assert (found.acquired, found.source) == ((96, 128), "header")
    assert found.confidence == CONFIDENT
    assert "only a floor beyond" in found.notes[0]


def test_a_header_is_believed_on_an_axis_too_small_to_tell():
    found = find_matrix(anatomy((40, 44)).movedim(0, 2).numpy(), 2, stated(24, 44))
    assert (found.acquired, found.source) == ((24, 44), "header")
    assert not find_matrix(anatomy((40, 44)).movedim(0, 2).numpy(), 2, stated(12, 44)).interpolated


def test_what_the_header_calls_almost_full_is_left_alone():
    found = find_matrix(anatomy((128, 128)).movedim(0, 2).numpy(), 2, stated(125, 128))
    assert found == KnownMatrix((128, 128), (128, 128), "image and header", found.confidence)
    assert found.confidence > 0.9


def test_nothing_is_found_in_constants_noise_and_single_slices_of_noise():
    rng = np.random.default_rng(0)
    for volume in (np.zeros((64, 64, 3)), np.ones((64, 64, 3)), rng.random((96, 80, 4)), rng.random((96, 80, 1))):
        found = find_matrix(volume, 2)
        assert not found.interpolated
        assert found.notes == ()


def test_a_filter_is_named_only_where_there_is_one():
    sharp = find_interpolation(scanned((96, 104), (150, 150)), 2)
    soft = find_interpolation(scanned((96, 104), (150, 150), "raised cosine"), 2)
    assert [sign.filtered for sign in sharp] == [None, None]
    assert len(soft) == 2
    assert all(sign.filtered for sign in soft)


def test_an_axis_that_cannot_be_tested_is_not_called_certain():
    for image in (np.ones((64, 64, 2)), np.random.default_rng(0).random((3, 5, 1)), np.zeros((1, 1, 1))):
        known = find_matrix(image, 2)
        assert not known.interpolated and known.confidence == 0.5
