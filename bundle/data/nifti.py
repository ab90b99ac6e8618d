"""Reading and writing NIfTI volumes without silent repair.

Common readers fill cut files with zeros, drop the imaginary part of complex data, ignore the unit of length and
trust any affine. Here every file is either read as its header says, read with a warning that names what was
doubtful, or refused with one clear line. Sizes are checked before memory is taken, gzip streams are read to the
end so that their checksum is verified, and files are written under a temporary name and then renamed.

The module keeps the whole format in one place (headers, voxels, output, the MONAI adapter), hence its length.
"""

from __future__ import annotations

import gzip
import logging
import os
import secrets
import stat
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import IO, Any, Literal, NoReturn, TypeAlias

import numpy as np
from monai.data import ImageReader
from monai.utils import MetaKeys, SpaceKeys
from nibabel.nifti1 import Nifti1Extension, Nifti1Header
from nibabel.nifti2 import Nifti2Header
from nibabel.quaternions import fillpositive, quat2mat
from nibabel.volumeutils import shape_zoom_affine

PathLike: TypeAlias = str | os.PathLike[str]
Header: TypeAlias = Nifti1Header | Nifti2Header
NonFinite: TypeAlias = Literal["error", "zero"]

MAX_BYTES = 16 * 2**30
"""Largest size of the stored voxels that is read by default (16 GiB); `read_volume(max_bytes=...)` changes it."""

MAX_EXTRA_BYTES = 64 * 2**20
"""Largest size of the header extensions, and of what may follow the voxels in a gzip stream (64 MiB)."""

DEFLATE_RATIO = 1032
"""Deflate cannot expand more than this, so a small gzip file that declares a huge volume is refused unread."""

FORM_TOLERANCE = 0.05
"""sform and qform disagree when they place a corner further apart than this part of the smallest voxel."""

PLAUSIBLE_MM = (1e-6, 1e6)
"""Voxel sizes outside this range (1 nm to 1 km) are damage, not geometry."""

_CHUNK = 4 * 2**20
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
_MM_PER_UNIT = {1: ("metre", 1000.0), 3: ("micron", 0.001)}
_QFORM_FIELDS = ("quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y", "qoffset_z")
_KEPT_FIELDS = (
    *("dim_info", "intent_p1", "intent_p2", "intent_p3", "intent_code", "intent_name"),
    *("toffset", "descrip", "aux_file"),
)

_log = logging.getLogger("iconet")
_already_logged: set[tuple[str, str]] = set()


class VolumeError(ValueError):
    """A volume that cannot be read or written.

    The message is one line: "<path>: <what is wrong>; <what to do>".
    """


@dataclass(frozen=True, eq=False)
class Volume:
    """A volume in memory.

    Attributes:
        path: the file it was read from.
        array: float32 voxels, shape (X, Y), (X, Y, Z) or (X, Y, Z, T), in the file's scaled units, all finite.
        affine: float64 (4, 4), voxel index to world (RAS), millimetres.
        header: little-endian NIfTI header with repaired geometry in millimetres; `write_volume(like=...)` takes it.
        warnings: what was doubtful in the file, one line each, without the path.
    """

    path: Path
    array: np.ndarray
    affine: np.ndarray
    header: Header
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class _Geometry:
    """The world frames of a header in mm; a form is None where its code is 0. `affine` is the one to use."""

    affine: np.ndarray
    sform: np.ndarray | None
    qform: np.ndarray | None
    sform_code: int
    qform_code: int


@dataclass(eq=False)
class _Layout:
    """What a header declares: where the voxels are and what they mean."""

    header: Header
    shape: tuple[int, ...]
    dtype: np.dtype
    offset: int
    slope: float
    intercept: float
    geometry: _Geometry
    paired: bool
    warnings: list[str] = field(default_factory=list)

    @property
    def voxel_bytes(self) -> int:
        return _product(self.shape) * self.dtype.itemsize

    @property
    def scaled(self) -> bool:
        return (self.slope, self.intercept) != (1.0, 0.0)


def read_volume(path: PathLike, nonfinite: NonFinite = "error", *, max_bytes: int = MAX_BYTES) -> Volume:
    """Read a NIfTI-1, NIfTI-2, .hdr/.img or Analyze 7.5 volume, plain or gzip, completely checked.

    The sform gives the affine where it is usable, else the qform; without either the affine is nibabel's default
    (x to the left, centred) and a warning says so. Lengths are converted to millimetres.

    Args:
        path: the file (.hdr or .img for a pair). Content, not name, decides what it is.
        nonfinite: "error" refuses NaN and infinite voxels; "zero" sets them to 0 with a warning.
        max_bytes: largest accepted size of the stored voxels.

    Raises:
        VolumeError: the file cannot be read as the volume that its header declares.
    """
    if nonfinite not in ("error", "zero"):
        raise ValueError(f"nonfinite must be 'error' or 'zero', got {nonfinite!r}")
    header_path, image_path = _pair_paths(Path(path))
    with _open_stream(header_path) as source:
        layout = _read_layout(source)
        if not layout.paired:
            stored = _read_voxels(source, layout, max_bytes)
    if layout.paired:
        stored = _read_paired_voxels(header_path, image_path, layout, max_bytes)
    array = _to_float32(stored, layout, header_path, nonfinite)
    return Volume(header_path, array, layout.geometry.affine, _clean_header(layout), tuple(layout.warnings))


