"""Writing volumes as NIfTI, in pieces and atomically."""

from __future__ import annotations

import gzip
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from nibabel.nifti1 import Nifti1Header
from nibabel.nifti2 import Nifti2Header

from bundle.data.atomic import replacing
from bundle.data.errors import disk_errors, fail
from bundle.data.nifti.geometry import Geometry, Header, read_geometry, store_geometry, usable
from bundle.data.nifti.header import finite_or_zero
from bundle.data.nifti.storage import FLOAT32, Storage
from bundle.data.nifti.stream import CHUNK
from bundle.data.paths import PathLike, same_file

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
    storage: Storage = FLOAT32,
    before: Callable[[Path], None] | None = None,
) -> Path:
    """Write an array with `writing_volume` in one call.

    Args:
        data: shape (X, Y), (X, Y, Z) or (X, Y, Z, T), finite, within the range of `storage`.

    Returns:
        The path written.
    """
    array = np.asarray(data)
    with writing_volume(path, array.shape, affine, like, source=source, storage=storage, before=before) as write:
        if array.ndim == 4:
            for number in range(array.shape[3]):
                write(array[..., number])
        else:
            write(array)
    return Path(path)


@contextmanager
def writing_volume(
    path: PathLike,
    shape: tuple[int, ...],
    affine: np.ndarray,
    like: Header | None = None,
    *,
    source: PathLike | None = None,
    storage: Storage = FLOAT32,
    before: Callable[[Path], None] | None = None,
    as_stored: bool = False,
) -> Iterator[Callable[[np.ndarray], None]]:
    """Write a NIfTI-1 file (NIfTI-2 if an axis is longer than 32767) in pieces and atomically.

    The block gets a function that takes the image, the volume, or the volumes of a series one by one. The source's form
    codes, time unit, TR, time offset, description, intent and extensions are kept; display range and slice timing are
    reset because they describe the old grid. If the source's sform and qform are different frames (say template and
    scanner), the transform from the old grid to the new one is applied to each. A sheared qform cannot be stored: its
    code becomes 0. Equal arguments give equal bytes.

    Args:
        path: ends with .nii or .nii.gz; missing folders are made.
        shape: (X, Y), (X, Y, Z) or (X, Y, Z, T).
        affine: (4, 4), voxel index of the data to world, mm.
        like: header of the source, from `Volume.header` or `read_header`; None marks both forms "aligned" (2).
        source: the file that the data come from; overwriting it is refused.
        storage: data type and scaling of the file.
        before: called with the complete temporary file before it is renamed to `path`.
        as_stored: the data are numbers as the file stores them, of the type of `storage`, and are not scaled.

    Raises:
        VolumeError: invalid arguments, voxels that cannot be stored, a target that is the source, or an error from the
            disk (no partial file is left).
    """
    target = Path(path)
    if not target.name.lower().endswith((".nii", ".nii.gz")):
        fail(target, "the output name does not end with .nii or .nii.gz", "choose a name that does")
    if source is not None and same_file(target, Path(source)):
        fail(target, "the output is the input file", "choose another output folder or suffix")
    if len(shape) not in (2, 3, 4) or 0 in shape:
        fail(target, f"cannot write an array of shape {shape}", "give real numbers in 2 to 4 dimensions")
    header = output_header(target, shape, affine, like, storage)
    with disk_errors(target), replacing(target, before) as raw, ExitStack() as stack:
        stream: Any = raw
        if target.name.lower().endswith(".gz"):
            # No name and no time in the gzip header, so that the same volume gives the same bytes.
            stream = stack.enter_context(gzip.GzipFile("", "wb", compresslevel=1, fileobj=raw, mtime=0))
        header.write_to(start := BytesIO())
        stream.write(start.getvalue())
        missing = [shape[3] if len(shape) == 4 else 1]

        def write(data: np.ndarray) -> None:
            missing[0] -= 1
            if as_stored:
                assert data.shape == shape[:3] and data.dtype == storage.dtype
                stream.write(data.astype(storage.dtype.newbyteorder("<"), copy=False).tobytes(order="F"))
            else:
                _write_voxels(stream, _writable(target, data, shape[:3]), storage, target)

        yield write
        if missing[0]:
            raise ValueError(f"{target}: {missing[0]} volumes are missing")


def _writable(target: Path, data: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    array = np.asarray(data)
    if array.shape != shape or array.dtype.kind not in "biuf":
        wrong = f"cannot write an array of shape {array.shape} and type {array.dtype}"
        fail(target, wrong, f"give real numbers of shape {shape}")
    with np.errstate(over="ignore"):
        array = array.astype("<f4", copy=False)
    if bad := int(array.size - np.isfinite(array).sum()):
        wrong = f"{bad} of {array.size} voxels to write are NaN, infinite or beyond float32"
        fail(target, wrong, "check the input and the network")
    return array


def _write_voxels(stream: Any, array: np.ndarray, storage: Storage, target: Path) -> None:
    """Voxels in file order, in slabs along the last axis to bound the memory for reordering."""
    step = max(1, CHUNK * array.shape[-1] // array.nbytes)
    for at in range(0, array.shape[-1], step):
        try:
            slab = storage.encode(array[..., at : at + step])
        except OverflowError as error:
            fail(target, str(error), "store the result as float32", error)
        stream.write(slab.tobytes(order="F"))


def output_header(
    target: Path, shape: tuple[int, ...], affine: np.ndarray, like: Header | None, storage: Storage = FLOAT32
) -> Header:
    """Header of a NIfTI-1 file (NIfTI-2 if an axis is longer than 32767); see :func:`writing_volume`.

    Raises:
        VolumeError: the affine is not finite or not invertible; `target` appears in the message.
    """
    affine = np.asarray(affine, dtype=np.float64)
    if affine.shape != (4, 4) or usable(np.eye(4), affine) is None:
        fail(target, "the affine to write is not a finite, invertible 4x4 matrix", "check the geometry of the source")
    header = Nifti2Header(endianness="<") if max(shape) > np.iinfo(np.int16).max else Nifti1Header(endianness="<")
    header.set_data_dtype(storage.dtype)
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
    header["scl_slope"], header["scl_inter"] = storage.slope, storage.intercept
    return header


def _copy_field(header: Header, like: Header, name: str) -> None:
    """Copy one field; values of a damaged NIfTI-2 header that do not fit into NIfTI-1 are dropped."""
    value = like[name]
    if value.dtype.kind == "f":
        value = finite_or_zero(value)
    if value.dtype.kind != "i" or np.iinfo(header[name].dtype).min <= value <= np.iinfo(header[name].dtype).max:
        header[name] = value
