"""Where the samples of a result lie, and how it gets there: exact Fourier interpolation to any matrix and step."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from bundle.physics.grid import superres_affine
from bundle.physics.slices import in_plane_axes, slices_back, slices_last


@dataclass(frozen=True)
class Grids:
    """The in-plane matrices on the way from a stored image to its result, along the two in-plane array axes.

    All of them start at the first stored voxel, and all but the result cover the same field of view.

    Attributes:
        stored: of the input.
        network: of what the network gets: the stored or the acquired matrix.
        result: of the result.
        step: distance of the samples of the result, in stored voxels.
        scale: factor of the network.
    """

    stored: tuple[int, int]
    network: tuple[int, int]
    result: tuple[int, int]
    step: tuple[float, float]
    scale: int

    @property
    def cut(self) -> bool:
        """Whether the network gets fewer samples than are stored."""
        return self.network != self.stored

    @property
    def fine(self) -> tuple[int, int]:
        """The matrix that the network makes."""
        return self.scale * self.network[0], self.scale * self.network[1]

    @property
    def placed(self) -> bool:
        """Whether the result differs from what the network makes."""
        same = all(math.isclose(s * f, n) for s, f, n in zip(self.step, self.fine, self.stored, strict=True))
        return self.result != self.fine or not same

    def shape(self, stored: Sequence[int], slice_axis: int) -> tuple[int, ...]:
        """Shape of the result of a volume (X, Y[, Z[, T]]); axes other than the in-plane ones keep their length."""
        shape = list(stored)
        for axis, n in zip(in_plane_axes(min(len(stored), 3), slice_axis), self.result, strict=True):
            shape[axis] = n
        return tuple(shape)

    def steps(self, ndim: int, slice_axis: int) -> tuple[float, float, float]:
        """Distance of the result's samples along the three array axes, in stored voxels; 1 across the slices."""
        steps = [1.0, 1.0, 1.0]
        for axis, step in zip(in_plane_axes(min(ndim, 3), slice_axis), self.step, strict=True):
            steps[axis] = step
        return steps[0], steps[1], steps[2]

    def affine(self, stored: np.ndarray, ndim: int, slice_axis: int) -> np.ndarray:
        """Voxel index to world of the result: the first voxel stays."""
        return np.asarray(
            superres_affine(np.asarray(stored, np.float64), [1 / s for s in self.steps(ndim, slice_axis)])
        )


def grids(
    stored: tuple[int, int],
    scale: int,
    network: tuple[int, int] | None = None,
    *,
    step: tuple[float, float] | None = None,
    smaller: bool = False,
) -> Grids:
    """The matrices for a network of this factor.

    Args:
        stored: of the input.
        network: the acquired matrix, if the network shall start there.
        step: distance of the result's samples, in stored voxels; by default the result has ``scale`` times the stored
            samples.
        smaller: the result has ``scale`` times the network's samples instead.
    """
    network = network or stored
    if step is not None:
        rows, cols = (max(1, math.floor(n / s + 1e-6)) for n, s in zip(stored, step, strict=True))
        return Grids(stored, network, (rows, cols), step, scale)
    rows, cols = (scale * n for n in (network if smaller else stored))
    return Grids(stored, network, (rows, cols), (stored[0] / rows, stored[1] / cols), scale)


def place(fine: Tensor, grids: Grids, slice_axis: int) -> Tensor:
    """What the network made, on the grid of the result: the band-limited image through its samples, evaluated there.

    Frequencies that the result's samples cannot hold are left out.

    Args:
        fine: real, (X, Y) or (X, Y, Z), in-plane ``grids.fine``.

    Returns:
        The same with the in-plane matrix ``grids.result``; ``fine`` itself if nothing changes.
    """
    if not grids.placed:
        return fine
    rows, cols = (
        fourier_matrix(n, m, step * n / full).to(fine.dtype)
        for n, m, step, full in zip(grids.fine, grids.result, grids.step, grids.stored, strict=True)
    )
    planes = slices_last(fine[None], slice_axis)
    out = planes.new_empty((*planes.shape[:-2], *grids.result))
    for image, plane in zip(out.flatten(0, -3), planes.flatten(0, -3), strict=True):  # slices bound the memory
        torch.mm(rows @ plane, cols.T, out=image)
    return slices_back(out, slice_axis)[0]


def fourier_matrix(n: int, m: int, step: float) -> Tensor:
    """Matrix (m, n), float64, that evaluates the periodic band-limited curve through n samples at 0, step, 2 step...

    ``out[i] = sum_j in[j] D(i step - j)`` with the Dirichlet kernel ``D(x) = sum_k w_k cos(2 pi k x / n) / n`` over the
    frequencies ``|k| <= min(n, n / step) / 2``. A frequency at exactly that limit is unpaired and counts half. Whole
    matrices give zero filling (:func:`bundle.physics.fourier_upsample`) or truncation, without FFT.

    Args:
        step: distance of the new samples, in old samples; above 1 the curve is band-limited to the new samples first.
    """
    limit = min(1.0, 1.0 / step) * n / 2
    k = torch.arange(math.floor(limit + 1e-9) + 1, dtype=torch.float64)
    weight = torch.where(k == 0, 1.0, 2.0)
    weight[-1] *= 0.5 if math.isclose(float(k[-1]), limit) else 1.0
    out, into = (torch.arange(size, dtype=torch.float64) for size in (m, n))
    # cos(a - b) = cos a cos b + sin a sin b: a product of two thin matrices instead of m x n x k cosines
    turn = 2 * math.pi / n
    to, of = turn * step * out[:, None] * k, turn * into[:, None] * k
    return ((weight * to.cos()) @ of.cos().T + (weight * to.sin()) @ of.sin().T) / n