def read_header(path: PathLike) -> Header:
    """Read the header of a volume without its voxels, repaired as in `Volume.header`.

    Raises:
        VolumeError: the header is unusable, or the file is too small for what it declares.
    """
    header_path, _ = _pair_paths(Path(path))
    with _open_stream(header_path) as source:
        layout = _read_layout(source)
        if not layout.paired:
            _check_room(source, layout, MAX_BYTES)
    return _clean_header(layout)


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
        _fail(target, "the output name does not end with .nii or .nii.gz", "choose such a name")
    if source is not None and _same_file(target, Path(source)):
        _fail(target, "the output is the input file", "choose another output folder or suffix")
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
        _fail(target, wrong, "check the folder, its access rights and the free space", error)
    return target


class NiftiVolumeReader(ImageReader):
    """`read_volume` as a reader for `monai.transforms.LoadImage(d)`.

    The metadata has the keys of MONAI's NibabelReader: the header fields, `affine`, `original_affine`,
    `spatial_shape`, `original_channel_dim` (NaN, "no channel", for 2-D and 3-D; -1 for 4-D, so that
    EnsureChannelFirst moves T to the channels), and `warnings` (joined by "; ", empty if none). Each warning is
    logged once per process to the logger "iconet".

    Args:
        nonfinite: as in `read_volume`.
    """

    def __init__(self, nonfinite: NonFinite = "error") -> None:
        super().__init__()
        self.nonfinite = nonfinite

    def verify_suffix(self, filename: Sequence[PathLike] | PathLike) -> bool:
        """Whether every name ends like a NIfTI or Analyze file."""
        endings = (".nii", ".nii.gz", ".hdr", ".img")
        return all(str(name).lower().endswith(endings) for name in _as_paths(filename))

    def read(self, data: Sequence[PathLike] | PathLike, **kwargs: Any) -> tuple[Path, ...]:
        """Only note the path; `get_data` reads.

        LoadImage answers an exception raised here by trying its other readers, one of which would accept the bad
        file. An exception raised in `get_data` reaches the caller.
        """
        return _as_paths(data)

    def get_data(self, img: Sequence[Path]) -> tuple[np.ndarray, dict]:
        """Read the one file of `img`: the float32 array (X, Y[, Z[, T]]) and its metadata.

        Raises:
            VolumeError: as `read_volume`, or more than one file was given.
        """
        if len(img) != 1:
            _fail(img[0] if img else "?", f"{len(img)} files were given as one image", "give one file per item")
        volume = read_volume(img[0], self.nonfinite)
        for warning in volume.warnings:
            if (key := (str(volume.path), warning)) not in _already_logged:
                _already_logged.add(key)
                _log.warning("%s: %s", *key)
        # Text fields of the header cannot be collated into a batch; NibabelReader drops them as well.
        meta: dict = {k: v for k, v in dict(volume.header).items() if v.dtype.kind not in "SUO"}
        meta[MetaKeys.ORIGINAL_PIXDIM] = np.array(meta[MetaKeys.PIXDIM])
        meta[MetaKeys.AFFINE] = volume.affine.copy()
        meta[MetaKeys.ORIGINAL_AFFINE] = volume.affine.copy()
        meta["as_closest_canonical"] = False
        meta[MetaKeys.SPATIAL_SHAPE] = np.asarray(volume.array.shape[:3])
        meta[MetaKeys.SPACE] = SpaceKeys.RAS
        meta[MetaKeys.ORIGINAL_CHANNEL_DIM] = -1 if volume.array.ndim == 4 else float("nan")
        meta["warnings"] = "; ".join(volume.warnings)
        return volume.array, meta


# ---------------------------------------------------------------------------------------------- errors and paths


def _fail(path: PathLike, wrong: str, remedy: str, cause: BaseException | None = None) -> NoReturn:
    line = f"{os.fspath(path)}: {wrong}; {remedy}".replace("\n", "\\n").replace("\r", "\\r")
    raise VolumeError(line) from cause


def _as_paths(names: Sequence[PathLike] | PathLike) -> tuple[Path, ...]:
    return (Path(names),) if isinstance(names, (str, os.PathLike)) else tuple(Path(name) for name in names)


