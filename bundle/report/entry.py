"""What a report shows about one volume."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from bundle.data.nifti.geometry import Header
from bundle.physics.place import Grids
from bundle.physics.slices import in_plane_axes


@dataclass(frozen=True, eq=False)
class ReportEntry:
    """One volume before and after.

    Attributes:
        name: shown to the reader, such as the path below the input folder; any string.
        input_voxels, output_voxels: real and finite, (X, Y) or (X, Y, Z), in the same units of intensity.
        input_affine, output_affine: voxel index to world (RAS), millimetres, 4x4.
        grids: in-plane matrices of the input and of the output.
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
    grids: Grids
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
        plane = in_plane_axes(self.input_voxels.ndim, self.slice_axis)
        stored = tuple(self.input_voxels.shape[axis] for axis in plane)
        expected = self.grids.shape(self.input_voxels.shape, self.slice_axis)
        if stored != self.grids.stored or self.output_voxels.shape != expected:
            raise ValueError(
                f"{self.name}: an input of {self.input_voxels.shape} with slices along axis {self.slice_axis} gives an "
                f"output of {expected}, got {self.output_voxels.shape}"
            )

    @property
    def in_plane(self) -> tuple[int, int]:
        """The array axes of a slice."""
        return in_plane_axes(self.input_voxels.ndim, self.slice_axis)


def header_facts(header: Header) -> dict[str, str]:
    """Lines of a NIfTI header for the table of the headers: data type and units."""
    space, time = header.get_xyzt_units()
    units = space if time == "unknown" else f"{space}, {time}"
    return {"data type": str(header.get_data_dtype()), "units": units}
