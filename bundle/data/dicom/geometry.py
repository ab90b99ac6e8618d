"""Where the slices of a DICOM series lie: order, gaps, duplicates, tilt, and the affine of the volume.

Everything follows from ImagePositionPatient and ImageOrientationPatient (PS3.3 C.7.6.2); InstanceNumber, SliceLocation
and SpacingBetweenSlices are not used for it. DICOM's world frame is LPS, the affine here is RAS.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from bundle.data.dicom.frame import Frame
from bundle.data.errors import fail

SAME_PLACE_MM = 1e-3
"""Slices closer than this are duplicates."""

UNEVEN, NOTED = 0.1, 0.01
"""Deviation of a slice from an even grid, as a fraction of the step: above the first an error, the second a warning."""

TILT_DEGREES = 0.1
"""A stack that leans by more than this relative to its slices is tilted (rounded positions lean a little)."""

LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


@dataclass(frozen=True, eq=False)
class Stack:
    """Slices in order along their normal.

    Attributes:
        frames: one per slice.
        affine: float64 (4, 4), index (column, row, slice) to RAS, mm.
        regular: False if gaps or uneven steps were allowed: the affine is then exact within a slice, average between.
        warnings: doubts about the geometry.
    """

    frames: tuple[Frame, ...]
    affine: np.ndarray
    regular: bool
    warnings: tuple[str, ...]


def check_reference(where: str, frames: Sequence[Frame], join: bool, warnings: list[str]) -> None:
    """Whether all positions are in one frame of reference.

    Files that each have their own come from an anonymiser: a scanner has one for a whole study.

    Raises:
        VolumeError: several frames of reference, each of several files, and `join` is not set.
    """
    known = {frame.image.frame_of_reference for frame in frames} - {""}
    files = {frame.path for frame in frames}
    if len(known) < 2:
        return
    if not join and (len(known) < len(files) or len(files) < 3):
        remedy = "give the slices of one of them, or --join if an anonymiser has made them"
        fail(where, "slices of several frames of reference", remedy)
    own = len(known) == len(files)
    count = "each file has a frame of reference of its own" if own else f"{len(known)} frames of reference"
    warnings.append(f"{count}: taken as one")


def sort_by_position(where: str, frames: Sequence[Frame]) -> list[Frame]:
    """The frames sorted by position along the slice normal.

    Raises:
        VolumeError: a frame has no usable position, orientation or pixel spacing, or they differ between frames.
    """
    for frame in frames:
        _check_place(frame)
    first = frames[0]
    for frame in frames:
        if not np.allclose(_array(frame.spacing), _array(first.spacing), rtol=1e-3, atol=0):
            wrong = f"PixelSpacing differs: {_pair(first)} in {first.path.name}, {_pair(frame)} in {frame.path.name}"
            fail(where, wrong, "give the slices of one spacing")
    normal = _normal(first)
    return sorted(frames, key=lambda f: (float(_array(f.position) @ normal), f.image.instance_number or 0, f.path))


def duplicates(frames: Sequence[Frame]) -> list[list[Frame]]:
    """Runs of frames at the same position in a sorted stack."""
    runs: list[list[Frame]] = []
    for before, frame in pairwise(frames):
        if np.linalg.norm(_array(frame.position) - _array(before.position)) < SAME_PLACE_MM:
            if not runs or runs[-1][-1] is not before:
                runs.append([before])
            runs[-1].append(frame)
    return runs


def stack_slices(where: str, frames: Sequence[Frame], allow_gap: bool) -> Stack:
    """The geometry of sorted slices without duplicates.

    Args:
        where: path for error messages.
        frames: from `sort_by_position`.
        allow_gap: accept missing slices and uneven steps, with a warning; each slice keeps its own position.

    Raises:
        VolumeError: missing slices, uneven steps, overlapping slices.
    """
    warnings: list[str] = []
    first, normal = frames[0], _normal(frames[0])
    positions = np.array([frame.position for frame in frames], dtype=np.float64)
    depths = (positions - positions[0]) @ normal
    problem = None
    if len(frames) > 1:
        if np.diff(depths).min() < SAME_PLACE_MM:
            fail(where, "two slices are in the same plane but at different positions", "give the slices of one stack")
        column = (positions[-1] - positions[0]) / (len(frames) - 1)
        problem = _unevenness(positions, depths, column, warnings)
        _check_step(frames, float(column @ normal), warnings)
        lean = np.degrees(np.arccos(np.clip(column @ normal / np.linalg.norm(column), -1, 1)))
        if lean > TILT_DEGREES and not problem:
            warnings.append(f"the stack leans by {lean:.2f} degrees (gantry tilt): the affine is sheared")
    else:
        column = normal * _single_thickness(first, warnings)
    if problem and not allow_gap:
        fail(where, problem, "complete the series, or allow gaps: each slice is then refined in its own plane")
    if problem:
        warnings.append(f"{problem}; gaps are allowed, so the affine holds only within a slice")
    affine = np.eye(4)
    rows, columns = _array(first.spacing)
    affine[:3, 0], affine[:3, 1] = _array(first.orientation)[:3] * columns, _array(first.orientation)[3:] * rows
    affine[:3, 2], affine[:3, 3] = column, positions[0]
    return Stack(tuple(frames), LPS_TO_RAS @ affine, problem is None, tuple(warnings))


def _check_place(frame: Frame) -> None:
    for value, name in (
        (frame.position, "ImagePositionPatient"),
        (frame.orientation, "ImageOrientationPatient"),
        (frame.spacing, "PixelSpacing"),
    ):
        if value is None:
            fail(frame.path, f"no {name}: the position of its voxels is unknown", "give the original images")
    if not all(1e-6 < size < 1e6 for size in frame.spacing or ()):
        fail(frame.path, f"PixelSpacing is {_pair(frame)}", "correct the header")
    row, column = _array(frame.orientation)[:3], _array(frame.orientation)[3:]
    if max(abs(row @ row - 1), abs(column @ column - 1), abs(row @ column)) > 1e-3:
        fail(frame.path, "ImageOrientationPatient is not two perpendicular unit vectors", "correct the header")
    if max(abs(_array(frame.position))) > 1e6:
        fail(frame.path, "ImagePositionPatient is farther than a kilometre away", "correct the header")


def _unevenness(positions: np.ndarray, depths: np.ndarray, column: np.ndarray, warnings: list[str]) -> str | None:
    """Why the slices are not an evenly spaced stack, if so; small deviations only warn."""
    even = positions[0] + np.arange(len(positions))[:, None] * column
    deviation = float(np.linalg.norm(positions - even, axis=1).max())
    steps = np.diff(depths)
    if deviation <= UNEVEN * steps.mean():
        if deviation > NOTED * steps.mean():
            warnings.append(f"slice positions deviate from equal steps by up to {deviation:.3g} mm")
        return None
    step = float(steps.min())
    missing = np.rint(steps / step).astype(int) - 1
    if np.allclose(steps / (missing + 1), step, rtol=UNEVEN):
        at = int(np.argmax(missing > 0))
        if missing.any():
            return (
                f"{missing.sum()} slices are missing, the first after {depths[at]:.4g} mm of {depths[-1]:.4g} mm "
                f"(step {step:.4g} mm)"
            )
    return f"slice positions are uneven: steps of {steps.min():.4g} to {steps.max():.4g} mm, off by {deviation:.3g} mm"


def _check_step(frames: Sequence[Frame], step: float, warnings: list[str]) -> None:
    declared = frames[0].step
    if declared and abs(declared - step) > 0.01 * step + 0.01:
        warnings.append(
            f"SpacingBetweenSlices is {declared:.4g} mm, but positions are {step:.4g} mm apart; these are used"
        )


def _single_thickness(frame: Frame, warnings: list[str]) -> float:
    for size in (frame.thickness, frame.step):
        if size is not None and 1e-6 < size < 1e6:
            return size
    warnings.append("a single slice without SliceThickness: 1 mm is assumed")
    return 1.0


def _array(values: Sequence[float] | None) -> np.ndarray:
    return np.array(values, dtype=np.float64)


def _normal(frame: Frame) -> np.ndarray:
    cosines = _array(frame.orientation)
    normal = np.cross(cosines[:3], cosines[3:])
    return normal / np.linalg.norm(normal)


def _pair(frame: Frame) -> str:
    return "x".join(f"{size:g}" for size in frame.spacing or ())
