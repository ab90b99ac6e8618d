"""Pixels of DICOM files: decoded frame by frame, scaled in float64, MONOCHROME1 inverted."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from bundle.data.dicom.frame import Frame, Image
from bundle.data.dicom.header import complete, read_dataset
from bundle.data.dicom.library import guarded
from bundle.data.errors import fail

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


def without_padding(stored: np.ndarray, image: Image) -> np.ndarray:
    """Stored integers in which voxels that a CT declares as padding are raised to the lowest of the others.

    They lie outside the round field of view, often far below air; left unchanged, the edge would ring.
    """
    if image.padding is None:
        return stored
    padded = (stored >= image.padding[0]) & (stored <= image.padding[1])
    return np.where(padded, stored[~padded].min(), stored) if padded.any() and not padded.all() else stored


def turn_over(frame: Frame) -> float:
    """The sum of the values of the lowest and the highest stored integer; x -> this - x inverts the grey scale."""
    return frame.slope * sum(stored_range(frame.image.bits_stored, frame.image.signed)) + 2 * frame.intercept


def read_values(where: str, frames: Sequence[Frame], warnings: list[str]) -> np.ndarray:
    """float32 (columns, rows, slices) of the frames, in order.

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
    padded = 0
    for number, frame in enumerate(frames):
        slices.setdefault(frame.image, []).append(number)
    for source, numbers in slices.items():
        decoded = stored_frames(source, [frames[number].index for number in numbers])
        for number, stored in zip(numbers, decoded, strict=True):
            shown = without_padding(stored, source)
            padded += shown is not stored
            values = true_values(shown, frames[number])
            if not np.abs(values).max() <= np.finfo(np.float32).max:
                fail(source.path, "values exceed the range of float32", "correct RescaleSlope and RescaleIntercept")
            voxels[:, :, number] = values.T
    if padded:
        warnings.append(f"padding outside the field of view raised to the lowest value of the slice in {padded} slices")
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
