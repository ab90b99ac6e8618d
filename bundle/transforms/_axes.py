"""Slices of channel-first images: which array axes are in-plane."""

from __future__ import annotations

from torch import Tensor


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


def slices_last(image: Tensor, slice_axis: int) -> Tensor:
    """View with the in-plane axes last: ``(C, H, W)`` as it is, a volume as ``(C, slices, H, W)``."""
    return image if image.ndim == 3 else image.movedim(slice_axis + 1, 1)


def slices_back(image: Tensor, slice_axis: int) -> Tensor:
    """Undo :func:`slices_last`."""
    return image if image.ndim == 3 else image.movedim(1, slice_axis + 1)
