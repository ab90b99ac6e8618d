"""FreeSurfer's MGH and MGZ, by nibabel's header."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from nibabel.freesurfer.mghformat import DATA_OFFSET, MGHHeader, header_dtype

from bundle.data.errors import fail
from bundle.data.foreign.head import Head, joined
from bundle.data.nifti.stream import CHUNK, Source, open_stream

_TYPES = {0: "u1", 1: ">i4", 3: ">f4", 4: ">i2", 10: ">u2"}
_OTHER_TYPES = {2: "64-bit integers", 5: "a bitmap", 6: "tensors", 7: "tensors", 8: "colours", 9: "colours"}
_INTENTS = {1: 1002, 2: 2005, 3: 1006, 4: 1006}
"""NIfTI's code for what FreeSurfer since 7.3 writes beside the version: labels, shape, deformation and its inverse."""

_COLOUR_TABLE, _MATRIX = 1, 30
_LONGEST = 4096
"""Voxels in a row of one plane; FreeSurfer folds the points of a surface into longer ones (27307x1x6 of fsaverage)."""

_MAX_TAGS = 4 * 2**20


@contextmanager
def open_mgh(path: Path) -> Iterator[Source]:
    """Open an MGH file, gzip or plain, as the NIfTI file it could be.

    Raises:
        VolumeError: it is not one, or holds no volume.
    """
    head = _read_head(path)
    with open_stream(path) as source:

        def voxels() -> Iterator[memoryview]:
            source.read(DATA_OFFSET)
            left = head.voxel_bytes
            while left and (piece := source.read(min(left, CHUNK))):
                left -= len(piece)
                yield memoryview(piece)
            while source.read(CHUNK):  # to the end, where gzip has its checksum
                pass

        yield joined(path, head, source.room - DATA_OFFSET, voxels)


def _read_head(path: Path) -> Head:
    """What the header, and what follows the voxels, say."""
    with open_stream(path) as source:
        block = source.read(DATA_OFFSET)
        if len(block) < header_dtype.itemsize or block[3] != 1 or block[0] != 0:
            fail(path, "not an MGH file (no version 1)", "give an intact .mgh or .mgz file")
        intent, raw = block[2], np.frombuffer(block, header_dtype, 1)[0]
        dims, code = [int(n) for n in raw["dims"]], int(raw["type"])
        if min(dims) < 1:
            fail(path, f"bad dimension: the size is {tuple(dims)}", "get an intact copy (the header is damaged)")
        if code not in _TYPES:
            wrong = f"MGH data of type {code} ({_OTHER_TYPES.get(code, 'unknown')}) are not supported"
            fail(path, wrong, "convert it first: mri_convert --out_data_type float")
        if dims[1] == 1 and (dims[2] == 1 or dims[0] > _LONGEST):
            fail(path, "values at the points of a surface, not a volume", "give the volume it was made from")
        header = MGHHeader(block[: header_dtype.itemsize], check=False)
        shape = tuple(dims if dims[3] > 1 else dims[:3])
        head = Head(shape, np.dtype(_TYPES[code]), np.asarray(header.get_affine(), np.float64))
        tail = b""
        if head.voxel_bytes <= source.room:
            source.stream.seek(DATA_OFFSET + head.voxel_bytes)
            tail = source.read(_MAX_TAGS)
    warnings, frame = [], 1
    if raw["goodRASFlag"] != 1:
        frame = 2
        warnings.append(
            "no position, orientation and voxel size (goodRASFlag 0): coronal slices, 1 mm and a centre at 0, as "
            "FreeSurfer assumes"
        )
    # FreeSurfer gives TR in ms, and 0 where it is unknown.
    repetition = float(np.frombuffer(tail[:4], ">f4")[0]) / 1000 if len(tail) >= 4 else 0.0
    labels = _has_colour_table(tail[20:])
    return Head(
        *(shape, head.dtype, head.affine, 2, frame, repetition, 8),
        1002 if labels else _INTENTS.get(intent, 0),
        warnings,
    )


def _has_colour_table(tags: bytes) -> bool:
    """Whether one of FreeSurfer's tags is a table of colours, which only label maps have."""
    at = 0
    while at + 4 <= len(tags):
        tag = int.from_bytes(tags[at : at + 4], "big", signed=True)
        if tag in (0, _COLOUR_TABLE):
            return tag == _COLOUR_TABLE
        width = 4 if tag == _MATRIX else 8
        at += 4 + width
        length = int.from_bytes(tags[at - width : at], "big", signed=True)
        if length < 0:
            return False
        at += length
    return False
