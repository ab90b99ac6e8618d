"""Writing a super-resolved volume as a derived DICOM series, atomically.

A classic series becomes one file per slice, an enhanced object an enhanced object. The source files are read again for
their attributes, so they must still be there.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from bundle.data.atomic import replacing_folder
from bundle.data.dicom.derive import (
    Derivation,
    adopt,
    decimal_text,
    derivation_from,
    derive_instance,
    set_padding,
    set_pixels,
)
from bundle.data.dicom.enhanced import derive_frames, select_frames, set_scaling
from bundle.data.dicom.frame import ENHANCED, Image
from bundle.data.dicom.header import read_dataset
from bundle.data.dicom.integers import follow_encoding
from bundle.data.dicom.library import guarded, require_pydicom
from bundle.data.dicom.read import DicomVolume
from bundle.data.dicom.scaling import Encoding, plan_encoding
from bundle.data.errors import disk_errors, fail
from bundle.data.paths import PathLike
from bundle.physics import superres_affine

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

PREFIX = "SR"
"""Files are SR00001.dcm and so on, numbered by InstanceNumber, which is unique in the series."""

_RESULT = re.compile(rf"{PREFIX}\d{{5,}}\.dcm")

MAX_PIXEL_BYTES = 2**32 - 2
"""Largest pixel data of one object with a defined length."""


class SeriesWritten(NamedTuple):
    """The result of `write_series`.

    Attributes:
        paths: the files, in the order of InstanceNumber.
        warnings: what did not fit into the source's integers, one line each.
    """

    paths: list[Path]
    warnings: tuple[str, ...]


def write_series(
    volume: DicomVolume,
    voxels_sr: np.ndarray,
    affine_sr: np.ndarray,
    folder: PathLike,
    scale: int,
    slice_axis: int = 2,
    provenance: Mapping[str, Any] | None = None,
) -> SeriesWritten:
    """Write the derived series of a volume into its own folder.

    The first voxel stays in place, so ImagePositionPatient does, and PixelSpacing is that of the affine: the source's
    divided by the scale, or any other, also one for rows and another for columns. UIDs are derived from those of the
    source, the scale (another voxel size), and the keys "version", "weights_sha256" and "settings" of `provenance`, so
    a second run gives the same UIDs. The creation time is SOURCE_DATE_EPOCH if set (then equal arguments give equal
    bytes), else now.

    Args:
        volume: the source, as read.
        voxels_sr: (X', Y', Z), finite, in the units of `volume.voxels`, over the field of view of the source: (scale *
            X, scale * Y, Z) where voxels are divided by the scale.
        affine_sr: (4, 4), RAS, mm; the source's with other voxel sizes in the plane, and the same first voxel.
        folder: created if missing; an earlier result in it is replaced, a folder that holds anything else is refused.
        scale: in-plane factor of the network.
        slice_axis: must be 2: DICOM slices are the images.
        provenance: how the voxels were made; only the keys named above are used.

    Raises:
        VolumeError: invalid arguments, a source file that is missing or cannot be converted, or a disk error; nothing
            new is left in the folder then, and its previous content stays.
    """
    target = Path(folder)
    require_pydicom(target)
    factors, size = _check_arguments(target, volume, voxels_sr, affine_sr, scale, slice_axis)
    _check_folder(target, volume)
    now = _creation_time()
    derivation = derivation_from(provenance or {}, scale, volume.series, _version(), now, factors, size)
    encoding = plan_encoding(volume.frames, voxels_sr, volume.values.padding)
    names: list[str] = []
    with disk_errors(target), replacing_folder(target) as partial:
        for image, slices in _by_file(volume).items():
            number = volume.series.numbers[image]
            dataset = _derived(image, slices, voxels_sr, encoding, derivation, number)
            names.append(f"{PREFIX}{number:05d}.dcm")
            _save(partial / names[-1], dataset, image)
    return SeriesWritten([target / name for name in sorted(names)], tuple(_doubts(encoding)))


# ---------------------------------------------------------------------------------------------------- one instance


def _derived(
    image: Image,
    slices: list[int],
    voxels: np.ndarray,
    encoding: Encoding,
    derivation: Derivation,
    number: int,
) -> Dataset:
    """The derived data set of one source file; `slices` are the volume's slices in that file."""
    dataset = read_dataset(image.path)
    pixels = b"".join(encoding.encode(voxels[:, :, at], at).tobytes() for at in slices)
    if len(pixels) > MAX_PIXEL_BYTES:
        fail(image.path, f"{len(pixels)} bytes of pixels do not fit into one DICOM object", "write NIfTI or split it")
    with guarded(image.path, "an attribute cannot be copied", "correct the header or write NIfTI"):
        indices = [encoding.frames[at].index for at in slices]
        if image.sop_class in ENHANCED:
            select_frames(dataset, indices)
        if derivation.source.lead is not None:
            image = adopt(dataset, image, derivation.source.lead)
        derive_instance(dataset, image, derivation, number)
        if image.sop_class in ENHANCED:
            derive_frames(dataset, image, indices, derivation)
            set_scaling(dataset, encoding, slices)
        else:
            _finish_classic(dataset, image, slices[0], encoding, derivation)
            follow_encoding(dataset, float(encoding.coarser[slices[0]]), encoding)
        set_pixels(dataset, encoding, voxels.shape[1], voxels.shape[0], pixels)
        set_padding(dataset, encoding, None if image.padding is None else encoding.stored_padding[slices[0]])
    return dataset


