"""Headers of NIfTI-1, NIfTI-2 and Analyze 7.5 volumes: parsed, checked and repaired.

Sizes are checked against the file before memory is allocated.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
from nibabel.nifti1 import Nifti1Extension, Nifti1Header, extension_codes
from nibabel.nifti2 import Nifti2Header

from bundle.data.errors import fail
from bundle.data.foreign.names import is_read
from bundle.data.nifti.geometry import Geometry, Header, read_geometry, store_geometry
from bundle.data.nifti.stream import MAX_BYTES, MAX_EXTRA_BYTES, Source, is_packed
from bundle.data.paths import pair_paths

_NUMERIC_TYPES = {
    **{2: "u1", 256: "i1", 4: "i2", 512: "u2", 8: "i4", 768: "u4", 1024: "i8", 1280: "u8"},
    **{16: "f4", 64: "f8"},
}
_REFUSED_TYPES = {
    1: ("one-bit data are not supported", "convert the file to uint8"),
    32: ("complex data are not supported", "give the magnitude image"),
    1792: ("complex data are not supported", "give the magnitude image"),
    2048: ("complex data are not supported", "give the magnitude image"),
    128: ("RGB colour data are not supported", "give a single-channel volume"),
    2304: ("RGBA colour data (RGB with alpha) are not supported", "give a single-channel volume"),
    1536: ("128-bit floating point data are not supported", "convert the file to float32"),
}

_KEPT_EXTENSIONS = (6, 18, 20, 22, 24, 26, 34)
"""Codes of header extensions that cannot describe the grid: comments; kind, b-value, direction, component and degree of
diffusion models (MIND); times of frames."""

_KNOWN_EXTENSIONS = frozenset(extension_codes.code.values())


_OTHER_STARTS = {
    b"\x1f\x8b": ("gzip in gzip: it was compressed twice", "unpack it once: gunzip"),
    b"BZh": ("compressed by bzip2", "unpack it first: bunzip2"),
    b"\xfd7zXZ": ("compressed by xz", "unpack it first: unxz"),
    b"\x28\xb5\x2f\xfd": ("compressed by zstd", "unpack it first: unzstd"),
    b"PK\x03\x04": ("a zip archive", "unpack it first"),
    b"\x89HDF": ("HDF5 (MINC, MATLAB)", "convert it to NIfTI first"),
    b"NRRD": ("NRRD", "convert it to NIfTI first"),
    b"\x89PNG": ("a picture", "give the volume it was made from"),
    b"version https://git-lfs": ("a pointer of Git LFS", "fetch the content: git lfs pull"),
    b"/annex/objects": ("a pointer of git-annex", "fetch the content: git annex get, or datalad get"),
}
"""First bytes of what is found under the names of NIfTI files."""


@dataclass(eq=False)
class Layout:
    """What a header declares: position, type and scaling of the voxels."""

    header: Header
    shape: tuple[int, ...]
    dtype: np.dtype
    offset: int
    slope: float
    intercept: float
    geometry: Geometry
    paired: bool
    warnings: list[str] = field(default_factory=list)

    @property
    def voxels(self) -> int:
        return _product(self.shape)

    @property
    def voxel_bytes(self) -> int:
        return self.voxels * self.dtype.itemsize

    @property
    def frames(self) -> int:
        """Number of images or volumes stored one after another: the length of the fourth axis."""
        return self.shape[3] if len(self.shape) == 4 else 1

    @property
    def frame_shape(self) -> tuple[int, ...]:
        return self.shape[:3]

    @property
    def scaled(self) -> bool:
        return (self.slope, self.intercept) != (1.0, 0.0)


def read_layout(source: Source) -> Layout:
    """Parse and check the header at the start of `source`; for a single file, leaves the source at the voxels."""
    path, warnings = source.path, list(source.warnings)
    if source.packed != path.name.lower().endswith(".gz") and not is_read(path):
        kind = "gzip-compressed" if source.packed else "not compressed"
        warnings.append(f"the file is {kind}, contrary to its name; its content decides")
    raw, paired = _parse_header(source, warnings)
    shape = _declared_shape(path, raw)
    dtype = _declared_dtype(path, raw, warnings)
    offset = _declared_offset(path, raw, paired, warnings)
    slope, intercept = _declared_scaling(path, raw, warnings)
    geometry = read_geometry(path, raw, warnings)
    layout = Layout(raw, shape, dtype, offset, slope, intercept, geometry, paired, warnings)
    _find_image(source, layout)
    _read_extensions(source, layout)
    drop_extensions(raw, warnings)
    return layout


def _find_image(source: Source, layout: Layout) -> None:
    """Settle in which file the voxels are, and where, if there is an image file beside the header.

    Programs that write pairs may leave the mark of a single file, or its vox_offset, in the header. A plain image file
    of exactly the size of the voxels begins with them, whatever the header says.
    """
    image = pair_paths(source.path)[1]
    if image == source.path or not image.exists():
        return
    alone = not layout.paired
    if alone and (source.packed or source.size >= layout.offset + layout.voxel_bytes):
        return
    size = None if is_packed(image) else image.stat().st_size
    if alone:  # what the header says of the place of the voxels is for another kind of file
        layout.warnings[:] = [text for text in layout.warnings if not text.startswith("vox_offset")]
    if size == layout.voxel_bytes and layout.offset:
        layout.warnings.append(f"vox_offset is {layout.offset}, but {image.name} holds the voxels alone; 0 is used")
        layout.offset = 0
    elif alone and size != layout.offset + layout.voxel_bytes:
        wrong = f"the magic of a single file, but no voxels; {image.name} is not of {layout.voxel_bytes} bytes either"
        fail(source.path, wrong, "get an intact copy")
    if alone:
        layout.paired = True
        layout.warnings.append(f"the magic is that of a single file, but the voxels are in {image.name}")


def check_room(source: Source, layout: Layout, max_bytes: int) -> None:
    """Refuse a declared size that the file cannot hold or that exceeds the limit, before allocating memory."""
    path, needed, found = source.path, layout.voxel_bytes, source.room - layout.offset
    shape = "x".join(map(str, layout.shape))
    if found < 0:
        fail(path, f"vox_offset {layout.offset} lies beyond the end of the file", "get an intact copy")
    if found < needed and source.packed:
        wrong = f"the header declares {needed} bytes ({shape}), more than {source.size} bytes of gzip can hold"
        fail(path, wrong, "get an intact copy")
    if found < needed:
        fail(path, f"image data are truncated: {needed} bytes expected ({shape}), {found} found", "get it again")
    if needed > max_bytes:
        fail(path, f"{needed} bytes of voxels ({shape}) exceed the limit of {max_bytes}", "raise max_bytes or crop it")


def read_gap(source: Source, layout: Layout, count: int) -> bytes:
    """The bytes before the voxels; a damaged vox_offset may claim absurdly many."""
    if count > MAX_EXTRA_BYTES:
        check_room(source, layout, MAX_BYTES)
        fail(source.path, f"vox_offset {layout.offset} leaves a huge gap before the voxels", "get an intact copy")
    return source.read(count)


def clean_header(layout: Layout) -> Header:
    """The header of `Volume`: little endian, single file, repaired geometry in mm, no scaling, intact extensions."""
    extensions = list(layout.header.extensions)
    header = layout.header.as_byteswapped("<")
    # Not set_data_shape, which would reset the TR of a 3-D volume.
    header["dim"] = [len(layout.shape), *layout.shape, *[1] * (7 - len(layout.shape))]
    header["sizeof_hdr"] = 540 if isinstance(header, Nifti2Header) else 348
    header["magic"] = header.single_magic
    header["bitpix"] = layout.dtype.itemsize * 8
    header["vox_offset"] = 0
    header["scl_slope"], header["scl_inter"] = 1, 0
    header["pixdim"][4:] = finite_or_zero(header["pixdim"][4:])
    store_geometry(header, layout.geometry, int(header["xyzt_units"]) & 0x38)
    header.extensions[:] = extensions
    return header


def finite_or_zero(values: np.ndarray) -> np.ndarray:
    """`values`, with 0 where float32 cannot hold them."""
    return np.where(np.abs(values) < np.finfo(np.float32).max, values, 0)


def _parse_header(source: Source, warnings: list[str]) -> tuple[Header, bool]:
    """The raw header in the file's byte order, and whether the voxels are in another file."""
    path = source.path
    block = source.read(348)
    if other := _other_content(block):
        fail(path, f"not a NIfTI file but {other[0]}", other[1])
    cls: type[Header] = Nifti1Header
    order = _byte_order(block)
    size = int.from_bytes(block[:4], "little" if order == "<" else "big", signed=True)
    if block[4:8] in (b"n+2\0", b"ni2\0"):
        block += source.read(540 - 348)
        magic, wanted, cls = block[4:8], 540, Nifti2Header
    else:
        magic, wanted = block[344:348], 348
    if len(block) < wanted:
        if size in (348, 540) or magic.startswith(b"n"):
            fail(path, f"the header is truncated: {wanted} bytes expected, {len(block)} found", "get it again")
        fail(path, "not a NIfTI file", "give a .nii, .nii.gz or .hdr/.img volume")
    if magic in (b"n+1\0", b"n+2\0", b"ni1\0", b"ni2\0"):
        if size != wanted:
            warnings.append(f"sizeof_hdr is {size} instead of {wanted}; the magic decides the format")
        if wanted == 540 and block[8:12] not in (b"\r\n\x1a\n", bytes(4)):
            warnings.append("the line-end mark of the header is damaged: the file may have been copied in text mode")
        return cls(block, endianness=order, check=False), magic.startswith(b"ni")
    if size == 348 and path.name.lower().removesuffix(".gz").endswith(".hdr"):
        warnings.append("Analyze 7.5 header: orientation unknown")
        return _from_analyze(Nifti1Header(block, endianness=order, check=False)), True
    if size in (348, 540):
        fail(path, f"bad magic {magic!r} in the NIfTI header", "give an intact NIfTI file")
    fail(path, "not a NIfTI file (no NIfTI magic, no header size)", "give a .nii, .nii.gz or .hdr/.img volume")


