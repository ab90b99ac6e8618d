"""What a result was made from and how: the part of the record that all routes share."""

from __future__ import annotations

import platform
from collections.abc import Iterable, Sequence
from importlib.metadata import version
from typing import Any

import numpy as np

from bundle.data.values import Values
from bundle.inference.volume import SuperResolved

GRID_RULE = "low-resolution voxel j lies on high-resolution voxel scale * j; the first voxel keeps its position"
DEGRADATION = "k-space truncation of each slice, magnitude, gain divided out"


def describe(
    scale: int,
    source_shape: Sequence[int],
    shape: Sequence[int],
    results: Sequence[SuperResolved],
    values: Values,
    warnings: Iterable[str],
) -> dict[str, Any]:
    """The facts about a result; for a series (four axes), those that differ between volumes are lists.

    Args:
        scale: in-plane factor.
        source_shape, shape: before and after.
        results: of the image or volume, or of each volume of a series; their voxels are not used.
        values: what the values of the input mean.
        warnings: doubts about the input.
    """
    first, series = results[0], len(shape) == 4

    def each(name: str) -> Any:
        values = [getattr(result, name) for result in results]
        return values if series else values[0]

    return {
        "Scale": scale,
        "SliceAxis": first.slice_axis,
        "SourceShape": list(source_shape),
        "Shape": list(shape),
        "VoxelSize": voxel_size(first.affine, len(shape)),
        "GridRule": GRID_RULE,
        "DegradationAssumed": DEGRADATION,
        "DataConsistencyWeight": each("consistency"),
        "DataConsistencyResidual": max(result.residual for result in results),
        "IntensityOffset": each("offset"),
        "IntensityScale": each("scale"),
        "NegativeVoxelsSetToZero": each("set_to_zero"),
        **values.record(),
        "Warnings": list(warnings),
        "Versions": versions(),
    }


def voxel_size(affine: np.ndarray, ndim: int) -> list[float]:
    """Voxel size along each spatial axis, mm."""
    return [round(float(size), 6) for size in np.linalg.norm(affine[:3, :3], axis=0)[:ndim]]


def versions() -> dict[str, str]:
    """Versions of the software that computes the result."""
    return {"Python": platform.python_version(), **{name: version(name) for name in ("torch", "monai", "numpy")}}
