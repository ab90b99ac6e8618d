"""Finding and reading DICOM series: what is refused, what is split, what is read with a warning.

All files are generated. "row N" in an id is the number of the case in docs/dicom.md.
"""

from __future__ import annotations

import importlib
import logging
import re
import sys
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path

import dicom_factory as factory
import numpy as np
import pytest
from dicom_factory import phantom, save, save_one, series
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset
from pydicom.pixels import get_decoder, get_encoder
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGLSLossless,
    RLELossless,
    generate_uid,
)

from bundle.data import VolumeError
from bundle.data.dicom.find import find_series
from bundle.data.dicom.read import DicomVolume, read_series
from bundle.data.dicom.series import DicomSeries
from bundle.data.find import files_below

Spoil = Callable[[list[Dataset]], list[Dataset]]


def find_one(root: Path) -> DicomSeries:
    (found,) = find_series(root).series
    return found


def read_one(root: Path, **options: bool) -> DicomVolume:
    return read_series(find_one(root), **options)


def edit(**attributes: object) -> Spoil:
    """Set attributes of every instance; None deletes."""
    return lambda instances: [_edited(instance, attributes) for instance in instances]


def edit_some(*numbers: int, **attributes: object) -> Spoil:
    def spoil(instances: list[Dataset]) -> list[Dataset]:
        for number in numbers:
            _edited(instances[number], attributes)
        return instances

    return spoil


def _edited(instance: Dataset, attributes: dict) -> Dataset:
    for name, value in attributes.items():
        if value is None:
            delattr(instance, name)
        else:
            setattr(instance, name, value)
    return instance


def without(*numbers: int) -> Spoil:
    return lambda instances: [instance for number, instance in enumerate(instances) if number not in numbers]


def moved(number: int, millimetres: float) -> Spoil:
    """Move one slice along the normal of axial slices."""

    def spoil(instances: list[Dataset]) -> list[Dataset]:
        x, y, z = instances[number].ImagePositionPatient
        instances[number].ImagePositionPatient = [x, y, float(z) + millimetres]
        return instances

    return spoil


AXIAL = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)
CORONAL = [1.0, 0.0, 0.0, 0.0, 0.0, -1.0]


# ---------------------------------------------------------------------------------------------------- read correctly


@pytest.mark.parametrize("modality", ["MR", "CT", "PT"])
def test_a_shuffled_oblique_series_is_read_in_place_and_in_its_units(tmp_path: Path, modality: str) -> None:
    volume = read_one(save(series(modality), tmp_path))
    slope = {"MR": 1.0, "CT": 1.0, "PT": 0.5 + 0.11 * np.arange(factory.SLICES)}[modality]
    truth = phantom() * slope + {"MR": 0, "CT": -1024, "PT": 0}[modality]
    assert volume.voxels.dtype == np.float32 and volume.series.modality == modality
    np.testing.assert_allclose(volume.voxels, truth, rtol=1e-6)
    np.testing.assert_allclose(volume.affine, factory.expected_affine(), atol=1e-9)
    assert volume.warnings == [] and volume.regular


@settings(max_examples=15, deadline=None)
@given(
    angles=st.tuples(*[st.floats(-3.1, 3.1)] * 3),
    step=st.floats(0.3, 12),
    order=st.permutations(range(4)),
)
def test_any_orientation_and_file_order_gives_the_same_grid(
    tmp_path_factory: pytest.TempPathFactory, angles: tuple[float, float, float], step: float, order: list[int]
) -> None:
    turn = np.eye(3)
    for axis, angle in enumerate(angles):
        one = np.eye(3)
        a, b = [n for n in range(3) if n != axis]
        one[[a, a, b, b], [a, b, a, b]] = np.cos(angle), -np.sin(angle), np.sin(angle), np.cos(angle)
        turn = turn @ one
    cosines = tuple(float(f"{x:.9f}") for x in turn.T[:2].ravel())
    instances = series(voxels=phantom(4, 5, 4), orientation=cosines, step=step)
    for number, instance in zip(order, instances, strict=True):
        instance.InstanceNumber = number
    volume = read_one(save([instances[number] for number in order], tmp_path_factory.mktemp("series")))
    np.testing.assert_array_equal(volume.voxels, phantom(4, 5, 4))
    np.testing.assert_allclose(volume.affine, factory.expected_affine(cosines, step), atol=1e-6)


