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
    return labels[np.ix_(*_nearest(labels, step, shape))]


def volume_change(labels: np.ndarray, step: Sequence[float], shape: Sequence[int], least: int = 20) -> float:
    """The largest change of the volume of a label on the other grid, as a fraction; arguments as of `carry_labels`.

    With whole factors, only what touches the border changes. With others, each run of voxels becomes up to one voxel
    longer or shorter, which is nothing on average, but much for a thin label.

    Args:
        least: labels of fewer stored voxels are left out, as is label 0.
    """
    taken = (np.bincount(at, minlength=n) for at, n in zip(_nearest(labels, step, shape), labels.shape, strict=True))
    where = np.nonzero(labels)
    _, label = np.unique(labels[where], return_inverse=True)
    before = np.bincount(label)
    times = np.prod([count[at] for count, at in zip(taken, where, strict=True)], axis=0, dtype=np.float64)
    after = np.bincount(label, times) * np.prod(np.asarray(step, np.float64))
    large = before >= least
    return float(np.abs(after[large] / before[large] - 1).max(initial=0.0))


def _nearest(labels: np.ndarray, step: Sequence[float], shape: Sequence[int]) -> list[np.ndarray]:
    if not labels.ndim == len(step) == len(shape):
        raise ValueError(f"labels of shape {labels.shape} need as many steps and sizes, got {step} and {shape}")
    if any(not 0 < s < np.inf for s in step) or any(n < 1 for n in shape):
        raise ValueError(f"steps and sizes must be positive, got {tuple(step)} and {tuple(shape)}")
    return [nearest_voxels(n, float(s), m) for n, s, m in zip(labels.shape, step, shape, strict=True)]
