"""Training patches."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np
import torch
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


class RandEdgeTaper(RandomizableTransform):
    """Fade the borders of a patch to zero, with probability ``prob``.

    A Fourier transform joins opposite borders. A patch cut from the middle of an object has a jump there that a whole
    slice, dark at its edge, has not; its ringing would fill the patch and the network would learn to undo it. Faded
    patches look like whole slices; the others stand for objects that fill the field of view.

    Args:
        width: samples over which each border rises from 0 to 1 (raised cosine).
        prob: probability of fading a patch.
    """

    backend = [TransformBackends.TORCH]

    def __init__(self, width: int, prob: float = 0.75) -> None:
        RandomizableTransform.__init__(self, prob)
        if width < 1:
            raise ValueError(f"width must be at least 1, got {width}")
        self.width = width

    def window(self, n: int) -> Tensor:
        """Weights ``(n,)`` of an axis of ``n`` samples."""
        distance = torch.minimum(torch.arange(n), torch.arange(n).flip(0)) + 0.5
        return 0.5 - 0.5 * torch.cos(torch.pi * (distance / self.width).clamp(max=1.0))

    def __call__(self, img: Tensor, randomize: bool = True) -> Tensor:
        """Channel-first patch (C, H, W)."""
        if randomize:
            self.randomize(None)
        if not self._do_transform:
            return img
        rows, cols = self.window(img.shape[-2]), self.window(img.shape[-1])
        return img * (rows[:, None] * cols).to(img)


class RandEdgeTaperd(MapTransform, RandomizableTransform):
    """Dictionary form of :class:`RandEdgeTaper`; the keys share the decision."""

    backend = RandEdgeTaper.backend

    def __init__(self, keys: KeysCollection, width: int, prob: float = 0.75, allow_missing_keys: bool = False) -> None:
        MapTransform.__init__(self, keys, allow_missing_keys)
        RandomizableTransform.__init__(self, prob)
        self.transform = RandEdgeTaper(width, prob=1.0)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        self.randomize(None)
        if not self._do_transform:
            return dict(data)
        return {**data, **{key: self.transform(data[key]) for key in self.key_iterator(data)}}