def _product(shape: Sequence[int]) -> int:
    """Product in Python integers: a hostile header must not overflow."""
    result = 1
    for length in shape:
        result *= int(length)
    return result


def _pair_paths(path: Path) -> tuple[Path, Path]:
    """The header file and the image file; the same one unless the name ends with .hdr or .img."""
    name = path.name.lower().removesuffix(".gz")
    if name.endswith(".img"):
        return _sibling(path, "hdr"), path
    if name.endswith(".hdr"):
        return path, _sibling(path, "img")
    return path, path


def _sibling(path: Path, extension: str) -> Path:
    """`scan.hdr` for `scan.img` and the reverse; letter case and a .gz ending may differ between the two."""
    stem = path.name[: path.name.lower().rindex(".hdr" if extension == "img" else ".img")]
    wanted = [f"{stem}.{extension}".casefold(), f"{stem}.{extension}.gz".casefold()]
    with suppress(OSError):
        found = [entry for entry in sorted(path.parent.iterdir()) if entry.name.casefold() in wanted]
        if found:
            return min(found, key=lambda entry: (entry.name[: len(stem)] != stem, wanted.index(entry.name.casefold())))
    return path.with_name(f"{stem}.{extension}")


def _same_file(first: Path, second: Path) -> bool:
    if os.path.realpath(first) == os.path.realpath(second):
        return True
    with suppress(OSError):
        return os.path.samefile(first, second)
    return False


# ------------------------------------------------------------------------------------------------------- streams


@dataclass(eq=False)
class _Source:
    """An open file: `stream` gives its (decompressed) bytes in order, `room` bounds how many there can be."""

    path: Path
    stream: IO[bytes]
    size: int
    packed: bool

    @property
    def room(self) -> int:
        return self.size * DEFLATE_RATIO if self.packed else self.size

    def read(self, count: int) -> bytes:
        return self.stream.read(count)


@contextmanager
def _open_stream(path: Path) -> Iterator[_Source]:
    """Open a regular file, gzip or not by its first bytes; what goes wrong while it is read becomes VolumeError."""
    try:
        size = _regular_file_size(path)
        with open(path, "rb") as raw:
            packed = raw.read(2) == b"\x1f\x8b"
            raw.seek(0)
            if packed:
                with gzip.GzipFile(fileobj=raw, mode="rb") as stream:
                    yield _Source(path, stream, size, True)  # type: ignore[arg-type]
            else:
                yield _Source(path, raw, size, False)
    except EOFError as error:
        _fail(path, "truncated gzip file (it ends before its end mark)", "copy or download it again", error)
    except (gzip.BadGzipFile, zlib.error) as error:
        _fail(path, f"damaged gzip file ({error})", "copy or download it again", error)
    except PermissionError as error:
        _fail(path, "permission denied", "check the access rights", error)
    except OSError as error:
        _fail(path, f"cannot be read ({error.strerror or error})", "check the file and the disk", error)


def _regular_file_size(path: Path) -> int:
    try:
        info = path.stat()
    except FileNotFoundError:
        if path.is_symlink():
            _fail(path, f"dangling link to {os.readlink(path)}", "fetch the file that it points to")
        _fail(path, "no such file", "check the name")
    if stat.S_ISDIR(info.st_mode):
        _fail(path, "is a directory, not a file", "give the volume inside it")
    if not stat.S_ISREG(info.st_mode):
        _fail(path, "is not a regular file", "give a NIfTI file")
    if info.st_size == 0:
        _fail(path, "empty file (0 bytes)", "copy or download it again")
    return info.st_size


def _check_room(source: _Source, layout: _Layout, max_bytes: int) -> None:
    """Refuse a declared size that the file cannot hold or that exceeds the limit, before any memory is taken."""
    path, needed, found = source.path, layout.voxel_bytes, source.room - layout.offset
    shape = "x".join(map(str, layout.shape))
    if found < 0:
        _fail(path, f"vox_offset {layout.offset} lies beyond the end of the file", "get a sound copy of it")
    if found < needed and source.packed:
        wrong = f"the header declares {needed} bytes ({shape}), more than {source.size} bytes of gzip can hold"
        _fail(path, wrong, "get a sound copy of it")
    if found < needed:
        _fail(path, f"image data are cut: {needed} bytes expected ({shape}), {found} found", "get it again")
    if needed > max_bytes:
        _fail(path, f"{needed} bytes of voxels ({shape}) exceed the limit of {max_bytes}", "raise max_bytes or crop it")