def _finish_classic(dataset: Dataset, image: Image, at: int, encoding: Encoding, derivation: Derivation) -> None:
    """PixelSpacing, and the rescale if the slope is a new one.

    MR Image Storage knows no rescale, but readers apply it wherever it is (and Philips writes it); a Real World Value
    Mapping, which the class does know, is ignored by most of them.
    """
    frame = encoding.frames[at]
    dataset.PixelSpacing = derivation.spacing(frame.spacing or ())
    if encoding.coarser[at] > 1:
        dataset.RescaleSlope = decimal_text(float(encoding.slopes[at]))
        dataset.RescaleIntercept = decimal_text(frame.intercept)
        if image.modality == "MR" and "RescaleType" not in dataset:
            dataset.RescaleType = "US"  # unspecified


def _save(path: Path, dataset: Dataset, image: Image) -> None:
    """Write explicit little endian with a new file meta group, and flush it to disk."""
    import pydicom
    from pydicom.dataset import FileMetaDataset
    from pydicom.uid import UID, ExplicitVRLittleEndian

    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = UID(image.sop_class), dataset.SOPInstanceUID
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.file_meta, dataset.preamble = meta, b"\0" * 128  # type: ignore[attr-defined]
    with open(path, "xb") as stream:
        with guarded(image.path, "its attributes cannot be written", "correct the header or write NIfTI", writing=True):
            pydicom.dcmwrite(stream, dataset, enforce_file_format=True, implicit_vr=False, little_endian=True)
        stream.flush()
        os.fsync(stream.fileno())


# ---------------------------------------------------------------------------------------------- the whole series


def _by_file(volume: DicomVolume) -> dict[Image, list[int]]:
    files: dict[Image, list[int]] = {}
    for at, frame in enumerate(volume.frames):
        files.setdefault(frame.image, []).append(at)
    return files


def _check_arguments(
    target: Path, volume: DicomVolume, voxels: np.ndarray, affine: np.ndarray, scale: int, slice_axis: int
) -> tuple[tuple[float, float], tuple[float, float]] | tuple[None, None]:
    """Factors and voxel sizes of `Derivation`; None where the result is the source divided by the scale."""
    if slice_axis != 2:
        wrong = f"slice axis {slice_axis} of a DICOM series"
        fail(target, wrong, "use axis 2, the plane of the images, or write NIfTI")
    shape = volume.voxels.shape
    source, size = (np.linalg.norm(np.asarray(place)[:3, :2], axis=0) for place in (volume.affine, affine))
    factors = source / size if np.isfinite(size).all() and size.all() else np.full(2, float(scale))
    whole = bool((np.abs(factors - scale) * source < 1e-4).all())
    factors = np.full(2, float(scale)) if whole else factors
    _check_shape(target, voxels.shape, shape, factors)
    if not np.isfinite(voxels).all():
        fail(target, "voxels to write are NaN or infinite", "check the input and the network")
    wanted = np.asarray(superres_affine(volume.affine, (*factors, 1)))
    if not np.allclose(affine, wanted, rtol=0, atol=1e-4):
        fail(target, "the affine is not that of the source divided by the scale", "keep the first voxel in place")
    return (None, None) if whole else ((float(factors[0]), float(factors[1])), (float(size[0]), float(size[1])))


def _check_shape(target: Path, shape: tuple[int, ...], source: tuple[int, ...], factors: np.ndarray) -> None:
    """Refuse a result whose field of view differs from that of the source by a voxel of the result or more."""
    length = np.append(np.asarray(source[:2]) * factors, source[2])
    if len(shape) != 3 or 0 in shape or (np.abs(shape - length) > 0.999).any() or shape[2] != source[2]:
        expected = tuple(round(float(size)) for size in length)
        fail(target, f"voxels of shape {shape}, expected {expected}", "give the whole result")
    if max(shape[:2]) > 65535:
        fail(target, f"a matrix of {shape[0]}x{shape[1]} exceeds the limit of DICOM", "write NIfTI")


def _check_folder(target: Path, volume: DicomVolume) -> None:
    """Refuse a folder that holds a file of the source, or anything other than an earlier result."""
    if target.is_symlink():
        fail(target, "is a link", "give the folder itself")
    if not target.exists():
        return
    if not target.is_dir():
        fail(target, "is a file", "choose another output folder")
    real = target.resolve()
    if any(real in path.resolve().parents for path in volume.series.paths):
        fail(target, "the output folder holds the source", "choose another output folder")
    foreign = [entry.name for entry in target.iterdir() if not (_RESULT.fullmatch(entry.name) and entry.is_file())]
    if foreign:
        fail(target, f"the output folder holds other files, such as {foreign[0]}", "choose another output folder")


def _doubts(encoding: Encoding) -> Iterator[str]:
    if encoding.cut:
        yield f"{encoding.cut} voxels below what the source's unsigned integers can hold were set to the lowest value"
    if (coarser := encoding.coarser.max()) > 1:
        yield f"values exceed 16 bits at the source's scaling; slopes grow by up to {coarser:.4g}"


def _creation_time() -> datetime:
    epoch = os.environ.get("SOURCE_DATE_EPOCH", "")
    return datetime.fromtimestamp(int(epoch), UTC) if epoch.isdigit() else datetime.now().astimezone()


def _version() -> str:
    with suppress(PackageNotFoundError):
        return version("iconet-sr")
    return "unknown"
