"""Slices of channel-first images: which array axes are in-plane."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from torch import Tensor

SliceAxis = int | Literal["auto"]
"""Array axis that runs over the slices; "auto" asks :func:`choose_slice_axis`."""


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


def choose_slice_axis(shape: Sequence[int], affine: np.ndarray) -> int:
    """Array axis that runs over the slices, chosen by voxel size: the axis with the largest spacing.

    An axis of a single voxel takes precedence. Where no single axis has the largest spacing (isotropic voxels, or
    in-plane voxels wider than the slice thickness), the last axis is taken. 2 for a 2-D image.
    """
    if len(shape) < 3:
        return 2
    thin = [axis for axis in range(3) if shape[axis] == 1]
    if len(thin) == 1:
        return thin[0]
    spacing = np.linalg.norm(np.asarray(affine)[:3, :3], axis=0)
    largest = np.flatnonzero(spacing > 0.99 * spacing.max())
    return int(largest[0]) if len(largest) == 1 else 2


def resolve_slice_axis(slice_axis: SliceAxis, shape: Sequence[int], affine: np.ndarray | Tensor) -> int:
    """0, 1 or 2; "auto" is resolved by matrix and voxel size. Raises ValueError for anything else."""
    return choose_slice_axis(shape, np.asarray(affine)) if slice_axis == "auto" else check_slice_axis(slice_axis)
