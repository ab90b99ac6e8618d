"""Where the voxels of a truncated or an upsampled image lie.

A k-space truncation from ``N`` to ``n`` samples leaves sample 0 in place and puts sample ``j`` on ``j * N / n``. The
voxel-to-world affine of the result is therefore the old one with that column multiplied by ``N / n`` and the same
origin. (Resamplers that keep the *edges* of the field of view, such as average pooling or ``align_corners=False``,
move the origin by half the difference of the voxel sizes; here that would be off by ``(s - 1) / 2`` fine voxels.)
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

Affine = np.ndarray | Tensor


def _scale_columns(affine: Affine, factors: Sequence[float]) -> Affine:
    if tuple(affine.shape) not in ((3, 3), (4, 4)):
        raise ValueError(f"expected a 4x4 affine (3x3 for a plane), got shape {tuple(affine.shape)}")
    if len(factors) != affine.shape[0] - 1 or any(f <= 0 for f in factors):
        raise ValueError(f"expected {affine.shape[0] - 1} positive factors, one per array axis, got {tuple(factors)}")
    scale = np.diag([*(float(f) for f in factors), 1.0])
    if isinstance(affine, Tensor):
        affine = affine if affine.is_floating_point() else affine.double()  # integers cannot hold 1 / scale
        return affine @ torch.as_tensor(scale, dtype=affine.dtype, device=affine.device)
    return np.asarray(affine) @ scale


def lowres_affine(affine: Affine, factors: Sequence[float]) -> Affine:
    """Affine of the image truncated by ``factors`` (``N / n`` for each array axis, 1 where nothing was cut)."""
    return _scale_columns(affine, factors)


def superres_affine(affine: Affine, factors: Sequence[float]) -> Affine:
    """Affine of the image upsampled by ``factors`` (1 for the slice axis): same origin, voxel size divided."""
    if any(f <= 0 for f in factors):
        raise ValueError(f"expected positive factors, got {tuple(factors)}")
    return _scale_columns(affine, [1.0 / f for f in factors])


def divisible_size(size: Sequence[int], scale: int) -> tuple[int, ...]:
    """Largest matrix within ``size`` that is divisible by ``scale``, which the grid rule needs to be exact.

    Raises:
        ValueError: if an axis is smaller than ``scale``.
    """
    if any(n < scale for n in size):
        raise ValueError(f"a matrix of {tuple(size)} is too small for a factor of {scale}")
    return tuple(n - n % scale for n in size)
