"""Training and validation volumes in one small file: fewer slices, rounded values, and back to NIfTI on the other side.

A volume keeps its foreground slices at an even distance, every second one where they are thin, and its values rounded
to a step. A slice is stored as differences of neighbouring rows, low bytes before high ones, which compresses well.
"""

from __future__ import annotations

import csv
import io
import json
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from bundle.data.atomic import replacing
from bundle.data.errors import DatasetError
from bundle.data.nifti.read import read_volume
from bundle.data.splits import locate, read_table
from bundle.physics.slices import resolve_slice_axis

INDEX, TABLE = "index.json", "manifest.csv"
THIN = 1.5
"""Millimetres: of slices nearer to each other than this, every second one is left out."""
FOREGROUND = 0.05
"""A slice belongs to the foreground if its 99th percentile is above this share of the volume's reference."""
LEVELS = (512, 4096)
"""Fewest and most steps up to the volume's reference, its 99.9th percentile."""


class PackError(DatasetError):
    """Volumes that cannot be packed as asked, or a file that is no pack; the message is one line."""


@dataclass(frozen=True)
class Slices:
    """About how many slices a volume keeps, by split. Other splits are not packed."""

    train: int = 14
    val: int = 5

    def of(self, split: str) -> int:
        """The number for a split, 0 for one that does not travel."""
        return {"train": self.train, "val": self.val}.get(split, 0)


def pack(data: Path, split_file: Path, target: Path, slices: Slices = Slices(), limit: int = 34 << 20) -> str:
    """Write the training and validation volumes that a split file lists to one file.

    Args:
        data, split_file: as for :func:`bundle.data.training_datalist`.
        target: the file to write; an old one is replaced.
        slices: about how many a volume keeps.
        limit: largest size of the file in bytes.

    Returns:
        One line about what was packed.

    Raises:
        PackError: nothing to pack, a missing file, or the pack is larger than the limit (nothing is written then).
    """
    buffer, index = io.BytesIO(), list[dict[str, Any]]()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_LZMA) as archive:
        for line, row in read_table(split_file):
            if not (count := slices.of(row["split"])):
                continue
            path = locate(row["file"], split_file, data)
            if path is None:
                raise PackError(f"{split_file}, line {line}: {row['file']} does not exist")
            stored, about = reduced(path, count)
            name = f"{len(index):04d}.bin"
            archive.writestr(name, encoded(stored))
            index.append({**about, "member": name, "shape": list(stored.shape), "row": row})
        if not index:
            raise PackError(f"{split_file}: no volume of the splits train and val, nothing to pack")
        archive.writestr(INDEX, json.dumps(index))
    size, total = buffer.getbuffer().nbytes, sum(item["shape"][2] for item in index)
    if size > limit:
        raise PackError(f"{size / 2**20:.1f} MiB of {limit / 2**20:.0f} allowed; keep fewer slices a volume")
    with replacing(target) as file:
        file.write(buffer.getbuffer())
    return f"{target}: {len(index)} volumes, {total} slices, {size / 2**20:.1f} MiB"


def unpack(source: Path, folder: Path) -> Path:
    """Write the volumes of a pack as NIfTI files with a split file; files that are there already are left alone.

    Returns:
        The split file, ``folder/manifest.csv``, which is written last.

    Raises:
        PackError: the file is no pack or is damaged.
    """
    table = folder / TABLE
    if table.is_file():
        return table
    try:
        with zipfile.ZipFile(source) as archive:
            rows = [_unpacked(archive, item, folder) for item in json.loads(archive.read(INDEX))]
    except (OSError, KeyError, ValueError, zipfile.BadZipFile) as error:
        raise PackError(f"{source}: cannot be unpacked ({error})") from error
    text = io.StringIO()
    columns = list(dict.fromkeys(key for row in rows for key in row))
    writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    with replacing(table) as file:
        file.write(text.getvalue().encode())
    return table


