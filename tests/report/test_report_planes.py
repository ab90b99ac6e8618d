"""The planes of a report show what their titles say, oriented as in a viewer."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bundle.physics import fourier_upsample, superres_affine
from bundle.physics.place import Grids, grids
from bundle.report import ReportEntry
from bundle.report.planes import planes

few = settings(max_examples=15, deadline=None)
TURNS = [(order, signs) for order in itertools.permutations(range(3)) for signs in itertools.product((1, -1), repeat=3)]


def entry(low: np.ndarray, high: np.ndarray, affine: np.ndarray, scale: int, slice_axis: int = 2) -> ReportEntry:
    factors = [1 if axis == slice_axis else scale for axis in range(3)]
    fine = np.asarray(superres_affine(affine, factors))
    plane = tuple(n for axis, n in enumerate(low.shape) if axis != slice_axis or low.ndim == 2)
    return ReportEntry("x", low, affine, high, fine, grids(plane[:2], scale), slice_axis)


def interpolated(low: np.ndarray, scale: int, slice_axis: int) -> np.ndarray:
    slices = torch.from_numpy(np.moveaxis(low, slice_axis, 0).copy())
    height, width = slices.shape[1:]
    taller = fourier_upsample(slices, (scale * height, width))  # one axis after the other: each Nyquist row is split
    return np.moveaxis(fourier_upsample(taller, (scale * height, scale * width)).numpy(), 0, slice_axis)


@pytest.mark.parametrize("slice_axis", [0, 1, 2])
def test_the_planes_are_cuts_of_the_interpolated_and_the_super_resolved_volume(slice_axis):
    rng = np.random.default_rng(slice_axis)
    low = rng.random((18, 20, 22)).astype(np.float32)
    before = interpolated(low, 2, slice_axis)
    after = before + rng.random(before.shape).astype(np.float32)
    in_plane, *across = planes(entry(low, after, np.eye(4), 2, slice_axis))
    number = int(np.moveaxis(low, slice_axis, 0).reshape(low.shape[slice_axis], -1).std(axis=1).argmax())
    cut = np.take(before, number, slice_axis)  # in RAS, the lower axis goes right and the higher one up
    assert np.allclose(in_plane.interpolated, cut.T[::-1], atol=1e-5)
    assert in_plane.title.endswith(", in-plane")
    middles = [n // 2 for n in after.shape]
    for axis in (a for a in range(3) if a != slice_axis):
        plane = next(p for p in across if p.title.startswith(("Sagittal", "Coronal", "Axial")[axis]))
        assert np.array_equal(plane.output, np.take(after, middles[axis], axis).T[::-1])
        assert np.allclose(plane.difference, np.take(after - before, middles[axis], axis).T[::-1], atol=1e-5)


@few
@given(turn=st.sampled_from(TURNS), slice_axis=st.sampled_from((0, 1, 2)))
def test_the_patients_right_front_and_head_are_right_or_up_for_every_array_order(turn, slice_axis):
    """A volume whose voxels hold their world coordinates has pictures that grow to the right and upwards."""
    order, signs = turn
    affine = np.eye(4)
    affine[:3, :3] = 0
    for axis, (world, sign) in enumerate(zip(order, signs, strict=True)):
        affine[world, axis] = 2.0 * sign
    shape = tuple(8 if axis == slice_axis else 16 for axis in range(3))
    fine = np.asarray(superres_affine(affine, [1 if a == slice_axis else 2 for a in range(3)]))
    high_shape = tuple(n if axis == slice_axis else 2 * n for axis, n in enumerate(shape))
    grid = np.stack(np.meshgrid(*map(np.arange, high_shape), indexing="ij"))
    for world, name in enumerate("xyz"):
        coordinate = np.tensordot(fine[world, :3], grid, 1).astype(np.float32)
        for plane in planes(entry(np.zeros(shape, np.float32), coordinate, affine, 2, slice_axis)):
            down, right = np.gradient(plane.output)
            kind = plane.title.split(",")[0]
            horizontal = {"Axial": "x", "Coronal": "x", "Sagittal": "y"}[kind]
            vertical = {"Axial": "y", "Coronal": "z", "Sagittal": "z"}[kind]
            assert (right > 0).all() if name == horizontal else np.allclose(right, 0)
            assert (down < 0).all() if name == vertical else np.allclose(down, 0)


def test_the_aspect_is_that_of_the_millimetres():
    low = np.random.default_rng(0).random((16, 32, 5)).astype(np.float32)
    made = planes(entry(low, interpolated(low, 2, 2), np.diag([1.0, 2.0, 4.0, 1.0]), 2))
    assert [p.aspect for p in made] == pytest.approx([16 / 64, 64 / 20, 16 / 20])


def test_a_single_slice_and_an_image_have_one_plane():
    low = np.random.default_rng(0).random((16, 12)).astype(np.float32)
    high = interpolated(low[..., None], 2, 2)
    assert len(planes(entry(low[..., None], high, np.eye(4), 2))) == 1
    (plane,) = planes(entry(low, high[..., 0], np.eye(4), 2))
    assert plane.output.shape == (24, 32)


def test_an_output_of_another_size_is_refused():
    with pytest.raises(ValueError, match=r"gives an output of \(16, 16, 3\)"):
        entry(np.zeros((8, 8, 3)), np.zeros((16, 16, 4)), np.eye(4), 2)
    with pytest.raises(ValueError, match="a single image or volume"):
        entry(np.zeros((8, 8, 3, 2)), np.zeros((16, 16, 3, 2)), np.eye(4), 2)
    with pytest.raises(ValueError, match="slice_axis"):
        entry(np.zeros((8, 8, 3)), np.zeros((16, 16, 3)), np.eye(4), 2, slice_axis=3)


@pytest.mark.parametrize("slice_axis", [0, 1, 2])
@pytest.mark.parametrize("matrix", [(24, 27), (12, 33), (13, 11)])
def test_an_output_of_another_voxel_size_is_compared_over_the_same_field_of_view(slice_axis, matrix):
    """Blobs stay in their places, finer or coarser."""
    in_plane = [axis for axis in range(3) if axis != slice_axis]

    def blob(shape: list[int]) -> np.ndarray:
        places = [np.arange(n) / n - 0.4 if axis in in_plane else np.zeros(n) for axis, n in enumerate(shape)]
        return np.exp(-60 * sum(place**2 for place in np.meshgrid(*places, indexing="ij"))).astype(np.float32)

    shape = [18, 20, 22]
    fine = list(shape)
    for axis, n in zip(in_plane, matrix, strict=True):
        fine[axis] = n
    affine = np.diag([1.0, 1.5, 2.0, 1.0])
    grid = affine @ np.diag([*(a / b for a, b in zip(shape, fine, strict=True)), 1.0])
    stored = tuple(shape[axis] for axis in in_plane)
    steps = tuple(have / want for have, want in zip(stored, matrix, strict=True))
    made = planes(
        ReportEntry("x", blob(shape), affine, blob(fine), grid, Grids(stored, stored, matrix, steps, 2), slice_axis)
    )
    assert made[0].output.shape == tuple(fine[axis] for axis in made[0].axes)
    for plane in made:
        assert np.abs(plane.difference).max() < 0.02


def test_an_output_that_does_not_fill_the_field_of_view_is_refused():
    low, affine = np.zeros((8, 8, 3), np.float32), np.eye(4)
    grid = np.diag([0.5, 0.5, 1.0, 1.0])
    for shape in ((16, 15, 3), (18, 16, 3), (8, 8, 3), (16, 16)):
        with pytest.raises(ValueError, match="gives an output of"):
            ReportEntry("x", low, affine, np.zeros(shape, np.float32), grid, grids((8, 8), 2))
