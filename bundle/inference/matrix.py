"""Which matrix a volume goes through the network at, and on which grid its result lies."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from bundle.data.errors import fail
from bundle.data.intensity import prepared
from bundle.data.values import Values
from bundle.options import CONFIG_OPTIONS, pair_of
from bundle.physics.cut import ITERATIONS, cut_kspace, cut_magnitude
from bundle.physics.matrix import KnownMatrix, StatedMatrix
from bundle.physics.place import Grids, grids
from bundle.physics.slices import in_plane_axes, slices_back, slices_last
from bundle.trust.acquired import find_matrix

SMALLEST = 8
"""Samples that a given matrix must have on each side."""
_LEFT_ALONE = ("CT", "PT", "PET", "NM", "SPECT")


@dataclass(frozen=True)
class Wanted:
    """What the user wants, and what is known about a volume beside its voxels.

    Attributes:
        matrix: as the option: "auto", "keep", "acquired", or two whole numbers such as "192x256".
        voxel_size: as the option: in-plane voxel size of the result in mm, such as "0.5" or "0.5x0.6".
        modality: such as "MR", "PT" or "CT"; CT and PET are left alone by "auto".
        stated: the acquired matrix by the header.
        swapped: a given matrix or voxel size is in the order of rows and columns (DICOM), not of the array.
    """

    matrix: str = "auto"
    voxel_size: Any = None
    modality: str | None = None
    stated: StatedMatrix | None = None
    swapped: bool = False

    def check(self) -> None:
        """Raises ValueError if an option cannot be meant."""
        for name in ("matrix", "voxel_size"):
            value, about = getattr(self, name), CONFIG_OPTIONS[name][1]
            if not ((value is None and name == "voxel_size") or about.permits(value)):
                raise ValueError(f"{name} must be {about.range_text}, got {value!r}")

    def given_matrix(self) -> tuple[int, int] | None:
        """The given matrix, in the order of the array."""
        pair = None if self.matrix in ("auto", "keep", "acquired") else pair_of(self.matrix, whole=True)
        if pair is None:
            return None
        rows, cols = int(pair[0]), int(pair[1])
        return (cols, rows) if self.swapped else (rows, cols)

    def given_size(self) -> tuple[float, float] | None:
        """The given voxel size, in the order of the array."""
        pair = None if self.voxel_size is None else pair_of(self.voxel_size)
        return (pair[1], pair[0]) if self.swapped and pair is not None else pair


@dataclass(frozen=True)
class MatrixPlan:
    """The grids of a volume, or of all volumes of a series; the acquired matrix, if it was looked for; doubts."""

    grids: Grids
    acquired: KnownMatrix | None = None
    warnings: tuple[str, ...] = ()


def plan_matrix(
    voxels: np.ndarray,
    affine: np.ndarray,
    slice_axis: int,
    scale: int,
    values: Values,
    wanted: Wanted | None = None,
    name: str = "volume",
) -> MatrixPlan:
    """Find the acquired matrix of a volume (X, Y[, Z]) and decide on the grids of its result.

    For a series, give the volume with the largest contrast (``values.strongest``): one plan holds for all.

    Raises:
        ValueError: no such option.
        VolumeError: a given matrix is larger than the stored one, or has fewer than :data:`SMALLEST` samples on a side.
    """
    wanted = wanted or Wanted()
    wanted.check()
    plane = in_plane_axes(voxels.ndim, slice_axis)
    stored = voxels.shape[plane[0]], voxels.shape[plane[1]]
    acquired = _acquired(voxels, slice_axis, stored, values, wanted, name)
    used = acquired is not None and acquired.interpolated and wanted.matrix != "keep"
    network = acquired.acquired if used and acquired is not None else stored
    spacing = np.linalg.norm(np.asarray(affine)[:3, :3], axis=0)[list(plane)]
    size, warnings = wanted.given_size(), list[str]()
    step = None if size is None else (float(size[0] / spacing[0]), float(size[1] / spacing[1]))
    made = grids(stored, scale, network, step=step, smaller=wanted.matrix == "acquired")
    if step is not None and any(n > m for n, m in zip(made.result, made.fine, strict=True)):
        reached = " x ".join(f"{d * n / m:.4g}" for d, n, m in zip(spacing, stored, made.fine, strict=True))
        warnings.append(
            f"the network reaches voxels of {reached} mm ({scale}x); to the finer size asked for, the rest is Fourier "
            "interpolation"
        )
    if acquired is not None:
        warnings += acquired.notes
        if acquired.interpolated and not used:
            warnings.append(_kept(acquired, plane))
    return MatrixPlan(made, acquired, tuple(warnings))


def given_matrix(wanted: Wanted, stored: tuple[int, int], name: str) -> tuple[int, int] | None:
    """The matrix that the user gave, in the order of the array, if any.

    Raises:
        VolumeError: it is larger than the stored one, or has fewer than :data:`SMALLEST` samples on a side.
    """
    given = wanted.given_matrix()
    if given is not None and any(not SMALLEST <= n <= full for n, full in zip(given, stored, strict=True)):
        rows, cols = stored[::-1] if wanted.swapped else stored
        wrong = f"a matrix of {wanted.matrix} is not between {SMALLEST} and the stored {rows}x{cols}"
        fail(name, wrong, "give one that fits (--matrix)")
    return given


def cut(image: Tensor, made: Grids, slice_axis: int, signed: bool, iterations: int = ITERATIONS) -> Tensor:
    """A volume (X, Y[, Z]), in-plane at the matrix that the network gets.

    Values that may be negative are cut as they are (:func:`bundle.physics.cut_kspace`), magnitudes with the signs and
    phases that they have lost (:func:`bundle.physics.cut_magnitude`).
    """
    if not made.cut:
        return image
    planes = slices_last(image[None], slice_axis)
    out = planes.new_empty((*planes.shape[:-2], *made.network))
    for small, plane in zip(out.flatten(0, -3), planes.flatten(0, -3), strict=True):  # slices bound the memory
        small[:] = cut_kspace(plane, made.network) if signed else cut_magnitude(plane, made.network, iterations)
    return slices_back(out, slice_axis)[0]


def cut_affine(affine: np.ndarray, made: Grids, ndim: int, slice_axis: int) -> np.ndarray:
    """Voxel index to world of the image that the network gets."""
    at_network = grids(made.stored, 1, made.network, smaller=True)
    return at_network.affine(affine, ndim, slice_axis)


def _acquired(
    voxels: np.ndarray, slice_axis: int, stored: tuple[int, int], values: Values, wanted: Wanted, name: str
) -> KnownMatrix | None:
    if (given := given_matrix(wanted, stored, name)) is not None:
        return KnownMatrix(stored, given, "given")
    if (wanted.modality or "").upper() in _LEFT_ALONE and wanted.matrix != "acquired":
        return None
    image = prepared(voxels, slice_axis, values)[0].numpy()
    volume, axis = (image[..., None], 2) if image.ndim == 2 else (image, slice_axis)
    return find_matrix(volume, axis, wanted.stated)


def _kept(acquired: KnownMatrix, plane: tuple[int, int]) -> str:
    """The warning about an interpolated image that is taken as it is stored."""
    how = {
        "zero-filled": "outer k-space is empty",
        "kernel": "k-space repeats itself (linear, cubic or spline interpolation)",
        None: "",
    }
    axes = [
        f"{n} of {full} samples along array axis {axis} ({how[kind] or acquired.source})"
        for axis, n, full, kind in zip(plane, acquired.acquired, acquired.stored, acquired.kinds, strict=True)
        if n < full
    ]
    remedy = "the network gains little on it; --matrix auto starts at that matrix"
    return f"already interpolated: the acquired matrix has {' and '.join(axes)}; {remedy}"
