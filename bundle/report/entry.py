"""What a report shows about one volume."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from bundle.data.nifti.geometry import Header


@dataclass(frozen=True, eq=False)
class ReportEntry:
    """One volume before and after.

    Attributes:
        name: shown to the reader, such as the path below the input folder; any string.
        input_voxels, output_voxels: real and finite, (X, Y) or (X, Y, Z), in the same units of intensity, over the same
            field of view; the in-plane axes of the output are ``scale`` times longer, or of any other length.
        input_affine, output_affine: voxel index to world (RAS), millimetres, 4x4.
        scale: factor of the network.
        slice_axis: array axis that runs over the slices.
        residual: distance of the truncated output from the input, relative root mean square; ``None``: not measured.
        warnings: one line each.
        seconds: processing time of the volume; ``None``: not measured.
        acquired: acquired samples along the two in-plane axes of the input, in the order of the array, if they are
            fewer than those that are stored; ``None``: not known, or all of them.
        facts: more lines for the volume, such as its modality.
        input_header, output_header: more lines for the table of the headers, such as data type and units.
    """

    name: str
    input_voxels: np.ndarray
    input_affine: np.ndarray
    output_voxels: np.ndarray
    output_affine: np.ndarray
    scale: int
    slice_axis: int = 2
    residual: float | None = None
    warnings: Sequence[str] = ()
    seconds: float | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)
    input_header: Mapping[str, Any] = field(default_factory=dict)
    output_header: Mapping[str, Any] = field(default_factory=dict)
    acquired: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        if self.slice_axis not in (0, 1, 2):
            raise ValueError(f"slice_axis must be 0, 1 or 2 (an array axis of the volume), got {self.slice_axis!r}")
        for what, voxels in (("input", self.input_voxels), ("output", self.output_voxels)):
            if voxels.ndim not in (2, 3) or voxels.size == 0:
                raise ValueError(f"{self.name}: the {what} must be a single image or volume, got shape {voxels.shape}")
        if self.input_voxels.ndim == 2:  # one slice, both axes in-plane
            object.__setattr__(self, "slice_axis", 2)
        expected = tuple(
            n if axis == self.slice_axis else n * self.scale for axis, n in enumerate(self.input_voxels.shape)
        )
        if self.output_voxels.shape != expected and not self._same_place():
            raise ValueError(
                f"{self.name}: an input of {self.input_voxels.shape} gives an output of {expected} at scale "
                f"{self.scale} with slices along axis {self.slice_axis}, got {self.output_voxels.shape}"
            )

    @property
    def in_plane(self) -> tuple[int, int]:
        """The array axes of a slice."""
        first, second = (axis for axis in range(3) if axis != self.slice_axis)
        return first, second

    def _same_place(self) -> bool:
        """Whether the output has the slices of the input, and its field of view to less than a voxel."""
        before, after = self.input_voxels.shape, self.output_voxels.shape
        if len(before) != len(after) or (len(before) == 3 and before[self.slice_axis] != after[self.slice_axis]):
            return False
        old, new = (np.linalg.norm(affine[:3, :3], axis=0) for affine in (self.input_affine, self.output_affine))
        return all(abs(after[axis] * new[axis] - before[axis] * old[axis]) < new[axis] for axis in self.in_plane)


def header_facts(header: Header) -> dict[str, str]:
    """Lines of a NIfTI header for the table of the headers: data type and units."""
    space, time = header.get_xyzt_units()
    units = space if time == "unknown" else f"{space}, {time}"
    return {"data type": str(header.get_data_dtype()), "units": units}