def _other_content(block: bytes) -> tuple[str, str] | None:
    """What a file holds that begins with these bytes, and what to do; None if that is not known."""
    if block.lstrip()[:1] == b"<":
        return "a web page or XML", "download it again; a login page may have been saved in its place"
    if block[128:132] == b"DICM":
        return "a DICOM file", "give it a name without .nii"
    return next((about for start, about in _OTHER_STARTS.items() if block.startswith(start)), None)


def _byte_order(block: bytes) -> str:
    for order, name in (("<", "little"), (">", "big")):
        if int.from_bytes(block[:4], name, signed=True) in (348, 540):  # type: ignore[arg-type]
            return order
    # sizeof_hdr is wrong: the number of dimensions decides, as the standard says.
    return "<" if 1 <= int.from_bytes(block[40:42], "little") <= 7 else ">"


def _from_analyze(raw: Header) -> Nifti1Header:
    """Keep the fields that Analyze 7.5 and NIfTI-1 share; the rest of the block has other meanings."""
    clean = Nifti1Header(endianness=raw.endianness)
    for name in ("dim", "datatype", "bitpix", "pixdim", "vox_offset", "descrip"):
        clean[name] = raw[name]
    # SPM wrote a scale factor here; other programs leave 0, which means none.
    clean["scl_slope"] = raw["scl_slope"]
    return clean


