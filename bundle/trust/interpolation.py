"""Detect from its k-space whether an image has already been interpolated.

* Zero filling leaves the outer samples empty: the power along an axis drops at the true matrix, abruptly or behind a
  k-space filter (:mod:`bundle.trust.band`). Only lines of low frequency along the other axis are used: there the signal
  is strongest against what the magnitude folds back, and neither an elliptical support nor the empty outer part of the
  other axis takes away from the edge.
* Kernel interpolation (linear, cubic, spline, nearest) from ``n`` to ``N`` samples repeats the spectrum every ``n``
  samples, weighted by the kernel: in the covariance ``G[k, l] = sum F_k conj(F_l)`` over lines, ``F_k`` and
  ``F_(k - n)`` are multiples of the same number, so the coherence ``|G[k, k - n]|**2 / (G[k, k] G[k - n, k - n])`` is
  near 1 along that whole diagonal, and small along its neighbours. (The periodic second derivative found by
  A. C. Gallagher, "Detection of linear and cubic interpolation in JPEG compressed images", CRV 2005, is the same effect
  in image space.)

A smooth image shows neither: its power falls gently, and no diagonal stands out. The blocks of 8 pixels of an image
that was once a JPEG do repeat its spectrum, like a kernel from 7/8 of the samples, so that distance does not count.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
import torch

from bundle.physics import fftc
from bundle.physics.matrix import Kind
from bundle.trust.band import Edge, band_edge, confidence_of

SMALLEST_AXIS = 48
"""Axes with fewer samples are too short for the statistics and are not tested."""
CONFIDENT = 0.9
"""Confidence from which an image counts as interpolated. At this value no volume of the evaluation as it is, and no
changed MR volume that was not interpolated, is taken for one (docs/results/interpolated)."""

_SLICES = 12  # the strongest slices suffice, and this bounds the time
_LOW = (0.03, 0.25)  # frequencies along the other axis, in units of Nyquist, that are used for the band
_MORE = 0.5  # highest of those used to measure a sharp edge to the sample
_FEWEST_LINES = 8
_SPLIT, _MOST_BELOW = 3.0, 14.0  # decibels: the split Nyquist sample lies so far below those inside, and at most
_FLAT, _ABOVE_FLOOR = 1.5, 6.0  # decibels: slope of a floor, and how far signal must rise above it
_EMPTY = 0.05  # part of voxels with one exact value from which they are taken for a mask
_BAND = (0.2, 0.95)  # range of the true matrix behind a kernel, as fractions of the matrix
_EXCESS = (0.2, 0.045)  # of the coherence above its neighbouring diagonals: where the log odds are 0, and their scale
_PEAK_RATIO = (1.75, 0.34)  # of the best diagonal over the second best, likewise
_BLOCK = 8  # pixels of the blocks of a JPEG
_MIN_PAIRS = 8  # of frequencies on a diagonal
_LINES = 600  # of all differences of lines, so many are used


@dataclass(frozen=True)
class Interpolation:
    """A sign of interpolation along one array axis.

    Attributes:
        axis: array axis of the volume.
        size: samples along it.
        true_size: number of samples that hold all the information.
        kind: "zero-filled" (empty outer k-space) or "kernel" (linear, cubic, spline, nearest).
        confidence: from 0 to 1; it does not count when two are compared.
        filtered: name of the k-space filter before the edge; ``None`` for a sharp one.
    """

    axis: int
    size: int
    true_size: int
    kind: Kind
    confidence: float = field(default=1.0, compare=False)
    filtered: str | None = None


def find_interpolation(volume: np.ndarray, slice_axis: int, least: float = CONFIDENT) -> list[Interpolation]:
    """Signs of in-plane interpolation, at most one per axis.

    Zero filling is found for true matrices of 30 to 94 % of the axis, even after magnitude, rounding and cropping, with
    a sharp or a soft edge. Kernel interpolation is found if the image has enough detail. An axis with fewer than
    ``SMALLEST_AXIS`` samples is not tested.

    Args:
        volume: real and finite, shape (X, Y, Z).
        slice_axis: axis that runs over the slices.
        least: signs with less confidence are left out.
    """
    slices = strongest(np.moveaxis(volume, slice_axis, 0))
    if not np.ptp(slices, axis=(1, 2)).any():
        return []
    found = []
    for position, axis in enumerate(a for a in range(3) if a != slice_axis):
        size = slices.shape[1 + position]
        if size < SMALLEST_AXIS:
            continue
        repeat, sure = _repeat(_differences(np.moveaxis(slices, 1 + position, 0)))
        edge = zero_filling(slices, 1 + position)
        if sure >= max(CONFIDENT, edge.confidence if edge else 0.0):
            sign = Interpolation(axis, size, repeat, "kernel", sure)
        elif edge is not None:
            sign = Interpolation(axis, size, edge.size, "zero-filled", edge.confidence, edge.filtered)
        else:
            continue
        if sign.confidence >= least:
            found.append(sign)
    return found


def strongest(slices: np.ndarray) -> np.ndarray:
    """The slices (first axis) with the largest variance, in order, float32 of order 1."""
    contrast = slices.reshape(len(slices), -1).std(axis=1, dtype=np.float64)
    chosen = slices[np.sort(np.argsort(-contrast, kind="stable")[:_SLICES])].astype(np.float32)
    scaled: np.ndarray = chosen / max(float(np.abs(chosen).max()), float(np.finfo(np.float32).tiny))
    return scaled


# ------------------------------------------------------------------------------------------------------- zero filling


def zero_filling(slices: np.ndarray, axis: int, near: tuple[float, float] | None = None) -> Edge | None:
    """The likeliest edge of the acquired band of slices (S, X, Y) along ``axis`` (1 or 2), with its confidence.

    Args:
        slices: from :func:`strongest`.
        axis: 1 or 2.
        near: only consider acquired matrices of this range of samples.
    """
    slices = np.moveaxis(slices, axis, 2)
    edges = [band_edge(*view, near) for view in _views(slices)]
    best = max((e for e in edges if e is not None), key=lambda e: e.confidence, default=None)
    if best is None or best.filtered is not None:
        return best
    return replace(best, size=_exact_size(_power(slices * _hann(slices.shape[1])[:, None], _MORE), best.size))


def _exact_size(power: np.ndarray, size: int) -> int:
    """Matrix from the power without a window along the axis, whose sharp edge lies near that of ``size`` samples.

    An even matrix ends with its Nyquist sample, split between both sides, so it has a quarter of the power.
    """
    if not power.max() > 0:
        return size
    level = np.concatenate([[np.nan], 10 * np.log10(np.maximum(power, 1e-12 * power.max()))])  # index is frequency
    edge = size // 2
    near = np.arange(max(4, edge - 3), min(edge + 4, len(level)))
    inside, outside = np.median(level[near[0] - 3 : near[0] + 2]), np.median(level[near[-1] : near[-1] + 6])
    if not inside - outside > 2 * _SPLIT:
        return size
    filled = near[level[near] > inside - min(0.65 * (inside - outside), _MOST_BELOW)]
    if not len(filled):
        return size
    last = int(filled[-1])
    return 2 * last if level[last] < inside - _SPLIT else 2 * last + 1


def has_signal_beyond(slices: np.ndarray, axis: int, samples: float) -> bool | None:
    """Whether slices (S, X, Y) have more than a floor beyond a matrix of ``samples`` along ``axis`` (1 or 2).

    ``None`` if the axis is too short to tell.
    """
    slices = np.moveaxis(slices, axis, 2)
    views = _views(slices) if slices.shape[2] >= SMALLEST_AXIS else []
    if not views:
        return None
    power = views[-1][0]
    level = 10 * np.log10(np.maximum(power, 1e-10 * max(power.max(), np.finfo(np.float32).tiny)))
    count = len(level)
    first, width = round(samples / 2) + 2, max(3, round(0.04 * count))
    if first + 2 * width > count:
        return None
    inside = level[first // 8 : first // 2].mean()
    beside, last = level[first : first + width].mean(), level[-max(width, round(0.1 * count)) :].mean()
    return not (beside - last < _FLAT and inside - beside > _ABOVE_FLOOR)


def _views(slices: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    """Power at the frequencies 1 to Nyquist along the last axis of slices (S, Y, X), and smear by the window.

    The image as it is; and if part of it was set to one value, also its inside alone, without the edge of that mask.
    """
    window = np.outer(_hann(slices.shape[1]), _hann(slices.shape[2])).astype(np.float32)
    views = [_view(slices, window)]
    if (inside := _inside(slices)) is not None:
        views.append(_view(slices, inside * window))
    return [view for view in views if view is not None]


def _view(slices: np.ndarray, window: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
    others, size = slices.shape[1:]
    first, last = _low(others)
    if last > others // 2 or len(slices) * (last - first + 1) < _FEWEST_LINES:
        return None
    response = np.square(np.abs(np.fft.fft(window.reshape(-1, size), axis=1))).mean(axis=0)
    reach = np.arange(-max(1, size // 16), max(1, size // 16) + 1)
    smear = response[reach % size]
    return _power(slices * window), smear / smear.sum()


def _low(others: int, highest: float = _LOW[1]) -> tuple[int, int]:
    """First and last of the low frequencies along an axis of ``others`` samples."""
    first = int(np.ceil(_LOW[0] * others / 2))
    return first, max(first + 2, int(highest * others / 2))


def _power(slices: np.ndarray, highest: float = _LOW[1]) -> np.ndarray:
    """Power of slices (S, Y, X) at the frequencies 1 to Nyquist along the last axis, at low ones along the other."""
    others, size = slices.shape[1:]
    first, last = _low(others, highest)
    lines = torch.fft.fft(torch.from_numpy(slices.astype(np.float32)), dim=1)[:, first : last + 1]
    power = np.square(np.abs(torch.fft.fft(lines, dim=2).numpy())).mean(axis=(0, 1), dtype=np.float64)
    k = np.arange(1, size // 2 + 1)
    both: np.ndarray = (power[k] + power[-k % size]) / 2
    return both


def _hann(size: int) -> np.ndarray:
    """Suppresses the jump between the two ends of a line."""
    window: np.ndarray = np.hanning(size + 1)[:-1]
    return window


def _inside(slices: np.ndarray) -> np.ndarray | None:
    """Weight (S, Y, X) that falls smoothly to 0 at the border of what was set to the lowest value, if much was."""
    image = slices != slices.min()
    if not _EMPTY < 1 - image.mean() < 1 - _EMPTY:
        return None
    weight = torch.from_numpy(image.astype(np.float32))
    for _ in range(2):
        for kernel in ((max(3, slices.shape[1] // 16 * 2 + 1), 1), (1, max(3, slices.shape[2] // 16 * 2 + 1))):
            padding = [n // 2 for n in kernel]
            weight = torch.nn.functional.avg_pool2d(weight, kernel, 1, padding, count_include_pad=False)
    weight = (2 * weight - 1).clamp(min=0)
    weight = weight**2 * (3 - 2 * weight)
    inside: np.ndarray = weight.numpy()
    return inside if inside.mean() > _EMPTY else None


# ---------------------------------------------------------------------------------------------- kernel interpolation


def _differences(lines: np.ndarray) -> np.ndarray:
    """Differences (n, lines) of neighbouring lines (n, slices, the other axis), without the empty ones.

    Content common to all lines would be coherent at every distance; differences share less.
    """
    differences = np.diff(lines, axis=2).reshape(len(lines), -1)
    varying: np.ndarray = differences[:, differences.any(axis=0)]
    return varying[:, :: max(1, varying.shape[1] // _LINES)]


def _repeat(lines: np.ndarray) -> tuple[int, float]:
    """Distance after which the spectrum of lines (n, lines) repeats, and how surely it does."""
    size = len(lines)
    if lines.shape[1] < _MIN_PAIRS:
        return size, 0.0
    spectra = fftc(torch.from_numpy(lines * _hann(size)[:, None].astype(np.float32)), [0]).numpy()
    covariance = spectra @ spectra.conj().T
    power = covariance.diagonal().real
    power = np.maximum(power, 1e-12 * power.max())
    coherence = np.abs(covariance) ** 2 / np.outer(power, power)
    distances = np.arange(round(_BAND[0] * size), min(round(_BAND[1] * size), size - _MIN_PAIRS) + 1)
    mean = np.array([coherence.diagonal(d).mean() for d in distances])
    excess = mean - _running_median(mean, max(9, size // 16 | 1))
    score = excess * np.sqrt(size - distances)  # the mean over a long diagonal is more reliable
    best = int(score.argmax())
    others = score[np.abs(distances - distances[best]) > 2]
    ratio = score[best] / max(float(others.max(initial=0.0)), 1e-9)
    if abs(distances[best] - (1 - 1 / _BLOCK) * size) < 2:
        return size, 0.0
    odds = ((excess[best] - _EXCESS[0]) / _EXCESS[1], (ratio - _PEAK_RATIO[0]) / _PEAK_RATIO[1])
    return int(distances[best]), confidence_of(float(min(odds)))


def _running_median(values: np.ndarray, width: int) -> np.ndarray:
    """Median over ``width`` (odd) neighbours, ends replicated."""
    padded = np.pad(values, width // 2, mode="edge")
    median: np.ndarray = np.median(np.lib.stride_tricks.sliding_window_view(padded, width), axis=1)
    return median
