"""Derived DICOM series: geometry, values and attributes, read back by other readers and checked by validators.

dciodvfy and dcentvfy (dicom3tools), dcm2niix and highdicom are used if installed.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import dicom_factory as factory
import nibabel as nib
import numpy as np
import pydicom
import pytest
from dicom_factory import phantom, save, series
from hypothesis import given, settings
from hypothesis import strategies as st
from programs import program
from pydicom.dataset import Dataset
from pydicom.uid import ExplicitVRLittleEndian, JPEGBaseline8Bit

from bundle.data import VolumeError, write_volume
from bundle.data.dicom.find import find_series
from bundle.data.dicom.read import DicomVolume, read_series
from bundle.data.dicom.write import write_series
from bundle.physics import superres_affine

PROVENANCE = {"version": "1.2.3", "weights_sha256": "ab" * 32, "settings": {"network": "small"}}
DCM2NIIX = program("dcm2niix")
KINDS = ["MR", "CT", "PT", "enhanced MR", "enhanced PT"]


@pytest.fixture(autouse=True)
def fixed_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1767600000")


def make(kind: str, **options: object) -> list[Dataset]:
    if kind.startswith("enhanced"):
        return [factory.enhanced(kind.removeprefix("enhanced "), **options)]  # type: ignore[arg-type]
    return series(kind, **options)  # type: ignore[arg-type]


def read_one(folder: Path) -> DicomVolume:
    (found,) = find_series(folder).series
    return read_series(found)


def sharpened(volume: DicomVolume, scale: int = 2) -> np.ndarray:
    """A stand-in for a result: finer, not integer, beyond the source's range on both sides."""
    fine = np.repeat(np.repeat(volume.voxels, scale, axis=0), scale, axis=1)
    ripple = np.sin(np.arange(fine.shape[0]))[:, None, None] * np.cos(np.arange(fine.shape[1]))[:, None]
    return (fine + 0.07 * np.ptp(volume.voxels) * ripple).astype(np.float32)


def write(volume: DicomVolume, folder: Path, voxels: np.ndarray | None = None, scale: int = 2) -> list[Path]:
    fine = sharpened(volume, scale) if voxels is None else voxels
    affine = np.asarray(superres_affine(volume.affine, (scale, scale, 1)))
    return write_series(volume, fine, affine, folder, scale, 2, PROVENANCE).paths


def derive(tmp_path: Path, source: list[Dataset], voxels: np.ndarray | None = None) -> list[Dataset]:
    volume = read_one(save(source, tmp_path / "in"))
    return [pydicom.dcmread(path) for path in write(volume, tmp_path / "out", voxels)]


def in_order(datasets: list[Dataset]) -> list[Dataset]:
    return sorted(datasets, key=lambda dataset: dataset.InstanceNumber)


# ---------------------------------------------------------------------------------------------- geometry and values


