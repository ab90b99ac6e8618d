"""Acquired samples from headers: whatever a vendor means by its numbers, the result is right or nothing is stated."""

from __future__ import annotations

import math

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from bundle.data.acquired import Encoded, agreed, fraction, in_either_direction, number, samples_over_stored

BASES = st.integers(64, 512)
PARTS = st.floats(0.5, 1)
FIELDS = st.one_of(st.just(1.0), st.floats(0.5, 1.3))
ZOOMS = st.floats(1, 2.5)


def close(one: float, other: float) -> bool:
    return abs(one - other) <= 0.04 * other + 1


def rectangular(base: int, part: float, field: float, zoom: float) -> tuple[Encoded, tuple, tuple, tuple]:
    """Siemens: the lines contain both percentages, and the stored matrix is as rectangular as the field of view."""
    lines = round(base * part * field)
    stored = round(base * zoom), round(base * zoom * field)
    truth = base, lines
    return Encoded(base, lines, round(part, 4), round(field, 4)), stored, stored, truth


def square(base: int, part: float, field: float, zoom: float) -> tuple[Encoded, tuple, tuple, tuple]:
    """Philips: the lines contain both percentages, and the stored matrix is a square with empty margins."""
    encoded, (size, _), _, (_, lines) = rectangular(base, part, field, zoom)
    return encoded, (size, size), (size, size), (base, lines / field)


def nominal(base: int, part: float, field: float, zoom: float) -> tuple[Encoded, tuple, tuple, tuple]:
    """GE: the lines are those of a full field of view, and the stored matrix is a square."""
    lines, size = round(base * part), round(base * zoom)
    return Encoded(base, lines, 1.0, round(field, 4)), (size, size), (size, size), (base, lines)


def elliptical(base: int, part: float, field: float, zoom: float) -> tuple[Encoded, tuple, tuple, tuple]:
    """The corners of k-space were left out, which percent sampling counts, but not the matrix."""
    size = round(base * zoom)
    return Encoded(base, base, math.pi / 4, 1.0), (size, size), (size, size), (base, base)


@pytest.mark.parametrize("vendor", [rectangular, square, nominal, elliptical])
@given(base=BASES, part=PARTS, field=FIELDS, zoom=ZOOMS)
def test_what_is_stated_is_true_for_every_vendor(vendor, base: int, part: float, field: float, zoom: float) -> None:
    encoded, stored, extent, truth = vendor(base, part, field, zoom)
    frequency, phase = samples_over_stored(encoded, stored, extent)
    assert frequency == truth[0]
    assert phase is None or close(phase, min(truth[1], stored[1]))


@given(base=BASES, part=PARTS, field=st.floats(0.5, 1), zoom=ZOOMS)
def test_a_rectangular_matrix_is_always_stated(base: int, part: float, field: float, zoom: float) -> None:
    encoded, stored, extent, truth = rectangular(base, part, field, zoom)
    assume(truth[1] >= stored[1] / 7)
    assert samples_over_stored(encoded, stored, extent)[1] == min(truth[1], stored[1])


@given(
    base=BASES, part=PARTS, zoom=ZOOMS, phase_axis=st.sampled_from([0, 1]), vendor=st.sampled_from([square, nominal])
)
def test_a_full_field_of_view_is_always_stated_on_its_axes(
    base: int, part: float, zoom: float, phase_axis: int, vendor
) -> None:
    encoded, stored, extent, truth = vendor(base, part, 1.0, zoom)
    assume(truth[1] >= stored[1] / 7)
    found = in_either_direction(encoded, phase_axis, stored, extent)
    assert found == (truth if phase_axis else truth[::-1])
    unknown = in_either_direction(encoded, None, stored, extent)
    assert all(value is None or (close(value, truth[0]) and close(value, truth[1])) for value in unknown)


@given(st.floats(allow_nan=True), st.floats(), st.one_of(st.none(), st.floats()), st.one_of(st.none(), st.floats()))
def test_nonsense_gives_numbers_within_the_image_or_none(frequency, phase, sampling, field) -> None:
    encoded = Encoded(number(frequency), number(phase), fraction(sampling), fraction(field), counted=True)
    for value, stored in zip(samples_over_stored(encoded, (256, 192), (256.0, 192.0)), (256, 192), strict=True):
        assert value is None or stored / 8 <= value <= stored


def test_lines_that_contain_percent_sampling_contain_the_smaller_field_of_view() -> None:
    """As on a Philips scanner: 166 lines over 80 % of a square of 320, which would be 207 over all of it."""
    encoded = Encoded(268, 166, 0.776, 0.8)
    assert samples_over_stored(encoded, (320, 320), (240.0, 240.0)) == (268, pytest.approx(207.5))


def test_nothing_is_stated_for_an_image_that_was_cropped() -> None:
    assert samples_over_stored(Encoded(192, 144, 1.0, 0.75), (256, 192), (256.0, 192.0)) == (192, 144)
    assert samples_over_stored(Encoded(192, 144, 1.0, 0.75), (200, 192), (200.0, 192.0)) == (None, None)
    assert samples_over_stored(Encoded(192, 192, 1.0, 1.0), (256, 200), (256.0, 200.0)) == (None, None)


def test_lines_that_were_counted_one_by_one_are_believed_only_if_none_was_left_out() -> None:
    whole = Encoded(256, 192, 1.0, 0.75, counted=True)
    assert samples_over_stored(whole, (512, 384), (256, 192)) == (256, 192)
    partial = Encoded(256, 144, 1.0, 0.75, counted=True)
    assert samples_over_stored(partial, (512, 384), (256, 192)) == (256, None)


@pytest.mark.parametrize("value", [None, "", "x", [1], {}, True, 0, -3, "nan", float("inf"), 10**400])
def test_what_is_no_positive_number_is_none(value: object) -> None:
    assert number(value) is None


def test_numbers_agree_within_the_rounding_of_scanners() -> None:
    assert agreed([192, 190.0, 195]) == 192
    assert agreed([192, 180]) is None
    assert agreed([192, None]) is None
    assert agreed([None, None]) is None
    assert (number(" 70.5 "), fraction("70"), fraction(1), fraction(600)) == (70.5, 0.7, None, None)