def _read_voxels(source: _Source, layout: _Layout, max_bytes: int) -> np.ndarray:
    """The stored voxels as a flat array in file order; the source stands at the first of them."""
    _check_room(source, layout, max_bytes)
    needed = layout.voxel_bytes
    try:
        buffer = np.empty(needed, np.uint8)
    except MemoryError as error:
        _fail(source.path, f"{needed} bytes of voxels do not fit in memory", "crop or split the volume", error)
    view, filled = buffer.data, 0
    while filled < needed:
        count = source.stream.readinto(view[filled : filled + _CHUNK])  # type: ignore[attr-defined]
        if not count:
            wrong = f"image data are cut: {needed} bytes expected, {filled} found"
            _fail(source.path, wrong, "copy or download it again")
        filled += count
    extra = _drain(source, layout) if source.packed else source.size - layout.offset - needed
    if extra:
        layout.warnings.append(f"{extra} bytes after the image data are ignored")
    return buffer.view(layout.dtype)


def _drain(source: _Source, layout: _Layout) -> int:
    """Read a gzip stream to its end, where the checksum is compared; return the number of bytes found."""
    extra = 0
    while True:
        try:
            block = source.read(_CHUNK)
        except gzip.BadGzipFile as error:
            if "Not a gzipped file" not in str(error):
                raise
            # The stream itself ended well (its checksum was compared before this); other bytes follow it.
            layout.warnings.append("bytes after the gzip stream are ignored")
            return extra
        if not block:
            return extra
        extra += len(block)
        if extra > MAX_EXTRA_BYTES:
            _fail(source.path, f"more than {MAX_EXTRA_BYTES} bytes follow the image data", "get a sound copy of it")


def _read_paired_voxels(header_path: Path, image_path: Path, layout: _Layout, max_bytes: int) -> np.ndarray:
    if image_path == header_path:
        _fail(header_path, "bad magic: this is the header of a .hdr/.img pair", "give the .hdr with its .img")
    with _open_stream(image_path) as source:
        _read_gap(source, layout, layout.offset)
        return _read_voxels(source, layout, max_bytes)


# ------------------------------------------------------------------------------------------------------- headers


def _read_layout(source: _Source) -> _Layout:
    """Parse and check the header at the start of `source`; leaves the source at the voxels (single file)."""
    path, warnings = source.path, []
    if source.packed != path.name.lower().endswith(".gz"):
        kind = "gzip-compressed" if source.packed else "not compressed"
        warnings.append(f"the file is {kind}, unlike its name says; it is read by its content")
    raw, paired = _parse_header(source, warnings)
    shape = _declared_shape(path, raw)
    dtype = _declared_dtype(path, raw, warnings)
    offset = _declared_offset(path, raw, paired, warnings)
    slope, intercept = _declared_scaling(path, raw, warnings)
    geometry = _read_geometry(path, raw, warnings)
    layout = _Layout(raw, shape, dtype, offset, slope, intercept, geometry, paired, warnings)
    _read_extensions(source, layout)
    return layout


def _parse_header(source: _Source, warnings: list[str]) -> tuple[Header, bool]:
    """The raw header in the file's byte order, and whether the voxels are in another file."""
    path = source.path
    block = source.read(348)
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
            _fail(path, f"the header is cut: {wanted} bytes expected, {len(block)} found", "copy or download it again")
        _fail(path, "not a NIfTI file", "give a .nii, .nii.gz or .hdr/.img volume")
    if magic in (b"n+1\0", b"n+2\0", b"ni1\0", b"ni2\0"):
        if size != wanted:
            warnings.append(f"sizeof_hdr is {size} instead of {wanted}; the header is read by its magic")
        return cls(block, endianness=order, check=False), magic.startswith(b"ni")
    if size == 348 and path.name.lower().removesuffix(".gz").endswith(".hdr"):
        warnings.append("Analyze 7.5 header: orientation unknown")
        return _from_analyze(Nifti1Header(block, endianness=order, check=False)), True
    if size in (348, 540):
        _fail(path, f"bad magic {magic!r} in the NIfTI header", "the file is damaged or not NIfTI, get it again")
    _fail(path, "not a NIfTI file (no NIfTI magic, no header size)", "give a .nii, .nii.gz or .hdr/.img volume")


def _byte_order(block: bytes) -> str:
    for order, name in (("<", "little"), (">", "big")):
        if int.from_bytes(block[:4], name, signed=True) in (348, 540):  # type: ignore[arg-type]
            return order
    # A wrong sizeof_hdr: the number of dimensions decides, as the standard says.
    return "<" if 1 <= int.from_bytes(block[40:42], "little") <= 7 else ">"


