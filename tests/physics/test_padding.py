"""Padding is hidden from the network by a continuation of its neighbourhood, and comes back in the result."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from bundle.physics import fill_padding, fine_padding

masks = arrays.arrays(bool, arrays.array_shapes(min_dims=3, max_dims=3, max_side=11))


def image(shape: tuple[int, ...]) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(0).uniform(1, 2, shape).astype(np.float32))


@given(masks, st.integers(0, 2))
def test_measured_voxels_stay_and_the_others_lie_between_those_of_their_slice(mask: np.ndarray, axis: int) -> None:
    given_ = image(mask.shape)
    padded = given_.masked_fill(torch.from_numpy(mask), -32768.0)
    filled = fill_padding(padded, torch.from_numpy(mask), axis)
    assert torch.equal(filled[~torch.from_numpy(mask)], given_[~torch.from_numpy(mask)])
    for plane, hidden, true in zip(
        *(np.moveaxis(x, axis, 0) for x in (filled.numpy(), mask, given_.numpy())), strict=True
    ):
        if hidden.all():
            assert (plane == 0).all()
        else:
            assert plane.min() >= true[~hidden].min() - 1e-5
            assert plane.max() <= true[~hidden].max() + 1e-5


@pytest.mark.parametrize("value", [-1000.0, 0.25, 7.0])
def test_a_constant_is_continued_as_that_constant(value: float) -> None:
    mask = torch.ones(70, 50, dtype=torch.bool)
    mask[3, 4] = mask[60, 41] = False
    filled = fill_padding(torch.full((70, 50), value).masked_fill(mask, -3024.0), mask, 2)
    torch.testing.assert_close(filled, torch.full((70, 50), value))


def test_the_value_of_the_padding_does_not_matter() -> None:
    mask = torch.rand(20, 21, 3, generator=torch.Generator().manual_seed(0)) < 0.4
    low, high = (fill_padding(image((20, 21, 3)).masked_fill(mask, value), mask, 2) for value in (-3e38, 65535.0))
    assert torch.equal(low, high)


@given(masks, st.integers(0, 2), st.sampled_from([2, 4]))
def test_a_fine_voxel_is_padding_if_all_measured_voxels_around_it_are(mask: np.ndarray, axis: int, scale: int) -> None:
    factors = [1 if a == axis else scale for a in range(3)]
    shape = [n * f for n, f in zip(mask.shape, factors, strict=True)]
    fine = fine_padding(torch.from_numpy(mask), [1 / f for f in factors], shape).numpy()
    assert fine.shape == tuple(n * f for n, f in zip(mask.shape, factors, strict=True))
    for place in np.ndindex(fine.shape):
        ends = [{i // f, min(-(-i // f), n - 1)} for i, f, n in zip(place, factors, mask.shape, strict=True)]
        around = [mask[i, j, k] for i in ends[0] for j in ends[1] for k in ends[2]]
        assert fine[place] == all(around)


def test_on_the_grid_the_padding_is_what_it_was() -> None:
    mask = torch.rand(9, 8, generator=torch.Generator().manual_seed(1)) < 0.5
    assert torch.equal(fine_padding(mask, (0.25, 0.25), (36, 32))[::4, ::4], mask)
