"""Placing a result on its grid: the same positions and the same curve, whatever the matrix."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bundle.physics import fourier_upsample
from bundle.physics.place import Grids, fourier_matrix, grids, place

few = settings(max_examples=60, deadline=None)
odd = st.integers(3, 20).map(lambda k: 2 * k + 1)


def slow(samples: np.ndarray, m: int, step: float) -> np.ndarray:
    """The curve through n samples, harmonic by harmonic, at 0, step, 2 step... What m cannot hold is left out."""
    n = len(samples)
    limit = min(n, n / step) / 2
    out = np.zeros(m)
    for k in range(-n, n + 1):
        if abs(k) > limit + 1e-9:
            continue
        share = 0.5 if math.isclose(abs(k), limit) else 1.0
        coefficient = np.mean(samples * np.exp(-2j * np.pi * k * np.arange(n) / n))
        out += share * (coefficient * np.exp(2j * np.pi * k * step * np.arange(m) / n)).real
    return out


@few
@given(n=st.integers(2, 24), m=st.integers(1, 40), step=st.floats(0.1, 3.0), seed=st.integers(0, 9))
def test_the_matrix_evaluates_the_band_limited_curve(n, m, step, seed):
    samples = np.random.default_rng(seed).normal(size=n)
    np.testing.assert_allclose(fourier_matrix(n, m, step).numpy() @ samples, slow(samples, m, step), atol=1e-9)


@few
@given(n=odd, more=st.integers(0, 30))
def test_whole_matrices_are_zero_filled_fourier_interpolation(n, more):
    image = torch.randn(4, n, dtype=torch.float64, generator=torch.Generator().manual_seed(n))
    expected = fourier_upsample(image, (4, n + more))
    torch.testing.assert_close(image @ fourier_matrix(n, n + more, n / (n + more)).T, expected)


def test_a_harmonic_keeps_its_place_in_the_world_on_every_grid():
    """A wave of 3 periods over the field of view, read at any step, is the wave at those positions."""
    x = torch.arange(40, dtype=torch.float64)
    wave = torch.cos(2 * torch.pi * 3 * x / 40 + 0.7)
    for step in (0.25, 0.37, 1.0, 1.9, 2.5):
        at = torch.arange(int(40 / step), dtype=torch.float64) * step
        torch.testing.assert_close(
            fourier_matrix(40, len(at), step) @ wave, torch.cos(2 * torch.pi * 3 * at / 40 + 0.7)
        )


def test_frequencies_that_the_result_cannot_hold_are_left_out():
    x = torch.arange(60, dtype=torch.float64)
    assert (fourier_matrix(60, 20, 3.0) @ torch.cos(2 * torch.pi * 25 * x / 60)).abs().max() < 1e-12


@few
@given(
    stored=st.tuples(st.integers(8, 30), st.integers(8, 30)),
    scale=st.sampled_from([2, 4]),
    part=st.tuples(st.floats(0.4, 1.0), st.floats(0.4, 1.0)),
    axis=st.integers(0, 2),
)
def test_shape_and_affine_are_the_promised_ones_whatever_was_acquired(stored, scale, part, axis):
    network = tuple(max(4, round(n * p)) for n, p in zip(stored, part, strict=True))
    shape = [*stored]
    shape.insert(axis, 3)
    affine = np.random.default_rng(scale).normal(size=(4, 4))
    affine[3] = 0, 0, 0, 1
    whole, cut = grids(stored, scale), grids(stored, scale, network)
    assert (
        cut.shape(shape, axis)
        == whole.shape(shape, axis)
        == tuple(n if a == axis else scale * n for a, n in enumerate(shape))
    )
    np.testing.assert_allclose(cut.affine(affine, 3, axis), whole.affine(affine, 3, axis))
    smaller = grids(stored, scale, network, smaller=True)
    assert smaller.result == (scale * network[0], scale * network[1])
    fine = smaller.affine(affine, 3, axis)
    # The first voxel stays, and one beyond the last lies where one beyond the last stored voxel lies.
    np.testing.assert_allclose(fine[:3, 3], affine[:3, 3])
    ends = np.array([*smaller.shape(shape, axis), 1.0]), np.array([*shape, 1.0])
    ends[0][axis] = ends[1][axis] = 1
    np.testing.assert_allclose(fine @ ends[0], affine @ ends[1])


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_smooth_volume_is_the_same_function_of_the_world_on_every_grid(axis):
    made = Grids((20, 24), (15, 18), (33, 31), (20 / 33, 0.7), 2)
    rows, cols = (torch.arange(n, dtype=torch.float64) / n for n in made.fine)

    def function(u: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return torch.cos(2 * torch.pi * (2 * u[:, None] + 3 * v) + 0.3) + torch.sin(2 * torch.pi * 4 * v)

    fine = function(rows, cols)[None].expand(3, -1, -1).movedim(0, axis)
    to = [
        torch.arange(n, dtype=torch.float64) * s / m
        for n, s, m in zip(made.result, made.step, made.stored, strict=True)
    ]
    expected = function(*to)[None].expand(3, -1, -1).movedim(0, axis)
    torch.testing.assert_close(place(fine, made, axis), expected)


def test_nothing_is_touched_where_the_network_makes_the_result():
    fine = torch.rand(8, 10, 3)
    assert place(fine, grids((4, 5), 2), 2) is fine
    assert place(fine, grids((6, 7), 2, (4, 5), smaller=True), 2) is fine


@few
@given(n=st.integers(4, 300), spacing=st.floats(0.2, 3), size=st.floats(0.1, 4))
def test_a_given_step_fills_the_field_of_view_and_does_not_leave_it(n, spacing, size):
    step = size / spacing
    made = grids((n, n), 2, step=(step, step))
    (m, _) = made.result
    assert m >= 1 and (m - 1) * step <= n
    assert (m + 1) * step > n or math.isclose((m + 1) * step, n)