@pytest.mark.parametrize("modality", ["MR", "PT"])
def test_row_99_an_enhanced_object_is_the_same_volume(tmp_path: Path, modality: str) -> None:
    save([factory.enhanced(modality)], tmp_path)
    volume = read_one(tmp_path)
    np.testing.assert_array_equal(volume.voxels, phantom() * 0.5)
    np.testing.assert_allclose(volume.affine, factory.expected_affine(), atol=1e-9)


def test_row_99_the_echoes_of_an_enhanced_object_are_separate_volumes(tmp_path: Path) -> None:
    save([factory.enhanced(echoes=(20.0, 40.0))], tmp_path)
    volumes = [read_series(found) for found in find_series(tmp_path).series]
    assert sorted(float(volume.voxels.max()) for volume in volumes) == [phantom().max() / 4, phantom().max() / 2]
    assert all(volume.voxels.shape == phantom().shape for volume in volumes)
    assert len({volume.series.label for volume in volumes}) == 2


SYNTAXES = [ImplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian]
SYNTAXES += [RLELossless, JPEGLSLossless, JPEG2000Lossless]


@pytest.mark.parametrize("syntax", SYNTAXES, ids=lambda uid: f"rows 94 107 108 {uid.keyword}")
def test_every_transfer_syntax_gives_the_same_voxels(tmp_path: Path, syntax: UID) -> None:
    if syntax.is_encapsulated:
        for coder in (get_encoder(syntax), get_decoder(syntax)):
            if not coder.is_available:
                pytest.skip(f"no plug-in for {syntax.name}: {coder.missing_dependencies}")
    stored = phantom(40, 48, 3)  # encoders refuse the smallest images
    volume = read_one(save(series("CT", stored), tmp_path, syntax))
    np.testing.assert_array_equal(volume.voxels, stored - 1024)


def test_row_94_a_missing_plug_in_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(series(), tmp_path, RLELossless)
    decoder = get_decoder(RLELossless)
    monkeypatch.setattr(decoder, "_available", {})
    monkeypatch.setattr(decoder, "_unavailable", {"pylibjpeg": ("pylibjpeg>=2.0", "pylibjpeg-rle>=2.0")})
    with pytest.raises(VolumeError, match=r"no plug-in decodes RLE Lossless.*pylibjpeg-rle>=2\.0"):
        read_one(tmp_path)


def test_a_vendor_file_gives_the_same_voxels_in_each_of_its_encodings() -> None:
    names = ["", "_RLE", "_bigendian", "_implicit", "_expb", "_padded", "_jpeg_ls_lossless", "_jp2klossless"]
    paths = [get_testdata_file(f"MR_small{name}.dcm", download=False) for name in names]
    if None in paths:
        pytest.skip("this pydicom comes without its test files")
    volumes = [read_one(Path(str(path))) for path in paths]
    assert volumes[0].voxels.shape == (64, 64, 1) and volumes[0].voxels.max() > 1000
    for volume in volumes[1:]:
        np.testing.assert_array_equal(volume.voxels, volumes[0].voxels)
        np.testing.assert_array_equal(volume.affine, volumes[0].affine)


@pytest.mark.parametrize("high_bits", [0x0000, 0xF000], ids=["clean", "unused bits set"])
def test_row_97_signed_12_bit_values_keep_their_sign(tmp_path: Path, high_bits: int) -> None:
    truth = phantom() - 500
    instances = series("CT", truth)
    for number, instance in enumerate(instances):
        plane = (truth[:, :, number] & 0x0FFF) | high_bits
        factory.set_pixels(instance, plane, bits=12, signed=False)
        instance.PixelRepresentation = 1
    np.testing.assert_array_equal(read_one(save(instances, tmp_path)).voxels, truth - 1024)


