"""MONAI transforms that bring interpolated images back to their acquired matrix."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform, Transform
from monai.utils import TransformBackends
from torch import Tensor

from bundle.data.intensity import prepared
from bundle.data.meaning import modality_in_meta
from bundle.data.nifti.matrix import stated_matrix_in_meta
from bundle.data.values import Values, put_padding, survey
from bundle.inference.matrix import Wanted, cut, cut_affine, plan_matrix
from bundle.physics import fine_padding
from bundle.physics.place import Grids, grids
from bundle.physics.slices import check_slice_axis


class AcquiredMatrix(Transform):
    """Cut the k-space of slices that a scanner has interpolated to the matrix that it acquired.

    The matrix is found and cut as before super-resolution (:func:`bundle.inference.matrix.plan_matrix`): in training
    data, empty outer k-space would teach a network that there is nothing to restore. The channel with the largest
    contrast decides for all; what the metadata of a MetaTensor say about modality and acquired matrix counts, too.
    Padding is filled in before the cut and put back.

    Args:
        matrix: "auto" (found in the image), or the acquired matrix, such as "192x256".
        slice_axis: array axis that runs over the slices; it keeps its size.

    Raises:
        ValueError: no such matrix or slice axis.
    """

    backend = [TransformBackends.TORCH]

    def __init__(self, matrix: str = "auto", slice_axis: int = 2) -> None:
        self.wanted, self.slice_axis = Wanted(matrix), check_slice_axis(slice_axis)
        self.wanted.check()

    def __call__(self, img: Tensor) -> Tensor:
        """Channel-first image (C, X, Y) or volume (C, X, Y, Z); the affine of a MetaTensor follows."""
        channels = torch.as_tensor(img).detach().cpu().float()
        affine, wanted = np.eye(4), self.wanted
        if isinstance(img, MetaTensor):
            affine = img.affine.cpu().numpy()
            stated = stated_matrix_in_meta(img.meta, affine, shape=channels.shape[1:])
            wanted = replace(wanted, modality=modality_in_meta(img.meta), stated=stated)
        values = survey(channel.numpy() for channel in channels)
        made = plan_matrix(channels[values.strongest].numpy(), affine, self.slice_axis, 1, values, wanted).grids
        if not made.cut:
            return img
        small = torch.stack([self._cut(channel, made, values) for channel in channels])
        small = small.to(torch.as_tensor(img).device)
        if not isinstance(img, MetaTensor):
            return small
        place = torch.from_numpy(cut_affine(affine, made, channels.ndim - 1, self.slice_axis))
        return MetaTensor(small, meta={**img.meta, "affine": place})

    def _cut(self, channel: Tensor, made: Grids, values: Values) -> Tensor:
        """(X, Y[, Z]) at its acquired matrix, with its padding."""
        image, mask = prepared(channel, self.slice_axis, values)
        small = cut(image, made, self.slice_axis, values.signed).contiguous()
        if mask is not None and values.padding is not None:
            steps = grids(made.stored, 1, made.network, smaller=True).steps(mask.ndim, self.slice_axis)
            put_padding(small.numpy(), fine_padding(mask, steps, small.shape).numpy(), values.padding)
        return small


class AcquiredMatrixd(MapTransform):
    """Dictionary form of :class:`AcquiredMatrix`."""

    backend = AcquiredMatrix.backend

    def __init__(
        self, keys: KeysCollection, matrix: str = "auto", slice_axis: int = 2, allow_missing_keys: bool = False
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.transform = AcquiredMatrix(matrix, slice_axis)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        return {**data, **{key: self.transform(data[key]) for key in self.key_iterator(data)}}
