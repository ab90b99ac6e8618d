"""Label maps on the grid of a result: the nearest stored voxel, never a mixture of two labels."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

TIE = 1e-4
"""Stored coordinates this close to halfway between two voxels count as halfway: affines are stored in float32."""


def nearest_voxels(count: int, step: float, size: int) -> np.ndarray:
    """For each of `size` voxels, the index of the nearest of `count` stored voxels along one axis.

    Voxel i lies at stored coordinate i * step. Halfway between two voxels, the lower one is taken, so that with a whole
    factor s = 1 / step each stored voxel is taken exactly s times. The exceptions are the first and the last voxel from
    3x on (at 4x they are taken three and five times): both grids begin with the same voxel, so that the finer one
    begins within it, and ends beyond the last.
    """
    nearest = np.ceil(np.arange(size) * step - 0.5 - TIE).astype(np.intp)
    return np.clip(nearest, 0, count - 1)


def carry_labels(labels: np.ndarray, step: Sequence[float], shape: Sequence[int]) -> np.ndarray:
    """A label map on another grid with the same first voxel and axes, by nearest neighbour.

    Args:
        labels: any type, kept; shape (X, Y) or (X, Y, Z).
        step: for each axis, the distance of the new voxels in stored voxels (0.5 for 2x, 1 for the slice axis).
        shape: the new matrix.

    Raises:
        ValueError: the lengths differ, or a step or size is not positive.
    """
    if not labels.ndim == len(step) == len(shape):
        raise ValueError(f"labels of shape {labels.shape} need as many steps and sizes, got {step} and {shape}")
    if any(not 0 < s < np.inf for s in step) or any(n < 1 for n in shape):
        raise ValueError(f"steps and sizes must be positive, got {tuple(step)} and {tuple(shape)}")
    axes = (nearest_voxels(n, float(s), m) for n, s, m in zip(labels.shape, step, shape, strict=True))
    return labels[np.ix_(*axes)]