@pytest.mark.parametrize("scale", [2, 4])
@pytest.mark.parametrize("kind", KINDS)
def test_the_result_reads_back_in_the_same_place_with_the_same_values(tmp_path: Path, kind: str, scale: int) -> None:
    volume = read_one(save(make(kind), tmp_path / "in"))
    fine = sharpened(volume, scale)
    write(volume, tmp_path / "out", fine, scale)
    again = read_one(tmp_path / "out")
    expected = np.maximum(fine, 0) if kind in ("MR", "enhanced MR", "enhanced PT") else fine
    slopes = np.array([frame.slope for frame in again.frames])
    assert np.all(np.abs(again.voxels - expected) <= 0.5001 * slopes + 1e-3)
    np.testing.assert_allclose(again.affine, superres_affine(volume.affine, (scale, scale, 1)), atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_highdicom_reads_the_result_in_the_same_place_with_the_same_values(tmp_path: Path, kind: str) -> None:
    highdicom = pytest.importorskip("highdicom")
    volume = read_one(save(make(kind), tmp_path / "in"))
    paths = write(volume, tmp_path / "out")
    ours = read_one(tmp_path / "out")
    if kind.startswith("enhanced"):
        theirs = highdicom.imread(paths[0]).get_volume()
    else:
        theirs = highdicom.get_volume_from_series([pydicom.dcmread(path) for path in paths])
    # Its array is (slices, rows, columns) in LPS and may have the slices in reverse order.
    lps = np.diag([-1.0, -1.0, 1.0, 1.0])
    step = np.linalg.inv(lps @ ours.affine) @ theirs.affine
    index = np.indices(theirs.array.shape).reshape(3, -1)
    place = np.rint(step[:3, :3] @ index + step[:3, 3:]).astype(int)
    np.testing.assert_allclose(place, step[:3, :3] @ index + step[:3, 3:], atol=1e-4)
    np.testing.assert_allclose(theirs.array.ravel(), ours.voxels[tuple(place)], rtol=1e-6)


def _check_against_dcm2niix(result: DicomVolume, folder: Path) -> None:
    """The derived series in `folder`/out, converted by dcm2niix, is what we read from it."""
    (folder / "theirs").mkdir()
    command = [str(DCM2NIIX), "-o", str(folder / "theirs"), "-f", "x", "-b", "n", str(folder / "out")]
    subprocess.run(command, check=True, capture_output=True)
    (converted,) = (folder / "theirs").glob("*.nii")
    ours = write_volume(folder / "ours.nii", result.voxels, result.affine)
    one, other = (nib.as_closest_canonical(nib.load(path)) for path in (converted, ours))
    np.testing.assert_allclose(one.affine, other.affine, atol=1e-4)
    assert one.shape == other.shape
    np.testing.assert_allclose(one.get_fdata(), other.get_fdata(), atol=1e-3 * other.get_fdata().max())


@pytest.mark.parametrize("kind", KINDS)
def test_dcm2niix_gives_the_affine_and_the_voxels_of_our_nifti(tmp_path: Path, kind: str) -> None:
    if DCM2NIIX is None:
        pytest.skip("dcm2niix is not installed")
    volume = read_one(save(make(kind), tmp_path / "in"))
    write(volume, tmp_path / "out")
    result = read_one(tmp_path / "out")
    _check_against_dcm2niix(result, tmp_path)


def test_positions_stay_as_they_are_written_and_spacing_is_divided(tmp_path: Path) -> None:
    source = series()
    for old, new in zip(source, in_order(derive(tmp_path, source)), strict=True):
        assert new.ImagePositionPatient == old.ImagePositionPatient
        assert new.ImageOrientationPatient == old.ImageOrientationPatient
        assert [float(size) for size in new.PixelSpacing] == [0.75, 0.625]
        assert (new.Rows, new.Columns) == (2 * old.Rows, 2 * old.Columns)
        assert new.SliceThickness == old.SliceThickness


def test_a_spacing_with_many_digits_fits_into_a_decimal_string(tmp_path: Path) -> None:
    source = series()
    for instance in source:
        instance.PixelSpacing = ["0.33333333333333", "0.66666666666667"]
    for instance in derive(tmp_path, source):
        assert all(len(str(size)) <= 16 for size in instance.PixelSpacing)
        assert float(instance.PixelSpacing[0]) == pytest.approx(1 / 6, rel=1e-12)


def test_row_74_slices_keep_their_positions_where_gaps_are_allowed(tmp_path: Path) -> None:
    source = series()
    del source[2]
    save(source, tmp_path / "in")
    volume = read_series(find_series(tmp_path / "in").series[0], allow_gap=True)
    written = in_order([pydicom.dcmread(path) for path in write(volume, tmp_path / "out")])
    assert [new.ImagePositionPatient for new in written] == [old.ImagePositionPatient for old in source]


# ------------------------------------------------------------------------------------------------- validators


@pytest.mark.parametrize("kind", KINDS)
def test_dciodvfy_and_dcentvfy_find_no_error(tmp_path: Path, kind: str) -> None:
    if shutil.which("dciodvfy") is None:
        pytest.skip("dciodvfy is not installed (Debian: dicom3tools)")
    source = make(kind)
    volume = read_one(save(source, tmp_path / "in"))
    paths = write(volume, tmp_path / "out")
    sources = sorted((tmp_path / "in").iterdir())
    assert _errors("dciodvfy", "-new", str(sources[0])) == []  # otherwise the source would be at fault
    for path in paths:
        assert _errors("dciodvfy", "-new", str(path)) == []
    assert _errors("dcentvfy", *map(str, [*sources, *paths])) == []


def _errors(*command: str) -> list[str]:
    result = subprocess.run(command, capture_output=True, text=True)
    lines = (result.stdout + result.stderr).splitlines()
    found = [line for line in lines if "Error" in line]
    return found or ([f"exit status {result.returncode}"] if result.returncode else [])


def test_one_echo_of_an_enhanced_object_stays_valid(tmp_path: Path) -> None:
    save(make("enhanced MR", echoes=(20.0, 40.0)), tmp_path / "in")
    for number, found in enumerate(find_series(tmp_path / "in").series):
        (path,) = write(read_series(found), tmp_path / f"out{number}")
        dataset = pydicom.dcmread(path)
        groups = dataset.PerFrameFunctionalGroupsSequence
        assert dataset.NumberOfFrames == len(groups) == factory.SLICES
        assert len({group.MREchoSequence[0].EffectiveEchoTime for group in groups}) == 1
        indices = [list(group.FrameContentSequence[0].DimensionIndexValues) for group in groups]
        assert indices == [[slice_ + 1, number + 1] for slice_ in range(factory.SLICES)]
        sources = [group.DerivationImageSequence[0].SourceImageSequence[0] for group in groups]
        assert len({item.ReferencedFrameNumber for item in sources}) == factory.SLICES
        if shutil.which("dciodvfy"):
            assert _errors("dciodvfy", "-new", str(path)) == []


@pytest.mark.parametrize("state", ["no item", "no sequence"])
def test_functional_groups_that_are_all_per_frame_are_written(tmp_path: Path, state: str) -> None:
    dataset = factory.enhanced("MR")
    (shared,) = dataset.SharedFunctionalGroupsSequence
    for group in dataset.PerFrameFunctionalGroupsSequence:
        group.update(shared)
    dataset.SharedFunctionalGroupsSequence = []
    if state == "no sequence":
        del dataset.SharedFunctionalGroupsSequence
    (new,) = derive(tmp_path, [dataset])
    assert [float(size) for size in new.PerFrameFunctionalGroupsSequence[0].PixelMeasuresSequence[0].PixelSpacing] == [
        0.75,
        0.625,
    ]


# ------------------------------------------------------------------------------------------------- attributes


@pytest.mark.parametrize("kind", ["MR", "CT", "PT"])
def test_what_is_new_says_that_it_is_derived_and_from_what(tmp_path: Path, kind: str) -> None:
    source = make(kind)
    for old, new in zip(source, in_order(derive(tmp_path, source)), strict=True):
        assert new.ImageType[0] == "DERIVED" and new.ImageType[2:] == old.ImageType[2:]
        assert new.file_meta.MediaStorageSOPInstanceUID == new.SOPInstanceUID != old.SOPInstanceUID
        assert new.file_meta.TransferSyntaxUID == ExplicitVRLittleEndian
        assert new.SeriesInstanceUID != old.SeriesInstanceUID and new.SeriesNumber == 502
        assert new.SeriesDescription == "phantom SRx2 ICONet"
        assert new.SourceImageSequence[0].ReferencedSOPInstanceUID == old.SOPInstanceUID
        assert new.SourceImageSequence[0].PurposeOfReferenceCodeSequence[0].CodeValue == "121322"
        assert "not measured" in new.DerivationDescription and "abababab" in new.DerivationDescription
        assert new.DerivationCodeSequence[0].CodeValue == "113085"
        equipment = new.ContributingEquipmentSequence[-1]
        assert equipment.PurposeOfReferenceCodeSequence[0].CodeValue == "109102"
        assert list(new.SoftwareVersions) == ["1.0", "ICONet SR 1.2.3"]
        assert new.ContentDate == new.InstanceCreationDate == "20260105"


def test_an_image_type_of_one_value_is_not_taken_apart(tmp_path: Path) -> None:
    source = series()
    for instance in source:
        instance.ImageType = "ORIGINAL"
    assert [list(new.ImageType) for new in derive(tmp_path, source)] == [["DERIVED", "SECONDARY"]] * len(source)


KEPT = ["PatientName", "PatientID", "StudyInstanceUID", "StudyDate", "FrameOfReferenceUID", "Modality", "SOPClassUID"]
KEPT += ["SeriesDate", "SeriesTime", "AcquisitionTime", "WindowCenter", "WindowWidth", "Manufacturer"]


@pytest.mark.parametrize("kind", ["MR", "CT", "PT"])
def test_patient_study_acquisition_and_windows_are_kept(tmp_path: Path, kind: str) -> None:
    source = make(kind)
    extra = {"MR": ["AcquisitionMatrix", "EchoTime", "InPlanePhaseEncodingDirection", "PatientPosition"]}
    extra |= {"CT": ["KVP", "RescaleSlope", "RescaleIntercept", "RescaleType"], "PT": ["Units", "DecayFactor"]}
    for old, new in zip(source, in_order(derive(tmp_path, source)), strict=True):
        for name in KEPT + extra[kind]:
            assert new[name].value == old[name].value, name


def test_what_describes_the_old_matrix_is_gone(tmp_path: Path) -> None:
    source = series()
    for instance in source:
        instance.add_new("SmallestImagePixelValue", "US", 0)
        instance.add_new("PixelPaddingValue", "US", 0)
        instance.add_new(0x60003000, "OW", bytes(16))
        instance.add_new(0x50003000, "OW", bytes(16))
        instance.IconImageSequence = [Dataset()]
        instance.ReferencedImageSequence = [Dataset()]
        instance.private_block(0x0029, "SIEMENS CSA HEADER", create=True).add_new(0x10, "OB", b"matrix")
        instance.ReferencedImageSequence[0].private_block(0x0029, "X", create=True).add_new(1, "LO", "y")
    for new in derive(tmp_path, source):
        groups = {tag.group for tag in new.keys()}  # noqa: SIM118
        assert not groups & {0x6000, 0x5000, 0x0029}
        assert not {"SmallestImagePixelValue", "PixelPaddingValue", "IconImageSequence"} & set(new.dir())
        assert "ReferencedImageSequence" in new and not list(new.ReferencedImageSequence[0])


def test_private_attributes_that_suv_needs_are_kept(tmp_path: Path) -> None:
    source = series("PT")
    for instance in source:
        block = instance.private_block(0x7053, "Philips PET Private Group", create=True)
        block.add_new(0x00, "DS", "0.000551")
        block.add_new(0x20, "OB", b"old matrix")
    for new in derive(tmp_path, source):
        block = new.private_block(0x7053, "Philips PET Private Group")
        assert block[0x00].value == pytest.approx(0.000551) and 0x20 not in block


def test_suv_is_that_of_the_source(tmp_path: Path) -> None:
    source = series("PT")
    volume = read_one(save(source, tmp_path / "in"))
    coarse = np.repeat(np.repeat(volume.voxels, 2, axis=0), 2, axis=1)
    paths = write(volume, tmp_path / "out", coarse)
    for old, path in zip(source, paths, strict=True):
        np.testing.assert_allclose(_suv(pydicom.dcmread(path))[::2, ::2], _suv(old), rtol=1e-6)


def _suv(dataset: Dataset) -> np.ndarray:
    """Body-weight SUV as consumers compute it: decay from injection to the series time."""
    dose = dataset.RadiopharmaceuticalInformationSequence[0]
    seconds = [sum(int(t[at : at + 2]) * f for at, f in ((0, 3600), (2, 60), (4, 1))) for t in _times(dataset, dose)]
    decayed = float(dose.RadionuclideTotalDose) * 2 ** (-(seconds[0] - seconds[1]) / float(dose.RadionuclideHalfLife))
    activity = dataset.pixel_array * float(dataset.RescaleSlope) + float(dataset.RescaleIntercept)
    return activity * float(dataset.PatientWeight) * 1000 / decayed


def _times(dataset: Dataset, dose: Dataset) -> tuple[str, str]:
    return str(dataset.SeriesTime), str(dose.RadiopharmaceuticalStartTime)


def test_row_105_a_lossy_source_stays_marked(tmp_path: Path) -> None:
    source = series()
    for instance in source:
        instance.LossyImageCompression, instance.LossyImageCompressionRatio = "01", "9.5"
    for new in derive(tmp_path, source):
        assert new.LossyImageCompression == "01" and new.LossyImageCompressionRatio == 9.5


def test_row_105_a_lossy_transfer_syntax_alone_marks_the_result(tmp_path: Path) -> None:
    volume = read_one(save(factory.jpeg(series()), tmp_path / "in", JPEGBaseline8Bit))
    first = pydicom.dcmread(write(volume, tmp_path / "out")[0])
    assert (first.LossyImageCompression, first.LossyImageCompressionMethod) == ("01", "ISO_10918_1")
    assert first.BitsAllocated == 16


def test_row_103_blank_uids_become_valid_ones(tmp_path: Path) -> None:
    source = series()
    for instance in source:
        for name in ("SeriesInstanceUID", "StudyInstanceUID", "SOPInstanceUID", "FrameOfReferenceUID"):
            setattr(instance, name, "")
    written = derive(tmp_path, source)
    assert len({new.SOPInstanceUID for new in written}) == len(source)
    for name in ("SeriesInstanceUID", "StudyInstanceUID", "FrameOfReferenceUID"):
        assert len({new[name].value for new in written}) == 1 and written[0][name].value.is_valid
    assert all("SourceImageSequence" not in new for new in written)


def test_instances_keep_the_order_of_the_source(tmp_path: Path) -> None:
    source = series()
    for number, instance in enumerate(source):
        instance.InstanceNumber = 50 - 3 * number
    written = in_order(derive(tmp_path, source))
    assert [new.InstanceNumber for new in written] == [1, 2, 3, 4, 5, 6]
    assert [new.ImagePositionPatient for new in written] == [old.ImagePositionPatient for old in reversed(source)]


# ----------------------------------------------------------------------------------------- integers and their meaning


def stored(dataset: Dataset) -> np.ndarray:
    return dataset.pixel_array.T.astype(np.int64)


def test_an_unchanged_volume_has_unchanged_integers(tmp_path: Path) -> None:
    for kind in ("MR", "CT", "PT"):
        source = series(kind)
        volume = read_one(save(source, tmp_path / kind))
        same = np.repeat(np.repeat(volume.voxels, 2, axis=0), 2, axis=1)
        for number, path in enumerate(write(volume, tmp_path / f"{kind} out", same)):
            new = pydicom.dcmread(path)
            np.testing.assert_array_equal(stored(new)[::2, ::2], phantom()[:, :, number])
            assert new.PixelRepresentation == source[0].PixelRepresentation


def _twice(planes: np.ndarray) -> np.ndarray:
    return np.repeat(np.repeat(planes, 2, axis=0), 2, axis=1).astype(np.float32)


def test_mr_below_zero_is_set_to_zero_and_said(tmp_path: Path) -> None:
    volume = read_one(save(series(), tmp_path / "in"))
    fine, affine = _twice(phantom() - 10.0), np.asarray(superres_affine(volume.affine, (2, 2, 1)))
    (path, *_), warnings = write_series(volume, fine, affine, tmp_path / "out", 2)
    np.testing.assert_array_equal(stored(pydicom.dcmread(path))[::2, ::2], np.maximum(phantom()[:, :, 0] - 10, 0))
    below = np.sum(fine < 0)
    assert below > 0 and warnings == (
        f"{below} voxels below what the source's unsigned integers can hold were set to the lowest value",
    )


def test_mr_beyond_12_bits_takes_all_16(tmp_path: Path) -> None:
    source = series()
    for number, instance in enumerate(source):
        factory.set_pixels(instance, phantom()[:, :, number], bits=12)
    written = derive(tmp_path, source, _twice(phantom() + 4000.0))
    assert all((new.BitsStored, new.HighBit, new.PixelRepresentation) == (16, 15, 0) for new in written)
    np.testing.assert_array_equal(stored(written[3])[::2, ::2], phantom()[:, :, 3] + 4000)


def test_mr_beyond_16_bits_gets_a_rescale(tmp_path: Path) -> None:
    written = derive(tmp_path, series(), _twice(phantom() * 100.0))
    for number, new in enumerate(written):
        assert (new.RescaleSlope, new.RescaleIntercept, new.RescaleType) == (2, 0, "US")
        assert (new.WindowCenter, new.WindowWidth) == (400, 900)  # windows apply to rescaled values
        assert np.abs(stored(new)[::2, ::2] * 2 - phantom()[:, :, number] * 100).max() <= 1
    if shutil.which("dciodvfy"):
        assert _errors("dciodvfy", "-new", str(next((tmp_path / "out").iterdir()))) == []


def test_signed_mr_without_negative_values_may_become_unsigned(tmp_path: Path) -> None:
    source = series()
    for number, instance in enumerate(source):
        factory.set_pixels(instance, phantom()[:, :, number], signed=True)
    written = derive(tmp_path, source, _twice(phantom() + 40000.0))
    assert all(new.PixelRepresentation == 0 for new in written)
    np.testing.assert_array_equal(stored(written[2])[::2, ::2], phantom()[:, :, 2] + 40000)


def test_ct_below_the_range_of_an_unsigned_source_is_stored_signed(tmp_path: Path) -> None:
    source = series("CT")
    for number, instance in enumerate(source):
        factory.set_pixels(instance, phantom()[:, :, number], bits=12, signed=False)
    written = derive(tmp_path, source, _twice(phantom() - 1100.0))
    for number, new in enumerate(written):
        assert (new.PixelRepresentation, new.RescaleSlope, new.RescaleIntercept) == (1, 1, -1024)
        np.testing.assert_array_equal(stored(new)[::2, ::2] - 1024, phantom()[:, :, number] - 1100)


def test_ct_beyond_16_bits_gets_one_coarser_slope(tmp_path: Path) -> None:
    written = derive(tmp_path, series("CT"), _twice(phantom() * 100.0 - 1100))
    assert {float(new.RescaleSlope) for new in written} == {4.0}
    for number, new in enumerate(written):
        assert np.abs(stored(new)[::2, ::2] * 4.0 - 1024 - (phantom()[:, :, number] * 100 - 1100)).max() <= 2


def test_pet_slices_that_outgrow_their_slope_get_a_new_one_alone(tmp_path: Path) -> None:
    volume = read_one(save(series("PT"), tmp_path / "in"))
    fine = _twice(volume.voxels)
    fine[3, 3, 2] = 40000.0
    written = [pydicom.dcmread(path) for path in write(volume, tmp_path / "out", fine)]
    slopes = [float(new.RescaleSlope) for new in written]
    assert slopes[:2] + slopes[3:] == [0.5, 0.61, 0.83, 0.94, 1.05]
    assert slopes[2] == pytest.approx(40000 / 32767, rel=1e-4)
    assert all(len(str(new.RescaleSlope)) <= 16 and new.RescaleIntercept == 0 for new in written)
    for number, new in enumerate(written):
        assert np.abs(stored(new) * slopes[number] - fine[:, :, number]).max() <= 0.501 * slopes[number]


def test_enhanced_frames_that_outgrow_their_slope_get_new_ones(tmp_path: Path) -> None:
    (written,) = derive(tmp_path, make("enhanced PT"), _twice(phantom() * 100.0))
    assert "PixelValueTransformationSequence" not in written.SharedFunctionalGroupsSequence[0]
    for number, group in enumerate(written.PerFrameFunctionalGroupsSequence):
        slope = float(group.PixelValueTransformationSequence[0].RescaleSlope)
        plane = written.pixel_array[number].T[::2, ::2]
        assert np.abs(plane * slope - phantom()[:, :, number] * 100).max() <= 0.501 * slope
    if shutil.which("dciodvfy"):
        assert _errors("dciodvfy", "-new", str(next((tmp_path / "out").iterdir()))) == []


def test_row_91_monochrome1_is_written_back_as_it_was(tmp_path: Path) -> None:
    source = series()
    for instance in source:
        instance.PhotometricInterpretation = "MONOCHROME1"
    volume = read_one(save(source, tmp_path / "in"))
    for number, path in enumerate(write(volume, tmp_path / "out", _twice(volume.voxels))):
        new = pydicom.dcmread(path)
        assert new.PhotometricInterpretation == "MONOCHROME1"
        np.testing.assert_array_equal(stored(new)[::2, ::2], phantom()[:, :, number])


# ----------------------------------------------------------------------------------------------- runs and the disk


def test_a_second_run_gives_the_same_bytes_and_other_weights_other_uids(tmp_path: Path) -> None:
    volume = read_one(save(series(), tmp_path / "in"))
    first = [path.read_bytes() for path in write(volume, tmp_path / "out")]
    assert [path.read_bytes() for path in write(volume, tmp_path / "out")] == first
    affine = np.asarray(superres_affine(volume.affine, (2, 2, 1)))
    other = {**PROVENANCE, "weights_sha256": "cd" * 32, "runtime": 17}
    paths = write_series(volume, sharpened(volume), affine, tmp_path / "other", 2, 2, other).paths
    uids = [
        {pydicom.dcmread(path).SOPInstanceUID for path in folder} for folder in (paths, write(volume, tmp_path / "out"))
    ]
    assert not uids[0] & uids[1]


def test_two_volumes_of_one_series_become_one_series_again(tmp_path: Path) -> None:
    save(make("enhanced MR", echoes=(20.0, 40.0)), tmp_path / "in")
    found = find_series(tmp_path / "in").series
    new = [pydicom.dcmread(write(read_series(one), tmp_path / one.label)[0]) for one in found]
    assert [f"volume {number} of 2" in one.description_for_log for number, one in enumerate(found, 1)] == [True, True]
    assert [one.label.startswith(f"MR-0005-{number}-") for number, one in enumerate(found, 1)] == [True, True]
    assert len({one.SOPInstanceUID for one in new}) == 2 and len({one.SeriesInstanceUID for one in new}) == 1
    assert [one.InstanceNumber for one in new] == [1, 2] and len({one.SeriesDescription for one in new}) == 1
    for number, one in enumerate(new, 1):
        (step,) = one.PerFrameFunctionalGroupsSequence[0].DerivationImageSequence
        assert step.DerivationDescription.endswith(f"Volume {number} of 2 of its series.")


@pytest.mark.parametrize("call", ["write", "sync"])
def test_a_failing_disk_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    volume = read_one(save(series(), tmp_path / "in"))
    before = [path.read_bytes() for path in write(volume, tmp_path / "out")]
    module, name = {"write": (pydicom, "dcmwrite"), "sync": (os, "fsync")}[call]
    original, calls = getattr(module, name), []

    def full(*args: object, **options: object) -> None:
        calls.append(args)
        if len(calls) == 3:
            raise OSError(28, "No space left on device")
        original(*args, **options)

    monkeypatch.setattr(module, name, full)
    for folder in (tmp_path / "out", tmp_path / "fresh"):
        calls.clear()
        with pytest.raises(VolumeError, match=f"{folder.name}: cannot be written .No space left on device"):
            write(volume, folder)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "out"]
    assert [path.read_bytes() for path in sorted((tmp_path / "out").iterdir())] == before


