"""Intensity normalisation: values of order 1 for the network."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

from monai.config import KeysCollection
from monai.transforms import MapTransform, Transform
from monai.utils import TransformBackends
from torch import Tensor


def intensity_window(img: Tensor, percentile: float = 99.9) -> tuple[float, float]:
    """Offset and scale that bring an image to order 1: ``(x - offset) / scale``.

    The offset is 0 for non-negative images, so that an empty background stays 0; otherwise it is the low counterpart
    of the percentile. The scale is the percentile of the voxels above the offset. A single bright or dark voxel moves
    neither, and nothing is clipped. A constant image has scale 1 or its own value.
    """
    low = 0.0
    if float(img.min()) < 0:
        low = float(img.flatten().kthvalue(max(1, round(img.numel() * (1.0 - percentile / 100.0)))).values)
    above = img[img > low].flatten().double() - low
    if above.numel() == 0:
        return low, 1.0
    rank = max(1, round(above.numel() * percentile / 100.0))
    return low, float(above.kthvalue(rank).values)


class NormalizeVolume(Transform):
    """``(x - offset) / scale`` with the :func:`intensity_window` of the whole volume, as training sees it.

    Takes a channel-first image of any shape and data type. Inference normalises in the same way and restores the units
    (:func:`bundle.inference.volume.super_resolve`).
    """

    backend = [TransformBackends.TORCH]

    def __call__(self, img: Tensor) -> Tensor:
        values = img if img.is_floating_point() else img.float()  # some types, such as uint16, have no minimum in torch
        offset, scale = intensity_window(values)
        return values.sub(offset).div(scale)


class NormalizeVolumed(MapTransform):
    """Dictionary form of :class:`NormalizeVolume`."""

    backend = NormalizeVolume.backend

    def __init__(self, keys: KeysCollection, allow_missing_keys: bool = False) -> None:
        super().__init__(keys, allow_missing_keys)
        self.transform = NormalizeVolume()

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        return {**data, **{key: self.transform(data[key]) for key in self.key_iterator(data)}}
