"""The in-plane matrix that was acquired, from the image and from what its file states.

The image decides where it can. A file often states a matrix before phase oversampling, or of another field of view, so
what it states alone is believed only where the image has no signal beyond.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import log
from typing import Literal

import numpy as np

from bundle.physics.matrix import Kind, KnownMatrix, StatedMatrix
from bundle.trust.band import confidence_of
from bundle.trust.interpolation import (
    CONFIDENT,
    SMALLEST_AXIS,
    Interpolation,
    find_interpolation,
    has_signal_beyond,
    strongest,
    zero_filling,
)

LEAST_SAMPLES = 16
"""A smaller acquired matrix is not believed."""
FULL = 0.97
"""An axis of which at least this part was acquired is left alone."""

_MENTIONED = 0.5  # confidence from which a sign that is not used is named
_TOLERANCE, _SOFT_TOLERANCE = 0.05, 0.12  # relative, between image and header; a soft edge is found less exactly
_SAMPLES_OFF = 2.0
_SUPPORT = 3.0  # log odds that a header adds that agrees
_HEADER_ALONE = CONFIDENT
_UNKNOWN = 0.5  # confidence in an axis that cannot be tested: too short, or without contrast
_HINT = 0.1  # confidence of the image from which a header that agrees counts as found by both

Source = Literal["image", "header", "image and header"]


@dataclass(frozen=True)
class _Axis:
    """What is known of one axis: samples that were acquired, and why."""

    samples: int
    confidence: float = 1.0
    source: Source = "image"
    kind: Kind | None = None
    filtered: str | None = None
    notes: tuple[str, ...] = ()


def find_matrix(volume: np.ndarray, slice_axis: int, stated: StatedMatrix | None = None) -> KnownMatrix:
    """The acquired in-plane matrix; the stored one with a confidence below :data:`CONFIDENT`.

    Args:
        volume: real and finite, shape (X, Y, Z).
        slice_axis: axis that runs over the slices.
        stated: what the header or sidecar of the file states.

    Returns:
        ``acquired`` differs from ``stored`` only on axes where the confidence is at least :data:`CONFIDENT`; then
        ``confidence`` is the lowest of these axes, else of both; 0.5 says that an axis cannot be tested. ``notes`` name
        signs that are not used, and where image and header do not agree.
    """
    axes = [axis for axis in range(3) if axis != slice_axis]
    found = {sign.axis: sign for sign in find_interpolation(volume, slice_axis, least=0.0)}
    slices = strongest(np.moveaxis(volume, slice_axis, 0))
    known = [
        _one_axis(slices, position, axis, found.get(axis), stated.samples[axis] if stated else None, stated)
        for position, axis in enumerate(axes, 1)
    ]
    stored = (volume.shape[axes[0]], volume.shape[axes[1]])
    cut = [k for k in known if k.kind is not None]
    sources = {k.source for k in cut or known}
    filters = list(dict.fromkeys(k.filtered for k in cut if k.filtered))
    return KnownMatrix(
        stored=stored,
        acquired=(known[0].samples, known[1].samples),
        source=sources.pop() if len(sources) == 1 else "image and header",
        confidence=min(k.confidence for k in cut or known),
        kinds=(known[0].kind, known[1].kind),
        filtered=" and ".join(filters) or None,
        notes=known[0].notes + known[1].notes,
    )


def _one_axis(
    slices: np.ndarray,
    position: int,
    axis: int,
    sign: Interpolation | None,
    samples: float | None,
    stated: StatedMatrix | None,
) -> _Axis:
    """Weighs the sign in the image against the stated ``samples`` for one axis of slices (S, X, Y)."""
    size = slices.shape[position]
    if sign is not None and not LEAST_SAMPLES <= sign.true_size < FULL * size:
        sign = replace(sign, confidence=0.0)
    if samples is None or stated is None or samples < LEAST_SAMPLES:
        return _from_image(size, axis, sign)
    if samples >= FULL * size:
        return _against_full(size, axis, sign, samples, stated.source)
    if sign is not None and sign.confidence >= _HINT and _agree(sign.true_size, samples, sign.filtered):
        return _both(size, axis, sign, samples, stated.source)
    if sign is not None and sign.confidence >= CONFIDENT:
        image = _from_image(size, axis, sign)
        note = (
            f"array axis {axis}: the {stated.source} states {samples:.4g} of {size} samples, the image shows "
            f"{sign.true_size}: the image is believed"
        )
        return _Axis(image.samples, image.confidence, "image", image.kind, image.filtered, (note,))
    return _header_alone(slices, position, axis, samples, stated.source)


def _from_image(size: int, axis: int, sign: Interpolation | None) -> _Axis:
    if sign is not None and sign.confidence >= CONFIDENT:
        return _Axis(sign.true_size, sign.confidence, "image", sign.kind, sign.filtered)
    if sign is None:
        return _Axis(size, _UNKNOWN)
    doubt = sign.confidence
    if doubt < _MENTIONED:
        return _Axis(size, 1 - doubt)
    note = (
        f"array axis {axis}: may be interpolated from {sign.true_size} to {size} samples (confidence {doubt:.2f}): "
        "not certain enough to cut"
    )
    return _Axis(size, 1 - doubt, notes=(note,))


def _against_full(size: int, axis: int, sign: Interpolation | None, samples: float, source: str) -> _Axis:
    """The file says that the whole axis was acquired."""
    image = _from_image(size, axis, sign)
    if image.kind is None:
        who: Source = "header" if sign is None else "image and header"
        return _Axis(size, confidence_of(_log_odds(image.confidence) + _SUPPORT), who, notes=image.notes)
    note = (
        f"array axis {axis}: the {source} states {samples:.4g} samples, no interpolation of {size}, the image shows "
        f"{image.samples}: the image is believed"
    )
    return _Axis(image.samples, image.confidence, "image", image.kind, image.filtered, (note,))


def _both(size: int, axis: int, sign: Interpolation, samples: float, source: str) -> _Axis:
    """Image and file agree: a sharp edge is measured to the sample, a soft one is where the file says."""
    confidence = confidence_of(_log_odds(sign.confidence) + _SUPPORT)
    measured = sign.filtered is None and abs(sign.true_size - samples) <= _SAMPLES_OFF
    size_found = sign.true_size if measured else round(samples)
    if confidence >= CONFIDENT:
        return _Axis(size_found, confidence, "image and header", sign.kind, sign.filtered)
    note = (
        f"array axis {axis}: may be interpolated from {size_found} to {size} samples, as the {source} states "
        f"(confidence {confidence:.2f}): not certain enough to cut"
    )
    return _Axis(size, 1 - confidence, notes=(note,))


def _header_alone(slices: np.ndarray, position: int, axis: int, samples: float, source: str) -> _Axis:
    """The file states fewer samples than are stored, and the image shows no such edge by itself."""
    size, margin = slices.shape[position], _SOFT_TOLERANCE * samples
    near = (samples - margin, samples + margin)
    edge = zero_filling(slices, position, near) if size >= SMALLEST_AXIS else None
    if edge is not None and edge.confidence >= _HINT and _agree(edge.size, samples, edge.filtered):
        sign = Interpolation(axis, size, edge.size, "zero-filled", edge.confidence, edge.filtered)
        return _both(size, axis, sign, samples, source)
    beyond = has_signal_beyond(slices, position, samples)
    states = f"array axis {axis}: the {source} states {samples:.4g} of {size} samples"
    if beyond:
        return _Axis(size, 1.0, notes=(f"{states}, but the image has signal beyond: not cut",))
    why = "the image cannot tell" if beyond is None else "the image has only a floor beyond"
    return _Axis(round(samples), _HEADER_ALONE, "header", "zero-filled", notes=(f"{states}, and {why}",))


def _agree(found: int, samples: float, filtered: str | None) -> bool:
    tolerance = _SOFT_TOLERANCE if filtered else _TOLERANCE
    return abs(found - samples) <= max(_SAMPLES_OFF, tolerance * samples)


def _log_odds(confidence: float) -> float:
    bounded = min(max(confidence, 1e-9), 1 - 1e-9)
    return log(bounded / (1 - bounded))
