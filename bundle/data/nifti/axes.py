"""The slice axis that a NIfTI file states: in dim_info of its header, and in the BIDS sidecar beside it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bundle.data.bids_sidecar import sidecar_metadata
from bundle.data.nifti.geometry import Header

if TYPE_CHECKING:
    from bundle.physics.slices import StatedAxes

META_KEY = "stated_slice_axes"
"""Key of the metadata of MetaTensors: slice axis by header and by BIDS, -1 where not stated."""

_ALONG = 0.9
"""Cosine of the angle up to which an array axis is taken for the direction of a DICOM row or column."""

_UNIT = 0.02
"""Deviation from 1 up to which the length of a direction is that of a unit vector."""


def stated_axes(path: Path, header: Header, metadata: Mapping[str, Any] | None = None) -> StatedAxes:
    """What a file says about its slice axis; `metadata` is its sidecar, if that was read already.

    dcm2niix turns the volumes of 3-D acquisitions, but leaves dim_info as it was. So where the sidecar gives the
    directions of DICOM's rows and columns, these tell the axis, and a dim_info that contradicts them does not count.
    """
    from bundle.physics.slices import StatedAxes  # imports PyTorch, which reading a header does not need

    metadata = sidecar_metadata(path) if metadata is None else metadata
    by_header, by_sidecar = slice_axis_of_header(header), axis_of(metadata.get("SliceEncodingDirection"))
    *_, across = dicom_axes(metadata, np.asarray(header.get_best_affine(), np.float64)[:3, :3])
    if across is not None and across != by_header:
        by_header = None
    return StatedAxes(by_header, across if by_sidecar is None else by_sidecar)


def header_axes(header: Header) -> StatedAxes:
    """The same for an image in memory, which has no sidecar."""
    from bundle.physics.slices import StatedAxes

    return StatedAxes(slice_axis_of_header(header))


def stated_in_meta(meta: Mapping[str, Any], affine: np.ndarray, item: int = 0) -> StatedAxes:
    """What the metadata of a MetaTensor say, of one item of a batch; nothing if its axes were turned after reading."""
    from bundle.physics.slices import StatedAxes

    if turned(meta, affine, item):
        return StatedAxes()
    if (both := item_of_meta(meta, META_KEY, (2,), item)) is not None:
        header, sidecar = (int(axis) if axis >= 0 else None for axis in both)
        return StatedAxes(header, sidecar)
    info = item_of_meta(meta, "dim_info", (), item)
    return StatedAxes() if info is None else StatedAxes(_of_dim_info(int(info)))


def turned(meta: Mapping[str, Any], affine: np.ndarray, item: int = 0) -> bool:
    """Whether the axes of an item of a MetaTensor were turned or resampled after reading."""
    original = item_of_meta(meta, "original_affine", (4, 4), item)
    return original is not None and not np.allclose(original[:3, :3], np.asarray(affine)[:3, :3], atol=1e-4)


def slice_axis_of_header(header: Header) -> int | None:
    """The slice axis that dim_info of a header gives."""
    return _of_dim_info(int(header["dim_info"]))


def axis_of(direction: Any) -> int | None:
    """The array axis of an encoding direction of BIDS: i, j or k, with a minus or without."""
    if not isinstance(direction, str):
        return None
    return {"i": 0, "j": 1, "k": 2}.get(direction.removesuffix("-"))


def item_of_meta(meta: Mapping[str, Any], key: str, shape: tuple[int, ...], item: int) -> Any:
    """An array of this shape from metadata, which may be collated to a batch; None if there is none."""
    try:
        values = np.asarray(meta[key], np.float64).reshape(-1, *shape)
    except (KeyError, TypeError, ValueError):
        return None
    return values[min(item, len(values) - 1)] if len(values) else None


def _of_dim_info(info: int) -> int | None:
    """The slice axis; if only frequency and phase are given, the axis that remains. None if the axes contradict."""
    frequency, phase, across = info & 3, info >> 2 & 3, info >> 4 & 3
    given = [axis for axis in (frequency, phase, across) if axis]
    if len(set(given)) < len(given):
        return None
    if across:
        return across - 1
    return 6 - frequency - phase - 1 if frequency and phase else None


def dicom_axes(metadata: Mapping[str, Any], affine: np.ndarray) -> tuple[int | None, int | None, int | None]:
    """Array axes along DICOM's rows, along its columns, and across its slices."""
    try:
        directions = np.asarray(metadata.get("ImageOrientationPatientDICOM"), np.float64).reshape(2, 3)
    except (TypeError, ValueError, OverflowError):
        return None, None, None
    lengths = np.linalg.norm(directions, axis=1, keepdims=True)
    if not np.isfinite(directions).all() or (np.abs(lengths - 1) > _UNIT).any():
        return None, None, None
    cosines = np.abs((directions * (-1, -1, 1)) @ (affine / np.linalg.norm(affine, axis=0)))  # LPS to RAS
    rows, columns = (int(axis) for axis in cosines.argmax(axis=1))
    if rows == columns or cosines[0, rows] < _ALONG or cosines[1, columns] < _ALONG:
        return None, None, None
    return rows, columns, 3 - rows - columns
