"""The project's degradation: k-space truncation."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import InvertibleTransform, MapTransform
from monai.utils import TransformBackends, convert_to_tensor
from torch import Tensor

from bundle.physics import fourier_upsample, lowres_affine, superres_affine, truncate
from bundle.physics.slices import check_slice_axis, in_plane_factors, slices_back, slices_last


def _scale_affine(image: Tensor, scale: int, slice_axis: int, up: bool) -> None:
    """Write the affine of the grid rule into a MetaTensor (a plain tensor has none)."""
    if not isinstance(image, MetaTensor):
        return
    factors = in_plane_factors(image.ndim - 1, slice_axis, scale)[: image.affine.shape[0] - 1]
    image.affine = (superres_affine if up else lowres_affine)(image.affine, factors)


class KSpaceTruncation(InvertibleTransform):
    """Make a low-resolution image: keep the central ``1 / scale`` of k-space in every slice, take the magnitude.

    ``k = fftshift(fft2(x))``; rows and columns ``[N//2 - n//2, +n)`` with ``n = N / scale``;
    ``y = |ifft2(ifftshift(k))| / scale**2``. The mean is kept; voxel ``j`` lies on voxel ``scale * j``, and the affine
    of a MetaTensor is updated. Do not z-score the image first: the magnitude would fold the negative half.

    The inverse is zero-filled Fourier interpolation, which restores matrix and affine but not the lost frequencies.

    Args:
        scale: integer factor; 1 is the identity on non-negative images.
        slice_axis: axis (0, 1, 2) of a volume that runs over slices; ignored for 2-D images.

    Raises:
        ValueError: the matrix is not divisible by ``scale`` (see :class:`bundle.transforms.CropToMultiple`).
    """

    backend = [TransformBackends.TORCH]

    def __init__(self, scale: int, slice_axis: int = 2) -> None:
        if scale < 1 or int(scale) != scale:
            raise ValueError(f"scale must be a positive integer, got {scale!r}")
        self.scale, self.slice_axis = int(scale), check_slice_axis(slice_axis)

    def __call__(self, img: Tensor) -> Tensor:
        """Channel-first ``(C, H, W)`` or ``(C, X, Y, Z)`` -> the truncated image."""
        img = convert_to_tensor(img, track_meta=isinstance(img, MetaTensor))
        planes = slices_last(img, self.slice_axis)
        height, width = planes.shape[-2:]
        if height % self.scale or width % self.scale:
            raise ValueError(f"a slice of {height}x{width} is not divisible by {self.scale}: crop or pad it first")
        out = slices_back(truncate(planes, (height // self.scale, width // self.scale)), self.slice_axis)
        _scale_affine(out, self.scale, self.slice_axis, up=False)
        self.push_transform(out, orig_size=img.shape[1:])
        return out

    def inverse(self, data: Tensor) -> Tensor:
        """Zero-filled Fourier interpolation back to the original matrix and affine."""
        self.pop_transform(data)
        planes = slices_last(data, self.slice_axis)
        size = (planes.shape[-2] * self.scale, planes.shape[-1] * self.scale)
        out = slices_back(fourier_upsample(planes, size), self.slice_axis)
        _scale_affine(out, self.scale, self.slice_axis, up=True)
        return out


class KSpaceTruncationd(MapTransform, InvertibleTransform):
    """Dictionary form of :class:`KSpaceTruncation`."""

    backend = KSpaceTruncation.backend

    def __init__(self, keys: KeysCollection, scale: int, slice_axis: int = 2, allow_missing_keys: bool = False) -> None:
        MapTransform.__init__(self, keys, allow_missing_keys)
        self.transform = KSpaceTruncation(scale, slice_axis)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        return {**data, **{key: self.transform(data[key]) for key in self.key_iterator(data)}}

    def inverse(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        return {**data, **{key: self.transform.inverse(data[key]) for key in self.key_iterator(data)}}
