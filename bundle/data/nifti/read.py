"""Reading volumes without silent repair.

Common readers fill truncated files with zeros, drop the imaginary part of complex data, ignore the unit of length and
trust any affine. Here every file is either read as its header says, read with a warning about what is doubtful, or
refused with one clear line.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from bundle.data.bids_sidecar import sidecar_metadata
from bundle.data.errors import fail
from bundle.data.meaning import modality_by_bids
from bundle.data.nifti.axes import stated_axes
from bundle.data.nifti.geometry import Header
from bundle.data.nifti.header import check_room, clean_header, read_layout
from bundle.data.nifti.matrix import stated_matrix
from bundle.data.nifti.opened import open_volume
from bundle.data.nifti.storage import Storage
from bundle.data.nifti.stream import MAX_BYTES
from bundle.data.nifti.voxels import NonFinite, VoxelReader
from bundle.data.paths import PathLike, pair_paths
from bundle.data.values import Survey, Values

if TYPE_CHECKING:
    from bundle.physics.matrix import StatedMatrix
    from bundle.physics.slices import StatedAxes


@dataclass(frozen=True, eq=False)
class Volume:
    """A volume in memory.

    Attributes:
        path: the file it was read from.
        array: float32 voxels, shape (X, Y), (X, Y, Z) or (X, Y, Z, T), in the scaled units of the file, all finite.
        affine: float64 (4, 4), voxel index to world (RAS), millimetres.
        header: little-endian NIfTI header with repaired geometry in millimetres; `write_volume(like=...)` takes it.
        warnings: doubts about the file, one line each, without the path.
        stated: the slice axis as the file says.
        stated_matrix: the acquired matrix as its sidecar says.
        modality: MR, CT or PT, by its sidecar, BIDS name or folder.
    """

    path: Path
    array: np.ndarray
    affine: np.ndarray
    header: Header
    warnings: tuple[str, ...] = ()
    stated: StatedAxes | None = None
    stated_matrix: StatedMatrix | None = None
    modality: str | None = None


def read_volume(path: PathLike, nonfinite: NonFinite = "error", *, max_bytes: int = MAX_BYTES) -> Volume:
    """Read a NIfTI-1, NIfTI-2, .hdr/.img or Analyze 7.5 volume, plain or gzip, and check all of it.

    The affine is the sform if usable, else the qform; without either it is nibabel's default (x to the left, centred),
    with a warning. Lengths are converted to millimetres.

    Args:
        path: the file (.hdr or .img for a pair). Its content, not its name, decides the format.
        nonfinite: "error" refuses NaN and infinite voxels; "zero" sets them to 0 with a warning.
        max_bytes: largest accepted size of the stored voxels.

    Raises:
        VolumeError: the file is not the volume that its header declares.
    """
    reader = VoxelReader(Path(path), nonfinite, max_bytes)
    layout = reader.layout
    frames = list(reader)
    array = frames[0].reshape(layout.shape) if layout.frames == 1 else np.stack(frames, axis=-1)
    return _volume(reader, array)


def read_first_volume(path: PathLike, nonfinite: NonFinite = "error") -> Volume:
    """The first volume of a file; the rest is not read. Args and errors as for `read_volume`."""
    reader = VoxelReader(Path(path), nonfinite, MAX_BYTES)
    return _volume(reader, next(iter(reader)))


def _volume(reader: VoxelReader, array: np.ndarray) -> Volume:
    layout, header = reader.layout, clean_header(reader.layout)
    return Volume(
        *(reader.path, array, layout.geometry.affine, header, tuple(layout.warnings)), *_statements(reader.path, header)
    )


def _statements(path: Path, header: Header) -> tuple[StatedAxes, StatedMatrix | None, str | None]:
    """What header and sidecar say about the slice axis, the acquired matrix and the modality."""
    metadata = sidecar_metadata(path)
    axes, matrix = stated_axes(path, header, metadata), stated_matrix(path, header, metadata)
    return axes, matrix, modality_by_bids(path, metadata)


@dataclass(frozen=True, eq=False)
class VolumeFile:
    """A volume that was read once from end to end and found valid, to be read again in pieces.

    Attributes:
        path: the file (.hdr of a pair).
        shape: (X, Y), (X, Y, Z) or (X, Y, Z, T).
        affine, header, warnings: as in `Volume`.
        storage: data type and scaling of the file.
        values: what the values of its volumes mean.
        stated: the slice axis as the file says.
        stated_matrix: the acquired matrix as its sidecar says.
        modality: MR, CT or PT, by its sidecar, BIDS name or folder.
    """

    path: Path
    shape: tuple[int, ...]
    affine: np.ndarray
    header: Header
    storage: Storage
    values: Values
    stated: StatedAxes
    stated_matrix: StatedMatrix | None
    modality: str | None
    warnings: tuple[str, ...]
    _nonfinite: NonFinite
    _max_bytes: int

    def frames(self) -> Iterator[np.ndarray]:
        """Each image (X, Y) or volume (X, Y, Z), float32; a 4-D series yields its volumes one by one.

        Raises:
            VolumeError: the file has changed.
        """
        reader = VoxelReader(self.path, self._nonfinite, self._max_bytes)
        if reader.layout.shape != self.shape or not np.array_equal(reader.layout.geometry.affine, self.affine):
            fail(self.path, "the file changed while it was read", "run again when nothing writes to it")
        yield from reader


def check_volume_file(path: PathLike, nonfinite: NonFinite = "error", *, max_bytes: int = MAX_BYTES) -> VolumeFile:
    """Read a volume from end to end, one 3-D volume in memory at a time, and check that it is valid.

    Args and errors as for `read_volume`.
    """
    reader = VoxelReader(Path(path), nonfinite, max_bytes)
    found = Survey()
    for frame in reader:
        found.add(frame)
    layout, values = reader.layout, found.decide()
    storage = Storage(layout.dtype, layout.slope, layout.intercept)
    header = clean_header(layout)
    return VolumeFile(
        reader.path,
        layout.shape,
        layout.geometry.affine,
        header,
        storage,
        values,
        *_statements(reader.path, header),
        (*layout.warnings, *values.warnings),
        nonfinite,
        max_bytes,
    )


def read_header(path: PathLike) -> Header:
    """Read only the header of a volume, repaired as in `Volume.header`.

    Raises:
        VolumeError: the header is unusable, or the file is too small for what it declares.
    """
    header_path, _ = pair_paths(Path(path))
    with open_volume(header_path) as source:
        layout = read_layout(source)
        if not layout.paired:
            check_room(source, layout, MAX_BYTES)
    return clean_header(layout)
