"""NRRD and MetaImage, by SimpleITK, which is optional."""

from __future__ import annotations

import os
import re
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bundle.data.errors import fail
from bundle.data.foreign.head import Head, joined
from bundle.data.foreign.names import PATTERN, data_field, data_offset, detached, header_fields, is_meta
from bundle.data.nifti.stream import CHUNK, Source, open_stream
from bundle.data.paths import open_regular, special_kind

if TYPE_CHECKING:
    from SimpleITK import ImageFileReader

_TYPES = {
    **{"8-bit unsigned integer": "u1", "8-bit signed integer": "i1", "16-bit unsigned integer": "u2"},
    **{"16-bit signed integer": "i2", "32-bit unsigned integer": "u4", "32-bit signed integer": "i4"},
    **{"64-bit unsigned integer": "u8", "64-bit signed integer": "i8", "32-bit float": "f4", "64-bit float": "f8"},
}

_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
_TO_RAS = {
    "left-posterior-superior": _LPS,
    "left-posterior-superior-time": _LPS,
    "right-anterior-superior-time": np.eye(4),
    "left-anterior-superior-time": np.diag([-1.0, 1.0, 1.0, 1.0]),
}
"""From ITK's coordinates to RAS by the `space` that it names. It turns those of three axes into LPS, and calls them so,
but leaves those with time as they are."""

_SIZES = {"spacings", "space directions", "elementspacing", "elementsize"}
_DIRECTIONS = {"transformmatrix", "rotation", "orientation"}
_UNITS = {"m": 1, "mm": 2, "um": 3, "µm": 3, "micron": 3, "microns": 3, "micrometer": 3, "": 2, "?": 2, "???": 2}
_NOT_IN_SPACE = re.compile(
    r"time|list|point|vector|covariant|normal|stub|scalar|complex|color|hsv|xyz|quaternion|.*mat.*"
)


@contextmanager
def open_itk(path: Path) -> Iterator[Source]:
    """Open a NRRD or MetaImage file as the NIfTI file it could be; its voxels are read as a whole.

    Raises:
        VolumeError: it cannot be read, or holds no scalar image.
    """
    import SimpleITK

    with open_stream(path):  # errors that every file can have
        pass
    parts = detached(path)
    for part in parts:
        if not part.is_file():
            wrong = f"its data file {part.name} is {special_kind(part) or 'missing'}"
            fail(path, wrong, "keep the header and its data together")
    _check_itself(path, parts)
    SimpleITK.ProcessObject.SetGlobalWarningDisplay(False)
    reader = SimpleITK.ImageFileReader()
    reader.SetFileName(str(path))
    reader.SetImageIO("MetaImageIO" if is_meta(path) else "NrrdImageIO")
    try:
        reader.ReadImageInformation()
    except RuntimeError as error:
        fail(path, f"not readable by ITK ({_reason(error)})", "get an intact copy, or convert it to NIfTI", error)
    head = _head(path, reader)
    if is_meta(path):
        _check_count(path, parts, reader.GetSize(), head.warnings)

    def voxels() -> Iterator[memoryview]:
        _check_compressed(path, parts, head.voxel_bytes)
        try:
            image = reader.Execute()
        except RuntimeError as error:
            remedy = "copy or download it again, or convert it to NIfTI"
            fail(path, f"image data not readable by ITK ({_reason(error)})", remedy, error)
        array = SimpleITK.GetArrayViewFromImage(image)
        if array.nbytes != head.voxel_bytes or array.dtype != head.dtype:
            fail(path, "the file changed while it was read", "run again when nothing writes to it")
        yield array.reshape(-1).view(np.uint8).data

    yield joined(path, head, head.voxel_bytes, voxels)


