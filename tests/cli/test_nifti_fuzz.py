"""Thousands of damaged NIfTI files: each is refused with one clear line, or its result is finite and in place."""

from __future__ import annotations

import faulthandler
import gzip
import struct
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from conftest import blob_volume
from nifti_files import fine_grid
from torch import nn

from bundle.data import VolumeError, check_volume_file, writing_volume
from bundle.data.meaning import check_nifti
from bundle.inference.volume import super_resolve
from bundle.physics import fourier_upsample
from bundle.physics.slices import resolve_slice_axis

FILES = 2400
LONGEST = 5.0  # seconds allowed per file

# Byte offset, struct code and count of the NIfTI-1 fields that affect reading.
FIELDS = {
    **{"sizeof_hdr": (0, "i", 1), "dim_info": (39, "B", 1), "dim": (40, "h", 8), "datatype": (70, "h", 1)},
    **{"bitpix": (72, "h", 1), "pixdim": (76, "f", 8), "vox_offset": (108, "f", 1), "scl_slope": (112, "f", 2)},
    **{"xyzt_units": (123, "B", 1), "toffset": (136, "f", 1), "qform_code": (252, "h", 2), "quatern": (256, "f", 6)},
    **{"srow": (280, "f", 12), "magic": (344, "B", 4), "extension": (348, "i", 3)},
}
NUMBERS = {
    "B": [0, 1, 2, 3, 7, 10, 127, 255],
    "h": [0, 1, 2, 3, 4, 5, 7, 8, 16, 64, 128, 256, 512, 768, 1024, 1792, -1, -32768, 32767, 348],
    "i": [0, 1, 8, 16, 348, 540, -1, 2**31 - 1, -(2**31), 1543569408],
    "f": [0.0, -0.0, 1.0, -1.0, 2.5, 1e-30, 1e30, 3e38, -3e38, float("nan"), float("inf"), -float("inf"), 352.0, 4e6],
}


class ZeroFill(nn.Module):
    scale = 2

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return fourier_upsample(image, (2 * image.shape[-2], 2 * image.shape[-1]))


def seeds() -> list[tuple[str, bytes]]:
    """Small files as scanners and programs write them."""
    affine = nib.affines.from_matvec(nib.eulerangles.euler2mat(0.3, 0.1, -0.2) * [1.1, 0.9, 4], [-30, 20, 10])
    volume = blob_volume((11, 9, 5), (5.0, 4.0, 2.0), sigma=3.0)
    made = []
    for data, cls, order, code in (
        (volume.astype("int16"), nib.Nifti1Image, "<", 1),
        (volume, nib.Nifti1Image, "<", 4),
        (np.stack([volume, volume + 1], -1).astype("uint16"), nib.Nifti1Image, "<", 1),
        (volume.astype("uint8"), nib.Nifti2Image, "<", 2),
        (volume.astype("float64"), nib.Nifti1Image, ">", 1),
        (volume[..., 2].astype("int32"), nib.Nifti1Image, "<", 0),
    ):
        image = cls(data, affine, cls.header_class(endianness=order), dtype=data.dtype)
        image.set_sform(affine, code)
        image.set_qform(affine, code)
        image.header.set_xyzt_units("mm", "sec")
        made.append(image.to_bytes())
    return [("a.nii", content) for content in made] + [("a.nii.gz", gzip.compress(made[0], mtime=0))]


def set_field(content: bytearray, rng: np.random.Generator) -> None:
    """A value that programs or bad disks leave in a field."""
    offset, code, count = FIELDS[str(rng.choice(list(FIELDS)))]
    at = offset + struct.calcsize(code) * int(rng.integers(count))
    value = NUMBERS[code][int(rng.integers(len(NUMBERS[code])))]
    struct.pack_into(str(rng.choice(["<", ">"])) + code, content, at, value)


def set_bytes(content: bytearray, rng: np.random.Generator) -> None:
    for _ in range(int(rng.integers(1, 9))):
        content[int(rng.integers(min(len(content), 560)))] = int(rng.integers(256))


def flip_bit(content: bytearray, rng: np.random.Generator) -> None:
    content[int(rng.integers(min(len(content), 360)))] ^= 1 << int(rng.integers(8))


def cut(content: bytearray, rng: np.random.Generator) -> None:
    del content[int(rng.integers(len(content))) :]


def lengthen(content: bytearray, rng: np.random.Generator) -> None:
    content += bytes(rng.integers(0, 256, int(rng.integers(1, 400)), dtype=np.uint8))


