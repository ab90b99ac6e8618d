"""Crop the matrix to a multiple of the scale."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

from monai.config import KeysCollection
from monai.transforms import MapTransform, SpatialCrop, Transform
from monai.utils import TransformBackends
from torch import Tensor

from bundle.physics import divisible_size
from bundle.physics.slices import check_slice_axis, in_plane_axes


class CropToMultiple(Transform):
    """Crop the ends of the in-plane axes so that ``scale`` divides the matrix; voxel 0 and the affine stay.

    Args:
        scale: integer factor.
        slice_axis: axis of a volume that runs over slices; it is not cropped.

    Raises:
        ValueError: a slice smaller than ``scale``.
    """

    backend = [TransformBackends.TORCH]

    def __init__(self, scale: int, slice_axis: int = 2) -> None:
        self.scale, self.slice_axis = scale, check_slice_axis(slice_axis)

    def __call__(self, img: Tensor) -> Tensor:
        """Channel-first image or volume."""
        size = list(img.shape[1:])
        plane = in_plane_axes(len(size), self.slice_axis)
        for axis, n in zip(plane, divisible_size([size[a] for a in plane], self.scale), strict=True):
            size[axis] = n
        return SpatialCrop(roi_start=[0] * len(size), roi_end=size)(img)


class CropToMultipled(MapTransform):
    """Dictionary form of :class:`CropToMultiple`."""

    backend = CropToMultiple.backend

    def __init__(self, keys: KeysCollection, scale: int, slice_axis: int = 2, allow_missing_keys: bool = False) -> None:
        super().__init__(keys, allow_missing_keys)
        self.transform = CropToMultiple(scale, slice_axis)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        return {**data, **{key: self.transform(data[key]) for key in self.key_iterator(data)}}