def _head(path: Path, reader: ImageFileReader) -> Head:
    import SimpleITK

    said: dict[str, str] = {key: reader.GetMetaData(key) for key in reader.GetMetaDataKeys()}
    fields = header_fields(path)[0]
    shape = tuple(int(n) for n in reader.GetSize())
    kind = SimpleITK.GetPixelIDValueAsString(reader.GetPixelID())
    _check_axes(path, shape, reader.GetNumberOfComponents(), kind, said, fields)
    ndim, warnings = len(shape), list[str]()
    matrix = np.array(reader.GetDirection(), np.float64).reshape(ndim, ndim) * np.array(reader.GetSpacing())
    place, space = np.array(reader.GetOrigin(), np.float64), min(ndim, 3)
    step = 0.0
    if ndim == 4:
        if matrix[3, :3].any() or matrix[:3, 3].any():
            fail(path, "the fourth axis is not at right angles to space", "convert it to NIfTI")
        step = abs(float(matrix[3, 3]))
    affine = np.eye(4)
    affine[:space, :space], affine[:space, 3] = matrix[:space, :space], place[:space]
    if not fields.keys() & _SIZES:
        warnings.append("the header states no voxel size: 1 mm is assumed, as by ITK")
    elif "nan" in fields.get("spacings", "").lower().split()[:space]:
        warnings.append("the header leaves a voxel size open (nan): 1 mm is assumed, as by ITK")
    to_ras, frame = _frame(path, said.get("NRRD_space", ""), space, fields, warnings)
    if any(key in fields for key in ("old min", "oldmin", "old max", "oldmax")):
        warnings.append("old min and old max of the header are not applied, as by ITK: the stored values are used")
    if float(_number(fields.get("elementtointensityfunctionslope", "1"))) not in (0.0, 1.0) or float(
        _number(fields.get("elementtointensityfunctionoffset", "0"))
    ):
        warnings.append("slope and offset of the header are not applied, as by ITK: the stored values are used")
    labels = any(key.lower().startswith(("segmentation_", "segment0_")) for key in (*said, *fields))
    return Head(
        shape if shape[3:] != (1,) else shape[:3],
        np.dtype(_TYPES[kind]),
        to_ras @ affine,
        _unit(path, said, fields),
        frame,
        step,
        intent=1002 if labels else 0,
        warnings=warnings,
    )


def _check_axes(
    path: Path, shape: tuple[int, ...], components: int, kind: str, said: dict[str, str], fields: dict[str, str]
) -> None:
    """Refuse what is not a scalar image of two or three dimensions, or a series of them."""
    remedy = "give each component as its own volume, in NIfTI"
    if components > 1 or kind not in _TYPES:
        what = said.get("NRRD_kinds[pixel]", kind.removeprefix("vector of ") if kind in _TYPES else kind)
        what = f"{components} values for each voxel ({what})" if components > 1 else f"{kind} data"
        if any(key.startswith("DWMRI_") for key in said):
            remedy = "convert the diffusion images to NIfTI with .bval and .bvec, as by Slicer's DWIConvert"
        fail(path, f"{what} are not supported", remedy)
    if not 2 <= len(shape) <= 4 or min(shape) < 1:
        fail(path, f"{len(shape)} dimensions of size {shape} are not supported", "give a volume with 2 to 4")
    for axis in range(len(shape)):
        named = said.get(f"NRRD_kinds[{axis}]", "")
        if _NOT_IN_SPACE.fullmatch(named.lower()) and not (axis == 3 and named.lower() == "time"):
            fail(path, f"axis {axis} is of kind {named}, not of space", remedy)
    if len(shape) < 4 and re.search(r"\bnone\b", fields.get("space directions", "")):
        fail(path, "an axis of space without a direction", "correct the header (space directions, kinds)")


def _frame(path: Path, space: str, ndim: int, fields: dict[str, str], warnings: list[str]) -> tuple[np.ndarray, int]:
    """From the coordinates of ITK to RAS, and NIfTI's code of the frame."""
    if space in _TO_RAS:
        return _TO_RAS[space], 1
    placed = is_meta(path) and fields.keys() & _DIRECTIONS
    if ndim == 3 and not placed:
        said = f"the space of the header is {space}" if space else "the header states no space and no direction"
        warnings.append(f"{said}: position and orientation are unknown; taken as left-posterior-superior, as by ITK")
    return _LPS, 1 if placed else 2


