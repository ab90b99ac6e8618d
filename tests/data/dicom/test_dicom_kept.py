"""What a derived series keeps of its source: private attributes, mappings of integers, marks of loss, order, UIDs."""

from __future__ import annotations

import dataclasses
import shutil
import subprocess
from pathlib import Path

import dicom_factory as factory
import dicom_vendors as vendors
import numpy as np
import pydicom
import pytest
from dicom_factory import phantom, save, series
from hypothesis import given
from hypothesis import strategies as st
from pydicom.dataset import Dataset

from bundle.data.dicom.find import find_series
from bundle.data.dicom.frame import Frame
from bundle.data.dicom.integers import follow_encoding
from bundle.data.dicom.order import result_numbers
from bundle.data.dicom.private import KEPT, keep_private, precise_scaling
from bundle.data.dicom.read import DicomVolume, read_series
from bundle.data.dicom.scaling import Encoding, plan_encoding
from bundle.data.dicom.series import DicomSeries
from bundle.data.dicom.write import write_series
from bundle.physics import superres_affine


def derived(volume: DicomVolume, folder: Path, factor: float = 1.0) -> list[Dataset]:
    """The derived instances of a volume whose values grow by a factor."""
    fine = np.repeat(np.repeat(volume.voxels, 2, axis=0), 2, axis=1) * factor
    affine = np.asarray(superres_affine(volume.affine, (2, 2, 1)))
    return [pydicom.dcmread(path) for path in write_series(volume, fine, affine, folder, 2).paths]


def volume_of(source: list[Dataset], folder: Path, syntax: str = pydicom.uid.ExplicitVRLittleEndian) -> DicomVolume:
    (found,) = find_series(save(source, folder, syntax)).series
    return read_series(found)


# ------------------------------------------------------------------------------------------- private attributes

GROUPS = sorted({block.group for block in KEPT} | {0x0029, 0x0051, 0x0011})
CREATORS = [*(block.creator for block in KEPT), "SIEMENS CSA NON-IMAGE", "Unknown 01"]
ELEMENTS = st.tuples(st.sampled_from(GROUPS), st.integers(0x10, 0x14), st.integers(0, 255))


@given(
    blocks=st.dictionaries(st.tuples(st.sampled_from(GROUPS), st.integers(0x10, 0x14)), st.sampled_from(CREATORS)),
    elements=st.lists(ELEMENTS, max_size=60),
    maker=st.sampled_from(["SIEMENS", "Siemens Healthineers", "GE MEDICAL SYSTEMS", "Philips", "UIH", "Agfa", ""]),
    nested=st.booleans(),
)
def test_only_listed_private_elements_stay_and_each_has_its_creator(
    blocks: dict[tuple[int, int], str], elements: list[tuple[int, int, int]], maker: str, nested: bool
) -> None:
    dataset = item = Dataset()
    dataset.Manufacturer = maker
    if nested:
        item = Dataset()
        dataset.ReferencedImageSequence = [item]
    for (group, number), creator in blocks.items():
        item.add_new(group << 16 | number, "LO", creator)
    for group, number, offset in elements:
        item.add_new(group << 16 | number << 8 | offset, "LO", "1")
    keep_private(dataset)
    listed = {(block.creator, block.group, offset) for block in KEPT for offset in block.elements}
    stayed = [tag for tag in item.keys() if tag.is_private and tag.elem > 0xFF]  # noqa: SIM118
    for tag in stayed:
        creator = item[tag.group << 16 | tag.elem >> 8].value
        assert (creator, tag.group, tag.elem & 0xFF) in listed
    for group, number, offset in elements:
        if (blocks.get((group, number)), group, offset) in listed:
            assert group << 16 | number << 8 | offset in item  # nothing listed is lost


def test_the_page_lists_every_private_element_that_is_kept() -> None:
    page = (Path(__file__).parents[3] / "docs" / "dicom.md").read_text(encoding="utf-8")
    rows = {line.split("|")[1].strip().removesuffix(" (UIH)"): line for line in page.splitlines() if "xx" in line}
    for block in KEPT:
        assert f"({block.group:04X},xx" in rows[block.creator]
        for offset in block.elements:
            assert f"{offset:02X}" in rows[block.creator]


def test_an_unknown_vendor_keeps_nothing_without_a_creator() -> None:
    dataset = Dataset()
    dataset.Manufacturer = "Agfa"
    dataset.add_new(0x0019100C, "IS", "1000")
    keep_private(dataset)
    assert 0x0019100C not in dataset


