"""Generated NIfTI files of every odd kind: those that must be refused, and those read with or without warnings.

The ids name the kind of input; their numbers are the rows of docs/reliability.md.
"""

from __future__ import annotations

import gzip
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

AFFINE = np.array([[2.0, 0, 0, -10], [0, 2, 0, -20], [0, 0, 3, -30], [0, 0, 0, 1]])
SHAPE = (6, 5, 4)

# Byte offsets of NIfTI-1 fields.
OFFSETS = {
    **{"sizeof_hdr": 0, "dim": 40, "datatype": 70, "bitpix": 72, "pixdim": 76, "vox_offset": 108},
    **{"scl_slope": 112, "scl_inter": 116, "xyzt_units": 123, "descrip": 148, "qform_code": 252, "sform_code": 254},
    **{"quatern_b": 256, "srow_x": 280, "magic": 344, "extension": 348},
}


def voxels(shape: tuple[int, ...] = SHAPE, dtype: str = "int16") -> np.ndarray:
    return (np.arange(np.prod(shape)).reshape(shape) % 97).astype(dtype)


def image_bytes(
    data: np.ndarray | None = None,
    affine: np.ndarray = AFFINE,
    codes: tuple[int, int] = (1, 1),
    cls: type = nib.Nifti1Image,
) -> bytes:
    """A plain single-file image; `codes` are those of sform and qform."""
    image = cls(voxels() if data is None else data, affine, dtype=(voxels() if data is None else data).dtype)
    image.set_sform(affine, codes[0])
    image.set_qform(affine, codes[1])
    image.header.set_xyzt_units("mm", "sec")
    return image.to_bytes()


def patched(content: bytes, **fields: tuple[str, object]) -> bytes:
    """Overwrite little-endian header fields: name=(struct format, value or tuple of values)."""
    block = bytearray(content)
    for name, (code, value) in fields.items():
        packed = struct.pack("<" + code, *(value if isinstance(value, tuple) else (value,)))
        block[OFFSETS[name] : OFFSETS[name] + len(packed)] = packed
    return bytes(block)


def with_voxel(value: float, dtype: str = "float32") -> bytes:
    data = voxels(dtype=dtype)
    data[1, 2, 3] = value
    return image_bytes(data)


