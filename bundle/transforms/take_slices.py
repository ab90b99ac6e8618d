"""Keep some of the slices of a volume, as the data list asks."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

from monai.transforms import MapTransform, SpatialCrop


class TakeSlicesd(MapTransform):
    """Keep the slices that an item names with ``"slices": [axis, first, stop]`` and update the affine.

    Images are channel-first; ``axis`` counts the spatial axes, ``stop`` is not included. An item without that entry
    keeps all slices.
    """

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        out = dict(data)
        if (part := out.pop("slices", None)) is None:
            return out
        axis, first, stop = part
        for key in self.key_iterator(data):
            start, end = [0] * (data[key].ndim - 1), list(data[key].shape[1:])
            start[axis], end[axis] = first, stop
            out[key] = SpatialCrop(roi_start=start, roi_end=end)(data[key])
        return out