def _occupy(tmp_path: Path) -> Path:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.doc").touch()
    return tmp_path / "out"


def _link(tmp_path: Path) -> Path:
    (tmp_path / "out").symlink_to(tmp_path / "in")
    return tmp_path / "out"


def _file(tmp_path: Path) -> Path:
    (tmp_path / "out").touch()
    return tmp_path / "out"


@pytest.mark.parametrize(
    ("place", "message"),
    [
        (_occupy, "holds other files, such as thesis.doc"),
        (_link, "is a link"),
        (_file, "is a file"),
        (lambda tmp_path: tmp_path / "in", "holds the source"),
        (lambda tmp_path: _file(tmp_path) / "below", "cannot be written"),
    ],
)
def test_folders_that_must_not_be_replaced_are_refused(
    tmp_path: Path, place: Callable[[Path], Path], message: str
) -> None:
    volume = read_one(save(series(), tmp_path / "in"))
    before = sorted(tmp_path.joinpath("in").iterdir())
    with pytest.raises(VolumeError, match=message):
        write(volume, place(tmp_path))
    assert sorted(tmp_path.joinpath("in").iterdir()) == before


def test_wrong_arguments_are_refused(tmp_path: Path) -> None:
    volume = read_one(save(series(), tmp_path / "in"))
    fine, affine = sharpened(volume), np.asarray(superres_affine(volume.affine, (2, 2, 1)))
    shifted = affine.copy()
    shifted[:3, 3] += 0.25
    spoilt = fine.copy()
    spoilt[0, 0, 0] = np.nan
    cases = [
        (fine, affine, 2, 0, "slice axis 0"),
        (fine[:-1], affine, 2, 2, "expected \\(20, 24, 6\\)"),
        (fine, shifted, 2, 2, "not that of the source divided by the scale"),
        (spoilt, affine, 2, 2, "NaN or infinite"),
    ]
    for voxels, grid, scale, axis, message in cases:
        with pytest.raises(VolumeError, match=message):
            write_series(volume, voxels, grid, tmp_path / "out", scale, axis)
    assert not (tmp_path / "out").exists()