def test_a_damaged_private_value_does_not_cost_the_image(tmp_path: Path) -> None:
    source = vendors.diffusion("Siemens")[: factory.SLICES]
    for instance in source:
        instance[0x0019100C].VR, instance[0x0019100C].value = "UN", b"\xff\xfe1x"
        instance.add_new(0x0019100E, "UN", b"12345")
        instance.private_block(0x0029, "SIEMENS CSA HEADER", create=True).add_new(0x10, "OB", b"SV10" + bytes(40))
    for new in derived(volume_of(source, tmp_path / "in"), tmp_path / "out"):
        assert 0x0019100E not in new and 0x00291010 not in new


def test_a_block_that_belongs_to_another_is_not_taken_for_the_usual_one() -> None:
    dataset = Dataset()
    dataset.Manufacturer = "SIEMENS"
    dataset.add_new(0x00190010, "LO", "HOSPITAL NOTES")
    dataset.add_new(0x0019100C, "IS", "1000")
    keep_private(dataset)
    assert not list(dataset.group_dataset(0x0019))


@pytest.mark.parametrize("vendor", vendors.VENDORS)
def test_texts_and_the_old_matrix_do_not_stay_in_private_elements(tmp_path: Path, vendor: str) -> None:
    first = vendors.diffusion(vendor)[: factory.SLICES]
    for new in derived(volume_of(first, tmp_path / "in"), tmp_path / "out"):
        values = [str(element.value) for element in new if element.tag.is_private]
        assert not [value for value in values if "Secret" in value or "10*12" in value or "19.5" in value]


# ------------------------------------------------------------------------- integers and the values that they stand for


def frames(modality: str = "MR", bits: int = 16, signed: bool = False) -> tuple[Frame, ...]:
    """One frame that exists only in memory."""
    from bundle.data.dicom.frame import Image

    image = Image(
        *(Path("x.dcm"), "1.2", factory.CLASSES[modality], "1", "2", "", 1, 1, "1.2.840.10008.1.2.1", "3"),
        *(4, 4, 1, 16, bits, signed, False, None, None, None),
    )
    return (Frame(image, 0, None, None, None, None, None, 1.0, 0.0, False, (), ()),)


def encoding_for(peak: float) -> Encoding:
    return plan_encoding(frames(), np.array([[[0.0]], [[peak]]]))


def mapping(slope: float | None, low: int, high: int, label: str = "x") -> Dataset:
    item = Dataset()
    item.add_new("RealWorldValueFirstValueMapped", "US", low)
    item.add_new("RealWorldValueLastValueMapped", "US", high)
    item.LUTLabel = label
    if slope is None:
        item.RealWorldValueLUTData = [float(value) for value in range(high - low + 1)]
    else:
        item.RealWorldValueSlope, item.RealWorldValueIntercept = slope, -3.0
    return item


@given(peak=st.floats(1, 1e9), slope=st.floats(1e-6, 1e6), stored=st.integers(0, 65535))
def test_a_real_world_value_is_that_of_the_source(peak: float, slope: float, stored: int) -> None:
    encoding = encoding_for(peak)
    factor = float(encoding.coarser[0])
    group = Dataset()
    group.RealWorldValueMappingSequence = [mapping(slope, 0, 4095)]
    follow_encoding(group, factor, encoding)
    (item,) = group.RealWorldValueMappingSequence
    value = stored * item.RealWorldValueSlope + item.RealWorldValueIntercept
    assert value == pytest.approx(stored * factor * slope - 3.0)
    assert (item[0x00409216].value, item[0x00409211].value) == (0, 65535)  # a result overshoots its source


def test_mappings_of_parts_of_the_range_meet_where_they_met(tmp_path: Path) -> None:
    group = Dataset()
    group.RealWorldValueMappingSequence = [mapping(1.0, 0, 999, "low"), mapping(2.0, 1000, 4095, "high")]
    encoding = encoding_for(200_000.0)
    follow_encoding(group, float(encoding.coarser[0]), encoding)
    low, high = group.RealWorldValueMappingSequence
    assert (low[0x00409216].value, low[0x00409211].value) == (0, 250)
    assert (high[0x00409216].value, high[0x00409211].value) == (250, 65535)
    assert (low.RealWorldValueSlope, high.RealWorldValueSlope) == (4.0, 8.0)


def test_a_look_up_table_stays_with_the_old_slope_and_goes_with_a_coarser_one() -> None:
    for peak, kept in ((1000.0, True), (200_000.0, False)):
        group = Dataset()
        group.RealWorldValueMappingSequence = [mapping(None, 0, 10)]
        encoding = encoding_for(peak)
        follow_encoding(group, float(encoding.coarser[0]), encoding)
        assert ("RealWorldValueMappingSequence" in group) == kept