def rgb_bytes() -> bytes:
    data = np.zeros(SHAPE, dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")])
    return nib.Nifti1Image(data, AFFINE).to_bytes()


NAN = float("nan")
INF = float("inf")
GZ = gzip.compress(image_bytes(np.random.default_rng(0).normal(size=(20, 20, 20)).astype("float32")))
BAD_CRC = GZ[:-8] + bytes([GZ[-8] ^ 0xFF]) + GZ[-7:]
SINGULAR = (1.0, 0, 0, 0, 1.0, 0, 0, 0, 0, 0, 1.0, 0)

REFUSED: dict[str, tuple[str, bytes, str]] = {
    "row 1 empty file": ("a.nii", b"", "empty file"),
    "row 2 header cut": ("a.nii", image_bytes()[:200], "header is truncated: 348 bytes expected, 200 found"),
    "row 3 data cut": ("a.nii", image_bytes()[:-50], r"240 bytes expected \(6x5x4\), 190 found"),
    "row 3 data cut inside gzip": ("a.nii.gz", gzip.compress(image_bytes()[:-50]), "240 bytes expected, 190 found"),
    "row 4 gzip cut in half": ("a.nii.gz", GZ[: len(GZ) // 2], "truncated gzip"),
    "row 4 gzip cut in its header": ("a.nii.gz", GZ[:5], "truncated gzip"),
    "row 5 gzip checksum": ("a.nii.gz", BAD_CRC, "damaged gzip.*CRC"),
    "row 8 text file": ("a.nii", b"this is not an image\n" * 50, "not a NIfTI file"),
    "row 8 short text file": ("a.nii", b"hello\n", "not a NIfTI file"),
    "row 10 NaN": ("a.nii", with_voxel(NAN), "1 NaN and 0 infinite voxels of 120.*nonfinite"),
    "row 11 Inf": ("a.nii", with_voxel(-INF), "0 NaN and 1 infinite voxels of 120"),
    "row 12 all NaN": ("a.nii", image_bytes(np.full(SHAPE, NAN, "float32")), "120 NaN.*nothing is left"),
    "row 16 intercept NaN": ("a.nii", patched(image_bytes(), scl_slope=("2f", (2.0, NAN))), "scl_inter is nan"),
    "row 23 singular sform alone": (
        *("a.nii", patched(image_bytes(codes=(1, 0)), srow_x=("12f", SINGULAR))),
        "no usable orientation",
    ),
    "row 24 NaN sform alone": ("a.nii", patched(image_bytes(codes=(1, 0)), srow_x=("f", NAN)), "no usable orientation"),
    "row 19 pixdim 0 with qform alone": (
        *("a.nii", patched(image_bytes(codes=(0, 1)), pixdim=("4f", (1, 0, 2, 3)))),
        "no usable orientation",
    ),
    "row 23 implausible voxel size": (
        *("a.nii", patched(image_bytes(codes=(1, 0)), srow_x=("f", 1e30))),
        "implausible voxel size",
    ),
    "row 25 bad magic": ("a.nii", patched(image_bytes(), magic=("4s", b"xyz\0")), "bad magic"),
    "row 25 magic of a pair": ("a.nii", patched(image_bytes(), magic=("4s", b"ni1\0")), "bad magic"),
    "row 27 datatype 9999": ("a.nii", patched(image_bytes(), datatype=("h", 9999)), "unknown datatype 9999"),
    "row 29 no dimensions": ("a.nii", patched(image_bytes(), dim=("h", 0)), r"bad dimension: dim\[0\] is 0"),
    "row 30 negative dimension": ("a.nii", patched(image_bytes(), dim=("4h", (3, 6, -5, 4))), "bad dimension"),
    "row 30 negative rank": ("a.nii", patched(image_bytes(), dim=("h", -3)), "bad dimension"),
    "row 30 zero size": ("a.nii", patched(image_bytes(), dim=("4h", (3, 6, 0, 4))), "bad dimension"),
    "row 31 huge size": ("a.nii", patched(image_bytes(), dim=("4h", (3, *[32767] * 3))), "bytes expected.*240 found"),
    "row 32 offset beyond the end": (
        "a.nii",
        patched(image_bytes(), vox_offset=("f", 1e6)),
        "vox_offset 1000000 lies beyond",
    ),
    "row 32 absurd offset": ("a.nii", patched(image_bytes(), vox_offset=("f", 1e30)), "vox_offset .* lies beyond"),
    "row 32 offset NaN": ("a.nii", patched(image_bytes(), vox_offset=("f", NAN)), "vox_offset is nan"),
    "row 37 vector": ("a.nii", image_bytes(voxels((3, 3, 3, 1, 3))), "vector data"),
    "row 40 one dimension": ("a.nii", patched(image_bytes(), dim=("2h", (1, 120))), "1-D"),
    "row 41 RGB": ("a.nii", rgb_bytes(), "RGB"),
    "row 42 complex": ("a.nii", image_bytes(voxels().astype("complex64")), "complex.*magnitude"),
    "row 43 beyond float32": (
        "a.nii",
        with_voxel(1e300, "float64"),
        r"1 voxels exceed the range of float32 \(peak 1e\+300\)",
    ),
    "row 43 scaled beyond float32": ("a.nii", patched(image_bytes(), scl_slope=("2f", (3e38, 0))), "exceed the range"),
    "row 57 below float32": ("a.nii", image_bytes(voxels(dtype="float64") * 1e-300), "too small for float32"),
    "row 61 header of 1 GiB in a small gzip": (
        *("a.nii.gz", gzip.compress(patched(image_bytes(), dim=("4h", (3, 1024, 1024, 512))))),
        "more than .* bytes of gzip can hold",
    ),
}

SLOPE_2 = {"scl_slope": ("2f", (-2.0, 7.0))}

ACCEPTED: dict[str, tuple[str, bytes, str | None]] = {
    "row 6 plain named gz": ("a.nii.gz", image_bytes(), "not compressed"),
    "row 7 gzip named nii": ("a.nii", gzip.compress(image_bytes()), "gzip-compressed"),
    "row 9 trailing bytes": ("a.nii", image_bytes() + b"x" * 7, "7 bytes after"),
    "row 9 trailing bytes inside gzip": ("a.nii.gz", gzip.compress(image_bytes() + b"x" * 7), "7 bytes after"),
    "row 9 trailing bytes after gzip": ("a.nii.gz", gzip.compress(image_bytes()) + b"junk", "bytes after the gzip"),
    "row 15 slope 0": ("a.nii", patched(image_bytes(), scl_slope=("2f", (0.0, 9.0))), None),
    "row 16 slope NaN": ("a.nii", patched(image_bytes(), scl_slope=("f", NAN)), "scl_slope is nan"),
    "row 17 slope Inf": ("a.nii", patched(image_bytes(), scl_slope=("f", INF)), "scl_slope is inf"),
    "row 19 pixdim 0": ("a.nii", patched(image_bytes(), pixdim=("4f", (1, 0, 0, 0))), "pixdim is zero"),
    "row 20 pixdim negative": ("a.nii", patched(image_bytes(), pixdim=("4f", (1, -2, 2, 3))), "pixdim is .*negative"),
    "row 21 pixdim NaN": ("a.nii", patched(image_bytes(), pixdim=("4f", (1, NAN, 2, 3))), "not finite"),
    "row 23 singular sform": ("a.nii", patched(image_bytes(), srow_x=("12f", SINGULAR)), "qform is used"),
    "row 24 NaN sform": ("a.nii", patched(image_bytes(), srow_x=("f", NAN)), "qform is used"),
    "row 25 line ends of NIfTI-2 converted": (
        "a.nii",
        image_bytes(cls=nib.Nifti2Image).replace(b"\r\n\x1a", b"\n\n\x1a"),
        "in text mode",
    ),
    "row 26 sizeof_hdr": ("a.nii", patched(image_bytes(), sizeof_hdr=("i", 400)), "sizeof_hdr is 400"),
    "row 28 bitpix": ("a.nii", patched(image_bytes(), bitpix=("h", 8)), "bitpix is 8"),
    "row 33 vox_offset 0": ("a.nii", patched(image_bytes(), vox_offset=("f", 0.0)), "vox_offset is 0.*352"),
    "row 44 int64": ("a.nii", image_bytes(voxels(dtype="int64")), None),
    "row 45 uint8": ("a.nii", image_bytes(voxels(dtype="uint8")), None),
    "row 46 uint16": ("a.nii", image_bytes(voxels(dtype="uint16")), None),
    "row 48 NIfTI-2": ("a.nii", image_bytes(cls=nib.Nifti2Image), None),
    "row 60 broken extension": ("a.nii", patched(image_bytes(), extension=("4B", (1, 9, 9, 9))), None),
    "row 64 spaces and unicode": ("ä scan ñ.nii", image_bytes(), None),
    "row 64 upper case": ("A.NII", image_bytes(), None),
    "row 64 upper case gz": ("A.NII.GZ", gzip.compress(image_bytes()), None),
}


def reference(path: Path) -> Any:
    """The image as nibabel sees it."""
    return nib.load(path)


def put(folder: Path, name: str, content: bytes) -> Path:
    path = folder / name
    path.write_bytes(content)
    return path


def fine_grid(
    shape: Sequence[int], affine: np.ndarray, scale: int, slice_axis: int
) -> tuple[tuple[int, ...], np.ndarray]:
    """Shape and affine of a result by the grid rule: the first voxel stays, in-plane voxels become smaller."""
    factors = [scale] * min(3, len(shape)) + [1, 1]
    if len(shape) > 2:
        factors[slice_axis] = 1
    fine = tuple(n * factor for n, factor in zip(shape, factors, strict=False))
    return fine, np.asarray(affine, np.float64) @ np.diag([*(1 / f for f in factors[:3]), 1.0])
