"""Means over subjects, paired differences and their intervals against known cases and SciPy."""

from __future__ import annotations

import math

import numpy as np
import pytest
from comparison.statistics import bootstrap_interval, paired_difference, spread, subject_means
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import bootstrap, norm

FIGURES = st.floats(-100, 100, allow_nan=False)


def test_a_subject_counts_once_however_many_volumes_it_has() -> None:
    assert subject_means([("a", 1.0), ("b", 10.0), ("a", 3.0)]) == {"a": 2.0, "b": 10.0}


def test_mean_and_sample_standard_deviation() -> None:
    assert spread([1.0, 2.0, 3.0, 6.0]) == pytest.approx((3.0, math.sqrt(14 / 3)))
    mean, sd = spread([5.0])
    assert mean == 5.0 and math.isnan(sd)
    with pytest.raises(ValueError, match="no values"):
        spread([])


def test_the_interval_is_that_of_scipy() -> None:
    values = np.random.default_rng(1).gamma(2.0, size=30)
    expected = bootstrap((values,), np.mean, n_resamples=20_000, method="percentile", rng=2).confidence_interval
    assert bootstrap_interval(values.tolist(), resamples=20_000) == pytest.approx(tuple(expected), abs=0.03)


def test_the_interval_of_many_normal_values_is_that_of_the_mean() -> None:
    values = np.random.default_rng(4).normal(size=400)
    half = norm.ppf(0.95) * values.std() / 20
    low, high = bootstrap_interval(values.tolist(), level=0.9)
    assert (low, high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.005)


def test_the_interval_of_two_values_reaches_from_one_to_the_other() -> None:
    assert bootstrap_interval([1.0, 3.0]) == (1.0, 3.0)  # a quarter of the resamples has one of them twice
    assert bootstrap_interval([1.0, 3.0], level=0.4) == (2.0, 2.0)


@settings(max_examples=30, deadline=None)
@given(st.lists(FIGURES, min_size=2, max_size=12), FIGURES)
def test_the_interval_moves_with_the_values_and_lies_within_them(values: list[float], shift: float) -> None:
    low, high = bootstrap_interval(values, resamples=500)
    assert min(values) - 1e-9 <= low <= high <= max(values) + 1e-9
    moved = bootstrap_interval([v + shift for v in values], resamples=500)
    assert moved == pytest.approx((low + shift, high + shift), abs=1e-9)


def test_the_same_seed_gives_the_same_interval() -> None:
    values = [0.1, 0.5, 0.7, 1.9, 2.0]
    assert bootstrap_interval(values, seed=3) == bootstrap_interval(values, seed=3)
    assert bootstrap_interval(values, resamples=50, seed=3) != bootstrap_interval(values, resamples=50, seed=4)


def test_one_subject_has_a_difference_and_no_interval() -> None:
    mean, low, high = paired_difference({"a": 3.0}, {"a": 1.0})
    assert mean == 2.0 and math.isnan(low) and math.isnan(high)


def test_pairs_are_by_subject_so_that_what_subjects_share_falls_out() -> None:
    reference = {"a": 20.0, "b": 40.0, "c": 60.0}
    ours = {"c": 61.0, "a": 21.0, "b": 41.0}
    assert paired_difference(ours, reference) == (1.0, 1.0, 1.0)


def test_different_subjects_and_wrong_levels_are_errors() -> None:
    with pytest.raises(ValueError, match="only on one: b, c"):
        paired_difference({"a": 1.0, "b": 1.0}, {"a": 1.0, "c": 1.0})
    with pytest.raises(ValueError, match="level"):
        bootstrap_interval([1.0, 2.0], level=1.0)
    with pytest.raises(ValueError, match="0 values"):
        bootstrap_interval([])