def _unit(path: Path, said: dict[str, str], fields: dict[str, str]) -> int:
    """NIfTI's code of the unit of length.

    Raises:
        VolumeError: it is another unit, or there are several.
    """
    stated = fields.get("space units") or fields.get("units") or ""
    units = re.findall(r'"([^"]*)"', stated)[:3] or [said.get("ITK_VoxelUnits", fields.get("distanceunits", ""))]
    found = {_UNITS.get(unit.strip().lower()) for unit in units}
    if len(found) > 1 or None in found:
        fail(path, f"unit of length {', '.join(dict.fromkeys(units))}", "give lengths in mm")
    return found.pop() or 2


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return 1.0


def _check_itself(path: Path, parts: list[Path]) -> None:
    """Refuse a header that names itself as its data without a word on where they begin: its text would be voxels."""
    fields = header_fields(path)[0]
    skipped = fields.get("headersize", fields.get("byte skip", fields.get("byteskip", "0")))
    if skipped != "-1" and any(os.path.realpath(part) == os.path.realpath(path) for part in parts):
        fail(path, "the header names itself as its data file", "name the data file in the header")


def _check_count(path: Path, parts: list[Path], size: tuple[int, ...], warnings: list[str]) -> None:
    """Refuse MetaImage whose files do not hold one slice each: what ITK does not fill keeps what was in memory."""
    value = data_field(header_fields(path)[0])
    listed, pattern = value[:4].upper() == "LIST", PATTERN.fullmatch(value)
    if not listed and pattern is None:
        return
    if listed and value[4:].strip() not in ("", str(len(size) - 1)):
        fail(path, f"data files of {value[4:].strip()} dimensions", "list one file for each slice")
    if pattern is not None and int(pattern[4]) < 1:
        fail(path, f"data files in steps of {pattern[4]}", "list them one by one (ElementDataFile = LIST)")
    if len(parts) < size[-1]:
        fail(path, f"{len(parts)} data files for {size[-1]} slices", "keep the header and all its data together")
    if len(parts) > size[-1]:
        warnings.append(f"{len(parts)} data files for {size[-1]} slices: the last ones are not read")


def _check_compressed(path: Path, parts: list[Path], wanted: int) -> None:
    """Refuse damaged compressed data, of which ITK may return what it got: it does not look at checksums."""
    fields = header_fields(path)[0]
    packed = fields.get("compresseddata", fields.get("encoding", "")).lower()
    if packed not in ("true", "t", "1", "gzip", "gz"):
        return
    lines = int(_number(fields.get("line skip", fields.get("lineskip", "0"))))
    found = used = 0
    for part in parts or [path]:
        unpacker = zlib.decompressobj(47)  # zlib or gzip
        with open_regular(part) as stream:
            stream.seek(0 if parts else data_offset(path))
            for _ in range(lines):
                stream.readline()
            try:
                while not unpacker.eof and (block := stream.read(CHUNK)):
                    found += len(unpacker.decompress(block))
                    used += len(block) - len(unpacker.unused_data)
            except zlib.error as error:
                fail(path, f"damaged compressed data ({error})", "copy or download it again", error)
        if not unpacker.eof:
            fail(path, "truncated compressed data", "copy or download it again")
    if found < wanted:
        fail(path, f"{wanted} bytes of voxels expected, {found} found", "copy or download it again")
    # ITK unpacks no more than the header says; only without the size it takes the whole of a file of its own.
    stated = int(_number(fields.get("compresseddatasize", "0")))
    if is_meta(path) and stated < used and (stated or not parts):
        fail(path, f"CompressedDataSize is {stated or 'missing'}, not {used}", "correct the header")


def _reason(error: Any) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    kept = [line for line in lines if not line.startswith("Reason:")] or lines or ["no reason given"]
    return re.sub(r"\(0x[0-9a-f]+\)", "", kept[-1])[:300]
