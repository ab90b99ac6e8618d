"""Statistics over subjects: mean and spread, paired differences, bootstrap confidence intervals.

The subject is the unit: its volumes are averaged first, and only subjects are resampled, never slices or volumes.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np


class Spread(NamedTuple):
    """Mean and sample standard deviation (NaN for a single value)."""

    mean: float
    sd: float


class Difference(NamedTuple):
    """Mean of paired differences with the limits of its confidence interval (NaN for a single subject)."""

    mean: float
    low: float
    high: float


def subject_means(values: Iterable[tuple[str, float]]) -> dict[str, float]:
    """Mean over the volumes of each subject, from (subject, value) pairs."""
    gathered: dict[str, list[float]] = defaultdict(list)
    for subject, value in values:
        gathered[subject].append(value)
    return {subject: float(np.mean(v)) for subject, v in gathered.items()}


def spread(values: Sequence[float]) -> Spread:
    """Mean and standard deviation with ``n - 1`` in the denominator."""
    if not values:
        raise ValueError("no values to average")
    return Spread(float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else math.nan)


def bootstrap_interval(
    values: Sequence[float], level: float = 0.95, resamples: int = 10_000, seed: int = 0
) -> tuple[float, float]:
    """Percentile bootstrap confidence interval of the mean (Efron and Tibshirani 1993, chapter 13).

    It is too narrow for few values: ``n`` values have only ``(2n - 1)! / (n! (n - 1)!)`` distinct resamples (35 for
    four). A single value has no interval: NaN, NaN.

    Args:
        values: one per subject.
        level: of confidence, inside (0, 1).
        resamples: draws with replacement.
        seed: of the draws; the same seed and number of values give the same draws.

    Raises:
        ValueError: no values, or a level outside (0, 1).
    """
    if not values or not 0.0 < level < 1.0:
        raise ValueError(f"need values and a level inside (0, 1), got {len(values)} values and {level}")
    if len(values) == 1:
        return math.nan, math.nan
    draws = np.random.default_rng(seed).integers(len(values), size=(resamples, len(values)))
    means = np.asarray(values, dtype=float)[draws].mean(axis=1)
    low, high = np.percentile(means, [50.0 * (1.0 - level), 50.0 * (1.0 + level)])
    return float(low), float(high)


def paired_difference(ours: Mapping[str, float], reference: Mapping[str, float], level: float = 0.95) -> Difference:
    """Mean over subjects of ``ours - reference`` with its :func:`bootstrap_interval`.

    Args:
        ours, reference: value of each subject; the same subjects.
        level: of confidence.

    Raises:
        ValueError: the subjects differ.
    """
    if set(ours) != set(reference):
        only = sorted(set(ours) ^ set(reference))
        raise ValueError(f"a paired difference needs the same subjects on both sides; only on one: {', '.join(only)}")
    differences = [ours[subject] - reference[subject] for subject in sorted(ours)]
    return Difference(spread(differences).mean, *bootstrap_interval(differences, level))
