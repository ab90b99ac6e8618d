"""Write a result: NIfTI in pieces with the requested data type, or a DICOM series."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Any

import numpy as np

from bundle.cli.plan import Job
from bundle.cli.read import Source
from bundle.data import writing_volume
from bundle.data.dicom.read import DicomVolume
from bundle.data.dicom.write import write_series
from bundle.data.errors import disk_errors
from bundle.data.nifti.storage import FLOAT32, Storage


def write_nifti(
    job: Job,
    source: Source,
    frames: Iterator[np.ndarray],
    shape: tuple[int, ...],
    affine: np.ndarray,
    dtype: str,
    warn: Callable[[list[str]], None],
    before: Callable[[Path], None],
) -> None:
    """Write frames as they arrive; `before` gets the complete temporary file.

    With the source's data type ("same"), its slope and intercept are kept if they can hold the result. That is known
    only when all frames are there, so they wait in a temporary file.
    """
    storage = FLOAT32 if dtype == "float32" else Storage(source.storage.dtype)
    with ExitStack() as stack:
        if storage.dtype.kind in "iu":
            # Nameless on POSIX systems, so that a kill leaves nothing behind.
            with disk_errors(job.target):
                job.target.parent.mkdir(parents=True, exist_ok=True)
                spool = stack.enter_context(tempfile.TemporaryFile(dir=job.target.parent))
                low, high = _spool(frames, spool)
            frames, storage = _unspool(spool, shape), source.storage.covering(low, high)
            if storage != source.storage:
                warn([f"values from {low:g} to {high:g} do not fit the source's scaling, which is changed"])
        write = stack.enter_context(
            writing_volume(job.target, shape, affine, source.like, source=job.files[0], storage=storage, before=before)
        )
        for frame in frames:
            write(frame)


def _spool(frames: Iterable[np.ndarray], spool: IO[bytes]) -> tuple[float, float]:
    """Write the frames to a file; return the smallest and the largest value."""
    low, high = np.inf, -np.inf
    for frame in frames:
        low, high = min(low, float(frame.min())), max(high, float(frame.max()))
        spool.write(frame.astype(np.float32, copy=False).tobytes(order="F"))
    return low, high


def _unspool(spool: IO[bytes], shape: tuple[int, ...]) -> Iterator[np.ndarray]:
    spool.seek(0)
    size = 4 * int(np.prod(shape[:3]))
    for _ in range(int(np.prod(shape[3:]))):
        yield np.frombuffer(spool.read(size), np.float32).reshape(shape[:3], order="F")


def write_dicom(
    job: Job,
    volume: DicomVolume,
    voxels: np.ndarray,
    affine: np.ndarray,
    scale: int,
    slice_axis: int,
    provenance: Mapping[str, Any],
) -> tuple[str, ...]:
    """Write a derived series; return warnings."""
    return write_series(volume, voxels, affine, job.target, scale, slice_axis, provenance).warnings
