"""Matrix and affine: what has to fit before truncation, and what is true after super-resolution."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform, SpatialCrop, Transform
from monai.utils import TransformBackends, ensure_tuple_rep
from torch import Tensor

from bundle.physics import divisible_size, superres_affine
from bundle.physics.slices import check_slice_axis, in_plane_axes


class CropToMultiple(Transform):
    """Cut the ends of the in-plane axes so that ``scale`` divides the matrix; voxel 0 and the affine stay.

    Args:
        scale: integer factor.
        slice_axis: axis of a volume that runs over slices and is left alone.

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


class SuperResolveAffined(MapTransform):
    """Give the super-resolved image the affine of the grid rule: that of its input, in-plane columns / ``scale``.

    Args:
        keys: the super-resolved images, channel-first.
        ref_keys: their inputs (MetaTensors), whose affine is the starting point.
        scale: integer factor between the two.
        slice_axis: axis of a volume that runs over slices.
    """

    def __init__(
        self,
        keys: KeysCollection,
        ref_keys: KeysCollection,
        scale: int,
        slice_axis: int = 2,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.ref_keys = ensure_tuple_rep(ref_keys, len(self.keys))
        self.scale, self.slice_axis = scale, check_slice_axis(slice_axis)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        out = dict(data)
        for key, ref in self.key_iterator(data, self.ref_keys):
            out[key] = self._place(data[key], data[ref])
        return out

    def _place(self, pred: Tensor, source: MetaTensor) -> MetaTensor:
        plane = in_plane_axes(source.ndim - 1, self.slice_axis)
        factors = [self.scale if axis in plane else 1 for axis in range(source.affine.shape[0] - 1)]
        expected = tuple(n * f for n, f in zip(source.shape[1:], factors, strict=False))
        if tuple(pred.shape[1:]) != expected:
            raise ValueError(f"a result of {tuple(pred.shape[1:])} voxels, expected {expected}")
        plain = pred.as_tensor() if isinstance(pred, MetaTensor) else torch.as_tensor(pred)
        affine = torch.as_tensor(superres_affine(source.affine, factors))
        return MetaTensor(plain, meta={**source.meta, "affine": affine})
