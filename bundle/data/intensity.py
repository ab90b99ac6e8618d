"""What the network gets of a volume: padding filled, stray negative values at zero, values of order 1."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from bundle.data.values import Values
from bundle.physics import fill_padding


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


def prepared(voxels: np.ndarray | Tensor, slice_axis: int, values: Values) -> tuple[Tensor, Tensor | None]:
    """A volume (X, Y[, Z]) without padding and stray negative values, as the network sees it before normalisation.

    Returns:
        The volume, float32; and which of its voxels were padding, or None if none were.
    """
    image = torch.as_tensor(np.ascontiguousarray(voxels, np.float32))
    mask = values.mask(image.numpy())
    hidden = None if mask is None else torch.from_numpy(mask)
    if hidden is not None:
        image = fill_padding(image, hidden, slice_axis)
    if not values.signed and (hidden is not None or values.negatives):
        image = image.clamp(min=0)
    return image, hidden
