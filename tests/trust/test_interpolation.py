"""Interpolated images are detected and their true matrix is named; ordinary ones give no warning."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from bundle.data import read_volume
from bundle.physics import fourier_upsample, truncate, zero_fill
from bundle.trust import Interpolation, find_interpolation
from bundle.trust.interpolation import SMALLEST_AXIS

few = settings(max_examples=8, deadline=None)
DATA = os.environ.get("ICONET_DATA")


def textured(size: tuple[int, int], slices: int = 4, seed: int = 0, falloff: float = 1.0) -> Tensor:
    """(slices, H, W), positive, with a spectrum that falls with frequency like that of tissue."""
    noise = torch.randn((slices, *size), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    rows, cols = (torch.fft.fftfreq(n, dtype=torch.float64) for n in size)
    spectrum = torch.fft.fft2(noise) / (0.03 + torch.hypot(rows[:, None], cols[None])) ** falloff
    image = torch.fft.ifft2(spectrum).real
    return 1000 * (image - image.amin()) / (image.amax() - image.amin())


def volume(slices: Tensor, slice_axis: int = 2) -> np.ndarray:
    """As a scanner stores it: whole numbers, slices along ``slice_axis``."""
    return np.moveaxis(np.rint(slices.numpy()), 0, slice_axis).astype(np.float32)


@few
@given(
    true=st.tuples(st.integers(40, 70), st.integers(40, 70)),
    extra=st.tuples(st.integers(18, 60), st.integers(18, 60)),
    slice_axis=st.sampled_from((0, 1, 2)),
    seed=st.integers(0, 2**31),
)
def test_zero_filling_is_found_and_the_true_matrix_is_named_exactly(true, extra, slice_axis, seed):
    size = (true[0] + extra[0], true[1] + extra[1])
    found = find_interpolation(volume(fourier_upsample(textured(true, seed=seed), size), slice_axis), slice_axis)
    axes = [axis for axis in range(3) if axis != slice_axis]
    expected = [Interpolation(a, n, t, "zero-filled") for a, n, t in zip(axes, size, true, strict=True)]
    assert found == [e for e in expected if e.size >= SMALLEST_AXIS]


def test_zero_filling_on_one_axis_is_named_on_that_axis_only():
    found = find_interpolation(volume(fourier_upsample(textured((96, 60)), (96, 100))), 2)
    assert found == [Interpolation(1, 100, 60, "zero-filled")]


def test_zero_filling_of_a_noisy_complex_image_is_found_in_its_magnitude():
    generator = torch.Generator().manual_seed(1)
    image = textured((80, 64))
    noise = torch.randn((2, *image.shape), generator=generator, dtype=torch.float64) * 10
    measured = torch.complex(image + noise[0], noise[1])
    found = find_interpolation(volume(zero_fill(measured, (128, 128)).abs()), 2)
    assert [(f.axis, f.kind) for f in found] == [(0, "zero-filled"), (1, "zero-filled")]
    assert np.allclose([f.true_size for f in found], (80, 64), atol=2)


def test_zero_filling_is_still_found_after_a_crop():
    cropped = fourier_upsample(textured((64, 64)), (96, 96))[:, 5:-7, 3:-9]
    found = find_interpolation(volume(cropped), 2)
    assert [f.kind for f in found] == ["zero-filled"] * 2
    assert np.allclose([f.true_size for f in found], 84 * 64 / 96, atol=4)


@pytest.mark.parametrize("mode", ["bilinear", "bicubic", "nearest"])
@pytest.mark.parametrize("size", [(128, 128), (96, 101)])
def test_interpolation_by_a_kernel_is_found_with_its_matrix(mode, size):
    corners = None if mode == "nearest" else False
    image = torch.nn.functional.interpolate(textured((64, 64))[:, None], size=size, mode=mode, align_corners=corners)
    found = find_interpolation(volume(image[:, 0]), 2)
    assert found == [Interpolation(0, size[0], 64, "kernel"), Interpolation(1, size[1], 64, "kernel")]


def ordinary_images() -> Iterator[tuple[str, Tensor]]:
    for falloff in (0.0, 1.0, 2.0):
        yield f"texture {falloff}", textured((96, 80), falloff=falloff)
    rows, cols = torch.meshgrid(torch.linspace(-1, 1, 96), torch.linspace(-1, 1, 80), indexing="ij")
    yield "ellipses", torch.stack([((rows / a) ** 2 + (cols / 0.7) ** 2 < 1) * 900.0 for a in (0.6, 0.7, 0.8)])
    edge = torch.sigmoid(20 * (0.5 - torch.hypot(rows, cols)))
    yield "soft disc", torch.stack([edge * 700, edge * 900])
    for sigma in (0.8, 2.0, 4.0):
        falling = torch.exp(-2 * (np.pi * sigma) ** 2 * torch.fft.fftfreq(96, dtype=torch.float64) ** 2)
        blurred = torch.fft.ifft(torch.fft.fft(textured((96, 80), falloff=0.0), dim=1) * falling[:, None], dim=1).real
        yield f"blurred {sigma}", blurred
    yield "step", torch.ones(3, 96, 80) * (torch.arange(80) > 40) * 500


@pytest.mark.parametrize(
    ("name", "image"), list(ordinary_images()), ids=lambda value: value if isinstance(value, str) else ""
)
def test_an_ordinary_image_raises_no_alarm_nor_does_its_truncation(name, image):
    assert find_interpolation(volume(image), 2) == []
    assert find_interpolation(image.movedim(0, 2).numpy(), 2) == [], "without rounding"
    low = truncate(image, (image.shape[1] // 2 + 12, image.shape[2] // 2 + 12))
    assert find_interpolation(volume(low), 2) == []


def test_small_and_single_line_volumes_are_not_judged():
    small = fourier_upsample(textured((20, 20)), (40, 40))
    assert find_interpolation(volume(small), 2) == []
    assert find_interpolation(np.random.default_rng(0).random((200, 1, 1)), 2) == []


@pytest.mark.slow
@pytest.mark.skipif(not DATA, reason="ICONET_DATA is not set: the alarm was not tried on real volumes")
def test_real_volumes_raise_few_false_alarms_and_all_true_ones():
    with open(Path(DATA or "") / "manifest.csv", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["modality"] == "MR" or row["split"] != "train"]
    alarms, judged = 0, 0
    for row in rows:
        voxels = torch.from_numpy(read_volume(Path(DATA or "") / row["file"]).array[:, :, ::3]).movedim(2, 0)
        height, width = voxels.shape[1:]
        low = truncate(voxels, (height // 2, width // 2))
        alarms += sum(bool(find_interpolation(v.movedim(0, 2).numpy(), 2)) for v in (voxels, low))
        judged += 2
        if row["modality"] == "MR":
            filled = fourier_upsample(low, (round(0.7 * height), round(0.7 * width)))
            found = {f.axis: f.true_size for f in find_interpolation(volume(filled), 2)}
            expected = [n // 2 for n in (height, width)]
            assert all(found[a] == n for a, n in enumerate(expected) if filled.shape[1 + a] >= SMALLEST_AXIS), row
    assert judged > 100
    assert alarms <= 0.01 * judged


@pytest.mark.parametrize("length", [3, 5])
def test_an_average_over_neighbours_is_no_edge(length):
    """Its first zero looks like the end of a band, but beyond it the signal comes back."""
    from scipy.ndimage import uniform_filter

    for seed in range(3):
        image = uniform_filter(volume(textured((128, 160), seed=seed)), (length, length, 1))
        assert find_interpolation(image, 2) == []


@pytest.mark.parametrize("quality", [50, 75, 90])
def test_the_blocks_of_a_jpeg_are_no_kernel(quality):
    import io

    from PIL import Image

    slices = []
    for image in textured((152, 203), falloff=1.5):
        stream = io.BytesIO()
        Image.fromarray(np.uint8(image.numpy() * 0.255)).save(stream, "JPEG", quality=quality)
        slices.append(np.asarray(Image.open(stream), np.float32))
    whole = np.stack(slices, -1)
    assert find_interpolation(whole, 2) == find_interpolation(whole[5:, 3:-2], 2) == []
