"""Reading a DICOM series as a volume without silent repair.

Common readers stack whatever they get: a missing slice widens the spacing, two echoes become one stack with twice the
slices, a truncated file is dropped. Here the slices of a series make one volume of certain geometry, or one clear line
says why not.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from bundle.data.dicom.frame import Frame
from bundle.data.dicom.geometry import Stack, check_reference, duplicates, sort_by_position, stack_slices
from bundle.data.dicom.pixels import padding_value, read_values, stored_frames
from bundle.data.dicom.series import DicomSeries
from bundle.data.errors import VolumeError, fail
from bundle.data.nifti.stream import MAX_BYTES
from bundle.data.values import Values, survey


@dataclass(frozen=True, eq=False, repr=False)
class DicomVolume:
    """A DICOM series in memory.

    Attributes:
        voxels: float32 (X, Y, Z) = (columns, rows, slices), all finite, in the units of the series (HU, Bq/ml,
            arbitrary MR); high is bright, also for MONOCHROME1.
        affine: float64 (4, 4), voxel index to world (RAS), mm. Slices are axis 2, sorted along their normal.
        values: what the values mean.
        warnings: doubts, one line each; nothing in them identifies the patient.
        series: what it was read from.
        frames: the slices along axis 2.
        regular: False if gaps were allowed: the affine then holds only within a slice, and a format with a single
            affine (NIfTI) cannot hold the volume.
    """

    voxels: np.ndarray
    affine: np.ndarray
    values: Values
    warnings: list[str]
    series: DicomSeries
    frames: tuple[Frame, ...]
    regular: bool = True

    def strongest(self) -> tuple[np.ndarray, Values]:
        """Of all volumes that decide together, the one with the largest contrast, and what its values mean."""
        shared = self.series.together
        if shared is None or _same(shared.strongest, self.frames):
            return self.voxels, self.values
        return read_values(_where(self.series), shared.strongest), shared.values_of(shared.strongest)


def read_series(series: DicomSeries, *, allow_gap: bool = False, max_bytes: int = MAX_BYTES) -> DicomVolume:
    """Read the pixels of a series and their geometry.

    Args:
        series: from `find_series`.
        allow_gap: accept missing or unevenly spaced slices, with a warning; each is then refined in its own plane.
        max_bytes: largest accepted size of the voxels as float32.

    Raises:
        VolumeError: the slices do not form one volume of certain geometry, or a file cannot be decoded.
    """
    return read_pixels(series, read_geometry(series, allow_gap=allow_gap, max_bytes=max_bytes))


def read_pixels(series: DicomSeries, stack: Stack) -> DicomVolume:
    """The volume of a series whose geometry is known.

    Raises:
        VolumeError: a file cannot be decoded.
    """
    warnings = list(stack.warnings)
    voxels = read_values(_where(series), stack.frames)
    values = _alone(voxels, stack.frames) if series.together is None else series.together.values_of(stack.frames)
    low, high = voxels.min(), voxels.max()
    if low == high:
        warnings.append(f"all voxels have the value {low:g}")
    return DicomVolume(voxels, stack.affine, values, warnings, series, stack.frames, stack.regular)


def _same(one: Sequence[Frame], other: Sequence[Frame]) -> bool:
    """Whether both are the same frames, in any order."""
    first, second = ({(frame.path, frame.index) for frame in frames} for frames in (one, other))
    return first == second


def _alone(voxels: np.ndarray, frames: Sequence[Frame]) -> Values:
    """What the values of a single volume mean."""
    declared = padding_value(frames)
    if declared is not None and not (voxels == np.float32(declared)).any():
        declared = None  # a header may name a value that no voxel has, while padding has another
    return survey([voxels], declared, hounsfield=frames[0].image.modality == "CT")


def read_geometry(series: DicomSeries, *, allow_gap: bool = False, max_bytes: int = MAX_BYTES) -> Stack:
    """All of `read_series` that headers decide; pixels are read only of slices that may be copies of each other.

    Raises:
        VolumeError: as for `read_series`, except for files that cannot be decoded.
    """
    if series.problem is not None:
        raise VolumeError(series.problem)
    where = _where(series)
    image = series.frames[0].image
    needed = 4 * image.rows * image.columns * len(series.frames)
    if needed > max_bytes:
        fail(where, f"{needed} bytes of voxels, beyond the limit of {max_bytes}", "split the series")
    warnings = list(series.warnings)
    check_reference(where, series.frames, series.join, warnings)
    frames = _without_copies(where, sort_by_position(where, series.frames), series.doubt, warnings)
    stack = stack_slices(where, frames, allow_gap)
    warnings += stack.warnings
    _check_headers(stack.frames, warnings)
    return replace(stack, warnings=tuple(warnings))


def _where(series: DicomSeries) -> str:
    paths = series.paths
    return f"{paths[0]} and {len(paths) - 1} more files" if len(paths) > 1 else str(paths[0])


def _without_copies(where: str, frames: list[Frame], doubt: str, warnings: list[str]) -> list[Frame]:
    """Drop exact copies of slices; different slices at the same position are an error."""
    dropped: list[Frame] = []
    for run in duplicates(frames):
        for copy in run[1:]:
            if not _equal_values(run[0], copy):
                at = ", ".join(f"{x:.4g}" for x in copy.position or ())
                wrong = f"different slices at the same position ({at}): {run[0].name} and {copy.name}"
                counts = f"{doubt}, and no attribute tells them apart" if doubt else "their headers are equal"
                fail(where, f"{wrong}; {counts}", "separate the volumes of this series")
            dropped.append(copy)
    if dropped:
        warnings.append(f"{len(dropped)} duplicate slices were left out, the first is {dropped[0].name}")
    gone = {id(frame) for frame in dropped}
    return [frame for frame in frames if id(frame) not in gone]


def _equal_values(first: Frame, second: Frame) -> bool:
    if (first.slope, first.intercept) != (second.slope, second.intercept):
        return False
    one, other = (next(stored_frames(frame.image, [frame.index])) for frame in (first, second))
    return np.array_equal(one, other)


def _check_headers(frames: Sequence[Frame], warnings: list[str]) -> None:
    """Warn about header details: MONOCHROME1, slices that may be missing at the ends."""
    image = frames[0].image
    if any(frame.image.inverted for frame in frames):
        warnings.append("MONOCHROME1 (low is bright): inverted, and inverted back when written as DICOM")
    if image.slices_in_series and image.slices_in_series > len(frames):
        warnings.append(
            f"NumberOfSlices is {image.slices_in_series}, but {len(frames)} were found: slices may be missing"
        )
    if assumed := {text for frame in frames for text in frame.image.assumed}:
        warnings.append(f"missing or empty in the header, and assumed: {', '.join(sorted(assumed))}")
    if not all(frame.image.uid for frame in frames):
        warnings.append("SOPInstanceUID is blank: results cannot refer to their source")
