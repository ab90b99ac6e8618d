"""Writing volumes as NIfTI, whole or not at all: under a temporary name that is then replaced."""

from __future__ import annotations

import gzip
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import BytesIO
from pathlib import Path
from typing import IO, Any

import numpy as np
from nibabel.nifti1 import Nifti1Header
from nibabel.nifti2 import Nifti2Header

from .errors import fail
from .nifti_geometry import Geometry, Header, read_geometry, store_geometry, usable
from .nifti_header import finite_or_zero
from .nifti_stream import CHUNK
from .paths import PathLike, same_file

_KEPT_FIELDS = (
    *("dim_info", "intent_p1", "intent_p2", "intent_p3", "intent_code", "intent_name"),
    *("toffset", "descrip", "aux_file"),
)


def write_volume(
    path: PathLike,
    data: np.ndarray,
    affine: np.ndarray,
    like: Header | None = None,
    *,
    source: PathLike | None = None,
) -> Path:
    """Write a float32 NIfTI-1 file (NIfTI-2 if an axis is longer than 32767), whole or not at all.

    The source's form codes, time unit, TR, time offset, description, intent and extensions are kept; display
    range and slice timing are reset because they describe the old grid. Where the source's sform and qform are
    different frames (say template and scanner), the step from the old grid to the new one is applied to each. A
    sheared qform cannot be stored: its code becomes 0. Equal arguments give equal bytes.

    Args:
        path: ends with .nii or .nii.gz; missing folders are made.
        data: shape (X, Y), (X, Y, Z) or (X, Y, Z, T), finite, within float32.
        affine: (4, 4), voxel index of `data` to world, mm.
        like: header of the source, as `Volume.header` or `read_header`; None marks both forms "aligned" (2).
        source: the file that `data` was made from; writing over it is refused.

    Returns:
        The path written.

    Raises:
        VolumeError: bad arguments, the target is the source, or the disk refuses (no partial file is left).
    """
    target = Path(path)
    if not target.name.lower().endswith((".nii", ".nii.gz")):
        fail(target, "the output name does not end with .nii or .nii.gz", "choose such a name")
    if source is not None and same_file(target, Path(source)):
        fail(target, "the output is the input file", "choose another output folder or suffix")
    array = _writable_array(target, data)
    header = _output_header(target, array.shape, affine, like)
    try:
        with _replacing(target) as raw:
            if target.name.lower().endswith(".gz"):
                # No name and no time in the gzip header: the same volume gives the same bytes.
                with gzip.GzipFile("", "wb", compresslevel=1, fileobj=raw, mtime=0) as packed:
                    _write_stream(packed, header, array)
            else:
                _write_stream(raw, header, array)
    except OSError as error:
        wrong = f"cannot be written ({error.strerror or error})"
        fail(target, wrong, "check the folder, its access rights and the free space", error)
    return target


def _writable_array(target: Path, data: np.ndarray) -> np.ndarray:
    array = np.asarray(data)
    if array.ndim not in (2, 3, 4) or array.size == 0 or array.dtype.kind not in "biuf":
        wrong = f"cannot write an array of shape {array.shape} and type {array.dtype}"
        fail(target, wrong, "give real numbers of 2 to 4 dimensions")
    with np.errstate(over="ignore"):
        array = array.astype("<f4", copy=False)
    if bad := int(array.size - np.isfinite(array).sum()):
        wrong = f"{bad} of {array.size} voxels to write are NaN, infinite or beyond float32"
        fail(target, wrong, "check the input and the network")
    return array


def _output_header(target: Path, shape: tuple[int, ...], affine: np.ndarray, like: Header | None) -> Header:
    affine = np.asarray(affine, dtype=np.float64)
    if affine.shape != (4, 4) or usable(np.eye(4), affine) is None:
        fail(target, "the affine to write is not a finite, invertible 4x4 matrix", "check the geometry of the source")
    header = Nifti2Header(endianness="<") if max(shape) > np.iinfo(np.int16).max else Nifti1Header(endianness="<")
    header.set_data_dtype(np.float32)
    header.set_data_shape(shape)
    time_unit = 0
    geometry = Geometry(affine, affine, affine, 2, 2)
    if like is not None:
        source = read_geometry(target, like, [])
        step = np.linalg.inv(source.affine) @ affine
        geometry = Geometry(
            affine,
            None if source.sform is None else affine,
            None if source.qform is None else source.qform @ step,
            source.sform_code,
            source.qform_code,
        )
        time_unit = int(like["xyzt_units"]) & 0x38
        for name in _KEPT_FIELDS:
            _copy_field(header, like, name)
        header["pixdim"][4:] = finite_or_zero(like["pixdim"][4:])
        header.extensions[:] = list(like.extensions)
    store_geometry(header, geometry, time_unit)
    header["scl_slope"], header["scl_inter"] = 1, 0
    return header


def _copy_field(header: Header, like: Header, name: str) -> None:
    """Copy one field; damage in a NIfTI-2 header may not fit into NIfTI-1 and is left out."""
    value = like[name]
    if value.dtype.kind == "f":
        value = finite_or_zero(value)
    if value.dtype.kind != "i" or np.iinfo(header[name].dtype).min <= value <= np.iinfo(header[name].dtype).max:
        header[name] = value


@contextmanager
def _replacing(target: Path) -> Iterator[IO[bytes]]:
    """A new file beside `target` that takes its name when the block ends well and vanishes otherwise."""
    target.parent.mkdir(parents=True, exist_ok=True)
    # Hidden and short: never picked up as a volume, never too long a name. Opened by open() so that it gets the
    # rights of an ordinary new file, which those of the tempfile module lack.
    partial = target.with_name(f".{secrets.token_hex(8)}.part")
    try:
        with open(partial, "xb") as raw:
            yield raw
            raw.flush()
            os.fsync(raw.fileno())
        os.replace(partial, target)
    except BaseException:
        with suppress(OSError):
            partial.unlink()
        raise


def _write_stream(stream: Any, header: Header, array: np.ndarray) -> None:
    """Header, extensions and voxels; slabs of the last axis bound the memory that the reordering takes."""
    start = BytesIO()
    header.write_to(start)
    stream.write(start.getvalue())
    step = max(1, CHUNK * array.shape[-1] // array.nbytes)
    for at in range(0, array.shape[-1], step):
        stream.write(array[..., at : at + step].tobytes(order="F"))
