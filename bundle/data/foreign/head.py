"""What a file of another format says, as a NIfTI header, and the stream that joins it with the voxels."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

import numpy as np
from nibabel.nifti2 import Nifti2Header

from bundle.data.errors import fail
from bundle.data.nifti.geometry import Geometry, store_geometry, usable
from bundle.data.nifti.stream import Source

OFFSET = 544
"""Where the voxels of a NIfTI-2 file without extensions begin."""


@dataclass(frozen=True, eq=False)
class Head:
    """What a header of another format says of the image.

    Attributes:
        shape: (X, Y), (X, Y, Z) or (X, Y, Z, T).
        dtype: of the voxels in the file order of NIfTI (first axis fastest), with their byte order.
        affine: voxel index to world (RAS), in the unit of length.
        unit: NIfTI code of the unit of length: 1 m, 2 mm, 3 um.
        frame: NIfTI code of the world frame: 1 scanner, 2 something else.
        step, time_unit: of the fourth axis, and its NIfTI code (0 unknown, 8 s).
        intent: NIfTI code of what the values are.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    affine: np.ndarray
    unit: int = 2
    frame: int = 1
    step: float = 0.0
    time_unit: int = 0
    intent: int = 0
    warnings: list[str] = field(default_factory=list)

    @property
    def voxel_bytes(self) -> int:
        count = self.dtype.itemsize
        for length in self.shape:
            count *= int(length)
        return count

    def nifti(self, path: Path) -> bytes:
        """The header of a NIfTI-2 file, whose float64 holds any affine.

        Raises:
            VolumeError: the affine is unusable.
        """
        if usable(np.eye(4), self.affine) is None:
            fail(path, "the axes of the image are singular, not finite or of implausible size", "correct the header")
        header = Nifti2Header(endianness=">" if self.dtype.byteorder == ">" else "<")
        header.set_data_dtype(self.dtype)
        header["dim"] = [len(self.shape), *self.shape, *[1] * (7 - len(self.shape))]
        store_geometry(header, Geometry(self.affine, self.affine, self.affine, self.frame, self.frame), self.time_unit)
        header["xyzt_units"] = self.unit | self.time_unit
        header["pixdim"][4] = self.step if np.isfinite(self.step) and self.step > 0 else 0
        header["intent_code"] = self.intent
        header["vox_offset"] = OFFSET
        block = bytes(header.binaryblock)
        return block + bytes(OFFSET - len(block))


def joined(path: Path, head: Head, found: int, voxels: Callable[[], Iterator[memoryview]]) -> Source:
    """An open file for the reader of NIfTI.

    Args:
        found: bytes of voxels that there are.
        voxels: yields them in pieces when they are first asked for; whatever it checks comes before its end.
    """
    stream = io.BufferedReader(_Stream(head.nifti(path), voxels), 2**16)
    size = OFFSET + min(found, head.voxel_bytes)
    return Source(path, stream, size, packed=False, warnings=tuple(head.warnings))


class _Stream(io.RawIOBase):
    """A header and then pieces of voxels; the pieces are not asked for before the header has been read."""

    def __init__(self, start: bytes, voxels: Callable[[], Iterator[memoryview]]) -> None:
        self._rest, self._voxels = memoryview(start), voxels
        self._pieces: Iterator[memoryview] | None = None

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: object) -> int:
        view = cast(memoryview, buffer)
        while not self._rest:
            if self._pieces is None:
                self._pieces = self._voxels()
            piece = next(self._pieces, None)
            if piece is None:
                return 0
            self._rest = piece
        count = min(len(view), len(self._rest))
        view[:count] = self._rest[:count]
        self._rest = self._rest[count:]
        return count
