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
from bundle.inference.shipped import tool_version
from bundle.inference.volume import SuperResolved
from bundle.options import CommandOptions
from bundle.trust import TrainingRange, load_training_range

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
    return {
        **(metadata or {}),
        "Description": f"Super-resolved by {network_name}, slice by slice",
        "Sources": sources,
        "GeneratedBy": generated_by(tool_version()),
        "Resolution": f"{size} mm, {facts['Scale']} times finer in-plane than the source",
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
