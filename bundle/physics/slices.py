"""Slices of channel-first images: which array axes are in-plane."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from torch import Tensor

SliceAxis = int | Literal["auto"]
"""Array axis that runs over the slices; "auto" asks :func:`decide_slice_axis`."""

CLEARLY_LARGER = 1.05
"""A spacing tells the slice axis if it is larger than the others by this factor: 3-D scans are nearly isotropic."""


def check_slice_axis(slice_axis: int) -> int:
    """The slice axis of a volume as 0, 1 or 2; ``ValueError`` otherwise."""
    if slice_axis not in (0, 1, 2):
        raise ValueError(f"slice_axis must be 0, 1 or 2 (an array axis of the volume), got {slice_axis!r}")
    return slice_axis


def in_plane_axes(spatial_dims: int, slice_axis: int) -> tuple[int, int]:
    """Spatial axes of a slice: both of a 2-D image, the other two of a volume."""
    if spatial_dims == 2:
        return 0, 1
    if spatial_dims != 3:
        raise ValueError(f"expected a channel-first 2-D image or 3-D volume, got {spatial_dims} spatial axes")
    first, second = (axis for axis in range(3) if axis != slice_axis)
    return first, second


def in_plane_factors(spatial_dims: int, slice_axis: int, scale: int) -> tuple[int, int, int]:
    """Factor of each axis of an affine: ``scale`` in-plane, 1 through-plane (the third axis of an image)."""
    plane = in_plane_axes(spatial_dims, slice_axis)
    first, second, third = (scale if axis in plane else 1 for axis in range(3))
    return first, second, third


def slices_last(image: Tensor, slice_axis: int) -> Tensor:
    """View with the in-plane axes last: ``(C, H, W)`` unchanged, a volume as ``(C, slices, H, W)``."""
    return image if image.ndim == 3 else image.movedim(slice_axis + 1, 1)


def slices_back(image: Tensor, slice_axis: int) -> Tensor:
    """Undo :func:`slices_last`."""
    return image if image.ndim == 3 else image.movedim(1, slice_axis + 1)


@dataclass(frozen=True)
class StatedAxes:
    """The slice axis as a file states it: in its header, and in the BIDS sidecar beside it. None: not stated."""

    header: int | None = None
    sidecar: int | None = None


class SliceChoice(NamedTuple):
    """A slice axis, and what is doubtful about it, one line each."""

    axis: int
    notes: tuple[str, ...] = ()


def decide_slice_axis(
    slice_axis: SliceAxis, shape: Sequence[int], affine: np.ndarray | Tensor, stated: StatedAxes | None = None
) -> SliceChoice:
    """The array axis over the slices: what the user says, the header, the BIDS sidecar, an axis of a single voxel, the
    axis with the clearly largest voxel spacing, the last axis.

    A guess without a clear answer and a contradiction between these sources give a note. 2 for a 2-D image.

    Args:
        slice_axis: 0, 1, 2, or "auto" if the user does not say.
        shape: of the volume; further axes, as of a series, do not matter.
        affine: voxel index to world (4, 4).
        stated: what the file says.

    Raises:
        ValueError: another slice axis.
    """
    if slice_axis != "auto":
        return SliceChoice(check_slice_axis(slice_axis))
    if len(shape) < 3:
        return SliceChoice(2)
    stated = stated or StatedAxes()
    thin = [axis for axis in range(3) if shape[axis] == 1]
    sources = [
        ("dim_info of the header", stated.header),
        ("the BIDS sidecar", stated.sidecar),
        ("a single voxel", thin[0] if len(thin) == 1 else None),
        ("the largest voxel spacing", _largest(affine)),
    ]
    known = [(source, axis) for source, axis in sources if axis is not None]
    size = " x ".join(f"{value:.4g}" for value in _spacing(affine))
    if not known:
        what = f"voxels of {size} mm do not show which axis runs across the slices, and no header says it"
        return SliceChoice(2, (f"{what}: the last one (2) is taken; --slice-axis says another",))
    source, axis = known[0]
    # Only what a file states can be contradicted: one slice of thin voxels is an ordinary image.
    against = (
        [f"{other} (axis {n})" for other, n in known[1:] if n != axis]
        if source in ("dim_info of the header", "the BIDS sidecar")
        else []
    )
    if not against:
        return SliceChoice(axis)
    what = f"the slice axis is {axis} by {source}, against {' and '.join(against)}; voxels of {size} mm"
    return SliceChoice(axis, (f"{what}; --slice-axis says another",))


def resolve_slice_axis(
    slice_axis: SliceAxis, shape: Sequence[int], affine: np.ndarray | Tensor, stated: StatedAxes | None = None
) -> int:
    """The axis of :func:`decide_slice_axis`, without its notes."""
    return decide_slice_axis(slice_axis, shape, affine, stated).axis


def _spacing(affine: np.ndarray | Tensor) -> np.ndarray:
    spacing: np.ndarray = np.linalg.norm(np.asarray(affine)[:3, :3], axis=0)
    return spacing


def _largest(affine: np.ndarray | Tensor) -> int | None:
    """The axis whose spacing exceeds the two others clearly."""
    spacing = _spacing(affine)
    axis = int(spacing.argmax())
    return axis if spacing[axis] >= CLEARLY_LARGER * np.delete(spacing, axis).max() else None
