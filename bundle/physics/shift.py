"""Measure by how much an upsampler shifts the image."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def _gaussian(size: tuple[int, int], centre: tuple[float, float], sigma: float) -> Tensor:
    r = torch.arange(size[0], dtype=torch.float64)[:, None] - centre[0]
    c = torch.arange(size[1], dtype=torch.float64)[None, :] - centre[1]
    return torch.exp(-(r**2 + c**2) / (2.0 * sigma**2))


def _centroid(image: Tensor) -> tuple[float, float]:
    total = image.sum()
    r = torch.arange(image.shape[0], dtype=image.dtype, device=image.device)
    c = torch.arange(image.shape[1], dtype=image.dtype, device=image.device)
    return float((image.sum(1) * r).sum() / total), float((image.sum(0) * c).sum() / total)


def measure_grid_shift(
    upsample: Callable[[Tensor], Tensor],
    scale: int,
    size: tuple[int, int] = (33, 40),
    sigma: float = 2.0,
    dtype: torch.dtype = torch.float64,
) -> tuple[float, float]:
    """Shift of an upsampler relative to the grid rule (coarse sample ``j`` on fine sample ``scale * j``).

    A Gaussian blob, wide enough to be band-limited on the coarse grid, is sampled at a sub-voxel position and
    upsampled; its centroid is compared with the true position.

    Args:
        upsample: maps ``(1, 1, h, w)`` to ``(1, 1, scale * h, scale * w)``.
        scale: factor of ``upsample``.
        size: coarse matrix ``(h, w)``.
        sigma: width of the blob in coarse voxels.
        dtype: of the tensor passed to ``upsample``.

    Returns:
        ``(row, column)`` shift in fine voxels: 0 on the grid, ``(scale - 1) / 2`` for a resampler that keeps edges.
    """
    true = (size[0] / 2 + 0.23, size[1] / 2 - 0.31)
    with torch.no_grad():
        fine = upsample(_gaussian(size, true, sigma)[None, None].to(dtype))[0, 0].double()
    if fine.shape != (scale * size[0], scale * size[1]):
        raise ValueError(f"the upsampler turned {size} into {tuple(fine.shape)}, expected {scale} times the matrix")
    row, col = _centroid(fine)
    return row - scale * true[0], col - scale * true[1]