def test_row_91_monochrome1_is_turned_over(tmp_path: Path) -> None:
    volume = read_one(save(edit(PhotometricInterpretation="MONOCHROME1")(series()), tmp_path))
    np.testing.assert_array_equal(volume.voxels, 65535 - phantom())
    assert "MONOCHROME1" in volume.warnings[0]


def test_padding_that_is_declared_gets_one_value_and_is_not_signal(tmp_path: Path) -> None:
    stored = phantom() + 100
    stored[0], stored[-1] = -2000, -1990
    instances = series("CT", stored)
    for instance in instances:
        instance.add_new("PixelPaddingValue", "SS", -2000)
        instance.add_new("PixelPaddingRangeLimit", "SS", -1990)
    volume = read_one(save(instances, tmp_path))
    expected = stored.copy()
    expected[-1] = -2000
    np.testing.assert_array_equal(volume.voxels, expected - 1024)
    assert volume.values.padding == -3024
    assert volume.values.padding_share == 2 / len(stored)
    assert volume.values.lowest == stored[1:-1].min() - 1024


@pytest.mark.parametrize(
    ("modality", "vr", "declared", "stored_value", "padding"),
    [
        ("MR", "SS", -2000, -2000, -2000),
        ("MR", "US", 63536, -2000, -2000),
        ("MR", "SS", 4095, 4095, 4095),
        ("CT", "SS", 0, 0, -1024),
        ("MR", "SS", 0, 0, None),
        ("PT", "US", 0, 0, None),
        ("MR", "SS", -5, 0, None),
        ("MR", "SS", -5, -9999, -9999),
        ("CT", "SS", -5, -2000, -3024),
    ],
)
def test_padding_of_any_modality_counts_but_not_the_zero_of_an_empty_voxel(
    modality: str, vr: str, declared: int, stored_value: int, padding: float | None, tmp_path: Path
) -> None:
    stored = phantom() + 100
    stored[:3] = stored_value
    instances = series(modality, stored)
    for instance in instances:
        instance.add_new("PixelPaddingValue", vr, declared)
        if stored_value < 0:
            instance.PixelRepresentation = 1
    assert read_one(save(instances, tmp_path)).values.padding == padding


def test_in_a_ct_any_negative_value_is_a_measurement_and_in_mr_a_stray_one_is_not(tmp_path: Path) -> None:
    stored = phantom() + 100
    stored[0, 0, 0] = -3
    for modality, shift in (("MR", 0), ("CT", 1024)):
        instances = series(modality, stored + shift)
        for instance in instances:
            instance.PixelRepresentation = 1
        assert read_one(save(instances, tmp_path / modality)).values.signed == (modality == "CT")


