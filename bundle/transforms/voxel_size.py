"""Patches with other voxel sizes."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np
from monai.config import KeysCollection
from monai.transforms import MapTransform, Randomizable, RandomizableTransform
from monai.utils import TransformBackends
from torch import Tensor
from torch.nn.functional import interpolate


class RandVoxelSize(RandomizableTransform):
    """Cut a patch from a larger one, or with probability ``prob`` shrink a larger part to it: voxels grow, unevenly.

    The size of the part is drawn for each axis apart, between that of the patch and that of the image, and the part is
    shrunk by an interpolation that averages (antialiased bicubic, negative overshoot set to 0). So networks see other
    voxel sizes, other shapes of voxels and other sharpness near the limit of the k-space than the training volumes
    have. Voxels never shrink: interpolated images have empty high frequencies, which would teach to add nothing.

    Args:
        size: rows and columns of the patch.
        prob: probability of shrinking; else the patch is cut out unchanged.
    """

    backend = [TransformBackends.TORCH]

    def __init__(self, size: int, prob: float = 0.5) -> None:
        RandomizableTransform.__init__(self, prob)
        self.size = size
        self._part, self._offset = (size, size), (0, 0)

    def randomize(self, data: Any) -> None:
        """Draw the part of an image of the shape ``data`` (H, W)."""
        super().randomize(None)
        height, width = data
        draw = self._do_transform
        rows, cols = (int(self.R.randint(self.size, n + 1)) if draw else self.size for n in (height, width))
        self._part = (rows, cols)
        self._offset = (int(self.R.randint(height - rows + 1)), int(self.R.randint(width - cols + 1)))

    def __call__(self, img: Tensor, randomize: bool = True) -> Tensor:
        """Channel-first image (C, H, W) with values of at least 0 to a patch (C, size, size).

        Raises:
            ValueError: the image is smaller than the patch.
        """
        if min(img.shape[-2:]) < self.size:
            raise ValueError(f"image of {tuple(img.shape[-2:])} samples is smaller than the patch of {self.size}")
        if randomize:
            self.randomize(img.shape[-2:])
        (top, left), (rows, cols) = self._offset, self._part
        part = img[..., top : top + rows, left : left + cols]
        if self._part == (self.size, self.size):
            return part
        shrunk = interpolate(part[None], (self.size, self.size), mode="bicubic", align_corners=False, antialias=True)
        return shrunk[0].clamp(min=0)


class RandVoxelSized(MapTransform, Randomizable):
    """Dictionary form of :class:`RandVoxelSize`; the keys share what is drawn."""

    backend = RandVoxelSize.backend

    def __init__(self, keys: KeysCollection, size: int, prob: float = 0.5, allow_missing_keys: bool = False) -> None:
        super().__init__(keys, allow_missing_keys)
        self.transform = RandVoxelSize(size, prob)

    def set_random_state(self, seed: int | None = None, state: np.random.RandomState | None = None) -> RandVoxelSized:
        """Seed the drawing, as MONAI's transforms do."""
        self.transform.set_random_state(seed, state)
        return self

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        result = dict(data)
        for number, key in enumerate(self.key_iterator(result)):
            result[key] = self.transform(result[key], randomize=number == 0)
        return result
