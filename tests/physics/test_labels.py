"""Label maps carried to another grid: every voxel has the label of the nearest stored one, and volumes stay."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import gaussian_filter, label

from bundle.physics.labels import carry_labels, nearest_voxels, volume_change

SHAPE = (30, 26, 4)


def blobs(seed: int, shape: tuple[int, ...] = SHAPE) -> np.ndarray:
    """Connected blobs of at least 20 voxels with labels of their own, none at the border of a slice."""
    rng = np.random.default_rng(seed)
    field = gaussian_filter(rng.normal(size=shape), rng.uniform(0.8, 2.5))
    mask = field > np.quantile(field, rng.uniform(0.6, 0.95))
    mask[[0, -1]] = mask[:, [0, -1]] = False
    parts = label(mask)[0]
    sizes = np.bincount(parts.ravel())
    return np.where(sizes[parts] >= 20, parts, 0).astype(np.int32)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**31), factor=st.integers(1, 8))
def test_whole_factors_keep_the_volume_of_every_blob_exactly(seed: int, factor: int) -> None:
    stored = blobs(seed)
    fine = (SHAPE[0] * factor, SHAPE[1] * factor, SHAPE[2])
    carried = carry_labels(stored, (1 / factor, 1 / factor, 1), fine)
    assert carried.shape == fine and carried.dtype == stored.dtype
    before, after = np.bincount(stored.ravel()), np.bincount(carried.ravel())
    assert np.array_equal(after, before * factor**2)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**31))
def test_twice_finer_is_exact_up_to_the_border(seed: int) -> None:
    stored = np.random.default_rng(seed).integers(0, 5, SHAPE).astype(np.uint8)
    carried = carry_labels(stored, (0.5, 0.5, 1), (60, 52, 4))
    assert np.array_equal(carried, np.repeat(np.repeat(stored, 2, 0), 2, 1))


@settings(max_examples=40, deadline=None)
@given(
    count=st.integers(1, 40),
    step=st.floats(0.05, 3.0, exclude_min=True),
    size=st.integers(1, 60),
    noise=st.floats(-1e-8, 1e-8),
)
def test_no_stored_voxel_is_nearer_than_the_one_taken(count: int, step: float, size: int, noise: float) -> None:
    taken = nearest_voxels(count, step, size)
    distance = np.abs(np.arange(size)[:, None] * step - np.arange(count))
    assert np.all(distance[np.arange(size), taken] <= distance.min(axis=1) + 2e-4)
    assert np.all(np.diff(taken) >= 0)
    for factor in (2, 4, 8):  # rounding of an affine moves nothing
        same = nearest_voxels(count, 1 / factor + noise, count * factor)
        assert np.array_equal(same, nearest_voxels(count, 1 / factor, count * factor))


@settings(max_examples=40, deadline=None)
@given(width=st.integers(1, 50), start=st.integers(1, 20), step=st.floats(0.1, 2.0))
def test_for_any_step_a_run_of_voxels_is_less_than_one_new_voxel_off(width: int, start: int, step: float) -> None:
    stored = np.zeros(80, np.uint8)
    stored[start : start + width] = 1
    carried = carry_labels(stored[:, None], (step, 1), (int(80 / step), 1))
    assert abs(float(carried.sum()) - width / step) < 1 + 2e-3 / step


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**31), step=st.one_of(st.sampled_from([0.5, 0.25]), st.floats(0.3, 1.2)))
def test_the_change_of_volume_is_that_of_the_carried_map(seed: int, step: float) -> None:
    stored = blobs(seed)
    shape = (round(SHAPE[0] / step), round(SHAPE[1] / step), SHAPE[2])
    before = np.bincount(stored.ravel())
    after = np.bincount(carry_labels(stored, (step, step, 1), shape).ravel(), minlength=len(before))
    wanted = max((abs(a * step**2 / b - 1) for a, b in zip(after[1:], before[1:], strict=True) if b >= 20), default=0)
    assert volume_change(stored, (step, step, 1), shape) == pytest.approx(wanted, abs=1e-9)
    assert step not in (0.5, 0.25) or wanted == 0


def test_for_steps_that_are_no_whole_factor_volumes_change_by_nothing_on_average() -> None:
    for step in (0.3, 5 / 7, 0.75, 0.9, 128 / 150):
        stored = (np.random.default_rng(1).random((600, 500)) < 0.1).astype(np.uint8)
        carried = carry_labels(stored, (step, step), (round(600 / step), round(500 / step)))
        assert carried.sum() * step**2 == pytest.approx(stored.sum(), rel=0.01)


@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint16", "int32", "uint64", ">i2", "float32", "float64"])
def test_the_type_is_kept(dtype: str) -> None:
    stored = np.array([[0, 1], [2, 100]], dtype)
    carried = carry_labels(stored, (0.5, 0.5), (4, 4))
    assert carried.dtype == np.dtype(dtype) and set(np.unique(carried)) == {0, 1, 2, 100}


@pytest.mark.parametrize(
    ("step", "shape"),
    [((0.5,), (2,)), ((0.5, 0, 1), (4, 4, 4)), ((0.5, 0.5, np.inf), (4, 4, 4)), ((1, 1, 1), (4, 0, 4))],
)
def test_steps_and_sizes_that_make_no_grid_are_an_error(step: tuple, shape: tuple) -> None:
    with pytest.raises(ValueError, match="labels of shape|must be positive"):
        carry_labels(np.zeros((2, 2, 2), np.uint8), step, shape)