def test_a_source_that_is_gone_is_named(tmp_path: Path) -> None:
    volume = read_one(save(series(), tmp_path / "in"))
    gone = volume.frames[2].path
    gone.unlink()
    with pytest.raises(VolumeError, match=gone.name):
        write(volume, tmp_path / "out")
    assert not (tmp_path / "out").exists()


# ------------------------------------------------------------------------------------------------------------ padding


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("value", "limit"), [(-2000, None), (-2000, -1900), (0, 40), (4095, None)])
def test_padding_keeps_its_stored_integer_and_nothing_else_gets_it(
    kind: str, value: int, limit: int | None, tmp_path: Path
) -> None:
    if value < 0 and kind.endswith("PT"):
        pytest.skip("PET is unsigned")
    instances = make(kind)
    for instance in instances:
        pixels = np.frombuffer(instance.PixelData, np.int16).reshape(-1, instance.Rows, instance.Columns).copy()
        pixels[..., :3] = value
        instance.PixelData = pixels.tobytes()
        instance.BitsStored, instance.HighBit, instance.PixelRepresentation = 16, 15, int(value < 0 or kind == "CT")
        instance.add_new("PixelPaddingValue", "SS" if instance.PixelRepresentation else "US", value)
        if limit is not None:
            instance.add_new("PixelPaddingRangeLimit", "SS" if instance.PixelRepresentation else "US", limit)
    volume = read_one(save(instances, tmp_path / "source"))
    if value == 0 and "CT" not in kind:
        assert volume.values.padding is None
        return
    padding = np.float32(volume.values.padding)
    fine = sharpened(volume)
    mask = np.repeat(np.repeat(volume.voxels == padding, 2, 0), 2, 1)
    fine[mask] = padding
    fine[8:10] = volume.voxels[~(volume.voxels == padding)].min() - 3000  # beyond the range on the side of the padding
    fine[10:12] = np.nextafter(padding, np.float32(1e9))
    mask[8:12] = False
    write(volume, tmp_path / "out", fine)
    derived = read_one(tmp_path / "out")
    np.testing.assert_array_equal(derived.voxels == np.float32(derived.values.padding), mask)
    for path in (tmp_path / "out").iterdir():
        dataset = pydicom.dcmread(path)
        ends = sorted((dataset.PixelPaddingValue, dataset.get("PixelPaddingRangeLimit", dataset.PixelPaddingValue)))
        stored = dataset.pixel_array
        assert (dataset.PixelPaddingValue, dataset.get("PixelPaddingRangeLimit")) == (value, limit)
        assert set(stored[(stored >= ends[0]) & (stored <= ends[1])]) == {value}


