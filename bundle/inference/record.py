"""What a result was made from and how: the part of the record that all routes share."""

from __future__ import annotations

import platform
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import numpy as np

from bundle.data.find import volume_files
from bundle.data.paths import sha256_of
from bundle.data.sidecar import content_digest, generated_by
from bundle.data.values import Values
from bundle.inference.matrix import MatrixPlan
from bundle.inference.shipped import tool_version
from bundle.inference.volume import SuperResolved
from bundle.options import CommandOptions
from bundle.physics.slices import in_plane_axes
from bundle.trust import TrainingRange, load_training_range

GRID_RULE = "voxel i of the result lies at i * step of the source, in-plane; the first voxel keeps its position"
DEGRADATION = "k-space truncation of each slice, magnitude, gain divided out"


def describe(
    plan: MatrixPlan,
    source_affine: np.ndarray,
    source_shape: Sequence[int],
    shape: Sequence[int],
    results: Sequence[SuperResolved],
    values: Values,
    warnings: Iterable[str],
) -> dict[str, Any]:
    """The facts about a result; for a series (four axes), those that differ between volumes are lists.

    Args:
        plan: grids and acquired matrix.
        source_affine: voxel index to world before.
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
        "Scale": plan.grids.scale,
        "SliceAxis": first.slice_axis,
        "SourceShape": list(source_shape),
        "Shape": list(shape),
        "VoxelSize": voxel_size(first.affine, len(shape)),
        **matrix_facts(plan, source_affine, len(shape), first.slice_axis),
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


def matrix_facts(plan: MatrixPlan, affine: np.ndarray, ndim: int, slice_axis: int) -> dict[str, Any]:
    """Stored and acquired matrix along the two in-plane array axes, and the resolution before and after, mm.

    The resolution is the field of view over the samples that hold information: the acquired ones of the source, and
    those that the network made of them; a result on a finer grid has no more.
    """
    made, known = plan.grids, plan.acquired
    plane = in_plane_axes(min(ndim, 3), slice_axis)
    spacing = [float(size) for size in np.linalg.norm(np.asarray(affine)[:3, :3], axis=0)[list(plane)]]
    view = [n * size for n, size in zip(made.stored, spacing, strict=True)]
    acquired = made.network if known is None else known.acquired
    after = [
        max(length / n, step * size) for length, n, step, size in zip(view, made.fine, made.step, spacing, strict=True)
    ]
    return {
        "StoredMatrix": list(made.stored),
        "AcquiredMatrix": list(acquired),
        "AcquiredMatrixSource": None if known is None else known.source,
        "AcquiredMatrixConfidence": None if known is None else round(known.confidence, 3),
        "KSpaceFilter": None if known is None else known.filtered,
        "NetworkMatrix": list(made.network),
        "ResolutionBefore": [round(length / n, 6) for length, n in zip(view, acquired, strict=True)],
        "ResolutionAfter": [round(size, 6) for size in after],
    }


def sidecar_content(
    network_name: str,
    facts: Mapping[str, Any],
    sources: list[str],
    provenance: Mapping[str, Any],
    metadata: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The whole record beside a result.

    Args:
        facts: of :func:`describe`.
        sources: names of the inputs.
        provenance: what the result was made from (:data:`bundle.data.sidecar.PROVENANCE`), and its digest.
        metadata: of the source that stay true.
    """
    size = " x ".join(f"{length:g}" for length in facts["VoxelSize"])
    in_plane = [n for axis, n in enumerate(facts["Shape"][:3]) if axis != facts["SliceAxis"]]
    promised = in_plane == [facts["Scale"] * n for n in facts["StoredMatrix"]]
    finer = f", {facts['Scale']} times finer in-plane than the source" if promised else ""
    return {
        **(metadata or {}),
        "Description": f"Super-resolved by {network_name}, slice by slice",
        "Sources": sources,
        "GeneratedBy": generated_by(tool_version()),
        "Resolution": f"{size} mm{finer}",
        "SuperResolution": {**facts, "Provenance": dict(provenance)},
    }


@dataclass(frozen=True)
class Origin:
    """What a config makes its results with, besides what its inferer knows; the same as the options of the command."""

    network_name: str
    weights: str | None
    nonfinite: Literal["error", "zero"] = "error"

    @cached_property
    def digest(self) -> str | None:
        """SHA-256 of the weights; None if there are none."""
        return None if self.weights is None else sha256_of(Path(self.weights))

    @cached_property
    def trained_on(self) -> TrainingRange | None:
        return None if self.weights is None else load_training_range(self.weights)

    def provenance(self, source: Path, **settings: Any) -> dict[str, Any]:
        """As in the record that the command writes for a NIfTI file, without the digest of the result."""
        options = CommandOptions(network_name=self.network_name, nonfinite=self.nonfinite, **settings)
        return {
            "InputSha256": content_digest(volume_files(source)),
            "WeightsSha256": self.digest,
            "Settings": {**options.settings(), "Format": "nifti"},
            "Version": tool_version(),
        }


def voxel_size(affine: np.ndarray, ndim: int) -> list[float]:
    """Voxel size along each spatial axis, mm."""
    return [round(float(size), 6) for size in np.linalg.norm(affine[:3, :3], axis=0)[:ndim]]


def versions() -> dict[str, str]:
    """Versions of the software that computes the result."""
    return {"Python": platform.python_version(), **{name: version(name) for name in ("torch", "monai", "numpy")}}