def _from_analyze(raw: Header) -> Nifti1Header:
    """Keep the fields that Analyze 7.5 and NIfTI-1 share; the rest of the block has other meanings."""
    clean = Nifti1Header(endianness=raw.endianness)
    for name in ("dim", "datatype", "bitpix", "pixdim", "vox_offset", "descrip"):
        clean[name] = raw[name]
    # SPM wrote a factor here; other programs leave 0, which means none.
    clean["scl_slope"] = raw["scl_slope"]
    return clean


def _declared_shape(path: Path, raw: Header) -> tuple[int, ...]:
    dim = [int(value) for value in raw["dim"]]
    if not 1 <= dim[0] <= 7:
        _fail(path, f"bad dimension: dim[0] is {dim[0]}, not 1 to 7", "the header is damaged, get the file again")
    shape = tuple(dim[1 : dim[0] + 1])
    if min(shape) < 1:
        _fail(path, f"bad dimension: the size is {shape}", "the header is damaged, get the file again")
    if len(shape) == 1:
        _fail(path, "1-D data, not an image", "give a volume of 2 to 4 dimensions")
    if _product(shape[4:]) > 1:
        _fail(path, f"vector data of size {shape} are not supported", "give each component as its own volume")
    return shape[:4]


def _declared_dtype(path: Path, raw: Header, warnings: list[str]) -> np.dtype:
    code = int(raw["datatype"])
    if code in _REFUSED_TYPES:
        _fail(path, *_REFUSED_TYPES[code])
    if code not in _NUMERIC_TYPES:
        _fail(path, f"unknown datatype {code}", "the header is damaged, get the file again")
    dtype = np.dtype(raw.endianness + _NUMERIC_TYPES[code])
    if (bitpix := int(raw["bitpix"])) != dtype.itemsize * 8:
        warnings.append(f"bitpix is {bitpix} but the datatype has {dtype.itemsize * 8} bits; the datatype is used")
    return dtype


def _declared_offset(path: Path, raw: Header, paired: bool, warnings: list[str]) -> int:
    offset, least = float(raw["vox_offset"]), 0
    if not paired:
        least = 544 if isinstance(raw, Nifti2Header) else 352
    if not np.isfinite(offset):
        _fail(path, f"vox_offset is {offset}", "the header is damaged, get the file again")
    if offset < least:
        warnings.append(f"vox_offset is {offset:g}, inside the header; {least} is used")
        return least
    return int(offset)


def _declared_scaling(path: Path, raw: Header, warnings: list[str]) -> tuple[float, float]:
    """Slope and intercept of stored to real values; (1, 0) where the header gives no usable slope."""
    slope, intercept = float(raw["scl_slope"]), float(raw["scl_inter"])
    if slope == 0:
        return 1.0, 0.0
    if not np.isfinite(slope):
        warnings.append(f"scl_slope is {slope}; the stored values are used unscaled")
        return 1.0, 0.0
    if not np.isfinite(intercept):
        _fail(path, f"scl_inter is {intercept} with scl_slope {slope:g}", "correct the header")
    return slope, intercept


def _read_extensions(source: _Source, layout: _Layout) -> None:
    """Attach the sound header extensions to the raw header as opaque bytes and move to the voxels."""
    header = layout.header
    start = 540 if isinstance(header, Nifti2Header) else 348
    if layout.paired:
        region = source.read(min(max(source.room - start, 0), MAX_EXTRA_BYTES))
    else:
        region = _read_gap(source, layout, layout.offset - start)
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


def _read_gap(source: _Source, layout: _Layout, count: int) -> bytes:
    """The bytes before the voxels; a damaged vox_offset may ask for absurdly many."""
    if count > MAX_EXTRA_BYTES:
        _check_room(source, layout, MAX_BYTES)
        _fail(source.path, f"vox_offset {layout.offset} leaves a huge gap before the voxels", "get a sound copy of it")
    return source.read(count)


# ------------------------------------------------------------------------------------------------------ geometry


def _read_geometry(path: PathLike, raw: Header, warnings: list[str]) -> _Geometry:
    """Choose the world frame: a usable sform, else a usable qform, else (both codes 0) nibabel's default.

    A form that is declared but unusable takes the place and the code of the other one.
    """
    shape, unit = _lengths(raw), _unit_factor(raw, warnings)
    zooms, zooms_ok = _zooms(raw, unit)
    codes = {form: _form_code(raw, form, warnings) for form in ("sform", "qform")}
    sform = _usable(unit, _raw_sform(raw) if codes["sform"] else None)
    qform = _usable(unit, _raw_qform(raw, zooms) if codes["qform"] and zooms_ok else None)
    if sform is not None:
        _compare_forms(raw, sform, qform, unit, warnings)
        if codes["qform"] and qform is None:
            return _Geometry(sform, sform, sform, codes["sform"], codes["sform"])
        return _Geometry(sform, sform, qform, codes["sform"], codes["qform"])
    if qform is not None:
        if not _positive_zooms(raw):
            warnings.append("a voxel size is not positive; its absolute value is used with the qform")
        if codes["sform"]:
            warnings.append("the sform is singular, not finite or implausible; the qform is used")
            return _Geometry(qform, qform, qform, codes["qform"], codes["qform"])
        return _Geometry(qform, None, qform, 0, codes["qform"])
    if any(codes.values()):
        wrong = "no usable orientation: the sform or qform is singular, not finite or of implausible voxel size"
        _fail(path, wrong, "correct the header")
    warnings.append("no sform and no qform: position and orientation are unknown")
    if not zooms_ok:
        warnings.append("the voxel size is missing or implausible along an axis; 1 is assumed there")
    return _Geometry(unit @ shape_zoom_affine(shape, zooms, x_flip=True), None, None, 0, 0)


