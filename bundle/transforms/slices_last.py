"""Move the slices of a volume to the last axis."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform, Transform
from monai.utils import TransformBackends
from torch import Tensor

from bundle.data.nifti.axes import stated_in_meta
from bundle.data.nifti.reader import log_once
from bundle.physics.slices import SliceAxis, check_slice_axis, decide_slice_axis


class SlicesLast(Transform):
    """Move the slice axis of a volume behind its in-plane axes; the affine of a MetaTensor follows.

    Later steps (crops, truncation, metrics) can then rely on the last axis being the slice axis, however a volume is
    stored.

    Args:
        slice_axis: array axis (0, 1, 2) over the slices, or "auto": what the metadata say
            (:func:`bundle.physics.slices.decide_slice_axis`; the last axis of a plain tensor). Doubts are logged once.

    Raises:
        ValueError: another axis.
    """

    backend = [TransformBackends.TORCH]

    def __init__(self, slice_axis: SliceAxis = "auto") -> None:
        self.slice_axis: SliceAxis = slice_axis if slice_axis == "auto" else check_slice_axis(slice_axis)

    def __call__(self, img: Tensor) -> Tensor:
        """Channel-first volume (C, X, Y, Z); an image (C, X, Y) is returned unchanged."""
        if img.ndim == 3:
            return img
        axis = 2 if self.slice_axis == "auto" else self.slice_axis
        if isinstance(img, MetaTensor):
            stated = stated_in_meta(img.meta, img.affine.numpy())
            axis, notes = decide_slice_axis(self.slice_axis, img.shape[1:], img.affine, stated)
            for note in notes:
                log_once(str(img.meta.get("filename_or_obj", "volume")), note)
        order = [*(a for a in range(3) if a != axis), axis]
        moved = torch.as_tensor(img).permute(0, *(a + 1 for a in order)).contiguous()
        if not isinstance(img, MetaTensor):
            return moved
        return MetaTensor(moved, meta={**img.meta, "affine": img.affine[:, [*order, 3]]})


class SlicesLastd(MapTransform):
    """Dictionary form of :class:`SlicesLast`."""

    backend = SlicesLast.backend

    def __init__(
        self,
        keys: KeysCollection,
        slice_axis: SliceAxis = "auto",
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.transform = SlicesLast(slice_axis)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        return {**data, **{key: self.transform(data[key]) for key in self.key_iterator(data)}}
