"""Voxels of a volume: read as stored, scaled, checked and converted to float32."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Literal, TypeAlias

import numpy as np

from .errors import fail
from .nifti_header import Layout, check_room, read_gap
from .nifti_stream import CHUNK, Source, drain, open_stream

NonFinite: TypeAlias = Literal["error", "zero"]


def read_voxels(source: Source, layout: Layout, max_bytes: int) -> np.ndarray:
    """The stored voxels as a flat array in file order; the source stands at the first of them."""
    check_room(source, layout, max_bytes)
    needed = layout.voxel_bytes
    try:
        buffer = np.empty(needed, np.uint8)
    except MemoryError as error:
        fail(source.path, f"{needed} bytes of voxels do not fit in memory", "crop or split the volume", error)
    view, filled = buffer.data, 0
    while filled < needed:
        count = source.stream.readinto(view[filled : filled + CHUNK])  # type: ignore[attr-defined]
        if not count:
            wrong = f"image data are cut: {needed} bytes expected, {filled} found"
            fail(source.path, wrong, "copy or download it again")
        filled += count
    extra = drain(source, layout.warnings) if source.packed else source.size - layout.offset - needed
    if extra:
        layout.warnings.append(f"{extra} bytes after the image data are ignored")
    return buffer.view(layout.dtype)


def read_paired_voxels(header_path: Path, image_path: Path, layout: Layout, max_bytes: int) -> np.ndarray:
    if image_path == header_path:
        fail(header_path, "bad magic: this is the header of a .hdr/.img pair", "give the .hdr with its .img")
    with open_stream(image_path) as source:
        read_gap(source, layout, layout.offset)
        return read_voxels(source, layout, max_bytes)


def to_float32(stored: np.ndarray, layout: Layout, path: Path, nonfinite: NonFinite) -> np.ndarray:
    """Scale in float64, check, and convert to float32, piece by piece to bound the memory."""
    result = np.empty(stored.size, np.float32)
    nans = infs = beyond = 0
    peak = 0.0
    for at in range(0, stored.size, CHUNK):
        piece = stored[at : at + CHUNK]
        if layout.scaled or piece.dtype.kind != "f":
            piece = piece.astype(np.float64)
        if layout.scaled:
            with np.errstate(over="ignore", invalid="ignore"):
                piece = piece * layout.slope + layout.intercept
        finite = np.isfinite(piece)
        if not finite.all():
            nans += int(np.isnan(piece).sum())
            infs += int(np.isinf(piece).sum())
            piece = np.where(finite, piece, 0)
        size = np.abs(piece)
        peak = max(peak, float(size.max()))
        beyond += int((size > np.finfo(np.float32).max).sum())
        with np.errstate(over="ignore", under="ignore"):
            result[at : at + CHUNK] = piece
    _check_finite(path, layout, stored.size, (nans, infs), nonfinite)
    if beyond:
        fail(path, f"{beyond} voxels exceed the range of float32 (peak {peak:.3g})", "rescale the volume")
    _check_values(path, layout, result, peak)
    return result.reshape(layout.shape, order="F")


def _check_finite(path: Path, layout: Layout, total: int, counts: tuple[int, int], nonfinite: NonFinite) -> None:
    nans, infs = counts
    if nans + infs == 0:
        return
    found = f"{nans} NaN and {infs} infinite voxels of {total}"
    if nans + infs == total:
        fail(path, f"{found}: nothing is left", "get a sound copy of the volume")
    if nonfinite == "error":
        fail(path, found, "repair the volume or have them set to zero (nonfinite zero)")
    layout.warnings.append(f"{found} are set to zero")


def _check_values(path: Path, layout: Layout, values: np.ndarray, peak: float) -> None:
    if (layout.scaled or layout.dtype.itemsize > 4) and 0 < peak < np.finfo(np.float32).tiny:
        fail(path, f"all values are too small for float32 (peak {peak:.3g})", "rescale the volume")
    if layout.dtype.kind in "iu" and not layout.scaled and peak > 2**24:
        layout.warnings.append(f"integers up to {peak:.0f} are rounded to the 24 bits of float32")
    low, high = values.min(), values.max()
    if low == high == 0:
        layout.warnings.append("all voxels are zero")
    elif low == high:
        layout.warnings.append(f"all voxels have the value {low:g}: is it a label image?")
    elif not any(np.any((piece != low) & (piece != high)) for piece in _pieces(values)):
        layout.warnings.append(f"the only values are {low:g} and {high:g}: is it a label image?")


def _pieces(flat: np.ndarray) -> Iterator[np.ndarray]:
    return (flat[at : at + CHUNK] for at in range(0, flat.size, CHUNK))