def _compare_forms(
    raw: Header, sform: np.ndarray, qform: np.ndarray | None, unit: np.ndarray, warnings: list[str]
) -> None:
    """Warn where the rest of the header contradicts the sform that is used."""
    lengths = _lengths(raw)
    sizes = np.linalg.norm(sform[:3, :3], axis=0)
    stored = np.abs(raw["pixdim"][1:4].astype(np.float64)) * np.diag(unit)[:3]
    if not _positive_zooms(raw):
        warnings.append("pixdim is zero, negative or not finite; the voxel size of the sform is used")
    elif qform is None and not np.allclose(stored[lengths > 1], sizes[lengths > 1], rtol=1e-3):
        warnings.append(f"pixdim {_numbers(stored)} mm, but {_numbers(sizes)} mm by the sform; the sform is used")
    if qform is None:
        return
    distance = _corner_distance(sform, qform, lengths)
    if distance > FORM_TOLERANCE * sizes.min() + _quaternion_precision(raw) * np.linalg.norm(sizes * lengths):
        warnings.append(f"sform and qform differ by up to {distance:.3g} mm; the sform is used")


def _form_code(raw: Header, form: str, warnings: list[str]) -> int:
    code = int(raw[f"{form}_code"])
    if 0 <= code <= 5:
        return code
    warnings.append(f"unknown {form}_code {code}; it counts as {2 if code > 0 else 0}")
    return 2 if code > 0 else 0


def _numbers(values: np.ndarray) -> str:
    return "(" + ", ".join(f"{value:.4g}" for value in values) + ")"


def _unit_factor(raw: Header, warnings: list[str]) -> np.ndarray:
    """diag(f, f, f, 1) that takes the header's unit of length to mm; an unknown unit counts as mm."""
    code = int(raw["xyzt_units"]) & 7
    if code in _MM_PER_UNIT:
        name, factor = _MM_PER_UNIT[code]
        warnings.append(f"lengths are given in {name}; converted to mm")
        return np.diag([factor, factor, factor, 1.0])
    if code not in (0, 2):
        warnings.append(f"unknown unit of length {code}; mm is assumed")
    return np.eye(4)


def _lengths(raw: Header) -> np.ndarray:
    """Voxels along x, y, z; 1 along an axis that the volume does not have."""
    return np.where(np.arange(3) < int(raw["dim"][0]), raw["dim"][1:4], 1).astype(np.int64)


def _positive_zooms(raw: Header) -> bool:
    """Whether each axis longer than one voxel has a finite positive pixdim."""
    sizes = raw["pixdim"][1:4]
    return bool(np.all((np.isfinite(sizes) & (sizes > 0)) | (_lengths(raw) == 1)))


def _zooms(raw: Header, unit: np.ndarray) -> tuple[np.ndarray, bool]:
    """Absolute voxel sizes, 1 where unusable, and whether each axis longer than one voxel has a usable one."""
    sizes = np.abs(raw["pixdim"][1:4].astype(np.float64))
    usable = _plausible(sizes * np.diag(unit)[:3])
    return np.where(usable, sizes, 1.0), bool(np.all(usable | (_lengths(raw) == 1)))


def _plausible(sizes: np.ndarray) -> np.ndarray:
    """Which voxel sizes in mm are finite, positive and of a size that occurs."""
    return np.isfinite(sizes) & (sizes >= PLAUSIBLE_MM[0]) & (sizes <= PLAUSIBLE_MM[1])


def _raw_sform(raw: Header) -> np.ndarray:
    rows = [raw["srow_x"], raw["srow_y"], raw["srow_z"], [0, 0, 0, 1]]
    return np.array([[float(value) for value in row] for row in rows])