def test_padding_of_an_unsigned_ct_that_becomes_signed_stays_padding(tmp_path: Path) -> None:
    stored = np.minimum(phantom(), 3000)
    stored[:3] = 65535
    instances = series("CT", stored)
    for instance in instances:
        instance.PixelRepresentation, instance.RescaleIntercept = 0, "0"
        instance.BitsStored, instance.HighBit = 16, 15
        instance.add_new("PixelPaddingValue", "US", 65535)
    volume = read_one(save(instances, tmp_path / "source"))
    fine = np.repeat(np.repeat(volume.voxels, 2, 0), 2, 1)
    fine[16, 16] = -100
    write(volume, tmp_path / "out", fine)
    derived = read_one(tmp_path / "out")
    padding = np.float32(volume.values.padding)
    np.testing.assert_array_equal(derived.voxels == np.float32(derived.values.padding), fine == padding)
    np.testing.assert_array_equal(derived.voxels[fine != padding], fine[fine != padding])


def test_padding_that_counts_as_signal_is_no_longer_declared(tmp_path: Path) -> None:
    instances = series("MR")
    for instance in instances:
        instance.add_new("PixelPaddingValue", "US", 0)
    (path, *_) = write(read_one(save(instances, tmp_path / "source")), tmp_path / "out")
    assert "PixelPaddingValue" not in pydicom.dcmread(path)