def test_highdicom_finds_the_real_world_values_of_the_source(tmp_path: Path) -> None:
    highdicom = pytest.importorskip("highdicom")
    save([vendors.philips_enhanced()], tmp_path / "in")
    for found in find_series(tmp_path / "in").series:
        volume = read_series(found)
        (new,) = derived(volume, tmp_path / found.label, 300.0)
        assert float(new.PerFrameFunctionalGroupsSequence[0].RealWorldValueMappingSequence[0].RealWorldValueSlope) > 1.5
        (path,) = (tmp_path / found.label).iterdir()
        values = highdicom.imread(path).get_frame(1, apply_real_world_transform=True)
        np.testing.assert_allclose(values[::2, ::2], volume.voxels[:, :, 0].T * 300, atol=8)


@pytest.mark.parametrize("enhanced", [False, True], ids=["classic", "enhanced"])
@pytest.mark.parametrize("factor", [1.0, 300.0])
def test_precise_scaling_follows_the_slope(tmp_path: Path, factor: float, enhanced: bool) -> None:
    source = [vendors.philips_enhanced()] if enhanced else vendors.diffusion("Philips")
    save(source, tmp_path / "in")
    for found in find_series(tmp_path / "in").series:
        for new in derived(read_series(found), tmp_path / found.label, factor):
            groups = new.PerFrameFunctionalGroupsSequence if enhanced else [new]
            for group in groups:
                scaling = group.PixelValueTransformationSequence[0] if enhanced else group
                *_, scale_slope = [element.value for element in precise_scaling(group)]
                assert float(scaling.RescaleSlope) * scale_slope == pytest.approx(1.5 * 0.00625, rel=1e-6)


# ------------------------------------------------------------------------------------------------- marks of loss

SYNTAX = "1.2.840.10008.1.2"
LOSSY = {".4.50": "ISO_10918_1", ".4.51": "ISO_10918_1", ".4.53": "ISO_10918_1", ".4.81": "ISO_14495_1"}
LOSSY |= {".4.91": "ISO_15444_1", ".4.203": "ISO_15444_15", ".4.112": "ISO_18181_1", ".4.102": None}
LOSSLESS = ["", ".1", ".1.99", ".2", ".5", ".4.57", ".4.70", ".4.80", ".4.90", ".4.110", ".4.201", ".4.202"]


def mark(tmp_path: Path, end: str, said: str | None) -> tuple[str | None, str | None]:
    """LossyImageCompression and its method in the result of a source that had been in this transfer syntax."""
    source = series()
    for instance in source:
        if said is not None:
            instance.LossyImageCompression = said
    volume = volume_of(source, tmp_path / "in")
    told = tuple(
        dataclasses.replace(frame, image=dataclasses.replace(frame.image, transfer_syntax=SYNTAX + end))
        for frame in volume.frames
    )
    numbers = {frame.image: at for at, frame in enumerate(told, start=1)}
    volume = dataclasses.replace(volume, frames=told, series=dataclasses.replace(volume.series, numbers=numbers))
    first = derived(volume, tmp_path / "out")[0]
    return first.get("LossyImageCompression"), first.get("LossyImageCompressionMethod")


@pytest.mark.parametrize("end", LOSSY)
def test_row_105_syntaxes_that_lose_or_may_lose_are_marked(tmp_path: Path, end: str) -> None:
    assert mark(tmp_path, end, None) == ("01", LOSSY[end])


@pytest.mark.parametrize("end", LOSSLESS)
def test_row_105_lossless_syntaxes_are_not_marked(tmp_path: Path, end: str) -> None:
    assert mark(tmp_path, end, None) == (None, None)


@pytest.mark.parametrize(("end", "expected"), [(".4.91", "00"), (".4.203", "00"), (".4.50", "01"), (".4.81", "01")])
def test_row_105_a_header_that_denies_loss_is_believed_where_it_can_be_true(
    tmp_path: Path, end: str, expected: str
) -> None:
    assert mark(tmp_path, end, "00")[0] == expected


# ------------------------------------------------------------------------------------------------ order and UIDs