def _raw_qform(raw: Header, zooms: np.ndarray) -> np.ndarray | None:
    quaternion = np.array([raw["quatern_b"], raw["quatern_c"], raw["quatern_d"]], dtype=np.float64)
    if not np.all(np.isfinite(quaternion)):
        return None
    try:
        # The threshold allows for the rounding of a stored unit quaternion.
        rotation = quat2mat(fillpositive(quaternion, raw.quaternion_threshold))
    except ValueError:
        return None
    # The standard: pixdim[0] is the handedness, -1 flips the third axis, anything else counts as 1.
    flip = -1.0 if float(raw["pixdim"][0]) < 0 else 1.0
    affine = np.eye(4)
    affine[:3, :3] = rotation * (zooms * [1.0, 1.0, flip])
    affine[:3, 3] = [float(raw[f"qoffset_{axis}"]) for axis in "xyz"]
    return affine


def _quaternion_precision(raw: Header) -> float:
    """Angle in rad by which the rounding of a stored quaternion may turn the volume.

    The first component is not stored but follows from the unit length, so near half a turn (where it vanishes) an
    error e of the others becomes sqrt(e): 1e-3 in NIfTI-1, which is no conflict of the two forms.
    """
    eps = float(np.finfo(raw["quatern_b"].dtype).eps)
    squares = sum(float(raw[name]) ** 2 for name in _QFORM_FIELDS[:3])
    return 4 * eps / max(1 - squares, eps) ** 0.5


def _usable(unit: np.ndarray, affine: np.ndarray | None) -> np.ndarray | None:
    """`affine` in mm if it is finite, far from singular and of plausible voxel size; else None."""
    # The bound (which NaN fails too) keeps the arithmetic with a damaged matrix of float64 from overflowing.
    if affine is None or not np.all(np.abs(affine) < 1e12):
        return None
    affine = unit @ affine
    sizes = np.linalg.norm(affine[:3, :3], axis=0)
    if not np.all(_plausible(sizes)) or abs(np.linalg.det(affine[:3, :3] / sizes)) < 1e-6:
        return None
    return affine


def _corner_distance(first: np.ndarray, second: np.ndarray, lengths: np.ndarray) -> float:
    """Largest distance in mm between the places that two affines give to the corners of the grid."""
    corners = np.array([(*corner, 1.0) for corner in np.ndindex(2, 2, 2)]) * [*(lengths - 1), 1]
    return float(np.linalg.norm((corners @ (first - second).T)[:, :3], axis=1).max())


def _store_geometry(header: Header, geometry: _Geometry, time_unit: int) -> None:
    """Put both forms, their codes, the voxel size and the units into `header`; a sheared qform gets code 0."""
    header["xyzt_units"] = 2 | time_unit
    header["pixdim"][:4] = [1.0, *np.linalg.norm(geometry.affine[:3, :3], axis=0)]
    # A form without a code must not look like one.
    for name in (*_QFORM_FIELDS, "qform_code"):
        header[name] = 0
    sform, sform_code = geometry.sform, geometry.sform_code
    if geometry.qform is not None:
        stored = _set_qform(header, geometry.qform, geometry.qform_code)
        if not stored and sform is None:
            # The only frame of the source, and the sform alone can hold it.
            sform, sform_code = geometry.qform, geometry.qform_code
    header["sform_code"] = 0 if sform is None else sform_code
    for index, name in enumerate(("srow_x", "srow_y", "srow_z")):
        header[name] = 0 if sform is None else sform[index]


def _set_qform(header: Header, affine: np.ndarray, code: int) -> bool:
    """Store `affine` as qform unless it is sheared, which a quaternion cannot express."""
    trial = Nifti2Header()
    trial.set_qform(affine)
    sizes = np.linalg.norm(affine[:3, :3], axis=0)
    if _corner_distance(trial.get_qform(), affine, _lengths(header)) > FORM_TOLERANCE * sizes.min():
        return False
    for name in _QFORM_FIELDS:
        header[name] = trial[name]
    header["pixdim"][:4] = trial["pixdim"][:4]
    header["qform_code"] = code
    return True


def _clean_header(layout: _Layout) -> Header:
    """The header of `Volume`: little endian, single file, repaired geometry in mm, no scaling, sound extensions."""
    extensions = list(layout.header.extensions)
    header = layout.header.as_byteswapped("<")
    # Not set_data_shape: it would reset the TR of a 3-D volume.
    header["dim"] = [len(layout.shape), *layout.shape, *[1] * (7 - len(layout.shape))]
    header["sizeof_hdr"] = 540 if isinstance(header, Nifti2Header) else 348
    header["magic"] = header.single_magic
    header["bitpix"] = layout.dtype.itemsize * 8
    header["vox_offset"] = 0
    header["scl_slope"], header["scl_inter"] = 1, 0
    header["pixdim"][4:] = _finite_or_zero(header["pixdim"][4:])
    _store_geometry(header, layout.geometry, int(header["xyzt_units"]) & 0x38)
    header.extensions[:] = extensions
    return header