def _declared_shape(path: Path, raw: Header) -> tuple[int, ...]:
    dim = [int(value) for value in raw["dim"]]
    if not 1 <= dim[0] <= 7:
        fail(path, f"bad dimension: dim[0] is {dim[0]}, not 1 to 7", "get an intact copy (the header is damaged)")
    shape = tuple(dim[1 : dim[0] + 1])
    if min(shape) < 1:
        fail(path, f"bad dimension: the size is {shape}", "get an intact copy (the header is damaged)")
    if len(shape) == 1:
        fail(path, "1-D data, not an image", "give a volume with 2 to 4 dimensions")
    if _product(shape[4:]) > 1:
        fail(path, f"vector data of size {shape} are not supported", "give each component as its own volume")
    return shape[:4]


def _declared_dtype(path: Path, raw: Header, warnings: list[str]) -> np.dtype:
    code = int(raw["datatype"])
    if code in _REFUSED_TYPES:
        fail(path, *_REFUSED_TYPES[code])
    if code not in _NUMERIC_TYPES:
        fail(path, f"unknown datatype {code}", "get an intact copy (the header is damaged)")
    dtype = np.dtype(raw.endianness + _NUMERIC_TYPES[code])
    if (bitpix := int(raw["bitpix"])) != dtype.itemsize * 8:
        warnings.append(f"bitpix is {bitpix} but the datatype has {dtype.itemsize * 8} bits; the datatype is used")
    return dtype


