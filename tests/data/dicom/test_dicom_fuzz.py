"""Damaged DICOM files: refused with one line, or read as a volume with valid geometry; no hangs, no other errors."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import dicom_factory as factory
import numpy as np
import pydicom
import pytest
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEGLSLossless,
    RLELossless,
)

from bundle.data import VolumeError
from bundle.data.dicom.find import find_series
from bundle.data.dicom.read import DicomVolume, read_series
from bundle.data.dicom.write import write_series
from bundle.physics import superres_affine

SECONDS = 5
"""Longest that one file may take (the machine may be busy with other tests: the clock counts this process alone)."""

SMALL = factory.phantom(6, 8, 3)

SYNTAXES = {
    "MR": (ExplicitVRLittleEndian, ImplicitVRLittleEndian, RLELossless),
    "CT": (ExplicitVRBigEndian, JPEGLSLossless),
    "PT": (ExplicitVRLittleEndian, DeflatedExplicitVRLittleEndian),
    "enhanced MR": (ExplicitVRLittleEndian,),
}

HOSTILE: dict[str, tuple[object, ...]] = {
    "Rows": (0, 1, 65535, None),
    "Columns": (0, 5, 65535, None),
    "NumberOfFrames": ("0", "-1", "2147483647", "x"),
    "SamplesPerPixel": (0, 3, None),
    "PhotometricInterpretation": ("", "RGB", "YBR_FULL", "MONOCHROME1"),
    "BitsAllocated": (0, 1, 12, 32, 64, None),
    "BitsStored": (0, 1, 17, None),
    "HighBit": (0, 31, 65535),
    "PixelRepresentation": (7, None),
    "RescaleSlope": ("0", "nan", "inf", "-1", "1e-300", "x", "1\\2", ""),
    "RescaleIntercept": ("nan", "-inf", "1e308", ""),
    "ImagePositionPatient": (["nan", "0", "0"], ["1e400", "0", "0"], ["1"], "", None),
    "ImageOrientationPatient": (["0"] * 6, ["1", "0", "0", "1", "0", "0"], ["nan"] * 6, ["1"] * 5, None),
    "PixelSpacing": (["0", "0"], ["-1", "1"], ["1e-300", "1"], ["nan", "1"], ["1"], None),
    "SliceThickness": ("nan", "-3", "x", ""),
    "SpacingBetweenSlices": ("0", "1e300"),
    "SOPClassUID": ("", "1.2.3", "../../etc/passwd", None),
    "SOPInstanceUID": ("", "x" * 300, None),
    "SeriesInstanceUID": ("", "../x", None),
    "StudyInstanceUID": ("", None),
    "FrameOfReferenceUID": ("", "1.2.3"),
    "SpecificCharacterSet": ("nonsense", ["ISO_IR 100", "ISO 2022 IR 87"]),
    "PatientID": ("\\", "\x00", "x" * 5000),
    "SeriesNumber": ("x", "99999999999", "1.5"),
    "InstanceNumber": ("x", ""),
    "ImageType": ("", ["MOSAIC"], ["\\"] * 4),
    "EchoTime": ("nan", "x", ["1", "2"]),
    "AcquisitionMatrix": ([0, 0, 0, 0], [1], [65535] * 4),
    "WindowCenter": ("nan", ""),
    "SoftwareVersions": (["x"] * 300, "y" * 3000),
    "AcquisitionTime": ("nan", "99", "2460", "10:20", "1000.", "-1"),
    "AcquisitionDate": ("20261399", "x", "2026.01.02"),
    "AcquisitionDateTime": ("x" * 40, "20260102101500.5+0100"),
    "ContentTime": ("", "100000.1234567890"),
    "TriggerTime": ("nan", "inf", "1e400", ["1", "2"]),
    "TemporalPositionIdentifier": ("x", "1"),
    "DimensionIndexValues": ([0], [65535] * 9, None),
    "StackID": ("", "\x00"),
    "SharedFunctionalGroupsSequence": (None,),
    "PerFrameFunctionalGroupsSequence": (None,),
    "DimensionIndexSequence": (None,),
}


class Hang(BaseException):
    """Not an Exception, so that nothing under test can catch it."""


@contextmanager
def at_most(seconds: float) -> Iterator[None]:
    """Interrupt the block after the given processor time."""

    def stop(*_: object) -> None:
        raise Hang

    if threading.current_thread() is not threading.main_thread():
        pytest.fail("the time limit needs the main thread")
    before = signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """An intact folder for each modality and transfer syntax."""
    folders = {}
    for kind, syntaxes in SYNTAXES.items():
        for syntax in syntaxes:
            made = [factory.enhanced("MR", SMALL)] if kind == "enhanced MR" else factory.series(kind, SMALL)
            name = f"{kind} {syntax.keyword}"
            folders[name] = factory.save(made, tmp_path_factory.mktemp("sound") / name.replace(" ", "_"), syntax)
    return folders


def damaged(content: bytes, rng: np.random.Generator) -> bytes:
    """One of: flipped bytes, a cut, extreme numbers in place of four bytes, bytes put in or taken out, a repeat."""
    block = bytearray(content)
    at = int(rng.integers(len(block)))
    kind = int(rng.integers(6))
    if kind == 0:
        for where in rng.integers(len(block), size=int(rng.integers(1, 12))):
            block[where] = int(rng.integers(256))
    elif kind == 1:
        del block[at:]
    elif kind == 2:
        extreme = [b"\0\0\0\0", b"\xff\xff\xff\xff", b"\xff\xff\xff\x7f", b"\xfe\xff\xff\xff", b"\1\0\0\0"]
        block[at : at + 4] = extreme[int(rng.integers(5))]
    elif kind == 3:
        block[at:at] = rng.bytes(int(rng.integers(1, 40)))
    elif kind == 4:
        del block[at : at + int(rng.integers(1, 40))]
    else:
        block[at:at] = block[at : at + int(rng.integers(1, 400))]
    return bytes(block)


def outcomes(folder: Path, out: Path) -> Iterator[str]:
    """Read, write and read again each volume of a folder; "refused" or "read"."""
    try:
        found = find_series(folder).series
    except VolumeError as error:
        assert "\n" not in str(error)
        yield "refused"
        return
    for number, series in enumerate(found):
        try:
            volume = read_series(series)
            check(volume)
            fine = np.repeat(np.repeat(volume.voxels, 2, axis=0), 2, axis=1)
            grid = np.asarray(superres_affine(volume.affine, (2, 2, 1)))
            write_series(volume, fine, grid, out / str(number), 2, 2)
        except VolumeError as error:
            assert "\n" not in str(error) and str(folder.parent) in str(error)
            yield "refused"
            continue
        check(volume, derived := only(out / str(number)))
        np.testing.assert_allclose(derived.affine, grid, atol=1e-3)
        yield "read"


def only(folder: Path) -> DicomVolume:
    (series,) = find_series(folder).series
    return read_series(series)


def check(volume: DicomVolume, derived: DicomVolume | None = None) -> None:
    """Finite voxels, an invertible affine, and every slice at the position of its header."""
    for one in (volume, *([derived] if derived else ())):
        assert one.voxels.dtype == np.float32 and one.voxels.shape[2] == len(one.frames)
        assert np.isfinite(one.voxels).all() and np.isfinite(one.affine).all()
        assert abs(np.linalg.det(one.affine[:3, :3])) > 1e-12
        step = np.linalg.norm(one.affine[:3, 2])
        for number, frame in enumerate(one.frames):
            place = np.diag([-1, -1, 1]) @ (one.affine @ [0, 0, number, 1])[:3]
            assert np.linalg.norm(place - np.array(frame.position)) <= 0.1 * step + 1e-6


@pytest.mark.slow
@pytest.mark.filterwarnings("error::UserWarning")  # pydicom's may quote the header
@pytest.mark.parametrize("seed", range(6))
def test_damaged_files_are_refused_or_read_soundly(sources: dict[str, Path], tmp_path: Path, seed: int) -> None:
    rng = np.random.default_rng(seed)
    counts = {"refused": 0, "read": 0}
    names = sorted(sources)
    for case in range(100):
        folder = tmp_path / str(case)
        folder.mkdir()
        files = sorted(sources[names[case % len(names)]].iterdir())
        victim = files[int(rng.integers(len(files)))]
        for path in files:
            content = path.read_bytes()
            (folder / path.name).write_bytes(damaged(content, rng) if path is victim else content)
        with at_most(SECONDS):
            for outcome in outcomes(folder, tmp_path / f"out{case}"):
                counts[outcome] += 1
    assert counts["refused"] > 10 and counts["read"] > 10, counts


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["MR ExplicitVRLittleEndian", "enhanced MR ExplicitVRLittleEndian"])
@pytest.mark.filterwarnings("ignore")
def test_hostile_attributes_are_refused_or_read_soundly(sources: dict[str, Path], tmp_path: Path, kind: str) -> None:
    tried = 0
    for name, values in HOSTILE.items():
        for value in values:
            folder = tmp_path / f"{tried}"
            folder.mkdir()
            for number, path in enumerate(sorted(sources[kind].iterdir())):
                dataset = pydicom.dcmread(path)
                if number == 0:
                    spoil(dataset, name, value)
                dataset.save_as(folder / path.name)
            with at_most(SECONDS):
                list(outcomes(folder, tmp_path / f"out{tried}"))
            tried += 1
    assert tried > 100


def spoil(dataset: pydicom.Dataset, name: str, value: object) -> None:
    """Set an attribute wherever it occurs, without checking its value; text that is not a number stays text."""
    places = [item for item in (dataset, *_items(dataset)) if name in item] or [dataset]
    for item in places:
        if value is None:
            if name in item:
                del item[name]
        elif isinstance(value, int) or (isinstance(value, list) and isinstance(value[0], int)):
            item.add_new(name, "US", value)
        else:
            text = "\\".join(value) if isinstance(value, list) else str(value)
            vr = pydicom.datadict.dictionary_VR(pydicom.datadict.tag_for_keyword(name))
            raw = text.encode() + b" " * (len(text) % 2)
            tag = pydicom.tag.Tag(name)
            item._dict[tag] = pydicom.dataelem.RawDataElement(tag, vr, len(raw), raw, 0, False, True)


def _items(dataset: pydicom.Dataset) -> Iterator[pydicom.Dataset]:
    for element in dataset:
        if element.VR == "SQ":
            for item in element.value:
                yield item
                yield from _items(item)