def test_row_105_jpeg_of_8_bits_is_read(tmp_path: Path) -> None:
    save(factory.jpeg(series()), tmp_path, JPEGBaseline8Bit)
    assert np.abs(read_one(tmp_path).voxels - np.minimum(phantom(), 1000) // 4).max() < 40


# ----------------------------------------------------------------------------------------------- read with a warning


def tilted(instances: list[Dataset]) -> list[Dataset]:
    for number, instance in enumerate(instances):
        x, y, z = instance.ImagePositionPatient
        instance.ImagePositionPatient = [x, float(y) + number, z]
    return instances


WARNED: dict[str, tuple[Spoil, str]] = {
    "row 76 exact copy": (lambda made: [*made, made[2]], "1 duplicate slices were left out"),
    "row 81 tilt": (tilted, r"leans by 14\.04 degrees"),
    "row 96 spacing between slices": (edit(SpacingBetweenSlices="3"), "SpacingBetweenSlices is 3 mm.*4 mm apart"),
    "slightly uneven": (moved(2, 0.1), "deviate from equal steps by up to 0.1 mm"),
}


@pytest.mark.parametrize("case", WARNED)
def test_doubtful_series_are_read_with_a_warning(tmp_path: Path, case: str) -> None:
    spoil, warning = WARNED[case]
    volume = read_one(save(spoil(series(orientation=AXIAL)), tmp_path))
    np.testing.assert_array_equal(volume.voxels, phantom())
    (found,) = volume.warnings
    assert re.search(warning, found)


def test_row_81_a_tilted_stack_has_a_sheared_affine(tmp_path: Path) -> None:
    volume = read_one(save(tilted(series(orientation=AXIAL)), tmp_path))
    expected = factory.expected_affine(AXIAL)
    expected[1, 2] -= 1  # RAS: the stack moves by 1 mm towards posterior with each slice
    np.testing.assert_allclose(volume.affine, expected, atol=1e-9)


def test_row_86_instance_numbers_do_not_order_the_slices(tmp_path: Path) -> None:
    instances = series()
    for instance in instances:
        instance.InstanceNumber = 100 - instance.InstanceNumber
    np.testing.assert_array_equal(read_one(save(instances, tmp_path)).voxels, phantom())


def test_row_92_a_single_slice_is_as_thick_as_it_says(tmp_path: Path) -> None:
    volume = read_one(save(series()[:1], tmp_path))
    assert volume.voxels.shape == (factory.COLUMNS, factory.ROWS, 1)
    assert np.linalg.norm(volume.affine[:3, 2]) == pytest.approx(3.5)


def test_slices_missing_at_an_end_of_a_pet_are_noticed(tmp_path: Path) -> None:
    assert "NumberOfSlices is 6, but 5 were found" in read_one(save(series("PT")[1:], tmp_path)).warnings[0]


# ------------------------------------------------------------------------------------------------- what is refused


def colliding(instances: list[Dataset]) -> list[Dataset]:
    """A second, different slice at the position of the first."""
    other = series(voxels=phantom() + 1, orientation=AXIAL)[0]
    other.SOPInstanceUID = generate_uid(entropy_srcs=["other"])
    return [*instances, other]


REFUSED: dict[str, tuple[Spoil, str]] = {
    "row 74 missing slice": (without(2), r"1 slices are missing, the first after 4 mm of 20 mm \(step 4 mm\)"),
    "row 74 two missing slices": (without(1, 3), "2 slices are missing, the first after 0 mm of 20 mm"),
    "row 75 two slices in one place": (colliding, "different slices at the same position"),
    "row 79 mixed spacing": (edit_some(3, PixelSpacing=["1.6", "1.25"]), r"PixelSpacing differs: 1\.5x1\.25.*1\.6x"),
    "row 82 irregular": (moved(2, 1.0), "positions are uneven: steps of 3 to 5 mm"),
    "row 83 no position": (edit(ImagePositionPatient=None), "no ImagePositionPatient"),
    "row 83 no orientation": (edit(ImageOrientationPatient=None), "no ImageOrientationPatient"),
    "row 95 no spacing": (edit(PixelSpacing=None), "no PixelSpacing"),
    "row 95 zero spacing": (edit(PixelSpacing=["0", "1.25"]), "PixelSpacing is 0x1.25"),
    "orientation not perpendicular": (edit(ImageOrientationPatient=[1, 0, 0, 0.6, 0.8, 0]), "not two perpendicular"),
    "several frames of reference": (edit_some(1, FrameOfReferenceUID="1.2.3"), "several frames of reference"),
    "row 100 mosaic": (edit(ImageType=["ORIGINAL", "PRIMARY", "M", "MOSAIC"]), "mosaic.*dcm2niix"),
    "row 101 colour": (edit(SamplesPerPixel=3, PhotometricInterpretation="RGB"), "colour or palette"),
    "row 84 slope zero": (edit(RescaleSlope="0", RescaleIntercept="0"), "RescaleSlope is 0"),
    "row 84 intercept not finite": (edit(RescaleSlope="1", RescaleIntercept="1e300"), "RescaleIntercept is not 1"),
    "row 84 slope lost in float32": (edit(RescaleSlope="1e-6", RescaleIntercept="900"), "steps.*vanish in float32"),
    "several frames in a classic class": (edit(NumberOfFrames=2), "several frames in a single-frame SOP class"),
    "no pixels": (edit(PixelData=None), "the pixels cannot be decoded"),
    "matrix beyond the pixels": (edit(Rows=60000), "implausible matrix 10x60000"),
    "more rows than there are": (edit(Rows=13), "the pixels cannot be decoded.*less than expected"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_bad_series_are_refused_with_one_line(tmp_path: Path, case: str) -> None:
    spoil, message = REFUSED[case]
    save(spoil(series(orientation=AXIAL)), tmp_path)
    with pytest.raises(VolumeError, match=message) as refused:
        read_one(tmp_path)
    assert "\n" not in str(refused.value) and str(tmp_path) in str(refused.value)
    assert "SECRET" not in str(refused.value)


@pytest.mark.parametrize("spoil", [without(2), moved(2, 1.0)], ids=["row 74 allowed gap", "row 82 allowed unevenness"])
def test_gaps_can_be_allowed(tmp_path: Path, spoil: Spoil) -> None:
    instances = spoil(series(orientation=AXIAL))
    volume = read_one(save(instances, tmp_path), allow_gap=True)
    assert volume.voxels.shape[2] == len(instances) and not volume.regular
    assert "allowed" in volume.warnings[-1]
    places = [frame.position for frame in volume.frames]
    assert places == [tuple(map(float, instance.ImagePositionPatient)) for instance in instances]


def test_row_89_a_cut_file_is_named(tmp_path: Path) -> None:
    save(series(), tmp_path)
    victim = sorted(tmp_path.iterdir())[3]
    victim.write_bytes(victim.read_bytes()[:-50])
    with pytest.raises(VolumeError, match=f"{victim.name}.*less than expected"):
        read_one(tmp_path)


def test_row_89_a_file_cut_in_its_header_spoils_its_series(tmp_path: Path) -> None:
    save(series(), tmp_path)
    victim = sorted(tmp_path.iterdir())[3]
    content = victim.read_bytes()
    victim.write_bytes(content[: content.index(b"\x20\x00\x0e\x00") + 80])  # behind SeriesInstanceUID
    with pytest.raises(VolumeError, match=victim.name):
        read_one(tmp_path)


def test_row_89_a_file_too_damaged_for_its_series_is_not_lost(tmp_path: Path) -> None:
    save(series(), tmp_path)
    (tmp_path / "cut.dcm").write_bytes(sorted(tmp_path.iterdir())[0].read_bytes()[:200])
    volumes = find_series(tmp_path).series
    assert sorted(found.modality for found in volumes) == ["?", "MR"]
    with pytest.raises(VolumeError, match=r"cut\.dcm"):
        read_series(next(found for found in volumes if found.modality == "?"))


def test_a_deflated_file_cannot_fill_the_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(series(), tmp_path, DeflatedExplicitVRLittleEndian)
    monkeypatch.setattr("bundle.data.dicom.header.MAX_DEFLATED", 1000)
    with pytest.raises(VolumeError, match="inflates beyond 1000 bytes"):
        read_series(find_series(tmp_path).series[0])


def test_more_voxels_than_allowed_are_refused_before_any_pixel_is_read(tmp_path: Path) -> None:
    save(series(), tmp_path)
    with pytest.raises(VolumeError, match="beyond the limit of 100"):
        read_series(find_one(tmp_path), max_bytes=100)


# -------------------------------------------------------------------------------------------------- what is split


def second_echo(instances: list[Dataset]) -> list[Dataset]:
    return [*instances, *_copies(instances, EchoTime="40")]


def _copies(instances: list[Dataset], **attributes: object) -> list[Dataset]:
    made = []
    for instance in instances:
        copy = deepcopy(instance)
        copy.SOPInstanceUID = generate_uid(entropy_srcs=[instance.SOPInstanceUID, str(attributes)])
        copy.PixelData = (np.frombuffer(instance.PixelData, "<u2") // 2).tobytes()
        made.append(_edited(copy, attributes))
    return made


def other_plane(instances: list[Dataset]) -> list[Dataset]:
    planes = _copies(instances[:2])
    for number, instance in enumerate(planes):
        instance.ImageOrientationPatient, instance.ImagePositionPatient = CORONAL, [0, 4 * number, 0]
    return [*instances, *planes]


def other_matrix(instances: list[Dataset]) -> list[Dataset]:
    others = series(voxels=phantom(8, 8, 2), orientation=AXIAL)
    for number, other in enumerate(others):
        other.SOPInstanceUID = generate_uid(entropy_srcs=["matrix", str(number)])
    return [*instances, *others]


def two_averages(instances: list[Dataset]) -> list[Dataset]:
    """Trigger times that differ from slice to slice must not be mistaken for what separates the two volumes."""
    both = [*instances, *_copies(instances, AcquisitionNumber=2)]
    for number, instance in enumerate(both):
        instance.TriggerTime = str(100 * number)
    return both


SPLIT: dict[str, tuple[Spoil, list[int]]] = {
    "row 77 two series": (lambda made: [*made, *series(orientation=AXIAL, seed="b")], [6, 6]),
    "row 78 mixed matrix": (other_matrix, [2, 6]),
    "row 80 localizer plane": (other_plane, [2, 6]),
    "row 93 two echoes": (second_echo, [6, 6]),
    "row 93 two b-values": (lambda made: [*made, *_copies(made, DiffusionBValue=1000.0)], [6, 6]),
    "row 93 time points": (lambda made: [*made, *_copies(made, TemporalPositionIdentifier=2)], [6, 6]),
    "row 93 an aborted time point": (lambda made: [*made, *_copies(made[:4], TemporalPositionIdentifier=2)], [4, 6]),
    "row 93 phase images": (lambda made: [*made, *_copies(made, ImageType=["ORIGINAL", "PRIMARY", "P"])], [6, 6]),
    "row 93 averages": (two_averages, [6, 6]),
    "row 106 two patients": (lambda made: [*made, *_copies(made, PatientID="OTHER")], [6, 6]),
    "row 106 left and right": (lambda made: [*made, *_copies(made, Laterality="L")], [6, 6]),
}


@pytest.mark.parametrize("case", SPLIT)
def test_volumes_of_one_folder_are_separated(tmp_path: Path, case: str) -> None:
    spoil, sizes = SPLIT[case]
    save(spoil(series(orientation=AXIAL)), tmp_path)
    volumes = find_series(tmp_path).series
    assert sorted(len(found.frames) for found in volumes) == sizes
    assert len({found.label for found in volumes}) == len(volumes)
    warnings = [warning for found in volumes for warning in read_series(found).warnings]
    assert warnings == ["incomplete: slices at 4 of the 6 positions of the series"] * ("aborted" in case)


def test_row_103_blank_uids_are_replaced_by_folder_and_number(tmp_path: Path) -> None:
    blank = edit(SeriesInstanceUID="", StudyInstanceUID="", SOPInstanceUID="", FrameOfReferenceUID="")
    for folder, number in (("a", 1), ("a", 2), ("b", 1)):
        save(edit(SeriesNumber=number)(blank(series())), tmp_path / folder)
    volumes = find_series(tmp_path).series
    assert [len(found.frames) for found in volumes] == [6, 6, 6]
    assert len({found.label for found in volumes}) == 3
    assert "SOPInstanceUID is blank" in read_series(volumes[0]).warnings[0]


# ---------------------------------------------------------------------------------------------- what is left out


def test_row_88_and_102_other_files_are_left_out_with_a_note(tmp_path: Path) -> None:
    save(series(), tmp_path)
    (tmp_path / "notes.txt").write_text("nothing")
    (tmp_path / "empty").touch()
    report = Dataset()
    report.SOPClassUID, report.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.88.11", generate_uid()
    save_one(report, tmp_path / "report.dcm")
    capture = series()[0]
    capture.SOPClassUID = "1.2.840.10008.5.1.4.1.1.7"
    save_one(capture, tmp_path / "capture.dcm")
    directory = Dataset()
    directory.SOPClassUID, directory.SOPInstanceUID = "1.2.840.10008.1.3.10", generate_uid()
    save_one(directory, tmp_path / "DICOMDIR")
    (found,), left_out = find_series(tmp_path)
    assert len(found.frames) == 6 and len(left_out) == 4
    for text in ("2 files left out (not DICOM)", "Basic Text SR", "Secondary Capture", "Media Storage Directory"):
        assert any(text in line for line in left_out)
    for name in ("report.dcm", "capture.dcm", "DICOMDIR", "notes.txt"):
        with pytest.raises(VolumeError, match="no DICOM image of MR, CT or PET"):
            find_series(tmp_path / name)


def test_an_image_whose_class_is_damaged_spoils_its_series(tmp_path: Path) -> None:
    save(edit_some(5, SOPClassUID="1.2.840.10008.5.1.4.1.9.4")(series()), tmp_path)
    with pytest.raises(VolumeError, match="image of an unknown SOP class"):
        read_one(tmp_path)


def test_row_90_an_empty_folder_holds_nothing_and_a_missing_one_is_an_error(tmp_path: Path) -> None:
    assert find_series(tmp_path) == ([], ())
    with pytest.raises(VolumeError, match="no such file or folder"):
        find_series(tmp_path / "gone")


def test_rows_87_and_98_names_and_the_dicm_mark_do_not_decide(tmp_path: Path) -> None:
    save(series(), tmp_path, ImplicitVRLittleEndian, suffix="")
    for path in tmp_path.iterdir():
        content = path.read_bytes()
        path.write_bytes(content[content.index(b"\x08\x00\x08\x00") :])  # from ImageType: no preamble, no meta group
    np.testing.assert_array_equal(read_one(tmp_path).voxels, phantom())


@pytest.mark.parametrize("content", [b"", b"\x08\x00" * 400, b"text" * 100, bytes(500)])
def test_row_98_what_only_looks_like_dicom_is_not(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.dcm").write_bytes(content)
    assert find_series(tmp_path).series == []


def test_an_unreadable_file_is_not_lost(tmp_path: Path) -> None:
    save(series(), tmp_path)
    (tmp_path / "lost.dcm").symlink_to(tmp_path / "nowhere")
    lost = [found for found in find_series(tmp_path).series if found.modality == "?"]
    with pytest.raises(VolumeError, match=r"lost\.dcm: cannot be read"):
        read_series(lost[0])


def test_the_output_folder_is_not_searched(tmp_path: Path) -> None:
    save(series(), tmp_path / "in")
    save(series(seed="b"), tmp_path / "out")
    assert len(find_series(tmp_path, files_below(tmp_path, exclude=tmp_path / "out")).series) == 1


# ------------------------------------------------------------------------------------------- privacy, missing pydicom


@pytest.mark.filterwarnings("ignore:Invalid value for VR DA")  # of writing the file
def test_row_117_nothing_but_the_paths_names_the_patient(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    save(edit(PatientBirthDate="SECRET-DAY")(series()), tmp_path)
    caplog.clear()
    with caplog.at_level(logging.DEBUG):
        volume = read_one(tmp_path)
    found = volume.series
    shown = " ".join([found.label, found.description_for_log, repr(found), str(volume.warnings), caplog.text])
    assert "ecret" not in shown.casefold().replace(str(tmp_path).casefold(), "")
    assert found.description_for_log == f"MR series 5, 6 slices of 10x12 [{found.label}]"
    assert set(found.label) <= set("MR-0123456789abcdef")


def test_without_pydicom_the_modules_import_and_the_message_helps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(series(), tmp_path)
    for name in [name for name in sys.modules if name.partition(".")[0] == "pydicom" or "bundle.data.dicom" in name]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "pydicom", None)
    for name in ("read", "write"):
        importlib.import_module(f"bundle.data.dicom.{name}")
    finder = importlib.import_module("bundle.data.dicom.find")
    with pytest.raises(VolumeError, match=r'pip install "\.\[dicom\]"'):
        finder.find_series(tmp_path)