def _declared_offset(path: Path, raw: Header, paired: bool, warnings: list[str]) -> int:
    offset, least = float(raw["vox_offset"]), 0
    if not paired:
        least = 544 if isinstance(raw, Nifti2Header) else 352
    if not np.isfinite(offset):
        fail(path, f"vox_offset is {offset}", "get an intact copy (the header is damaged)")
    if offset < least:
        warnings.append(f"vox_offset is {offset:g}, inside the header; {least} is used")
        return least
    return int(offset)


def _declared_scaling(path: Path, raw: Header, warnings: list[str]) -> tuple[float, float]:
    """Slope and intercept from stored to real values; (1, 0) if the header has no usable slope."""
    slope, intercept = float(raw["scl_slope"]), float(raw["scl_inter"])
    if slope == 0:
        return 1.0, 0.0
    if not np.isfinite(slope):
        warnings.append(f"scl_slope is {slope}; the stored values are used unscaled")
        return 1.0, 0.0
    if not np.isfinite(intercept):
        fail(path, f"scl_inter is {intercept} with scl_slope {slope:g}", "correct the header")
    return slope, intercept


def _read_extensions(source: Source, layout: Layout) -> None:
    """Attach the intact header extensions to the raw header as opaque bytes and move to the voxels."""
    header = layout.header
    start = 540 if isinstance(header, Nifti2Header) else 348
    if layout.paired:
        region = source.read(min(max(source.room - start, 0), MAX_EXTRA_BYTES))
    else:
        region = read_gap(source, layout, layout.offset - start)
    if region[:1] in (b"", b"\0"):
        return
    order: Literal["little", "big"] = "little" if header.endianness == "<" else "big"
    at = 4
    while at + 8 <= len(region) and any(region[at:]):
        size, code = (int.from_bytes(region[at + i : at + i + 4], order, signed=True) for i in (0, 4))
        if size < 16 or size % 16 or size > len(region) - at:
            layout.warnings.append("a damaged header extension is dropped")
            return
        header.extensions.append(Nifti1Extension(code, region[at + 8 : at + size]))
        at += size


def drop_extensions(header: Header, warnings: list[str]) -> None:
    """Remove the extensions that may describe the grid, which will not be that of a result, and say which."""
    dropped = [item.get_code() for item in header.extensions if item.get_code() not in _KEPT_EXTENSIONS]
    header.extensions[:] = [item for item in header.extensions if item.get_code() in _KEPT_EXTENSIONS]
    if dropped:
        names = (
            f"{extension_codes.label[code]} ({code})" if code in _KNOWN_EXTENSIONS else str(code) for code in dropped
        )
        listed = ", ".join(dict.fromkeys(names))
        warnings.append(f"header extensions that may describe the old grid are not copied: {listed}")


def _product(shape: Sequence[int]) -> int:
    """Product in Python integers, so that a hostile header cannot overflow it."""
    result = 1
    for length in shape:
        result *= int(length)
    return result