def _finite_or_zero(values: np.ndarray) -> np.ndarray:
    """`values` with 0 for what float32 cannot hold."""
    return np.where(np.abs(values) < np.finfo(np.float32).max, values, 0)


def _copy_field(header: Header, like: Header, name: str) -> None:
    """Copy one field; damage in a NIfTI-2 header may not fit into NIfTI-1 and is left out."""
    value = like[name]
    if value.dtype.kind == "f":
        value = _finite_or_zero(value)
    if value.dtype.kind != "i" or np.iinfo(header[name].dtype).min <= value <= np.iinfo(header[name].dtype).max:
        header[name] = value


# -------------------------------------------------------------------------------------------------------- voxels


def _to_float32(stored: np.ndarray, layout: _Layout, path: Path, nonfinite: NonFinite) -> np.ndarray:
    """Scale in float64, check, and convert to float32, piece by piece to bound the memory."""
    result = np.empty(stored.size, np.float32)
    nans = infs = beyond = 0
    peak = 0.0
    for at in range(0, stored.size, _CHUNK):
        piece = stored[at : at + _CHUNK]
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
            result[at : at + _CHUNK] = piece
    _check_finite(path, layout, stored.size, (nans, infs), nonfinite)
    if beyond:
        _fail(path, f"{beyond} voxels exceed the range of float32 (peak {peak:.3g})", "rescale the volume")
    _check_values(path, layout, result, peak)
    return result.reshape(layout.shape, order="F")


def _check_finite(path: Path, layout: _Layout, total: int, counts: tuple[int, int], nonfinite: NonFinite) -> None:
    nans, infs = counts
    if nans + infs == 0:
        return
    found = f"{nans} NaN and {infs} infinite voxels of {total}"
    if nans + infs == total:
        _fail(path, f"{found}: nothing is left", "get a sound copy of the volume")
    if nonfinite == "error":
        _fail(path, found, "repair the volume or have them set to zero (nonfinite='zero')")
    layout.warnings.append(f"{found} are set to zero")


def _check_values(path: Path, layout: _Layout, values: np.ndarray, peak: float) -> None:
    if (layout.scaled or layout.dtype.itemsize > 4) and 0 < peak < np.finfo(np.float32).tiny:
        _fail(path, f"all values are too small for float32 (peak {peak:.3g})", "rescale the volume")
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
    return (flat[at : at + _CHUNK] for at in range(0, flat.size, _CHUNK))


# ------------------------------------------------------------------------------------------------------- writing


def _writable_array(target: Path, data: np.ndarray) -> np.ndarray:
    array = np.asarray(data)
    if array.ndim not in (2, 3, 4) or array.size == 0 or array.dtype.kind not in "biuf":
        wrong = f"cannot write an array of shape {array.shape} and type {array.dtype}"
        _fail(target, wrong, "give real numbers of 2 to 4 dimensions")
    with np.errstate(over="ignore"):
        array = array.astype("<f4", copy=False)
    if bad := int(array.size - np.isfinite(array).sum()):
        wrong = f"{bad} of {array.size} voxels to write are NaN, infinite or beyond float32"
        _fail(target, wrong, "check the input and the network")
    return array


def _output_header(target: Path, shape: tuple[int, ...], affine: np.ndarray, like: Header | None) -> Header:
    affine = np.asarray(affine, dtype=np.float64)
    if affine.shape != (4, 4) or _usable(np.eye(4), affine) is None:
        _fail(target, "the affine to write is not a finite, invertible 4x4 matrix", "check the geometry of the source")
    header = Nifti2Header(endianness="<") if max(shape) > np.iinfo(np.int16).max else Nifti1Header(endianness="<")
    header.set_data_dtype(np.float32)
    header.set_data_shape(shape)
    time_unit = 0
    geometry = _Geometry(affine, affine, affine, 2, 2)
    if like is not None:
        source = _read_geometry(target, like, [])
        step = np.linalg.inv(source.affine) @ affine
        geometry = _Geometry(
            affine,
            None if source.sform is None else affine,
            None if source.qform is None else source.qform @ step,
            source.sform_code,
            source.qform_code,
        )
        time_unit = int(like["xyzt_units"]) & 0x38
        for name in _KEPT_FIELDS:
            _copy_field(header, like, name)
        header["pixdim"][4:] = _finite_or_zero(like["pixdim"][4:])
        header.extensions[:] = list(like.extensions)
    _store_geometry(header, geometry, time_unit)
    header["scl_slope"], header["scl_inter"] = 1, 0
    return header


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
    step = max(1, _CHUNK * array.shape[-1] // array.nbytes)
    for at in range(0, array.shape[-1], step):
        stream.write(array[..., at : at + step].tobytes(order="F"))
