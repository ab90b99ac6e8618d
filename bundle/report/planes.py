"""Three planes through a volume, interpolated and super-resolved, oriented as in a radiologist's viewer."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from nibabel.orientations import aff2axcodes, io_orientation
from torch import Tensor

from bundle.physics.place import Grids, place
from bundle.report.entry import ReportEntry

_NAMES = ("Sagittal", "Coronal", "Axial")
_TOWARDS = (("L", "R"), ("P", "A"), ("I", "S"))
_BATCH = 16


@dataclass(frozen=True, eq=False)
class Plane:
    """A plane through a volume, oriented so that the patient's right, front or head is right or up.

    Attributes:
        title: such as "Axial, in-plane".
        directions: patient directions on the left, right, bottom and top of the picture.
        interpolated, output: (height, width), rows from the top.
        aspect: width over height in millimetres.
        axes: the array axes that run down and across.
    """

    title: str
    directions: str
    interpolated: np.ndarray
    output: np.ndarray
    aspect: float
    axes: tuple[int, int]

    @property
    def difference(self) -> np.ndarray:
        return self.output - self.interpolated


def planes(entry: ReportEntry) -> list[Plane]:
    """The slice with the largest contrast, then (if there are several slices) the two through-plane views.

    The input is brought to the output's matrix by zero-filled Fourier interpolation, slice by slice (along an axis on
    which the output is coarser, by truncation); only the voxels of the planes are kept.
    """
    axis = entry.slice_axis
    coarse, fine = (_slices_first(voxels, axis) for voxels in (entry.input_voxels, entry.output_voxels))
    middle = int(coarse.reshape(len(coarse), -1).std(axis=1).argmax())
    row, column = (n // 2 for n in fine.shape[1:])
    shown = fine[middle], fine[:, row, :], fine[:, :, column]
    wanted: tuple[list[Tensor], list[Tensor]] = ([], [])
    for upsampled in _interpolated(coarse, entry.grids):
        wanted[0].append(upsampled[:, row, :])
        wanted[1].append(upsampled[:, :, column])
    whole = next(_interpolated(coarse[middle : middle + 1], entry.grids))[0]
    across = (torch.cat(lines).numpy() for lines in wanted)
    in_plane = [a for a in range(3) if a != axis]
    across_axes = [[axis, a] for a in reversed(in_plane)]
    pairs = zip([in_plane, *across_axes], [whole.numpy(), *across], shown, strict=True)
    found = [_plane(entry, axes, interpolated, output) for axes, interpolated, output in pairs]
    return found if len(fine) > 1 else found[:1]


def _slices_first(voxels: np.ndarray, slice_axis: int) -> np.ndarray:
    volume = voxels if voxels.ndim == 3 else np.expand_dims(voxels, slice_axis)
    return np.moveaxis(volume, slice_axis, 0).astype(np.float32, copy=False)


def _interpolated(coarse: np.ndarray, made: Grids) -> Iterator[Tensor]:
    """Batches (b, H, W) of the slices (n, h, w)."""
    alone = replace(made, network=made.stored, scale=1)
    for start in range(0, len(coarse), _BATCH):
        batch = torch.from_numpy(np.ascontiguousarray(coarse[start : start + _BATCH]))
        yield place(batch, alone, 0)


def _plane(entry: ReportEntry, axes: list[int], interpolated: np.ndarray, output: np.ndarray) -> Plane:
    """Orient the arrays, whose axes are the array axes ``axes``, along world directions."""
    orientation = io_orientation(entry.output_affine)
    spacing = np.linalg.norm(entry.output_affine[:3, :3], axis=0)
    world = [int(orientation[a, 0]) for a in axes]
    horizontal, vertical = (0, 1) if world[0] < world[1] else (1, 0)
    right, up = (orientation[axes[i], 1] > 0 for i in (horizontal, vertical))
    left_name, right_name = _TOWARDS[world[horizontal]]
    below, above = _TOWARDS[world[vertical]]
    (across,) = {0, 1, 2} - set(world)
    title = f"{_NAMES[across]}, {'through-plane' if entry.slice_axis in axes else 'in-plane'}"

    def turned(image: np.ndarray) -> np.ndarray:
        rows = np.moveaxis(image, vertical, 0)
        return rows[:: -1 if up else 1, :: 1 if right else -1]

    size = [n * spacing[a] for n, a in zip(output.shape, axes, strict=True)]
    return Plane(
        title=title,
        directions=f"{left_name} on the left, {right_name} on the right, {above} at the top, {below} at the bottom",
        interpolated=turned(interpolated),
        output=turned(output),
        aspect=float(size[horizontal] / size[vertical]),
        axes=(axes[vertical], axes[horizontal]),
    )


def axis_codes(affine: np.ndarray) -> str:
    """World directions of the array axes, such as "RAS"."""
    return "".join(code or "?" for code in aff2axcodes(affine))