MUTATIONS: list[Callable[[bytearray, np.random.Generator], None]] = (
    [set_field] * 5
    + [set_bytes] * 2
    + [
        flip_bit,
        flip_bit,
        cut,
        lengthen,
    ]
)


def mutated(name: str, content: bytes, rng: np.random.Generator) -> bytes:
    """The file after one to three accidents; for gzip, either to the content or to the stream."""
    inside = name.endswith(".gz") and rng.random() < 0.5
    block = bytearray(gzip.decompress(content) if inside else content)
    for _ in range(int(rng.integers(1, 4))):
        if len(block) > 560:
            MUTATIONS[int(rng.integers(len(MUTATIONS)))](block, rng)
    return gzip.compress(bytes(block), mtime=0) if inside else bytes(block)


def run_through(path: Path, target: Path) -> str:
    """Read, super-resolve and write one file as the command does; "refused", or "done" after all checks."""
    try:
        file = check_volume_file(path)
        frames = list(file.frames())
        check_nifti(path, file.header, force=True)
    except VolumeError as error:
        assert str(error).startswith(f"{path}: ") and "; " in str(error) and "\n" not in str(error)
        return "refused"
    if not file.warnings:
        check_against_nibabel(path, file.affine, frames)
    axis = resolve_slice_axis("auto", file.shape, file.affine, file.stated)
    shape, affine = fine_grid(file.shape, file.affine, 2, axis)
    with writing_volume(target, shape, affine, file.header, source=path) as write:
        for frame in frames:
            write(super_resolve(frame, file.affine, ZeroFill(), axis, values=file.values).voxels)
    check_geometry(file.shape, file.affine, axis, nib.load(target))
    return "done"


def check_against_nibabel(path: Path, affine: np.ndarray, frames: list[np.ndarray]) -> None:
    """If we have no doubts, another reader must see the same."""
    image = nib.load(path)
    np.testing.assert_allclose(affine, image.affine, rtol=1e-5, atol=1e-5 * np.abs(affine).max())
    values = np.asarray(image.dataobj, np.float64)
    values = values.reshape(*values.shape[:3], -1) if values.ndim > 3 else values[..., None]
    for number, frame in enumerate(frames):
        np.testing.assert_allclose(frame, values[..., number].astype(np.float32), rtol=1e-6)


def check_geometry(shape: tuple[int, ...], affine: np.ndarray, axis: int, image: nib.Nifti1Image) -> None:
    """Finite voxels; the first one at its old position, in-plane steps halved, the slice step kept."""
    factors = np.array([1 if n == axis and len(shape) > 2 else 2 for n in range(3)])
    factors[len(shape) :] = 1
    assert image.shape == tuple(n * f for n, f in zip(shape, [*factors, 1], strict=False))
    assert all(np.isfinite(image.dataobj[..., n]).all() for n in range(image.shape[-1]))
    if int(image.header["sform_code"]) or int(image.header["qform_code"]):
        places = np.array([[0, 0, 0, 1], [1, 0, 0, 1], [0, 1, 0, 1], [0, 0, 1, 1]]).T
        fine = np.diag([*factors, 1]) @ places
        size = np.abs(affine).max()
        np.testing.assert_allclose(image.affine @ fine, affine @ places, rtol=1e-4, atol=1e-4 * size)


@pytest.mark.slow
def test_every_damaged_file_is_refused_clearly_or_comes_out_right(tmp_path: Path) -> None:
    rng = np.random.default_rng(20)
    files, counts, slowest = seeds(), Counter(), 0.0
    for number in range(FILES):
        name, content = files[number % len(files)]
        path = tmp_path / name
        path.write_bytes(mutated(name, content, rng))
        faulthandler.dump_traceback_later(60, exit=True, file=sys.__stderr__)  # a hang aborts and shows where
        started = time.process_time()
        try:
            counts[run_through(path, tmp_path / "out.nii")] += 1
        except BaseException as error:
            kept = tmp_path / f"failed-{number}-{name}"
            kept.write_bytes(path.read_bytes())
            raise AssertionError(f"file {number}, kept as {kept}") from error
        finally:
            faulthandler.cancel_dump_traceback_later()
        slowest = max(slowest, time.process_time() - started)
        path.unlink()
    # Both outcomes must be frequent; otherwise the accidents are too mild or too severe to be informative.
    assert counts["refused"] > FILES / 5 and counts["done"] > FILES / 5
    assert slowest < LONGEST
