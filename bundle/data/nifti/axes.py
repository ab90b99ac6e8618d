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


def stated_axes(path: Path, header: Header, metadata: Mapping[str, Any] | None = None) -> StatedAxes:
    """What a file says about its slice axis; `metadata` is its sidecar, if that was read already."""
    from bundle.physics.slices import StatedAxes  # imports PyTorch, which reading a header does not need

    metadata = sidecar_metadata(path) if metadata is None else metadata
    return StatedAxes(slice_axis_of_header(header), axis_of(metadata.get("SliceEncodingDirection")))


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
