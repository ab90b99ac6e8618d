"""Intensity normalisation: values of order 1 for the network."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform, Transform
from monai.utils import TransformBackends
from torch import Tensor

from bundle.data.intensity import intensity_window, prepared
from bundle.data.values import Values, survey


class NormalizeVolume(Transform):
    """``(x - offset) / scale`` with the :func:`intensity_window` of the whole volume, as training sees it.

    Takes a channel-first image of any shape and data type. Inference normalises in the same way and restores the units
    (:func:`bundle.inference.volume.super_resolve`). As there, padding is filled from its neighbourhood in the slice and
    has no part in the window, and stray negative voxels are set to zero, in images and in volumes with the slices last.
    """

    backend = [TransformBackends.TORCH]

    def __call__(self, img: Tensor) -> Tensor:
        values = img if img.is_floating_point() else img.float()  # some types, such as uint16, have no minimum in torch
        channels = torch.as_tensor(values).cpu().numpy()
        found = survey(channels) if channels.ndim in (3, 4) else Values(signed=True)
        if found.padding is None and (found.signed or not found.negatives):
            offset, scale = intensity_window(values)
            return values.sub(offset).div(scale)
        filled = torch.stack([prepared(channel, 2, found)[0] for channel in channels])
        mask = found.mask(channels)
        offset, scale = intensity_window(filled if mask is None or mask.all() else filled[torch.from_numpy(~mask)])
        normalized = values.clone()  # keeps the metadata of a MetaTensor
        normalized[:] = filled.sub(offset).div(scale).to(values.dtype)
        return normalized


class NormalizeVolumed(MapTransform):
    """Dictionary form of :class:`NormalizeVolume`."""

    backend = NormalizeVolume.backend

    def __init__(self, keys: KeysCollection, allow_missing_keys: bool = False) -> None:
        super().__init__(keys, allow_missing_keys)
        self.transform = NormalizeVolume()

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        return {**data, **{key: self.transform(data[key]) for key in self.key_iterator(data)}}
