"""World frames of NIfTI headers: sform, qform, voxel size and unit of length, checked when read and stored.

Common readers trust any affine and ignore the unit of length. Here a form must be valid to be used, and contradictions
give a warning.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from nibabel.nifti1 import Nifti1Header
from nibabel.nifti2 import Nifti2Header
from nibabel.quaternions import fillpositive, quat2mat
from nibabel.volumeutils import shape_zoom_affine

from bundle.data.errors import fail
from bundle.data.paths import PathLike

Header: TypeAlias = Nifti1Header | Nifti2Header

FORM_TOLERANCE = 0.05
"""sform and qform disagree if they place a corner further apart than this fraction of the smallest voxel."""

PLAUSIBLE_MM = (1e-6, 1e6)
"""Voxel sizes outside this range (1 nm to 1 km) mean a damaged header."""

_MM_PER_UNIT = {1: ("metre", 1000.0), 3: ("micron", 0.001)}
_QFORM_FIELDS = ("quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y", "qoffset_z")


@dataclass(frozen=True, eq=False)
class Geometry:
    """The world frames of a header in mm; a form is None where its code is 0. `affine` is the one to use."""

    affine: np.ndarray
    sform: np.ndarray | None
    qform: np.ndarray | None
    sform_code: int
    qform_code: int


def read_geometry(path: PathLike, raw: Header, warnings: list[str]) -> Geometry:
    """Choose the world frame: a usable sform, else a usable qform, else (both codes 0) nibabel's default.

    A form that is declared but unusable is replaced by the other one and its code.
    """
    shape, unit = _lengths(raw), _unit_factor(raw, warnings)
    zooms, zooms_ok = _zooms(raw, unit)
    codes = {form: _form_code(raw, form, warnings) for form in ("sform", "qform")}
    sform = usable(unit, _raw_sform(raw) if codes["sform"] else None)
    qform = usable(unit, _raw_qform(raw, zooms) if codes["qform"] and zooms_ok else None)
    if sform is None and qform is None and codes["sform"]:
        sform = usable(unit, _completed(_raw_sform(raw), raw, warnings))
    if sform is not None:
        _compare_forms(raw, sform, qform, unit, warnings)
        if codes["qform"] and qform is None:
            return Geometry(sform, sform, sform, codes["sform"], codes["sform"])
        return Geometry(sform, sform, qform, codes["sform"], codes["qform"])
    if qform is not None:
        if not _positive_zooms(raw):
            warnings.append("a voxel size is not positive; its absolute value is used with the qform")
        if codes["sform"]:
            warnings.append("the sform is singular, not finite or implausible; the qform is used")
            return Geometry(qform, qform, qform, codes["qform"], codes["qform"])
        return Geometry(qform, None, qform, 0, codes["qform"])
    if any(codes.values()):
        wrong = "no usable orientation: the sform or qform is singular, not finite or of implausible voxel size"
        fail(path, wrong, "correct the header")
    warnings.append("neither sform nor qform: position and orientation are unknown")
    if not zooms_ok:
        warnings.append("the voxel size is missing or implausible along an axis; 1 is assumed there")
    return Geometry(unit @ shape_zoom_affine(shape, zooms, x_flip=True), None, None, 0, 0)


def store_geometry(header: Header, geometry: Geometry, time_unit: int) -> None:
    """Store both forms, their codes, the voxel size and the units in `header`; a sheared qform gets code 0."""
    header["xyzt_units"] = 2 | time_unit
    header["pixdim"][:4] = [1.0, *np.linalg.norm(geometry.affine[:3, :3], axis=0)]
    # A form with code 0 must not hold stale values.
    for name in (*_QFORM_FIELDS, "qform_code"):
        header[name] = 0
    sform, sform_code = geometry.sform, geometry.sform_code
    if geometry.qform is not None:
        stored = _set_qform(header, geometry.qform, geometry.qform_code)
        if not stored and sform is None:
            # The source has no other frame, and only the sform can hold this one.
            sform, sform_code = geometry.qform, geometry.qform_code
    header["sform_code"] = 0 if sform is None else sform_code
    for index, name in enumerate(("srow_x", "srow_y", "srow_z")):
        header[name] = 0 if sform is None else sform[index]


def usable(unit: np.ndarray, affine: np.ndarray | None) -> np.ndarray | None:
    """`affine` in mm if it is finite, far from singular and of plausible voxel size; else None."""
    # The bound, which NaN fails too, keeps arithmetic on a damaged float64 matrix from overflowing.
    if affine is None or not np.all(np.abs(affine) < 1e12):
        return None
    affine = unit @ affine
    sizes = np.linalg.norm(affine[:3, :3], axis=0)
    if not np.all(_plausible(sizes)) or abs(np.linalg.det(affine[:3, :3] / sizes)) < 1e-6:
        return None
    return affine


def _compare_forms(
    raw: Header, sform: np.ndarray, qform: np.ndarray | None, unit: np.ndarray, warnings: list[str]
) -> None:
    """Warn if the rest of the header contradicts the sform in use."""
    lengths = _lengths(raw)
    sizes = np.linalg.norm(sform[:3, :3], axis=0)
    stored = np.abs(raw["pixdim"][1:4].astype(np.float64)) * np.diag(unit)[:3]
    if not _positive_zooms(raw):
        warnings.append("pixdim is zero, negative or not finite; the voxel size of the sform is used")
    elif qform is None and not np.allclose(stored[lengths > 1], sizes[lengths > 1], rtol=1e-3):
        warnings.append(f"pixdim is {_numbers(stored)} mm, but the sform says {_numbers(sizes)} mm; the sform is used")
    if qform is None:
        return
    distance = corner_distance(sform, qform, lengths)
    if distance > FORM_TOLERANCE * sizes.min() + _quaternion_precision(raw) * np.linalg.norm(sizes * lengths):
        warnings.append(f"sform and qform differ by up to {distance:.3g} mm; the sform is used")


def _form_code(raw: Header, form: str, warnings: list[str]) -> int:
    code = int(raw[f"{form}_code"])
    if 0 <= code <= 5:
        return code
    warnings.append(f"unknown {form}_code {code}; treated as {2 if code > 0 else 0}")
    return 2 if code > 0 else 0


def _numbers(values: np.ndarray) -> str:
    return "(" + ", ".join(f"{value:.4g}" for value in values) + ")"


def _unit_factor(raw: Header, warnings: list[str]) -> np.ndarray:
    """diag(f, f, f, 1) that converts the header's unit of length to mm; an unknown unit counts as mm."""
    code = int(raw["xyzt_units"]) & 7
    if code in _MM_PER_UNIT:
        name, factor = _MM_PER_UNIT[code]
        warnings.append(f"lengths are given in {name}; converted to mm")
        return np.diag([factor, factor, factor, 1.0])
    if code not in (0, 2):
        warnings.append(f"unknown unit of length {code}; mm is assumed")
    return np.eye(4)