@given(
    numbers=st.lists(st.one_of(st.none(), st.integers(0, 30)), min_size=1, max_size=12),
    count=st.integers(1, 3),
)
def test_results_are_numbered_once_and_in_the_order_of_the_source(numbers: list[int | None], count: int) -> None:
    (frame,) = frames()
    made = [
        dataclasses.replace(frame, image=dataclasses.replace(frame.image, path=Path(f"{at}"), instance_number=number))
        for at, number in enumerate(numbers)
    ]
    volumes = [made[at::count] for at in range(count) if made[at::count]]
    given_out = [entry for one in result_numbers(volumes) for entry in one.items()]
    assert sorted(number for _, number in given_out) == list(range(1, len(made) + 1))
    ranked = [image.instance_number for image, _ in sorted(given_out, key=lambda entry: entry[1])]
    if None not in numbers and len(set(numbers)) == len(numbers):
        assert ranked == sorted(numbers)  # type: ignore[type-var]
    else:
        assert [number for _, number in given_out] == list(range(1, len(made) + 1))  # volume by volume


def test_numbers_that_start_again_in_every_volume_follow_volume_by_volume(tmp_path: Path) -> None:
    source = vendors.diffusion("public")
    for instance in source:
        instance.InstanceNumber = (int(instance.InstanceNumber) - 1) % factory.SLICES + 1
    found = find_series(save(source, tmp_path / "in")).series
    for at, one in enumerate(sorted(found, key=lambda one: one.label)):
        new = derived(read_series(one), tmp_path / one.label)
        assert [instance.InstanceNumber for instance in new] == [
            at * factory.SLICES + number for number in range(1, factory.SLICES + 1)
        ]


def test_slices_of_one_volume_from_several_series_become_one_series(tmp_path: Path) -> None:
    """As from an anonymiser that gives each file its own UIDs, joined to a volume by the reader."""
    volume = volume_of(series(), tmp_path / "in")
    apart = tuple(
        dataclasses.replace(
            frame,
            image=dataclasses.replace(
                frame.image, series=f"1.2.{at}", study=f"1.3.{at}", frame_of_reference=f"1.4.{at}", series_number=at
            ),
        )
        for at, frame in enumerate(volume.frames)
    )
    numbers = {frame.image: at for at, frame in enumerate(apart, start=1)}
    joined: DicomSeries = dataclasses.replace(volume.series, frames=apart, numbers=numbers, lead=apart[0].image)
    new = derived(dataclasses.replace(volume, series=joined, frames=apart), tmp_path / "out")
    for name in ("SeriesInstanceUID", "StudyInstanceUID", "FrameOfReferenceUID", "SeriesNumber"):
        assert len({instance[name].value for instance in new}) == 1
    assert len({instance.SOPInstanceUID for instance in new}) == len(new)


def test_series_of_two_patients_under_one_uid_stay_apart(tmp_path: Path) -> None:
    source = [*series(), *series()]
    for instance in source[factory.SLICES :]:
        instance.PatientID = "ANOTHER"
    save(source, tmp_path / "in")
    new = [derived(read_series(one), tmp_path / one.label)[0] for one in find_series(tmp_path / "in").series]
    assert len({instance.SeriesInstanceUID for instance in new}) == len(new) == 2


def test_blank_series_uids_of_two_folders_stay_apart(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        source = series()
        for instance in source:
            instance.SeriesInstanceUID = ""
        save(source, tmp_path / "in" / folder)
    new = [derived(read_series(one), tmp_path / one.label)[0] for one in find_series(tmp_path / "in").series]
    assert len({instance.SeriesInstanceUID for instance in new}) == len(new) == 2


def test_dciodvfy_accepts_each_volume_of_a_time_series(tmp_path: Path) -> None:
    if shutil.which("dciodvfy") is None:
        pytest.skip("dciodvfy is not installed (Debian: dicom3tools)")
    dataset = factory.enhanced("MR", phantom(), echoes=(20.0, 20.0, 20.0))
    dataset.DimensionIndexSequence[1].DimensionIndexPointer = 0x00209128  # TemporalPositionIndex
    dataset.DimensionIndexSequence[1].FunctionalGroupPointer = 0x00209111
    for group in dataset.PerFrameFunctionalGroupsSequence:
        content = group.FrameContentSequence[0]
        content.TemporalPositionIndex = content.DimensionIndexValues[1]
    save([dataset], tmp_path / "in")
    found = find_series(tmp_path / "in").series
    assert len(found) == 3
    for one in found:
        derived(read_series(one), tmp_path / one.label)
        (path,) = (tmp_path / one.label).iterdir()
        result = subprocess.run(["dciodvfy", "-new", str(path)], capture_output=True, text=True)
        assert [line for line in (result.stdout + result.stderr).splitlines() if "Error" in line] == []