# ------------------------------------------------------------------------------------------- grids of another size


def on_grid(volume: DicomVolume, columns: int, rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Nearest voxels of the source on a grid of this matrix over its field of view."""
    x, y = (np.arange(n) * size // n for n, size in zip((columns, rows), volume.voxels.shape, strict=False))
    factors = columns / volume.voxels.shape[0], rows / volume.voxels.shape[1], 1
    return volume.voxels[x][:, y], np.asarray(superres_affine(volume.affine, factors))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("matrix", [(15, 24), (13, 17), (7, 30), (20, 23)])
def test_a_result_of_any_voxel_size_reads_back_in_its_place(tmp_path: Path, kind: str, matrix: tuple[int, int]) -> None:
    source = make(kind)
    volume = read_one(save(source, tmp_path / "in"))
    voxels, affine = on_grid(volume, *matrix)
    paths = write_series(volume, voxels, affine, tmp_path / "out", 2).paths
    again = read_one(tmp_path / "out")
    np.testing.assert_allclose(again.affine, affine, atol=1e-6)
    np.testing.assert_allclose(again.voxels, voxels, atol=0.51 * max(frame.slope for frame in again.frames))
    size = f"{10 * 1.25 / matrix[0]:.4g} x {12 * 1.5 / matrix[1]:.4g} mm"
    for path in paths:
        dataset = pydicom.dcmread(path)
        assert (dataset.Columns, dataset.Rows) == matrix
        assert dataset.SeriesDescription == f"phantom SR {size.replace(' ', '')} ICONet"
        assert dataset.get("AcquisitionMatrix") == source[0].get("AcquisitionMatrix")
        assert f", on voxels of {size}. Detail" in str(dataset)
    if shutil.which("dciodvfy") is not None:
        assert [error for path in paths for error in _errors("dciodvfy", "-new", str(path))] == []
    if DCM2NIIX is not None:
        _check_against_dcm2niix(again, tmp_path)


def test_results_of_one_source_on_different_grids_are_different_series(tmp_path: Path) -> None:
    volume = read_one(save(series(), tmp_path / "in"))
    seen = set()
    for number, matrix in enumerate([(20, 24), (15, 24), (20, 18)]):
        voxels, affine = on_grid(volume, *matrix)
        (path, *_) = write_series(volume, voxels, affine, tmp_path / str(number), 2).paths
        dataset = pydicom.dcmread(path)
        seen.add((dataset.SeriesInstanceUID, dataset.SOPInstanceUID))
        assert ("SRx2" in dataset.SeriesDescription) == (number == 0)
    assert len({uid for uids in seen for uid in uids}) == 6


@given(columns=st.integers(2, 45), rows=st.integers(2, 45), off=st.sampled_from([(1, 0), (0, -1), (3, 3), (-1, 1)]))
@settings(max_examples=25, deadline=None)
def test_a_matrix_that_does_not_fill_the_field_of_view_is_refused(
    tmp_path_factory: pytest.TempPathFactory, columns: int, rows: int, off: tuple[int, int]
) -> None:
    folder = tmp_path_factory.mktemp("case")
    volume = read_one(save(series(), folder / "in"))
    _, affine = on_grid(volume, columns, rows)
    voxels = np.zeros((max(columns + off[0], 1), max(rows + off[1], 1), 6), np.float32)
    with pytest.raises(VolumeError, match=f"expected \\({columns}, {rows}, 6\\)"):
        write_series(volume, voxels, affine, folder / "out", 2)


@pytest.mark.parametrize("spoil", ["turned", "sheared", "zero", "nan", "moved", "through the plane"])
def test_an_affine_that_is_not_that_of_the_source_is_refused(tmp_path: Path, spoil: str) -> None:
    volume = read_one(save(series(), tmp_path / "in"))
    voxels, affine = on_grid(volume, 15, 17)
    changes = {
        "turned": (slice(0, 3), 0, -affine[:3, 0]),
        "sheared": (slice(0, 3), 1, affine[:3, 1] + 0.1 * affine[:3, 0]),
        "zero": (slice(0, 3), 0, 0),
        "nan": (0, 0, np.nan),
        "moved": (0, 3, affine[0, 3] + 0.1),
        "through the plane": (slice(0, 3), 2, affine[:3, 2] * 1.1),
    }
    at, column, value = changes[spoil]
    affine[at, column] = value
    with pytest.raises(VolumeError, match="the affine is not|expected"):
        write_series(volume, voxels, affine, tmp_path / "out", 2)
    assert not (tmp_path / "out").exists()