def _lengths(raw: Header) -> np.ndarray:
    """Voxels along x, y, z; 1 along an axis that the volume does not have."""
    return np.where(np.arange(3) < int(raw["dim"][0]), raw["dim"][1:4], 1).astype(np.int64)


def _positive_zooms(raw: Header) -> bool:
    """Whether each axis longer than one voxel has a finite positive pixdim."""
    sizes = raw["pixdim"][1:4]
    return bool(np.all((np.isfinite(sizes) & (sizes > 0)) | (_lengths(raw) == 1)))


def _zooms(raw: Header, unit: np.ndarray) -> tuple[np.ndarray, bool]:
    """Absolute voxel sizes (1 where unusable), and whether every axis longer than one voxel has a usable one."""
    sizes = np.abs(raw["pixdim"][1:4].astype(np.float64))
    usable = _plausible(sizes * np.diag(unit)[:3])
    return np.where(usable, sizes, 1.0), bool(np.all(usable | (_lengths(raw) == 1)))


def _plausible(sizes: np.ndarray) -> np.ndarray:
    """Which voxel sizes in mm are finite, positive and plausible."""
    return np.isfinite(sizes) & (sizes >= PLAUSIBLE_MM[0]) & (sizes <= PLAUSIBLE_MM[1])


def _raw_sform(raw: Header) -> np.ndarray:
    rows = [raw["srow_x"], raw["srow_y"], raw["srow_z"], [0, 0, 0, 1]]
    return np.array([[float(value) for value in row] for row in rows])


