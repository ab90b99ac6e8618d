"""Undersampling: missing phase-encoding lines as an extra corruption."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform, Transform
from monai.utils import TransformBackends, convert_to_tensor
from torch import Tensor

from bundle.physics import fft2c, ifft2c
from bundle.physics.slices import check_slice_axis, slices_back, slices_last


class CartesianLineMask(Transform):
    """Drop phase-encoding lines of every slice, as papers on joint reconstruction and super-resolution do.

    Keeps the central ``center_fraction`` of the lines and a fixed random choice of the others, ``1 / acceleration`` of
    all lines in total; missing lines are zero-filled and the magnitude is returned. Lines run along the first in-plane
    axis. Off unless a config asks for it: the project's degradation is truncation alone.

    Args:
        acceleration: total lines / kept lines, >= 1.
        center_fraction: fraction of all lines that is kept around DC.
        seed: of the choice of lines, which depends only on it and on the number of lines.
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
        kept = fft2c(planes) * self.lines(planes.shape[-1]).to(planes.device)
        return slices_back(ifft2c(kept).abs(), self.slice_axis)


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
