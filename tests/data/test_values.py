"""What values mean: padding is a plateau far below everything else; negative values count if they carry energy."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bundle.data.values import SIGNED, survey

SHAPE = (40, 36, 6)
RNG = np.random.default_rng(0)
X, Y, _ = np.meshgrid(*(np.linspace(-1, 1, n) for n in SHAPE), indexing="ij")
OUTSIDE = X**2 + Y**2 > 1
HEAD = X**2 + Y**2 < 0.6
MR = np.abs(np.where(HEAD, 500 + 200 * np.sin(9 * X), 0) + 8 * RNG.standard_normal(SHAPE)).astype(np.float32)
STRIPPED = np.where(HEAD, MR, 0).astype(np.float32)
CT = (np.where(HEAD, 40 + 30 * np.sin(9 * X), -1000) + 12 * RNG.standard_normal(SHAPE)).round().astype(np.float32)


def padded(image: np.ndarray, value: float, where: np.ndarray = OUTSIDE) -> np.ndarray:
    return np.where(where, np.float32(value), image)


PADDING = {
    "CT of GE": (padded(CT, -3024), -3024),
    "CT with -2000": (padded(CT, -2000), -2000),
    "MR of 16 bits": (padded(MR, -32768), -32768),
    "MR with -9999": (padded(MR, -9999), -9999),
    "float with the lowest number": (padded(MR, -3.4028235e38), -3.4028235e38),
    "skull-stripped with -9999 around": (padded(STRIPPED, -9999), -9999),
    "difference image": (padded(RNG.normal(size=SHAPE).astype(np.float32), -999), -999),
    "bright MR of 16 bits": (padded(MR * 40, -32768), -32768),
    "a few broken voxels of 16 bits": (padded(MR, -32768, np.arange(MR.size).reshape(SHAPE) < 5), -32768),
    "CT with streaks beside metal": (
        padded(padded(CT, -1900, np.arange(CT.size).reshape(SHAPE) % 3000 == 1500), -2048),
        -2048,
    ),
}

SIGNAL = {
    "CT whose air is cut off": np.maximum(CT, -1024),
    "CT with air of one value": np.where(HEAD, CT, -1000),
    "CT with -1024 around air": padded(CT, -1024),
    "masked CT": np.where(HEAD, CT, -1024),
    "magnitude": MR,
    "skull-stripped": STRIPPED,
    "z-scores": (MR - MR.mean()) / MR.std(),
    "z-scores of a skull-stripped image": (STRIPPED - STRIPPED.mean()) / STRIPPED.std(),
    "-1 around": padded(MR, -1),
    "unit interval with -1 around": padded(MR / MR.max(), -1),
    "a few low voxels": padded(MR, -5000, np.arange(MR.size).reshape(SHAPE) < 5),
    "constant": np.full(SHAPE, -5, np.float32),
    "two values": np.where(HEAD, np.float32(1), np.float32(-1)),
}


@pytest.mark.parametrize("name", PADDING)
def test_a_plateau_far_below_everything_is_padding(name: str) -> None:
    image, value = PADDING[name]
    found = survey([image])
    assert found.padding == np.float32(value)
    assert found.padding_share == pytest.approx(np.mean(image == np.float32(value)))
    assert "padding" in found.warnings[0]
    mask = found.mask(image)
    assert mask is not None and np.array_equal(mask, image == np.float32(value))


@pytest.mark.parametrize("name", SIGNAL)
def test_other_low_values_are_signal(name: str) -> None:
    found = survey([SIGNAL[name]])
    assert found.padding is None
    assert found.mask(SIGNAL[name]) is None


def cubic(image: np.ndarray) -> np.ndarray:
    """Moved by half a voxel with the kernel of Keys, which overshoots at edges as cubic splines do."""
    kernel = (-0.0625, 0.5625, 0.5625, -0.0625)
    for axis in (0, 1):
        image = sum(k * np.roll(image, n, axis) for n, k in enumerate(kernel))  # type: ignore[assignment]
    return image


MAGNITUDE = {
    "magnitude": MR,
    "corner voxel": padded(MR, -3, np.arange(MR.size).reshape(SHAPE) == 0),
    "interpolated": cubic(MR),
    "interpolated, skull-stripped": cubic(STRIPPED),
    "-1 around": padded(MR, -1),
    "padded": padded(MR, -32768),
}
MEASURED = {
    "CT": CT,
    "padded CT": padded(CT, -3024),
    "z-scores": SIGNAL["z-scores"],
    "difference": MR - np.roll(MR, 1, 0),
    "noise around zero": RNG.normal(size=SHAPE),
}


@pytest.mark.parametrize("name", MAGNITUDE)
def test_stray_negative_values_do_not_make_a_magnitude_signed(name: str) -> None:
    image = MAGNITUDE[name]
    found = survey([image])
    assert not found.signed and found.negative_share < SIGNED
    rest = image[image != found.padding]
    assert found.negatives == (rest < 0).sum()
    said = [line for line in found.warnings if "slightly negative" in line]
    assert bool(said) == bool((rest < 0).any())
    if said:
        assert f"{found.negatives} slightly" in said[0] and f"{rest.min():.4g}" in said[0]


@pytest.mark.parametrize("name", MEASURED)
def test_negative_values_with_energy_are_measurements(name: str) -> None:
    found = survey([MEASURED[name]])
    assert found.signed and not any("slightly negative" in line for line in found.warnings)


def test_in_hounsfield_units_every_negative_value_is_a_measurement() -> None:
    image = padded(MR, -3, np.arange(MR.size).reshape(SHAPE) == 0)
    assert survey([image], hounsfield=True).signed and not survey([MR], hounsfield=True).signed


@given(st.permutations(range(5)))
def test_the_order_of_the_volumes_does_not_matter(order: list[int]) -> None:
    frames = [MR, padded(MR, -32768), MR - 3, padded(MR, -500), padded(MR, -32768, HEAD)]
    one, other = survey(frames), survey([frames[n] for n in order])
    assert one.padding == other.padding == -32768
    assert (one.padding_share, one.negatives, one.lowest) == (other.padding_share, other.negatives, other.lowest)
    assert one.record() == other.record()
    everything = np.stack(frames)
    rest = everything[everything != -32768].astype(np.float64)
    assert (one.negatives, one.lowest) == ((rest < 0).sum(), rest.min())
    shares = [survey([frame]).negative_share for frame in frames]
    assert one.negative_share == pytest.approx(max(shares))


def test_one_signed_volume_makes_a_series_signed_however_bright_the_others_are() -> None:
    dark = MR / 100 - 3
    assert survey([dark]).signed and survey([MR, dark, MR]).signed


def test_a_volume_with_next_to_nothing_in_it_does_not_decide_about_a_series() -> None:
    empty = np.zeros(SHAPE, np.float32)
    empty[0] = -1e-4
    assert survey([empty]).signed
    assert not survey([MR, empty]).signed


def test_a_volume_of_nothing_but_padding_is_part_of_a_series() -> None:
    found = survey([padded(MR, -32768), np.full(SHAPE, -32768, np.float32), MR])
    assert found.padding == -32768 and not found.negatives
    assert found.padding_share == pytest.approx((OUTSIDE.mean() + 1) / 3)


def test_padding_that_a_file_declares_needs_no_distance() -> None:
    image = padded(MR, 4095)
    found = survey([image], declared=4095)
    assert found.padding == 4095 and found.padding_share == pytest.approx(OUTSIDE.mean())
    assert survey([MR], declared=4095).padding is None
    assert survey([image]).padding is None
