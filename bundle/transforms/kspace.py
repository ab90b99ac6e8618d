"""The degradation of the project as MONAI transforms."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import InvertibleTransform, MapTransform, Transform
from monai.utils import TransformBackends, convert_to_tensor
from torch import Tensor

from bundle.physics import fourier_upsample, lowres_affine, superres_affine, truncate
from bundle.transforms._axes import check_slice_axis, in_plane_axes, slices_back, slices_last


def _scale_affine(image: Tensor, scale: int, slice_axis: int, up: bool) -> None:
    """Write the affine of the grid rule into a MetaTensor (a plain tensor has none)."""
    if not isinstance(image, MetaTensor):
        return
    plane = in_plane_axes(image.ndim - 1, slice_axis)
    factors = [float(scale) if axis in plane else 1.0 for axis in range(image.affine.shape[0] - 1)]
    image.affine = (superres_affine if up else lowres_affine)(image.affine, factors)


class KSpaceTruncation(InvertibleTransform):
    """Make a low-resolution image: keep the centre ``1 / scale`` of the k-space of every slice, take the magnitude.

    ``k = fftshift(fft2(x))``; rows and columns ``[N//2 - n//2, +n)`` with ``n = N / scale``;
    ``y = |ifft2(ifftshift(k))| / scale**2``. The mean is kept; voxel ``j`` lies on voxel ``scale * j``, and the affine
    of a MetaTensor says so. The image must not have been z-scored (magnitude would fold the negative half).

    The inverse is zero-filled Fourier upsampling, which restores matrix and affine (not the lost frequencies).

    Args:
        scale: integer factor; 1 is the identity on non-negative images.
        slice_axis: axis (0, 1, 2) of a volume that runs over slices; ignored for 2-D images.

    Raises:
        ValueError: a matrix that is not divisible by ``scale`` (see :class:`bundle.transforms.CropToMultiple`).
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
        """Zero-filled Fourier upsampling back to the original matrix and affine."""
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


class CartesianLineMask(Transform):
    """Extra corruption: drop phase-encoding lines of every slice, as joint reconstruction papers do.

    Keeps the ``center_fraction`` central lines and a fixed random choice of the others, ``1 / acceleration`` of all in
    total; the magnitude of the zero-filled rest is returned. Lines run along the first in-plane axis. Off unless a
    config asks for it: truncation alone is the degradation of the project.

    Args:
        acceleration: total lines / kept lines, >= 1.
        center_fraction: part of all lines that is kept around DC.
        seed: of the choice of lines, which depends on it and on the number of lines alone.
        slice_axis: see :class:`KSpaceTruncation`.
    """

    backend = [TransformBackends.TORCH]

    def __init__(self, acceleration: float, center_fraction: float = 0.08, seed: int = 0, slice_axis: int = 2) -> None:
        if acceleration < 1 or not 0 < center_fraction <= 1:
            raise ValueError(f"need acceleration >= 1 and 0 < center_fraction <= 1: {acceleration}, {center_fraction}")
        self.acceleration, self.center_fraction, self.seed = acceleration, center_fraction, seed
        self.slice_axis = check_slice_axis(slice_axis)

    def lines(self, count: int) -> Tensor:
        """Which of ``count`` centred lines are kept: bool ``(count,)``."""
        central = max(1, round(count * self.center_fraction))
        kept = np.zeros(count, dtype=bool)
        start = count // 2 - central // 2
        kept[start : start + central] = True
        others = np.flatnonzero(~kept)
        more = min(max(0, round(count / self.acceleration) - central), others.size)
        kept[np.random.default_rng((self.seed, count)).choice(others, size=more, replace=False)] = True
        return torch.from_numpy(kept)

    def __call__(self, img: Tensor) -> Tensor:
        """Channel-first ``(C, H, W)`` or ``(C, X, Y, Z)`` -> the same shape."""
        planes = slices_last(convert_to_tensor(img, track_meta=isinstance(img, MetaTensor)), self.slice_axis)
        spectrum = torch.fft.fftshift(torch.fft.fft2(planes), dim=(-2, -1))
        spectrum = spectrum * self.lines(planes.shape[-1]).to(planes.device)
        out = torch.fft.ifft2(torch.fft.ifftshift(spectrum, dim=(-2, -1))).abs()
        return slices_back(out, self.slice_axis)


class CartesianLineMaskd(MapTransform):
    """Dictionary form of :class:`CartesianLineMask`."""

    backend = CartesianLineMask.backend

    def __init__(
        self,
        keys: KeysCollection,
        acceleration: float,
        center_fraction: float = 0.08,
        seed: int = 0,
        slice_axis: int = 2,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.transform = CartesianLineMask(acceleration, center_fraction, seed, slice_axis)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        return {**data, **{key: self.transform(data[key]) for key in self.key_iterator(data)}}
