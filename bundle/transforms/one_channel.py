"""A guard for writers that hold one volume per file."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

from monai.transforms import MapTransform
from torch import Tensor

from bundle.data import VolumeError


class RequireOneChanneld(MapTransform):
    """Refuse a series: the steps that follow hold one volume only and would silently write something else.

    Raises:
        VolumeError: an image (C, X, Y[, Z]) with more than one channel, as a 4-D series has here.
    """

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        for key in self.key_iterator(data):
            img: Tensor = data[key]
            if img.shape[0] != 1:
                name = getattr(img, "meta", {}).get("filename_or_obj", key)
                raise VolumeError(f"{name}: {img.shape[0]} volumes in one file; give them one by one, as 3-D files")
        return dict(data)
