"""From float voxels back to the integers of a DICOM series, in the source's scaling where possible.

Super-resolved values overshoot those of the source a little. Tried in this order: the source's scaling; all 16 bits;
for CT, signed instead of unsigned integers; for signed MR or CT without negative values, unsigned ones; and only then
a coarser slope, for PET in the slices that need it (each has its own), else for the whole series by a power of 2.
Unsigned MR or PET cannot go below 0: values that the source could not hold are set to the lowest value. Padding keeps
its stored integer, and no other voxel gets one of the range that is declared as padding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from bundle.data.dicom.frame import Frame, Padding
from bundle.data.dicom.pixels import stored_range, turn_over


@dataclass(frozen=True, eq=False)
class Encoding:
    """How the voxels of a series are stored.

    Attributes:
        frames: one per slice.
        signed, bits: PixelRepresentation and BitsStored, the same for all; BitsAllocated is 16.
        slopes: per slice; the intercepts are the source's.
        coarser: the slopes as multiples of the source's, 1 where kept.
        cut: number of voxels below the range, set to its lower end.
        padding: value of the voxels in which nothing was measured; None if there are none.
        stored_padding: how they are stored, per slice; None where `padding` is None.
    """

    frames: tuple[Frame, ...]
    signed: bool
    bits: int
    slopes: np.ndarray
    coarser: np.ndarray
    cut: int = 0
    padding: float | None = None
    stored_padding: tuple[Padding | None, ...] = ()

    def encode(self, plane: np.ndarray, number: int) -> np.ndarray:
        """Stored integers (rows, columns) of slice `number`, from its values (columns, rows)."""
        low, high = stored_range(self.bits, self.signed)
        stored = np.clip(_rounded(plane, self.frames[number], self.slopes[number]), low, high)
        if self.padding is not None and (padding := self.stored_padding[number]) is not None:
            stored = _outside(stored, padding, low, high)
            stored[plane == np.float32(self.padding)] = padding.value
        return stored.astype("<i2" if self.signed else "<u2").T


def plan_encoding(frames: Sequence[Frame], voxels: np.ndarray, padding: float | None = None) -> Encoding:
    """Choose the integer encoding for voxels (columns, rows, slices) of these source frames; `padding` is a value."""
    images = [frame.image for frame in frames]
    slopes = np.array([frame.slope for frame in frames])
    planes = (
        _rounded(_measured(voxels[:, :, number], padding), frame, frame.slope) for number, frame in enumerate(frames)
    )
    low, high, negative = np.array([(plane.min(), plane.max(), np.sum(plane < 0)) for plane in planes]).T
    signed = any(image.signed for image in images)
    widest = max(image.bits_stored for image in images)
    bits = widest if all(image.bits_allocated == 16 for image in images) else 16
    if not signed and images[0].modality == "CT" and low.min() < 0:
        signed, bits = True, 16
    cut = 0 if signed else int(negative.sum())
    low = low if signed else np.maximum(low, 0)
    paddings = [_stored_padding(frame, frames, padding) for frame in frames]
    ends = [end for item in paddings if item is not None for end in (item.value, item.limit)]
    if _excess(low, high, bits, signed).max() > 1 or not _all_within(ends, bits, signed):
        bits = 16
    per_slice = images[0].modality == "PT"
    if signed and not ends and not per_slice and low.min() >= 0 and _excess(low, high, bits, signed).max() > 1:
        signed = False
    coarser = np.maximum(_excess(low, high, bits, signed), 1)
    if not per_slice:
        coarser[:] = 2 ** np.ceil(np.log2(coarser.max()))
    written = np.where(coarser > 1, [decimal_number(slope) for slope in slopes * coarser], slopes)
    if not _all_within(ends, bits, signed):  # unsigned integers became signed: there is a free one at the end
        least = stored_range(bits, signed)[0]
        paddings = [None if item is None else Padding(least, least) for item in paddings]
    return Encoding(tuple(frames), signed, bits, written, coarser, cut, padding, tuple(paddings))


def decimal_number(value: float) -> float:
    """The value rounded away from zero to fit into a DICOM decimal string (16 characters)."""
    return float(f"{value * (1 + 1e-9):.9g}")


def _rounded(plane: np.ndarray, frame: Frame, slope: float) -> np.ndarray:
    values = plane.astype(np.float64)
    if frame.image.inverted:
        values = turn_over(frame) - values
    return np.rint((values - frame.intercept) / slope)


def _measured(plane: np.ndarray, padding: float | None) -> np.ndarray:
    """The voxels that are not padding; all of them if nothing would be left."""
    rest = plane if padding is None else plane[plane != np.float32(padding)]
    return rest if rest.size else np.zeros(1)


def _stored_padding(frame: Frame, frames: Sequence[Frame], padding: float | None) -> Padding | None:
    """How padding is stored in a slice: as its file declares it, or another of the series; else by its value."""
    if padding is None:
        return None
    declared = (item.image.padding for item in (frame, *frames))
    stored = int(_rounded(np.array(padding), frame, frame.slope))
    return next((item for item in declared if item is not None), Padding(stored, stored))


def _outside(stored: np.ndarray, padding: Padding, low: int, high: int) -> np.ndarray:
    """Stored integers moved to the nearest end of the range of padding, if they lie in it."""
    least, most = sorted((padding.value, padding.limit))
    inside = (stored >= least) & (stored <= most)
    down = inside & ((stored - least < most - stored) | (most >= high)) & (least > low)
    return np.where(down, least - 1, np.where(inside, min(most + 1, high), stored))


def _all_within(stored: Sequence[int], bits: int, signed: bool) -> bool:
    low, high = stored_range(bits, signed)
    return all(low <= value <= high for value in stored)


def _excess(low: np.ndarray, high: np.ndarray, bits: int, signed: bool) -> np.ndarray:
    """Ratio of each slice's stored values to the range; up to 1 they fit."""
    bottom, top = stored_range(bits, signed)
    return np.maximum(high / top, low / bottom if bottom else 0)
