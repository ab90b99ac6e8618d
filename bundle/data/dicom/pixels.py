"""Pixels of DICOM files: decoded frame by frame, scaled in float64, MONOCHROME1 inverted."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from bundle.data.dicom.frame import Frame, Image
from bundle.data.dicom.header import complete, read_dataset
from bundle.data.dicom.library import guarded
from bundle.data.errors import fail
from bundle.data.values import put_padding

MAX_SIDE = 16384
"""Longest accepted side of a slice; decoders allocate whatever the header asks for."""


def stored_range(bits: int, signed: bool) -> tuple[int, int]:
    """Lowest and highest integer with that many bits."""
    return (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)


def stored_frames(image: Image, indices: Sequence[int]) -> Iterator[np.ndarray]:
    """The stored integers (rows, columns) of some frames of a file, in the order of `indices`.

    Raises:
        VolumeError: pixels are missing, too few or undecodable, or there is no plug-in for the compression.
    """
    from pydicom.pixels import iter_pixels
    from pydicom.uid import UID

    with guarded(image.path, "the pixels cannot be decoded", "get an intact copy of the file", quote=True):
        _check_decoder(image)
        # Read the whole file: only then does pydicom check the declared length of the pixels.
        dataset = read_dataset(image.path, pixels=True)
        dataset.file_meta.TransferSyntaxUID = UID(image.transfer_syntax)
        complete(image.path, dataset)
        frames = iter_pixels(dataset, indices=indices, raw=True)
    for _ in indices:
        with guarded(image.path, "the pixels cannot be decoded", "get an intact copy of the file", quote=True):
            stored = next(frames)
        if stored.shape != (image.rows, image.columns) or stored.dtype.kind not in "iu":
            fail(
                image.path, f"pixels of shape {stored.shape} and type {stored.dtype}", "get an intact copy of the file"
            )
        yield stored


def true_values(stored: np.ndarray, frame: Frame) -> np.ndarray:
    """float64 values in the units of the series; high is bright, also for MONOCHROME1."""
    values = stored.astype(np.float64) * frame.slope + frame.intercept
    return turn_over(frame) - values if frame.image.inverted else values


def padded(stored: np.ndarray, image: Image) -> np.ndarray:
    """Which stored integers the file declares as padding: nothing was measured there."""
    if image.padding is None:
        return np.zeros(stored.shape, bool)
    ends = image.padding.value, image.padding.limit
    return (stored >= min(ends)) & (stored <= max(ends))


def padding_value(frames: Sequence[Frame]) -> float | None:
    """The value that padding gets in a volume: that of the first frame that declares any; None if none does.

    A padding of 0 in MR and PET does not count: it is what an empty voxel measures.
    """
    for frame in frames:
        if (padding := frame.image.padding) is not None:
            value = float(np.float32(true_values(np.array(padding.value), frame)))
            return value if value or frame.image.modality == "CT" else None
    return None


def turn_over(frame: Frame) -> float:
    """The sum of the values of the lowest and the highest stored integer; x -> this - x inverts the grey scale."""
    return frame.slope * sum(stored_range(frame.image.bits_stored, frame.image.signed)) + 2 * frame.intercept


def read_values(where: str, frames: Sequence[Frame]) -> np.ndarray:
    """float32 (columns, rows, slices) of the frames, in order; padding has the one value of :func:`padding_value`.

    Raises:
        VolumeError: as for `stored_frames`, or values beyond float32.
    """
    image = frames[0].image
    try:
        voxels = np.empty((image.columns, image.rows, len(frames)), np.float32)
    except (MemoryError, ValueError) as error:
        wrong = f"{len(frames)} slices of {image.columns}x{image.rows} do not fit in memory"
        fail(where, wrong, "split the series", error)
    slices: dict[Image, list[int]] = {}
    padding = padding_value(frames)
    for number, frame in enumerate(frames):
        slices.setdefault(frame.image, []).append(number)
    for source, numbers in slices.items():
        decoded = stored_frames(source, [frames[number].index for number in numbers])
        for number, stored in zip(numbers, decoded, strict=True):
            values = true_values(stored, frames[number])
            if not np.abs(values).max() <= np.finfo(np.float32).max:
                fail(source.path, "values exceed the range of float32", "correct RescaleSlope and RescaleIntercept")
            voxels[:, :, number] = values.T
            if padding is not None:
                put_padding(voxels[:, :, number], padded(stored, source).T, padding)
    return voxels


def _check_decoder(image: Image) -> None:
    from pydicom.pixels import get_decoder
    from pydicom.uid import UID

    if max(image.rows, image.columns) > MAX_SIDE:
        fail(image.path, f"implausible matrix {image.columns}x{image.rows}", "get an intact copy of the file")
    syntax = UID(image.transfer_syntax)
    try:
        decoder = get_decoder(syntax)
    except NotImplementedError as error:
        fail(image.path, f"unknown transfer syntax {syntax.name}", "convert the file", error)
    if not decoder.is_available:
        wanted = " or ".join(need.replace(" - requires ", ": ") for need in decoder.missing_dependencies)
        fail(image.path, f"no plug-in decodes {syntax.name}", f"install one with pip ({wanted}) or decompress the file")
