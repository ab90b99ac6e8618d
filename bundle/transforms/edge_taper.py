"""Patches with faded borders."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform, RandomizableTransform
from monai.utils import TransformBackends
from torch import Tensor


class RandEdgeTaper(RandomizableTransform):
    """Fade the borders of a patch to zero, with probability ``prob``.

    A Fourier transform joins opposite borders. A patch cut from the middle of an object jumps there, unlike a whole
    slice, which is dark at its edges; the ringing would fill the patch and the network would learn to undo it. Faded
    patches look like whole slices; the others represent objects that fill the field of view.

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
        """Weights ``(n,)`` for an axis of ``n`` samples."""
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
