"""Detect from its k-space whether an image has already been interpolated.

Both signs come from one matrix per in-plane axis: the covariance ``G[k, l] = sum F_k conj(F_l)`` of the k-space
samples along that axis, summed over slices and over the other axis.

* Zero filling leaves the outer samples empty: the diagonal of ``G`` (the power) drops abruptly at the true matrix.
* Kernel interpolation (linear, cubic, spline, nearest) from ``n`` to ``N`` samples repeats the spectrum every ``n``
  samples, weighted by the kernel: ``F_k`` and ``F_(k - n)`` are multiples of the same number, so the coherence
  ``|G[k, k - n]|**2 / (G[k, k] G[k - n, k - n])`` is near 1 along that whole diagonal, and small along its neighbours.
  (The periodic second derivative found by A. C. Gallagher, "Detection of linear and cubic interpolation in JPEG
  compressed images", CRV 2005, is the same effect in image space.)

A smooth image shows neither: its power falls gently, and no diagonal stands out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

from bundle.physics import fftc

SMALLEST_AXIS = 48
"""Axes with fewer samples are too short for the statistics and are not tested."""

_SLICES = 12  # the strongest slices suffice, and this bounds the time
_BAND = (0.2, 0.95)  # range of the true matrix, as fractions of the matrix
_GROUPS = 4  # groups of lines, all of which must have a step at the same frequency
_MIN_STEP = 6.0  # decibels
_MIN_STEP_SCATTERS = 4.0
_MIN_EXCESS = 0.3  # of the coherence above its neighbouring diagonals
_MIN_PEAK_RATIO = 2.5  # of the best diagonal over the second best
_MIN_PAIRS = 8  # of frequencies on a diagonal


@dataclass(frozen=True)
class Interpolation:
    """A sign of interpolation along one array axis.

    Attributes:
        axis: array axis of the volume.
        size: samples along it.
        true_size: number of samples that hold all the information.
        kind: "zero-filled" (empty outer k-space) or "kernel" (linear, cubic, spline, nearest).
    """

    axis: int
    size: int
    true_size: int
    kind: Literal["zero-filled", "kernel"]


def find_interpolation(volume: np.ndarray, slice_axis: int) -> list[Interpolation]:
    """Signs of in-plane interpolation, at most one per axis.

    Zero filling is found for true matrices of 20 to 90 % of the axis (80 % of a short one), even after magnitude,
    rounding and cropping, unless it was smoothed away (a scanner's k-space filter that falls to zero leaves no step).
    Kernel interpolation is found if the image has enough detail. An axis with fewer than ``SMALLEST_AXIS`` samples is
    not tested.

    Args:
        volume: real and finite, shape (X, Y, Z).
        slice_axis: axis that runs over the slices.
    """
    slices = _strongest(np.moveaxis(volume, slice_axis, 0))
    found = []
    for position, axis in enumerate(a for a in range(3) if a != slice_axis):
        lines = np.moveaxis(slices, 1 + position, 0)  # (size, slices, the other axis)
        size = len(lines)
        if size < SMALLEST_AXIS:
            continue
        # Content common to all lines would be coherent at every distance; differences of neighbouring lines share less.
        differences = np.diff(lines, axis=2).reshape(size, -1)
        differences = differences[:, differences.any(axis=0)]
        if (repeat := _repeat(differences)) is not None:
            found.append(Interpolation(axis, size, repeat, "kernel"))
        elif (edge := _band_edge(differences)) is not None:
            found.append(Interpolation(axis, size, edge, "zero-filled"))
    return found


def _strongest(slices: np.ndarray) -> np.ndarray:
    """The slices (first axis) with the largest variance, in order, float32 of order 1."""
    contrast = slices.reshape(len(slices), -1).std(axis=1, dtype=np.float64)
    chosen = slices[np.sort(np.argsort(-contrast, kind="stable")[:_SLICES])].astype(np.float32)
    scaled: np.ndarray = chosen / max(float(np.abs(chosen).max()), float(np.finfo(np.float32).tiny))
    return scaled


def _spectra(lines: np.ndarray, windowed: bool) -> np.ndarray:
    """Centred spectra (n, lines). The window suppresses the jump between the two ends of a line."""
    if windowed:
        lines = lines * np.hanning(len(lines) + 1)[:-1, None].astype(np.float32)
    spectra: np.ndarray = fftc(torch.from_numpy(lines), [0]).numpy()
    return spectra


# ---------------------------------------------------------------------------------------------- kernel interpolation


def _repeat(lines: np.ndarray) -> int | None:
    """Distance after which the spectrum of lines (n, lines) repeats, if one stands out."""
    size = len(lines)
    if lines.shape[1] < _MIN_PAIRS:
        return None
    spectra = _spectra(lines, windowed=True)
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
    clear = score[best] > _MIN_PEAK_RATIO * others.max(initial=0.0)
    return int(distances[best]) if excess[best] > _MIN_EXCESS and clear else None


def _running_median(values: np.ndarray, width: int) -> np.ndarray:
    """Median over ``width`` (odd) neighbours, ends replicated."""
    padded = np.pad(values, width // 2, mode="edge")
    median: np.ndarray = np.median(np.lib.stride_tricks.sliding_window_view(padded, width), axis=1)
    return median


# ------------------------------------------------------------------------------------------------------- zero filling


def _band_edge(lines: np.ndarray) -> int | None:
    """Samples inside the step of the power spectrum of lines (n, lines), if there is one.

    Only the stronger half of the lines is used: in a magnitude image, it is the noise of the empty background that
    fills outer k-space again.
    """
    energy = np.square(lines).sum(axis=0)
    lines = lines[:, energy >= np.median(energy)] if lines.shape[1] else lines
    if lines.shape[1] < _MIN_PAIRS * _GROUPS:
        return None
    spectra = _spectra(lines, windowed=True)
    edge = _largest_step(_decibels(spectra))
    if edge is None:
        return None
    # A notch made by a few bright spots moves across the image; the edge of k-space does not.
    groups = [_decibels(group) for group in np.array_split(spectra, _GROUPS, axis=1)]
    if any(max(_steps(power, np.array([edge - 1, edge, edge + 1]))[0]) < _MIN_STEP / 2 for power in groups):
        return None
    return _exact_size(_decibels(_spectra(lines, windowed=False)), edge)


def _exact_size(power: np.ndarray, edge: int) -> int:
    """True matrix from the sharp (not windowed) spectrum, whose step lies near ``edge``.

    An even matrix ends with its Nyquist sample, split between both sides, so it has a quarter of the power.
    """
    step, inside = (values[0] for values in _steps(power, np.array([edge]))[:2])
    near = np.arange(edge - 3, min(edge + 3, len(power)))
    filled = near[power[near] > inside - np.clip(step / 2, _MIN_STEP / 2, 10.0)]
    last = int(filled.max(initial=near[0]))
    return 2 * last if power[last] < inside - 3.0 else 2 * last + 1


def _decibels(spectra: np.ndarray) -> np.ndarray:
    """Power at the frequencies 0, 1, ... up to Nyquist of centred spectra (n, lines), mean of both signs."""
    size = len(spectra)
    power = np.square(np.abs(spectra)).sum(axis=1, dtype=np.float64)
    centre, k = size // 2, np.arange((size + 1) // 2)
    half: np.ndarray = (power[centre + k] + power[centre - k]) / 2
    if size % 2 == 0:
        half = np.append(half, power[0])
    decibels: np.ndarray = 10 * np.log10(np.maximum(half, 1e-13 * max(half.max(), np.finfo(np.float32).tiny)))
    return decibels


def _largest_step(power: np.ndarray) -> int | None:
    """First frequency outside the largest step of a power spectrum (decibels), if it qualifies as a step.

    It must exceed the scatter about the fitted lines, all samples outside must lie below those just inside, and the
    drop must be sudden: a blurred image falls gradually to its noise level and stays there.
    """
    width = _width(power)
    first = max(width + 1, round(_BAND[0] * len(power)))
    edges = np.arange(first, min(round(_BAND[1] * len(power)), len(power) - width - 1) + 1)
    step, _, scatter = _steps(power, edges)
    best = int(step.argmax())
    edge = int(edges[best])
    inside = power[edge - 1 - width : edge - 1]
    gap = inside.min() - power[edge + 1 :].max()
    fall = max(power[e - 2] - power[e + 1] for e in (edge - 1, edge, edge + 1))
    usual = 3 * (inside[0] - inside[-1]) / (width - 1)  # over as many samples, just before the edge
    tall = step[best] > max(_MIN_STEP, _MIN_STEP_SCATTERS * scatter[best])
    return edge if tall and gap > _MIN_STEP / 2 and fall > max(2 * usual, step[best] / 3) else None


def _width(power: np.ndarray) -> int:
    """Number of samples on each side that a step is measured with."""
    return max(4, round(0.06 * len(power)))


def _steps(power: np.ndarray, edges: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Height of the step at each edge, level just inside it, and scatter about the fits; decibels.

    Straight lines are fitted to the samples inside and outside, without the two next to the edge, and compared at the
    edge: a spectrum that falls steadily has no step.
    """
    width = _width(power)
    edges = np.clip(edges, width + 1, len(power) - width - 1)
    windows = np.lib.stride_tricks.sliding_window_view(power, width)
    distance = np.arange(width) - (width + 0.5)  # from the edge, which lies half a sample before its index
    design = np.stack([np.ones(width), distance], axis=1)
    levels, scatters = [], []
    for rows in (windows[edges - 1 - width], windows[edges + 1][:, ::-1]):
        fit = rows @ np.linalg.pinv(design).T
        levels.append(fit[:, 0])
        scatters.append((rows - fit @ design.T).std(axis=1))
    return levels[0] - levels[1], levels[0], np.maximum(*scatters)
