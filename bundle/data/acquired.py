"""Acquired samples over the stored field of view, from what the header of an MR image says about its encoding.

Headers are ambiguous: the lines of some vendors contain percent sampling and the smaller field of view, those of
others do not, and the stored matrix is rectangular, or a square with empty margins. So every reading that the numbers
allow is worked out, and an axis is stated only where all of them agree.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

AGREE = 0.02
"""Numbers agree up to this part: scanners round to whole, even or fast numbers of lines."""

FEWEST = 4
"""Fewer samples than this are nonsense."""

FINEST = 8
"""So is an image that was interpolated by more than this factor."""

Samples = tuple[float | None, ...]

_OTHER_GRID = {
    *("MPR", "CSA MPR", "CPR", "CURVED", "REFORMATTED", "PROJECTION", "PROJECTION IMAGE", "MIP", "MINIP", "MNIP"),
    *("MAX_IP", "MIN_IP", "MEAN_IP", "RESAMPLED", "MAXIMUM", "MINIMUM", "VOLREN", "SURFREN"),
}
"""Words of image types of images that were computed on another grid than the acquired one."""


@dataclass(frozen=True, slots=True)
class Encoded:
    """What a header says about the encoding of a slice; None where it says nothing, or nonsense.

    Attributes:
        frequency: samples along the frequency-encoding direction.
        phase: lines along the phase-encoding direction.
        sampling: lines acquired, as a part of all lines of the matrix (PercentSampling / 100).
        field: field of view along phase, as a part of that along frequency (PercentPhaseFieldOfView / 100).
        counted: the lines were counted one by one, so that partial Fourier and parallel imaging make them fewer.
    """

    frequency: float | None
    phase: float | None
    sampling: float | None = None
    field: float | None = None
    counted: bool = False


def samples_over_stored(encoded: Encoded, stored: Sequence[float], extent: Sequence[float]) -> Samples:
    """Acquired samples over the stored field of view, along frequency and along phase; None where it is not certain.

    Args:
        encoded: what the header says.
        stored: samples of the image along frequency and phase.
        extent: its lengths in mm.
    """
    ratio = extent[1] / extent[0]
    if encoded.field is not None and not _close(ratio, encoded.field) and not _close(ratio, 1.0):
        return None, None  # neither a rectangle of that shape nor a square: cropped
    phase = agreed(_phase_readings(encoded, ratio))
    return _plausible(encoded.frequency, stored[0]), _plausible(phase, stored[1])


def in_either_direction(
    encoded: Encoded, phase_axis: int | None, stored: Sequence[float], extent: Sequence[float]
) -> Samples:
    """The same for the two axes of a plane, in the order of `stored` and `extent`.

    Args:
        phase_axis: 0 or 1; None if it is not known: an axis is then stated if it does not depend on the direction.
    """
    found = []
    for phase in (0, 1) if phase_axis is None else (phase_axis,):
        frequency = 1 - phase
        both = samples_over_stored(encoded, (stored[frequency], stored[phase]), (extent[frequency], extent[phase]))
        found.append(both if phase else both[::-1])
    return tuple(map(agreed, zip(*found, strict=True)))


def agreed(readings: Iterable[float | None]) -> float | None:
    """The first of several numbers if all agree, else None."""
    first, *others = readings
    if first is None or any(other is None or not _close(first, other) for other in others):
        return None
    return first


def number(value: Any) -> float | None:
    """A positive finite number, as a number or as text; None for anything else."""
    if isinstance(value, bool):
        return None
    try:
        converted = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return converted if math.isfinite(converted) and converted > 0 else None


def fraction(percent: Any) -> float | None:
    """A percentage as a fraction, None if it is none that an image could have."""
    value = number(percent)
    return value / 100 if value is not None and 5 <= value <= 500 else None


def on_another_grid(image_type: Any) -> bool:
    """Whether an ImageType or FrameType is that of a derived image, whose voxels need not be the acquired ones."""
    words = list(image_type) if isinstance(image_type, (list, tuple)) else [image_type]
    return "DERIVED" in words[:1] or any(word in words for word in _OTHER_GRID)


def _phase_readings(encoded: Encoded, ratio: float) -> list[float | None]:
    """All that the lines may mean over the stored field of view; `ratio` is its length along phase by frequency."""
    lines, sampling, field = encoded.phase, encoded.sampling or 1.0, encoded.field
    if lines is None:
        return [None]
    nominal = (encoded.frequency or 0.0) * sampling * (field or 1.0)
    explained = _close(lines, nominal) or abs(lines - nominal) <= 1
    if encoded.counted and not explained:
        return [None]
    counts = [lines] if explained or sampling == 1 else [lines, lines * sampling]
    fields = [1.0] if field is None or _close(ratio, field) else [1.0, ratio / field]
    if explained and not _close(sampling, 1.0):
        fields = fields[-1:]  # lines that contain percent sampling contain the field of view, too
    return [count * part for part in fields for count in counts]


def _plausible(samples: float | None, stored: float) -> float | None:
    if samples is None or samples > stored * (1 + AGREE) or samples < max(FEWEST, stored / FINEST):
        return None
    return min(samples, float(stored))


def _close(one: float, other: float) -> bool:
    return abs(one - other) <= AGREE * max(one, other)