def _completed(affine: np.ndarray, raw: Header, warnings: list[str]) -> np.ndarray | None:
    """The sform of a single slice whose third column is 0, as of any axis of one voxel; its length is pixdim, or 1.

    None if there is not exactly one such axis, or the others do not span a plane.
    """
    columns = affine[:3, :3]
    missing = [axis for axis in range(3) if not columns[:, axis].any()]
    if len(missing) != 1 or _lengths(raw)[missing[0]] != 1:
        return None
    axis = missing[0]
    with np.errstate(over="ignore", invalid="ignore"):
        normal = np.cross(columns[:, (axis + 1) % 3], columns[:, (axis + 2) % 3])
        length = float(np.linalg.norm(normal))
    if not (np.isfinite(length) and length > 0):
        return None
    size = abs(float(raw["pixdim"][axis + 1]))
    size = size if _plausible(np.array(size)) else 1.0
    affine[:3, axis] = normal / length * size
    warnings.append(
        f"the sform has no direction along axis {axis}, of one voxel: at right angles to the others, {size:g} long"
    )
    return affine


def _raw_qform(raw: Header, zooms: np.ndarray) -> np.ndarray | None:
    quaternion = _at_most_unit(_quaternion(raw))
    if quaternion is None:
        return None
    rotation = quat2mat(fillpositive(quaternion, raw.quaternion_threshold))
    # By the standard, pixdim[0] is the handedness: -1 flips the third axis, anything else counts as 1.
    flip = -1.0 if float(raw["pixdim"][0]) < 0 else 1.0
    affine = np.eye(4)
    affine[:3, :3] = rotation * (zooms * [1.0, 1.0, flip])
    affine[:3, 3] = [float(raw[f"qoffset_{axis}"]) for axis in "xyz"]
    return affine


def _quaternion(raw: Header) -> np.ndarray:
    return np.array([float(raw[name]) for name in _QFORM_FIELDS[:3]])


def _at_most_unit(quaternion: np.ndarray) -> np.ndarray | None:
    """The stored part of a unit quaternion, rescaled to length 1 if rounding made it longer.

    That happens near half a turn. NIfTI-2 headers may hold values that were float32 before, so both formats have the
    same tolerance. None if it is longer than rounding explains, or not finite.
    """
    squares = float(quaternion @ quaternion)
    if not squares <= 1 + 3 * float(np.finfo(np.float32).eps):
        return None
    return quaternion / squares**0.5 if squares > 1 else quaternion


def _quaternion_precision(raw: Header) -> float:
    """Angle in rad by which rounding of the stored quaternion may rotate the volume.

    The first component is not stored but follows from the unit length, so near half a turn (where it vanishes) an
    error e in the others becomes sqrt(e): 1e-3 in NIfTI-1, which does not mean that the two forms conflict.
    """
    eps = float(np.finfo(raw["quatern_b"].dtype).eps)
    quaternion = _quaternion(raw)
    squares = float(quaternion @ quaternion)
    return 4 * eps / max(1 - squares, eps) ** 0.5


def corner_distance(first: np.ndarray, second: np.ndarray, lengths: np.ndarray) -> float:
    """Largest distance in mm between the grid corners under two affines."""
    corners = np.array([(*corner, 1.0) for corner in np.ndindex(2, 2, 2)]) * [*(lengths - 1), 1]
    return float(np.linalg.norm((corners @ (first - second).T)[:, :3], axis=1).max())


def _set_qform(header: Header, affine: np.ndarray, code: int) -> bool:
    """Store `affine` as qform unless it is sheared, which a quaternion cannot express."""
    trial = Nifti2Header()
    trial.set_qform(affine)
    unit = _at_most_unit(_quaternion(trial))
    if unit is None:
        return False
    for name, value in zip(_QFORM_FIELDS[:3], unit, strict=True):
        trial[name] = value  # strict readers refuse a quaternion that rounding made longer than 1
    sizes = np.linalg.norm(affine[:3, :3], axis=0)
    if corner_distance(trial.get_qform(), affine, _lengths(header)) > FORM_TOLERANCE * sizes.min():
        return False
    for name in _QFORM_FIELDS:
        header[name] = trial[name]
    header["pixdim"][:4] = trial["pixdim"][:4]
    header["qform_code"] = code
    return True