def reduced(path: Path, count: int) -> tuple[np.ndarray, dict[str, Any]]:
    """The slices of a volume that travel, int16 (X, Y, slices) with the slice axis last, and how to read them.

    Returns:
        The integers, and a dict with ``step`` (value = integer * step), ``axis`` (of the slices in the volume) and
        ``affine`` (of the kept slices, for the axes as in the volume).
    """
    volume = read_volume(path)
    if volume.array.ndim != 3:
        raise PackError(f"{path}: {volume.array.ndim} dimensions, not 3")
    axis = resolve_slice_axis("auto", volume.array.shape, volume.affine, volume.stated)
    array = np.moveaxis(volume.array, axis, 2)
    spacing = float(np.linalg.norm(volume.affine[:3, axis]))
    first, stop, stride = kept_slices(array, spacing, count)
    affine = volume.affine.copy()
    affine[:3, 3] += first * affine[:3, axis]
    affine[:3, axis] *= stride
    step = rounding_step(array)
    integers = np.rint(array[:, :, first:stop:stride] / step).astype(np.int16)
    return integers, {"step": step, "axis": axis, "affine": affine.tolist()}


def kept_slices(array: np.ndarray, spacing: float, count: int) -> tuple[int, int, int]:
    """(first, stop, stride) of about ``count`` slices (X, Y, slices) within the foreground."""
    strength = np.percentile(np.abs(array), 99, axis=(0, 1))
    inside = np.flatnonzero(strength > FOREGROUND * np.percentile(np.abs(array), 99.9))
    first, stop = (int(inside[0]), int(inside[-1]) + 1) if len(inside) else (0, array.shape[2])
    stride = max(2 if spacing < THIN else 1, round((stop - first) / count))
    return first + (stop - first - 1) % stride // 2, stop, stride  # what does not divide is left out at both ends


def rounding_step(array: np.ndarray) -> float:
    """Value of one integer: a quarter of the noise, but within :data:`LEVELS`, and so that int16 holds the largest.

    Rounding then adds a fourteenth of the noise, and smooth volumes (PET) keep fine steps. The noise is the median
    diagonal difference of 2x2 voxels (X, Y, slices) in the foreground. Whole numbers have a step of at least 1.
    """
    reference, largest = float(np.percentile(np.abs(array), 99.9)), float(np.abs(array).max(initial=0.0))
    diagonal = np.abs(array[1:, 1:] - array[1:, :-1] - array[:-1, 1:] + array[:-1, :-1]) / 2
    diagonal = diagonal[np.abs(array[1:, 1:]) > FOREGROUND * reference]
    noise = float(np.median(diagonal)) / 0.6745 if diagonal.size else 0.0
    step = max(min(noise / 4, reference / LEVELS[0]), reference / LEVELS[1], largest / np.iinfo(np.int16).max)
    whole = bool(np.array_equal(array, np.rint(array)))
    return max(step, 1.0) if whole or step == 0 else step


def encoded(integers: np.ndarray) -> bytes:
    """Differences of neighbouring rows, slice after slice, as two planes of bytes; :func:`decoded` is the inverse."""
    slices = np.ascontiguousarray(np.moveaxis(integers, 2, 0))
    differences = np.diff(slices, axis=1, prepend=np.int16(0))  # wraps around, and so does the sum
    folded = (differences.astype(np.int32) << 1) ^ (differences.astype(np.int32) >> 15)  # 0, -1, 1, -2... as 0, 1, 2...
    planes = folded.astype("<u2").view(np.uint8).reshape(-1, 2).T
    return planes.tobytes()


def decoded(data: bytes, shape: tuple[int, int, int]) -> np.ndarray:
    """int16 (X, Y, slices) from :func:`encoded`."""
    planes = np.frombuffer(data, np.uint8).reshape(2, -1)
    folded = planes[0].astype(np.int32) | planes[1].astype(np.int32) << 8
    differences = ((folded >> 1) ^ -(folded & 1)).astype(np.int16).reshape(shape[2], shape[0], shape[1])
    return np.moveaxis(np.cumsum(differences, axis=1, dtype=np.int16), 0, 2)


def _unpacked(archive: zipfile.ZipFile, item: dict[str, Any], folder: Path) -> dict[str, str]:
    """Write one volume; return its row of the split file."""
    row = {**item["row"], "slices": str(item["shape"][2])}
    target = folder / row["file"]
    if not target.resolve().is_relative_to(folder.resolve()):
        raise PackError(f"{row['file']}: leads out of the folder")
    integers = np.moveaxis(decoded(archive.read(item["member"]), tuple(item["shape"])), 2, item["axis"])
    image = nib.Nifti1Image(integers, np.array(item["affine"]))
    image.header.set_slope_inter(item["step"], 0)
    image.header.set_xyzt_units("mm")
    target.parent.mkdir(parents=True, exist_ok=True)
    nib.save(image, target)
    return row
