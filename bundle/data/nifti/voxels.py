"""Voxels of a volume: read, scaled, checked and converted to float32, one 3-D volume at a time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Literal, TypeAlias

import numpy as np

from bundle.data.errors import fail
from bundle.data.nifti.header import Layout, check_room, read_gap, read_layout
from bundle.data.nifti.opened import open_volume
from bundle.data.nifti.stream import CHUNK, Source, drain, open_stream
from bundle.data.paths import pair_paths

NonFinite: TypeAlias = Literal["error", "zero"]

FLOAT32_MAX = float(np.finfo(np.float32).max)


class VoxelReader:
    """One pass over the voxels of a file; iterating to the end does all checks.

    Yields each 2-D image or 3-D volume as float32 in the scaled units of the file. Errors about the voxels as a whole
    are raised after the last volume, so that the message can give counts; by then, doubts are in `layout.warnings`.

    Args:
        path: the file (.hdr or .img for a pair).
        nonfinite: "error" refuses NaN and infinite voxels; "zero" sets them to 0 with a warning.
        max_bytes: largest accepted size of the stored voxels.

    Attributes:
        path: the file that holds the header.
        layout: of the header, available before iterating.
        peak, low, high: largest magnitude, smallest and largest value seen so far.
    """

    def __init__(self, path: Path, nonfinite: NonFinite, max_bytes: int) -> None:
        if nonfinite not in ("error", "zero"):
            raise ValueError(f"nonfinite must be 'error' or 'zero', got {nonfinite!r}")
        self.path, self._image_path = pair_paths(path)
        self._nonfinite, self._max_bytes = nonfinite, max_bytes
        with open_volume(self.path) as source:
            self.layout = read_layout(source)
            if not self.layout.paired:
                check_room(source, self.layout, max_bytes)
        if self.layout.paired and self._image_path == self.path:
            fail(self.path, "bad magic: this is the header of a .hdr/.img pair", "give the .hdr with its .img")
        self.peak, self.low, self.high = 0.0, np.inf, -np.inf
        self._nans = self._infs = self._beyond = 0
        self._distinct: set[float] | None = set()

    def __iter__(self) -> Iterator[np.ndarray]:
        for stored in self._stored():
            yield self._float32(stored)
        self._check_finite()
        self._check_values()

    def stored(self) -> Iterator[np.ndarray]:
        """Each 2-D image or 3-D volume as it is stored: in the type of the file, not scaled, not looked at."""
        for stored in self._stored():
            yield stored.reshape(self.layout.frame_shape, order="F")

    def _stored(self) -> Iterator[np.ndarray]:
        with ExitStack() as stack:
            source = stack.enter_context(open_volume(self.path))
            layout = read_layout(source)
            if layout.paired:
                source = stack.enter_context(open_stream(self._image_path))
                read_gap(source, layout, layout.offset)
            if (layout.shape, layout.dtype, layout.offset) != (
                self.layout.shape,
                self.layout.dtype,
                self.layout.offset,
            ):
                fail(self.path, "the file changed while it was read", "run again when nothing writes to it")
            check_room(source, layout, self._max_bytes)
            for number in range(self.layout.frames):
                yield _stored_frame(source, layout, number)
            _finish_stream(source, self.layout)

    def _float32(self, stored: np.ndarray) -> np.ndarray:
        """Scale in float64, record oddities and convert, in chunks to bound memory."""
        layout = self.layout
        result = np.empty(stored.size, np.float32)
        for at in range(0, stored.size, CHUNK):
            piece = stored[at : at + CHUNK]
            if layout.scaled or piece.dtype.kind != "f":
                piece = piece.astype(np.float64)
            if layout.scaled:
                with np.errstate(over="ignore", invalid="ignore"):
                    piece = piece * layout.slope + layout.intercept
            finite = np.isfinite(piece)
            if not finite.all():
                self._nans += int(np.isnan(piece).sum())
                self._infs += int(np.isinf(piece).sum())
                piece = np.where(finite, piece, 0)
            size = np.abs(piece)
            self.peak = max(self.peak, float(size.max()))
            self._beyond += int((size > FLOAT32_MAX).sum())
            with np.errstate(over="ignore", under="ignore"):
                result[at : at + CHUNK] = piece
            self._note_values(result[at : at + CHUNK])
        return result.reshape(layout.frame_shape, order="F")

    def _note_values(self, piece: np.ndarray) -> None:
        low, high = float(piece.min()), float(piece.max())
        self.low, self.high = min(self.low, low), max(self.high, high)
        if self._distinct is not None:
            self._distinct |= {low, high}
            if len(self._distinct) > 2 or np.any((piece != low) & (piece != high)):
                self._distinct = None

    def _check_finite(self) -> None:
        total = self.layout.voxels
        if self._nans + self._infs:
            found = f"{self._nans} NaN and {self._infs} infinite voxels of {total}"
            if self._nans + self._infs == total:
                fail(self.path, f"{found}: nothing is left", "get an intact copy of the volume")
            if self._nonfinite == "error":
                fail(self.path, found, "repair the volume or set them to zero (--nonfinite zero)")
            self.layout.warnings.append(f"{found} set to zero")
        if self._beyond:
            wrong = f"{self._beyond} voxels exceed the range of float32 (peak {self.peak:.3g})"
            fail(self.path, wrong, "rescale the volume")

    def _check_values(self) -> None:
        layout, low, high = self.layout, self.low, self.high
        if (layout.scaled or layout.dtype.itemsize > 4) and 0 < self.peak < np.finfo(np.float32).tiny:
            wrong = f"all values are too small for float32 (peak {self.peak:.3g})"
            fail(self.path, wrong, "rescale the volume")
        if layout.dtype.kind in "iu" and not layout.scaled and self.peak > 2**24:
            layout.warnings.append(f"integers up to {self.peak:.0f} are rounded to the 24 bits of float32")
        if low == high == 0:
            layout.warnings.append("all voxels are zero")
        elif low == high:
            layout.warnings.append(f"all voxels have the value {low:g}: is it a label image?")
        elif self._distinct is not None:
            layout.warnings.append(f"the only values are {low:g} and {high:g}: is it a label image?")


def _stored_frame(source: Source, layout: Layout, number: int) -> np.ndarray:
    """The stored voxels of one volume as a flat array in file order; the source must be at the first of them."""
    needed = layout.voxel_bytes // layout.frames
    try:
        buffer = np.empty(needed, np.uint8)
    except MemoryError as error:
        fail(source.path, f"{needed} bytes of voxels do not fit in memory", "crop or split the volume", error)
    view, filled = buffer.data, 0
    while filled < needed:
        count = source.stream.readinto(view[filled : filled + CHUNK])  # type: ignore[attr-defined]
        if not count:
            wrong = f"image data are truncated: {layout.voxel_bytes} bytes expected, {number * needed + filled} found"
            fail(source.path, wrong, "copy or download it again")
        filled += count
    return buffer.view(layout.dtype)


def _finish_stream(source: Source, layout: Layout) -> None:
    warnings: list[str] = []
    extra = drain(source, warnings) if source.packed else source.size - layout.offset - layout.voxel_bytes
    if extra:
        warnings.append(f"{extra} bytes after the image data are ignored")
    layout.warnings.extend(warnings)
