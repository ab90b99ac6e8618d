"""The acquired matrix of a volume, from the image and its header."""

from __future__ import annotations

import numpy as np

from bundle.physics.matrix import AcquiredMatrix, StatedMatrix
from bundle.physics.slices import in_plane_axes
from bundle.trust.interpolation import find_interpolation

CONFIDENT = 0.9


def find_matrix(volume: np.ndarray, slice_axis: int, stated: StatedMatrix | None = None) -> AcquiredMatrix:
    found = {f.axis: f for f in find_interpolation(volume, slice_axis)}
    axes = in_plane_axes(3, slice_axis)
    first, second = axes
    stored = volume.shape[first], volume.shape[second]
    acquired = tuple(found[a].true_size if a in found else volume.shape[a] for a in axes)
    kinds = tuple(found[a].kind if a in found else None for a in axes)
    return AcquiredMatrix(
        stored,
        acquired,  # type: ignore
        "image",
        1.0,
        kinds,
    )
