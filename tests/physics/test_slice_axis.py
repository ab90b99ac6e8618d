"""Which axis runs across the slices: option, header, BIDS, a single voxel, clearly largest spacing, last axis."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bundle.physics.slices import StatedAxes, decide_slice_axis

axes = st.sampled_from([0, 1, 2])
perhaps = st.sampled_from([None, 0, 1, 2])
sizes = st.tuples(*[st.floats(0.3, 8.0)] * 3)


def spaced(size: tuple[float, ...]) -> np.ndarray:
    turned = np.array([[0.8, -0.6, 0], [0.6, 0.8, 0], [0, 0, 1]])
    affine = np.eye(4)
    affine[:3, :3] = turned @ np.diag(size)
    return affine


@given(axes, perhaps, perhaps, sizes)
def test_what_the_user_says_wins_without_a_word(axis: int, header: int | None, bids: int | None, size) -> None:
    choice = decide_slice_axis(axis, (9, 8, 7), spaced(size), StatedAxes(header, bids))
    assert choice == (axis, ())


@given(axes, perhaps, sizes)
def test_the_header_wins_over_bids_and_spacing(header: int, bids: int | None, size) -> None:
    axis, notes = decide_slice_axis("auto", (9, 8, 7), spaced(size), StatedAxes(header, bids))
    assert axis == header
    alone = decide_slice_axis("auto", (9, 8, 7), spaced(size))
    contradicted = bids not in (None, header) or (not alone.notes and alone.axis != header)
    assert bool(notes) == contradicted and len(notes) <= 1
    assert all("--slice-axis" in note and "dim_info" in note for note in notes)


@given(axes, sizes)
def test_bids_wins_over_spacing(bids: int, size) -> None:
    axis, notes = decide_slice_axis("auto", (9, 8, 7, 20), spaced(size), StatedAxes(None, bids))
    alone = decide_slice_axis("auto", (9, 8, 7), spaced(size))
    assert axis == bids and bool(notes) == (not alone.notes and alone.axis != bids)


@pytest.mark.parametrize(
    ("size", "axis", "clear"),
    [
        ((1, 1, 5), 2, True),
        ((5, 1, 1), 0, True),
        ((1.0, 0.9, 0.9), 0, True),
        ((1.5, 3.0, 2.5), 1, True),
        ((0.67, 0.67, 0.70), 2, False),
        ((0.70, 0.67, 0.67), 2, False),
        ((1, 1, 1), 2, False),
        ((3, 3, 2), 2, False),
        ((3, 2.95, 2), 2, False),
    ],
)
def test_a_spacing_counts_if_it_is_clearly_the_largest(size, axis: int, clear: bool) -> None:
    found, notes = decide_slice_axis("auto", (64, 64, 30), spaced(size))
    assert found == axis and bool(notes) != clear
    assert all("--slice-axis" in note and "(2)" in note for note in notes)


@pytest.mark.parametrize("thin", [0, 1, 2])
def test_an_axis_of_one_voxel_wins_over_the_spacing(thin: int) -> None:
    shape = tuple(1 if axis == thin else 40 for axis in range(3))
    assert decide_slice_axis("auto", shape, spaced((1, 4, 1))) == (thin, ())


def test_the_header_against_an_axis_of_one_voxel_is_said() -> None:
    axis, notes = decide_slice_axis("auto", (1, 40, 30), spaced((1, 1, 1)), StatedAxes(header=2))
    assert axis == 2 and "single voxel (axis 0)" in notes[0]


def test_an_image_has_no_slice_axis_to_doubt() -> None:
    assert decide_slice_axis("auto", (40, 30), spaced((1, 1, 1)), StatedAxes(0, 1)) == (2, ())
