"""Makers of MGH, NRRD and MetaImage files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from nibabel.freesurfer.mghformat import MGHHeader


def matrix_of(seed: int) -> np.ndarray:
    """An affine with any rotation, perhaps mirrored, and any voxel size."""
    rng = np.random.default_rng(seed)
    rotation = np.linalg.qr(rng.normal(size=(3, 3)))[0]
    return nib.affines.from_matvec(rotation * rng.uniform(0.3, 4, 3), rng.normal(scale=80, size=3))


def sitk_image(data: np.ndarray, affine: np.ndarray) -> Any:
    """An image of SimpleITK whose voxel (i, j, k) is data[i, j, k] and lies at `affine` (RAS)."""
    import SimpleITK as sitk

    image = sitk.GetImageFromArray(np.ascontiguousarray(data.T), isVector=False)
    ndim = min(data.ndim, 3)
    lps = np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine
    size = np.linalg.norm(lps[:3, :3], axis=0)
    if data.ndim == 2:
        angle = float(lps[0, 0])
        turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    else:
        turn = lps[:3, :3] / size
    direction = np.eye(data.ndim)
    direction[:ndim, :ndim] = turn[:ndim, :ndim]
    image.SetDirection(direction.ravel().tolist())
    image.SetSpacing([*size[:ndim].tolist(), *[1.5] * (data.ndim - ndim)])
    image.SetOrigin([*lps[:ndim, 3].tolist(), *[0.0] * (data.ndim - ndim)])
    return image


def nrrd(
    path: Path,
    shape: tuple[int, int, int],
    directions: Any,
    origin: Sequence[float],
    space: str | None,
    *,
    kind: str = "",
    time: int = 0,
    extra: Sequence[str] = (),
) -> Path:
    """An uncompressed NRRD file of int16; `kind` adds three values for each voxel, `time` an axis of that length."""
    sizes, kinds = list(shape), ["domain"] * 3
    vectors = [] if directions is None else [None if row is None else list(row) for row in directions]
    place = list(origin)
    if time:
        vectors = [[*row, 0] for row in vectors] + [[0, 0, 0, 1.5]]
        sizes, kinds, place = [*sizes, time], [*kinds, "time"], [*place, 0]
    if kind:
        sizes, kinds, vectors = [*sizes, 3], [*kinds, kind], [*vectors, None]
    written = " ".join("none" if row is None else f"({','.join(map(str, row))})" for row in vectors)
    fields = ["NRRD0005", "type: int16", f"dimension: {len(sizes)}", f"sizes: {' '.join(map(str, sizes))}"]
    if space is not None:
        fields += [f"space: {space}", f"space directions: {written}", f"space origin: ({','.join(map(str, place))})"]
    fields += [f"kinds: {' '.join(kinds)}", "endian: little", "encoding: raw", *extra]
    data = np.arange(np.prod(sizes), dtype="<i2")
    path.write_bytes("\n".join(fields).encode() + b"\n\n" + data.tobytes())
    return path


def mgh_bytes(data: np.ndarray, good_ras: int = 1, intent: int = 0) -> bytes:
    """A plain MGH file with its footer."""
    header = MGHHeader()
    header.set_data_dtype(data.dtype)
    header.set_data_shape(data.shape)
    header["goodRASFlag"] = good_ras
    block = bytearray(header.binaryblock[:284].ljust(284, b"\0"))
    block[90:] = bytes(194)
    block[2] = intent
    order = data.astype(data.dtype.newbyteorder(">"))
    return bytes(block) + order.tobytes(order="F") + bytes(20)
