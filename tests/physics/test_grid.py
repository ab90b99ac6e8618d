"""Affines of truncated and upsampled images: world positions of voxels."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from bundle.physics import divisible_size, lowres_affine, superres_affine

few = settings(max_examples=30, deadline=None)
seeds = st.integers(0, 2**31)
factors = st.tuples(*[st.floats(0.25, 8.0)] * 3)


def random_affine(seed: int, dims: int = 3) -> np.ndarray:
    """Oblique, sheared, left- or right-handed, with any origin."""
    rng = np.random.default_rng(seed)
    affine = np.eye(dims + 1)
    affine[:dims, :dims] = rng.normal(size=(dims, dims))
    affine[:dims, dims] = rng.normal(scale=100.0, size=dims)
    return affine


def world(affine: np.ndarray, voxel: np.ndarray) -> np.ndarray:
    return (affine @ np.append(voxel, 1.0))[:-1]


@few
@given(seed=seeds, factors=factors, voxel=st.tuples(*[st.integers(-50, 500)] * 3))
def test_voxel_j_of_the_small_image_lies_on_voxel_factor_times_j(
    seed: int, factors: tuple[float, ...], voxel: tuple[int, ...]
) -> None:
    affine, j = random_affine(seed), np.array(voxel, dtype=float)
    small = lowres_affine(affine, factors)
    assert np.allclose(world(small, j), world(affine, j * factors))
    assert np.allclose(world(superres_affine(affine, factors), j * factors), world(affine, j))


@few
@given(seed=seeds, factors=factors)
def test_upsampling_undoes_truncation(seed: int, factors: tuple[float, ...]) -> None:
    affine = random_affine(seed)
    assert np.allclose(superres_affine(lowres_affine(affine, factors), factors), affine)


@few
@given(seed=seeds, factors=factors)
def test_origin_directions_and_handedness_stay(seed: int, factors: tuple[float, ...]) -> None:
    affine = random_affine(seed)
    assume(abs(np.linalg.det(affine)) > 1e-6)
    out = superres_affine(affine, factors)
    assert np.array_equal(out[:, 3], affine[:, 3])
    assert np.sign(np.linalg.det(out)) == np.sign(np.linalg.det(affine))
    unit = [a[:3, :3] / np.linalg.norm(a[:3, :3], axis=0) for a in (affine, out)]
    assert np.allclose(*unit)


@few
@given(seed=seeds, factors=factors)
def test_arrays_and_tensors_agree(seed: int, factors: tuple[float, ...]) -> None:
    affine = random_affine(seed)
    for rule in (lowres_affine, superres_affine):
        array, tensor = rule(affine, factors), rule(torch.from_numpy(affine), factors)
        assert isinstance(array, np.ndarray) and isinstance(tensor, torch.Tensor) and tensor.dtype == torch.float64
        assert np.allclose(array, tensor.numpy(), rtol=1e-14)


def test_an_affine_of_integers_does_not_lose_the_voxel_size() -> None:
    expected = np.diag([0.5, 0.5, 1.0, 1.0])
    assert np.array_equal(superres_affine(np.eye(4, dtype=int), (2, 2, 1)), expected)
    assert np.array_equal(superres_affine(torch.eye(4, dtype=torch.int64), (2, 2, 1)).numpy(), expected)


def test_a_plane_has_a_3x3_affine() -> None:
    affine = random_affine(4, dims=2)
    assert np.allclose(lowres_affine(affine, (2, 4))[:, :2], affine[:, :2] * [2, 4])


def test_the_input_is_not_changed() -> None:
    affine = random_affine(1)
    before = affine.copy()
    lowres_affine(affine, (2, 2, 1))
    assert np.array_equal(affine, before)


@pytest.mark.parametrize("rule", [lowres_affine, superres_affine])
@pytest.mark.parametrize(
    ("affine", "factors"),
    [(np.eye(4), (2, 2)), (np.eye(3), (2, 2, 1)), (np.eye(4), (2, 0, 1)), (np.eye(4), (2, -2, 1)), (np.eye(2), (2,))],
)
def test_factors_that_do_not_fit_are_an_error(rule, affine: np.ndarray, factors: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="expected"):
        rule(affine, factors)


@few
@given(size=st.tuples(st.integers(8, 999), st.integers(8, 999)), scale=st.sampled_from([1, 2, 3, 4, 8]))
def test_the_divisible_size_is_the_largest_that_fits(size: tuple[int, int], scale: int) -> None:
    out = divisible_size(size, scale)
    assert all(m % scale == 0 and m <= n < m + scale for m, n in zip(out, size, strict=True))


def test_a_matrix_below_the_factor_is_an_error() -> None:
    with pytest.raises(ValueError, match="too small"):
        divisible_size((16, 3), 4)
