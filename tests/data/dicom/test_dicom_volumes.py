"""Which slices of a series form a volume: attributes, ranks, gaps, jitters, copies, and what is refused.

Every volume of the factory has pixels of its own, so that a volume that mixes slices is seen. All files are generated,
but for the series below ICONET_DATA/dicom.
"""

from __future__ import annotations

import os
import random
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from copy import deepcopy
from pathlib import Path
from typing import Any

import dicom_factory as factory
import nibabel as nib
import numpy as np
import pytest
from cli_command import command
from dicom_factory import AXIAL, enhanced_volumes, save, series, set_attributes, volume_pixels, volumes
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from programs import program
from pydicom.dataset import Dataset
from pydicom.uid import generate_uid

from bundle.data import VolumeError
from bundle.data.dicom.find import find_series
from bundle.data.dicom.frame import VALUES
from bundle.data.dicom.read import DicomVolume, read_geometry, read_series
from bundle.data.dicom.write import write_series
from bundle.physics import superres_affine

Tell = Callable[[int, int], dict[Any, Any]]

DIRECTIONS = [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0], [0.6, 0.8, 0.0], [0.0, 0.6, 0.8]]
LAST = "told apart only by the order of"


def clock(seconds: float) -> str:
    whole = int(seconds)
    return f"{10 + whole // 3600:02d}{whole // 60 % 60:02d}{whole % 60:02d}.{round(seconds % 1 * 1000):03d}"


BY_VALUE: dict[str, Tell] = {
    "TemporalPositionIdentifier": lambda v, p: {"TemporalPositionIdentifier": v + 1},
    "EchoTime": lambda v, p: {"EchoTime": f"{20 * (v + 1)}"},
    "EchoTime with jitter": lambda v, p: {"EchoTime": f"{20 * (v + 1) + 0.03 * ((p + v) % 3):.2f}"},
    "EchoNumbers": lambda v, p: {"EchoNumbers": v + 1},
    "ImageType": lambda v, p: {"ImageType": ["ORIGINAL", "PRIMARY", "MPRIS"[v]]},
    "ComplexImageComponent": lambda v, p: {"ComplexImageComponent": ["MAGNITUDE", "PHASE", "REAL", "IMAGINARY"][v]},
    "DiffusionBValue": lambda v, p: {"DiffusionBValue": 500.0 * v},
    "gradient direction": lambda v, p: {"DiffusionBValue": 1000.0, "DiffusionGradientOrientation": DIRECTIONS[v]},
    "SequenceName": lambda v, p: {"SequenceName": f"*ep_b{400 * v}t"},
    "NominalPercentageOfCardiacPhase": lambda v, p: {"NominalPercentageOfCardiacPhase": 40.0 + 10 * v},
    "ASLContext": lambda v, p: {"ASLContext": ["LABEL", "CONTROL", "M_ZERO_SCAN", "OTHER"][v]},
    "InversionTime": lambda v, p: {"InversionTime": str(100 + 400 * v)},
    "FlipAngle": lambda v, p: {"FlipAngle": str(5 + 10 * v)},
    "RepetitionTime": lambda v, p: {"RepetitionTime": str(500 + 500 * v)},
    "ScanOptions": lambda v, p: {"ScanOptions": "ABCD"[v]},
    "ImageComments": lambda v, p: {"ImageComments": f"Secret {'WFIO'[v]}"},
    "SeriesDescription": lambda v, p: {"SeriesDescription": f"Secret {'WFIO'[v]}"},
    "AcquisitionNumber": lambda v, p: {"AcquisitionNumber": v + 1},
    "InstanceNumber of a volume": lambda v, p: {"InstanceNumber": v + 1},
    "AcquisitionTime of a volume": lambda v, p: {"AcquisitionTime": clock(2.0 * v)},
    "AcquisitionTime past midnight": lambda v, p: {
        "AcquisitionTime": "235959" if v == 0 else f"0000{v:02d}",
        "AcquisitionDate": "20260102" if v == 0 else "20260103",
    },
    "AcquisitionDateTime": lambda v, p: {"AcquisitionDateTime": f"202601022359{v:02d}.5"},
    "ContentTime of a volume": lambda v, p: {"ContentTime": clock(3.0 * v)},
    "Siemens private b-value": lambda v, p: {
        (0x0019, 0x0010, "LO"): "SIEMENS MR HEADER",
        (0x0019, 0x100C, "IS"): 400 * v,
    },
    "Siemens private b-value without creator": lambda v, p: {(0x0019, 0x100C, "IS"): 400 * v},
    "Siemens private b-value, unknown VR": lambda v, p: {(0x0019, 0x110C, "UN"): f"{400 * v:<6d}".encode()},
    "GE private b-value": lambda v, p: {(0x0043, 0x1039, "IS"): [1000000000 + 400 * v, 8, 0, 0]},
    "GE private part of a complex image": lambda v, p: {(0x0043, 0x102F, "SS"): v},
    "GE private direction": lambda v, p: {(0x0019, 0x10BB, "DS"): str(0.1 * v)},
    "Philips private b-value": lambda v, p: {(0x2001, 0x1003, "FL"): 400.0 * v},
    "Philips private label": lambda v, p: {(0x2005, 0x1429, "CS"): ["LABEL", "CONTROL", "OTHER", "X"][v]},
    "UIH private b-value": lambda v, p: {(0x0065, 0x1009, "FD"): 1.2 + 400.3 * v},
}
"""Attributes of a whole volume."""

CONSTANT = [name for name in BY_VALUE if name.split()[0] in VALUES and name not in ("FlipAngle", "RepetitionTime")]
"""Those that may not differ within a volume without a warning."""

DRIFTING: dict[str, Tell] = {
    "TriggerTime, first 0": lambda v, p: {"TriggerTime": f"{v * (40 + 0.7 * p):.1f}"},
    "TriggerTime": lambda v, p: {"TriggerTime": f"{7 + 40 * v + 0.9 * p:.1f}"},
    "NominalCardiacTriggerDelayTime": lambda v, p: {"NominalCardiacTriggerDelayTime": v * (40 + 0.7 * p)},
    "FrameReferenceTime": lambda v, p: {"FrameReferenceTime": f"{60000 * v + 2500 * p}"},
}
"""Attributes whose values differ from place to place, while their order is that of the volumes."""

LAST_RESORTS: dict[str, Tell] = {
    "AcquisitionTime": lambda v, p: {"AcquisitionTime": clock(2.0 * v + 0.01 * (p % 3) + 0.001 * p)},
    "AcquisitionTime in whole seconds": lambda v, p: {"AcquisitionTime": clock(2.0 * v + p % 2)},
    "InstanceNumber, slices first": lambda v, p: {"InstanceNumber": 100 * v + p + 1},
    "InstanceNumber, volumes first": lambda v, p: {"InstanceNumber": 100 * p + v + 1},
    "ContentTime": lambda v, p: {"ContentTime": clock(3.0 * v + 0.1 * p)},
}

EVERY = {**BY_VALUE, **DRIFTING, **LAST_RESORTS}


def shuffled(instances: list[Dataset], seed: int) -> list[Dataset]:
    random.Random(seed).shuffle(instances)
    return instances


def read_all(folder: Path, **options: bool) -> list[DicomVolume]:
    return [read_series(found, **options) for found in find_series(folder).series]


def check_volumes(read: Sequence[DicomVolume], count: int, places: int, in_order: bool = True) -> None:
    """Every volume is there, complete, in place and, if that is known, in order."""
    assert len(read) == count
    found = []
    for volume in read:
        assert volume.voxels.shape == (6, 8, places)
        found.append(round(float(volume.voxels[0, 0, 0])) // 100)
        np.testing.assert_array_equal(volume.voxels, volume_pixels(found[-1], places))
        np.testing.assert_allclose(volume.affine, factory.expected_affine(AXIAL), atol=1e-6)
    assert sorted(found) == list(range(count))
    assert not in_order or found == list(range(count))


# ----------------------------------------------------------------------------------------------- one attribute tells


@pytest.mark.parametrize("name", EVERY)
def test_volumes_are_told_apart_by(tmp_path: Path, name: str) -> None:
    save(shuffled(volumes(3, 4, EVERY[name]), 1), tmp_path)
    found = find_series(tmp_path).series
    read = [read_series(volume) for volume in found]
    check_volumes(read, 3, 4, in_order="Number" in name or "Time of" in name or name in LAST_RESORTS)
    assert [volume.volume for volume in found] == [(1, 3), (2, 3), (3, 3)]
    assert [volume.label for volume in found] == sorted({volume.label for volume in found})
    for volume in read:
        said = any(LAST in warning for warning in volume.warnings)
        assert said == (name in LAST_RESORTS)
        assert "ecret" not in volume.series.description_for_log + str(volume.warnings)


def test_b_values_of_ge_are_shown_with_all_digits(tmp_path: Path) -> None:
    found = find_series(save(volumes(2, 4, EVERY["GE private b-value"]), tmp_path)).series
    assert [r"1000000400\8\0\0" in volume.description_for_log for volume in found] == [False, True]


def test_the_description_says_by_what(tmp_path: Path) -> None:
    save(volumes(3, 4, DRIFTING["TriggerTime, first 0"]), tmp_path)
    found = find_series(tmp_path).series
    texts = [volume.description_for_log for volume in found]
    assert all(f"volume {n} of 3, 4 slices of 6x8, TriggerTime {n} of 3" in text for n, text in enumerate(texts, 1))
    assert all(read_series(volume).warnings == [] for volume in found)


@settings(max_examples=40, deadline=None)
@given(
    name=st.sampled_from(sorted(EVERY)),
    count=st.integers(2, 4),
    places=st.integers(2, 5),
    copies=st.integers(0, 3),
    seed=st.integers(0, 999),
)
def test_any_attribute_order_and_copies_give_the_same_volumes(
    tmp_path_factory: pytest.TempPathFactory, name: str, count: int, places: int, copies: int, seed: int
) -> None:
    made = shuffled(volumes(count, places, EVERY[name]), seed)
    save([*made, *made[:copies]], folder := tmp_path_factory.mktemp("volumes"))
    read = read_all(folder)
    check_volumes(read, count, places, in_order=False)
    warned = sum("duplicate" in warning for volume in read for warning in volume.warnings)
    assert warned == len({instance.pixel_array.min() // 100 for instance in made[:copies]})


TWO: dict[str, tuple[Tell, int]] = {
    "echo and time": (lambda v, p: {"EchoTime": [20, 40][v % 2], "TemporalPositionIdentifier": v // 2 + 1}, 4),
    "echo with jitter and time": (
        lambda v, p: {"EchoTime": f"{[20, 40][v % 2] + 0.02 * p}", "AcquisitionTime": clock(3.0 * v + 0.1 * p)},
        4,
    ),
    "phase, magnitude and time": (
        lambda v, p: {"ImageType": ["ORIGINAL", "PRIMARY", "MP"[v % 2]], "TriggerTime": str(v // 2 * (50 + p))},
        6,
    ),
    "b-value and direction": (
        lambda v, p: {"DiffusionBValue": [500.0, 1000.0][v % 2], "DiffusionGradientOrientation": DIRECTIONS[v // 2]},
        6,
    ),
    "b=0 repeated": (
        lambda v, p: {
            "DiffusionBValue": 0.0 if v < 3 else 1000.0,
            "DiffusionGradientOrientation": None if v < 3 else DIRECTIONS[v - 3],
            "AcquisitionTime": clock(2.0 * v + 0.1 * p),
            "InstanceNumber": 10 * v + p + 1,
        },
        6,
    ),
    "three attributes": (
        lambda v, p: {
            "EchoNumbers": v % 2 + 1,
            "ImageType": ["ORIGINAL", "PRIMARY", "MP"[v // 2 % 2]],
            "AcquisitionNumber": v // 4 + 1,
        },
        8,
    ),
}


@pytest.mark.parametrize("name", TWO)
@pytest.mark.parametrize("seed", [1, 2])
def test_several_attributes_together_tell_volumes_apart(tmp_path: Path, name: str, seed: int) -> None:
    tell, count = TWO[name]
    made = shuffled(volumes(count, 3, tell), seed)
    save([*made, *made[: seed - 1]], tmp_path)
    check_volumes(read_all(tmp_path), count, 3, in_order="repeated" in name)


# ------------------------------------------------------------------------------------------ one volume all the same


@settings(max_examples=20, deadline=None)
@given(jitter=st.lists(st.floats(-0.1, 0.1), min_size=6, max_size=6), name=st.sampled_from(["EchoTime", "FlipAngle"]))
def test_jitter_does_not_split_a_volume(
    tmp_path_factory: pytest.TempPathFactory, jitter: list[float], name: str
) -> None:
    made = volumes(1, 6, lambda v, p: {name: f"{30 + jitter[p]:.4f}", "InstanceNumber": p + 1})
    save(made, folder := tmp_path_factory.mktemp("jitter"))
    (volume,) = read_all(folder)
    check_volumes([volume], 1, 6)
    assert volume.warnings == []


def test_slices_that_differ_in_contrast_are_one_volume_with_a_warning(tmp_path: Path) -> None:
    save(volumes(1, 6, lambda v, p: {"EchoTime": [20, 40][p % 2]}), tmp_path)
    (volume,) = read_all(tmp_path)
    assert volume.warnings == ["slices of one volume differ in EchoTime (20, 40); no two of them share a position"]


@pytest.mark.parametrize("first", [0, 3, 6, 8])
def test_two_stacks_of_different_echo_times_are_read_wherever_they_lie(tmp_path: Path, first: int) -> None:
    def tell(volume: int, place: int) -> dict[str, Any]:
        position = [*factory.ORIGIN[:2], factory.ORIGIN[2] + factory.STEP * (place + first * volume)]
        return {"EchoTime": [20, 40][volume], "ImagePositionPatient": position}

    save(volumes(2, 6, tell), tmp_path)
    read = read_all(tmp_path)
    if first == 6:  # they continue each other
        assert [volume.voxels.shape[2] for volume in read] == [12] and "EchoTime" in read[0].warnings[0]
    else:
        assert [volume.voxels.shape[2] for volume in read] == [6, 6]


@pytest.mark.parametrize("jitter", [1e-5, 4e-4, 0.02])
def test_positions_that_jitter_between_volumes_are_the_same_places(tmp_path: Path, jitter: float) -> None:
    def tell(volume: int, place: int) -> dict[str, Any]:
        x, y, z = factory.ORIGIN
        return {
            "TemporalPositionIdentifier": volume + 1,
            "ImagePositionPatient": [x + jitter * volume, y, z + factory.STEP * place + jitter * (volume - place % 2)],
        }

    save(volumes(3, 4, tell), tmp_path)
    assert [volume.voxels.shape[2] for volume in read_all(tmp_path)] == [4, 4, 4]


def test_a_stack_id_for_each_slice_is_no_stack(tmp_path: Path) -> None:
    save(volumes(1, 4, lambda v, p: {"StackID": str(p + 1)}), tmp_path)
    (volume,) = read_all(tmp_path)
    check_volumes([volume], 1, 4)
    assert volume.warnings == ["each slice has a StackID of its own: taken as one stack"]


def test_a_stack_id_for_each_position_of_several_volumes_is_no_stack(tmp_path: Path) -> None:
    save(volumes(3, 4, lambda v, p: {"StackID": str(p + 1), "TemporalPositionIdentifier": v + 1}), tmp_path)
    read = read_all(tmp_path)
    check_volumes(read, 3, 4)
    assert all(volume.warnings == ["each slice has a StackID of its own: taken as one stack"] for volume in read)


def test_stacks_side_by_side_are_two_volumes(tmp_path: Path) -> None:
    def tell(volume: int, place: int) -> dict[str, Any]:
        x, y, z = factory.ORIGIN
        return {"ImagePositionPatient": [x + 80 * volume, y, z + factory.STEP * place]}

    save(volumes(2, 4, tell), tmp_path)
    assert [volume.affine[0, 3] for volume in read_all(tmp_path)] == [40, -40]


# ------------------------------------------------------------------------------------------------------ slices missing


def test_an_aborted_last_volume_is_read_and_said_to_be_incomplete(tmp_path: Path) -> None:
    save(volumes(3, 5, BY_VALUE["TemporalPositionIdentifier"])[:-3], tmp_path)
    read = read_all(tmp_path)
    assert [volume.voxels.shape[2] for volume in read] == [5, 5, 2]
    assert [volume.warnings for volume in read] == [
        [],
        [],
        ["incomplete: slices at 2 of the 5 positions of the series"],
    ]


def test_an_aborted_volume_of_several_echoes_and_times(tmp_path: Path) -> None:
    tell, count = TWO["phase, magnitude and time"]
    made = volumes(count, 4, lambda v, p: {**tell(v, p), "TriggerTime": str(40 * (v // 2))})
    save([one for number, one in enumerate(made) if number not in (18, 19, 22, 23)], tmp_path)
    assert sorted(volume.voxels.shape[2] for volume in read_all(tmp_path)) == [2, 2, 4, 4, 4, 4]


@pytest.mark.parametrize("name", [*DRIFTING, "InstanceNumber, slices first", "AcquisitionTime"])
@pytest.mark.parametrize("left", [1, 3])
def test_an_aborted_last_volume_is_read_by_rank(tmp_path: Path, name: str, left: int) -> None:
    save(volumes(3, 4, EVERY[name])[: left - 4], tmp_path)
    *whole, last = read_all(tmp_path)
    check_volumes(whole, 2, 4)
    np.testing.assert_array_equal(last.voxels, volume_pixels(2, 4)[:, :, :left])
    assert f"incomplete: slices at {left} of the 4 positions of the series" in last.warnings
    assert any(LAST in warning for warning in last.warnings) == (name in LAST_RESORTS)


@settings(max_examples=60, deadline=None)
@given(
    name=st.sampled_from(["TriggerTime", "InstanceNumber, slices first", "FrameReferenceTime", "AcquisitionTime"]),
    count=st.integers(3, 5),
    places=st.integers(2, 5),
    lost=st.sets(st.integers(0, 24), min_size=1, max_size=4),
)
@example(name="TriggerTime", count=4, places=2, lost={0, 3, 4})
@example(name="TriggerTime", count=4, places=2, lost={2, 3, 4})
@example(name="AcquisitionTime", count=3, places=4, lost={0, 1, 5, 9})
def test_volumes_of_unequal_counts_by_rank_are_never_mixed(
    tmp_path_factory: pytest.TempPathFactory, name: str, count: int, places: int, lost: set[int]
) -> None:
    made = [one for number, one in enumerate(volumes(count, places, EVERY[name])) if number not in lost]
    here = Counter(float(one.ImagePositionPatient[2]) for one in made)
    assume(len(set(here.values())) > 1 and min(here.values()) > 1)
    for found in find_series(save(made, tmp_path_factory.mktemp("lost"))).series:
        with suppress(VolumeError):
            assert len({round(float(plane.min())) // 100 for plane in read_series(found).voxels.T}) == 1


def test_numbers_do_not_hide_that_times_tell_of_missing_frames(tmp_path: Path) -> None:
    made = volumes(5, 4, EVERY["TriggerTime"])
    lost = [4 * volume + place for place, volume in enumerate((1, 2, 1, 3))]
    made = [one for number, one in enumerate(made) if number not in lost]
    for number, one in enumerate(sorted(made, key=lambda one: one.ImagePositionPatient[2]), 1):
        one.InstanceNumber = number
    save(made, tmp_path)
    with pytest.raises(VolumeError, match="no attribute tells them apart"):
        read_all(tmp_path)


@pytest.mark.parametrize("name", [*DRIFTING, "InstanceNumber, slices first", "AcquisitionTime"])
def test_unequal_counts_of_what_drifts_are_refused_by_file_place_and_count(tmp_path: Path, name: str) -> None:
    made = volumes(3, 4, EVERY[name])
    save([*made[:6], *made[7:]], tmp_path)
    (found,) = find_series(tmp_path).series
    with pytest.raises(VolumeError, match="11 slices at 4 positions, 2 to 3 at each") as refused:
        read_series(found)
    line = str(refused.value)
    assert "\n" not in line and "different slices at the same position (-40, -50, 30)" in line
    names = line.partition("): ")[2].partition(";")[0].split(" and ")
    assert len(set(names)) == 2 and all((tmp_path / name).is_file() for name in names)
    with pytest.raises(VolumeError):
        read_geometry(found)


@pytest.mark.parametrize("name", ["TriggerTime", "TriggerTime, first 0", "InstanceNumber, volumes first"])
def test_equal_counts_do_not_hide_that_other_frames_are_missing_at_each_place(tmp_path: Path, name: str) -> None:
    made = volumes(5, 4, EVERY[name])
    lost = [4 * volume + place for place, volume in enumerate((1, 2, 1, 3))]
    save([one for number, one in enumerate(made) if number not in lost], tmp_path)
    with pytest.raises(VolumeError, match="16 slices at 4 positions, 4 at each, and no attribute tells them apart"):
        read_all(tmp_path)


def test_trigger_times_of_different_heart_rates_are_ranks_all_the_same(tmp_path: Path) -> None:
    save(volumes(5, 4, lambda v, p: {"TriggerTime": str(v * (25 + 5 * p))}), tmp_path)
    read = read_all(tmp_path)
    check_volumes(read, 5, 4)
    assert all(volume.warnings == [] for volume in read)


def test_an_aborted_volume_of_different_heart_rates_is_read_by_rank(tmp_path: Path) -> None:
    save(volumes(4, 4, lambda v, p: {"TriggerTime": str(v * (50 + 4 * p))})[:-2], tmp_path)
    *whole, last = read_all(tmp_path)
    check_volumes(whole, 3, 4)
    assert last.voxels.shape[2] == 2 and last.warnings == ["incomplete: slices at 2 of the 4 positions of the series"]


@pytest.mark.parametrize(("kept", "said"), [(((0, 3), (0, 2)), "has different steps"), (((1, 3), (0, 2)), "starts at")])
def test_two_ranks_whose_values_lie_far_apart_are_doubted(tmp_path: Path, kept: Any, said: str) -> None:
    made = volumes(4, 2, DRIFTING["TriggerTime"])
    save([one for n, one in enumerate(made) if n // 2 in kept[n % 2]], tmp_path)
    read = read_all(tmp_path)
    assert len(read) == 2 and all(said in volume.warnings[0] for volume in read)


@settings(max_examples=60, deadline=None)
@given(
    name=st.sampled_from(sorted(EVERY)),
    count=st.integers(2, 4),
    places=st.integers(2, 5),
    lost=st.sets(st.integers(0, 19), min_size=1, max_size=6),
    seed=st.integers(0, 99),
)
@example(name="TriggerTime", count=4, places=2, lost={0, 3, 4}, seed=0)
@example(name="TriggerTime", count=4, places=2, lost={0, 3, 4, 7}, seed=0)
@example(name="TriggerTime, first 0", count=4, places=2, lost={2, 3, 4, 7}, seed=0)
def test_missing_slices_are_refused_or_said_never_mixed_in_silence(
    tmp_path_factory: pytest.TempPathFactory, name: str, count: int, places: int, lost: set[int], seed: int
) -> None:
    made = [one for number, one in enumerate(volumes(count, places, EVERY[name])) if number not in lost]
    if not made:
        return
    save(shuffled(made, seed), folder := tmp_path_factory.mktemp("lost"))
    here = {float(one.ImagePositionPatient[2]) for one in made}
    for found in find_series(folder).series:
        try:
            volume = read_series(found)
        except VolumeError as error:
            assert "\n" not in str(error)
            continue
        numbers = {round(float(plane.min())) // 100 for plane in np.moveaxis(volume.voxels, 2, 0)}
        whole = len(numbers) == 1 and volume.voxels.shape[2] == len(here)
        alone = len(made) == len(here)  # one slice at each place: all that is left of the rest cannot be known
        assert whole or volume.warnings or (alone and name not in CONSTANT), (found.description_for_log, numbers)


# -------------------------------------------------------------------------------------------------------------- copies


def test_one_uid_for_all_instances_is_no_copy(tmp_path: Path) -> None:
    save(volumes(2, 4, BY_VALUE["TemporalPositionIdentifier"], SOPInstanceUID="1.2.3"), tmp_path)
    read = read_all(tmp_path)
    check_volumes(read, 2, 4)
    assert all(volume.warnings == [] for volume in read)


def test_equal_headers_with_different_pixels_are_refused(tmp_path: Path) -> None:
    save(volumes(2, 4, lambda v, p: {}, SOPInstanceUID="1.2.3"), tmp_path)
    (found,) = find_series(tmp_path).series
    for reader in (read_geometry, read_series):
        with pytest.raises(VolumeError, match=r"different slices at the same position .*their headers are equal"):
            reader(found)


def test_copies_with_another_uid_and_number_are_left_out_by_their_pixels(tmp_path: Path) -> None:
    made = volumes(1, 4, lambda v, p: {"InstanceNumber": p + 1})
    copy = set_attributes(deepcopy(made[1]), {"InstanceNumber": 77, "SOPInstanceUID": generate_uid()})
    save([*made, copy], tmp_path)
    (volume,) = read_all(tmp_path)
    check_volumes([volume], 1, 4)
    assert "1 duplicate slices" in volume.warnings[0]


# ----------------------------------------------------------------------------------------------------- enhanced objects

STACK, POSITION, TIME, DELAY, OTHER = 0x00209056, 0x00209057, 0x00209128, 0x00209153, 0x20051429

ENHANCED: dict[str, tuple[Tell, tuple[int, ...]]] = {
    "time index": (lambda v, p: {"DimensionIndexValues": [1, p + 1, v + 1]}, (STACK, POSITION, TIME)),
    "private index": (lambda v, p: {"DimensionIndexValues": [v + 1, 1, p + 1]}, (OTHER, STACK, POSITION)),
    "two indices": (
        lambda v, p: {"DimensionIndexValues": [1, v % 2 + 1, p + 1, v // 2 + 1]},
        (STACK, TIME, POSITION, OTHER),
    ),
    "index of drifting times": (
        lambda v, p: {"DimensionIndexValues": [p + 1, 1 if v == 0 else 10 * v + p]},
        (POSITION, DELAY),
    ),
    "TemporalPositionIndex": (
        lambda v, p: {"DimensionIndexValues": [p + 1], "TemporalPositionIndex": v + 1},
        (POSITION,),
    ),
    "FrameAcquisitionNumber": (
        lambda v, p: {"DimensionIndexValues": [p + 1], "FrameAcquisitionNumber": v + 1},
        (POSITION,),
    ),
    "FrameAcquisitionDateTime": (
        lambda v, p: {"DimensionIndexValues": [p + 1], "FrameAcquisitionDateTime": f"20260102{clock(2 * v + 0.1 * p)}"},
        (POSITION,),
    ),
    "order of the frames": (lambda v, p: {"DimensionIndexValues": [p + 1]}, (POSITION,)),
}


@pytest.mark.parametrize("name", ENHANCED)
def test_frames_of_an_enhanced_object_are_told_apart_by(tmp_path: Path, name: str) -> None:
    tell, pointers = ENHANCED[name]
    save([enhanced_volumes(4, 3, tell, pointers)], tmp_path)
    read = read_all(tmp_path)
    assert len(read) == 4
    order = [round(float(volume.voxels[0, 0, 0]) * 2) // 100 for volume in read]
    assert order == ([0, 2, 1, 3] if name == "two indices" else [0, 1, 2, 3])
    for number, volume in zip(order, read, strict=True):
        np.testing.assert_array_equal(volume.voxels, volume_pixels(number, 3) / 2)
        last = name in ("FrameAcquisitionDateTime", "order of the frames")
        assert any(LAST in warning for warning in volume.warnings) == last


def test_frames_that_share_a_place_are_named_by_number(tmp_path: Path) -> None:
    tell, pointers = ENHANCED["order of the frames"]
    made = enhanced_volumes(2, 3, lambda v, p: tell(v, p), pointers)
    made.PerFrameFunctionalGroupsSequence[4].PlanePositionSequence[0].ImagePositionPatient = [-40, -50, 30]
    save([made], tmp_path)
    with pytest.raises(VolumeError, match=r"003\.dcm frame 1 and 003\.dcm frame 4; 6 slices at 3 positions, 1 to 3"):
        read_all(tmp_path)


def test_enhanced_objects_of_one_time_each(tmp_path: Path) -> None:
    tell, pointers = ENHANCED["order of the frames"]
    made = []
    for number in range(3):
        one = enhanced_volumes(1, 3, tell, pointers)
        planes = np.moveaxis(volume_pixels(number, 3), 2, 0)
        one.PixelData = b"".join(plane.T.astype("<u2").tobytes() for plane in planes)
        made.append(set_attributes(one, {"SOPInstanceUID": generate_uid(), "InstanceNumber": number + 1}))
    save(reversed(made), tmp_path)
    read = read_all(tmp_path)
    assert [round(float(volume.voxels[0, 0, 0]) * 2) // 100 for volume in read] == [0, 1, 2]
    assert all(volume.warnings == [] for volume in read)


def test_shared_groups_without_items_are_read_and_written(tmp_path: Path) -> None:
    tell, pointers = ENHANCED["time index"]
    save([enhanced_volumes(1, 3, tell, pointers, shared=False)], tmp_path / "in")
    (volume,) = read_all(tmp_path / "in")
    fine = np.repeat(np.repeat(volume.voxels, 2, axis=0), 2, axis=1)
    grid = np.asarray(superres_affine(volume.affine, (2, 2, 1)))
    for factor in (1, 1000):  # the second needs a new scaling
        write_series(volume, fine * factor, grid, tmp_path / str(factor), 2)
        (derived,) = read_all(tmp_path / str(factor))
        np.testing.assert_allclose(derived.voxels, fine * factor, rtol=1e-3, atol=factor)
        np.testing.assert_allclose(derived.affine, grid, atol=1e-4)


# ------------------------------------------------------------------------------------- slices torn apart by anonymisers

TORN: dict[str, Tell] = {
    "series": lambda v, p: {"SeriesInstanceUID": f"1.2.{v}.{p}"},
    "study": lambda v, p: {"StudyInstanceUID": f"1.2.{v}.{p}"},
    "patient": lambda v, p: {"PatientID": f"anon{v}{p}"},
    "study, patient and frame of reference": lambda v, p: {
        **{"StudyInstanceUID": f"1.2.{v}.{p}", "FrameOfReferenceUID": f"1.3.{v}.{p}", "PatientID": f"anon{v}{p}"}
    },
    "everything": lambda v, p: {
        **{"StudyInstanceUID": f"1.2.{v}.{p}", "FrameOfReferenceUID": f"1.3.{v}.{p}", "PatientID": f"anon{v}{p}"},
        "SeriesInstanceUID": f"1.4.{v}.{p}",
    },
}


@pytest.mark.parametrize("name", TORN)
def test_torn_slices_are_said_and_joined_on_request(tmp_path: Path, name: str) -> None:
    save(volumes(1, 5, lambda v, p: {**TORN[name](v, p), "InstanceNumber": p + 1}), tmp_path / "in")
    apart = find_series(tmp_path / "in").series
    assert len(apart) == 5 and all("--join makes them one" in one.warnings[0] for one in apart)
    (joined,) = find_series(tmp_path / "in", join=True).series
    volume = read_series(joined)
    check_volumes([volume], 1, 5)
    assert "5 single slices" in volume.warnings[0]
    fine = np.repeat(np.repeat(volume.voxels, 2, axis=0), 2, axis=1)
    write_series(volume, fine, np.asarray(superres_affine(volume.affine, (2, 2, 1))), tmp_path / "out", 2)
    (derived,) = read_all(tmp_path / "out")
    assert not any("reference" in warning or "single" in warning for warning in derived.warnings)
    np.testing.assert_array_equal(derived.voxels, fine)


def test_torn_slices_of_several_volumes_are_joined_if_the_series_is_known(tmp_path: Path) -> None:
    def tell(volume: int, place: int) -> dict[str, Any]:
        return {**TORN["study"](volume, place), "TemporalPositionIdentifier": volume + 1}

    save(volumes(2, 4, tell), tmp_path)
    check_volumes([read_series(found) for found in find_series(tmp_path, join=True).series], 2, 4)


def differ(name: str, *values: Any) -> Tell:
    return lambda v, p: {**TORN["everything"](v, p), name: values[p % len(values)]}


@pytest.mark.parametrize(
    "tell",
    [
        differ("SeriesNumber", 1, 2, 3, 4),
        differ("PixelSpacing", ["1.5", "1.25"], ["1.5", "1.35"]),
        lambda v, p: {**TORN["everything"](v, p), "ImagePositionPatient": [-40, -50, 4.0 * p**2 + p]},
        lambda v, p: {**TORN["everything"](v, p), "ImagePositionPatient": [-40, -50, 4.0 * (p % 2)]},
    ],
    ids=["number", "spacing", "uneven steps", "two at a place"],
)
def test_single_slices_that_do_not_belong_together_stay_apart(tmp_path: Path, tell: Tell) -> None:
    save(volumes(1, 4, tell), tmp_path)
    for join in (False, True):
        found = find_series(tmp_path, join=join).series
        assert len(found) == 4 and all(one.warnings == () for one in found)


def test_whole_series_and_patients_are_never_joined(tmp_path: Path) -> None:
    for patient in "AB":
        save(volumes(1, 4, lambda v, p: {}, seed=patient, PatientID=patient), tmp_path)
    assert [len(found.frames) for found in find_series(tmp_path, join=True).series] == [4, 4]


def test_a_frame_of_reference_for_each_file_is_taken_as_one_and_said(tmp_path: Path) -> None:
    save(volumes(1, 6, lambda v, p: {"FrameOfReferenceUID": f"1.2.{p}"}), tmp_path)
    (volume,) = read_all(tmp_path)
    check_volumes([volume], 1, 6)
    assert volume.warnings == ["each file has a frame of reference of its own: taken as one"]


def test_two_frames_of_reference_are_mixed_only_on_request(tmp_path: Path) -> None:
    save(volumes(1, 6, lambda v, p: {"FrameOfReferenceUID": f"1.2.{p // 3}"}), tmp_path)
    with pytest.raises(VolumeError, match="several frames of reference.*--join"):
        read_all(tmp_path)
    (found,) = find_series(tmp_path, join=True).series
    assert read_series(found).warnings == ["2 frames of reference: taken as one"]


# ------------------------------------------------------------------------------------------------------- the command


@pytest.mark.parametrize("case", ["refused", "joined", "mixed"])
def test_a_dry_run_tells_what_the_run_does(tmp_path: Path, case: str) -> None:
    made = {
        "refused": volumes(2, 4, DRIFTING["TriggerTime"])[:-1],
        "joined": volumes(1, 4, TORN["series"]),
        "mixed": volumes(2, 4, LAST_RESORTS["AcquisitionTime"]),
    }[case]
    save(made, tmp_path / "in")
    flags = ["--join"] if case == "joined" else []
    dry = command(tmp_path / "in", tmp_path / "dry", "--dry-run", *flags)
    run = command(tmp_path / "in", tmp_path / "out", *flags)
    assert dry.exit_code == run.exit_code == (case == "refused")
    text = {"refused": "7 slices at 4 positions", "joined": "were joined", "mixed": LAST}[case]
    assert text in dry.stderr and text in run.stderr
    assert not (tmp_path / "dry").exists()


# ------------------------------------------------------------------------------------------------- attributes missing


@pytest.mark.parametrize(
    ("name", "assumed"),
    [
        ("HighBit", "HighBit 15"),
        ("SamplesPerPixel", "SamplesPerPixel 1"),
        ("PhotometricInterpretation", "PhotometricInterpretation MONOCHROME2"),
        ("PixelRepresentation", "PixelRepresentation 0"),
    ],
)
@pytest.mark.parametrize("empty", [True, False])
def test_what_is_missing_and_obvious_is_assumed_and_said(tmp_path: Path, name: str, assumed: str, empty: bool) -> None:
    made = series()
    for instance in made:
        setattr(instance, name, None)
        if not empty:
            delattr(instance, name)
    save(made, tmp_path / "in")
    (volume,) = read_all(tmp_path / "in")
    np.testing.assert_array_equal(volume.voxels, factory.phantom())
    assert volume.warnings == [f"missing or empty in the header, and assumed: {assumed}"]
    fine = np.repeat(np.repeat(volume.voxels, 2, axis=0), 2, axis=1)
    write_series(volume, fine, np.asarray(superres_affine(volume.affine, (2, 2, 1))), tmp_path / "out", 2)
    (derived,) = read_all(tmp_path / "out")
    assert not any("assumed" in warning for warning in derived.warnings)


@pytest.mark.parametrize("name", ["BitsAllocated", "BitsStored", "Rows", "Columns"])
def test_what_is_missing_and_not_obvious_is_named(tmp_path: Path, name: str) -> None:
    made = series()
    setattr(made[0], name, None)
    save(made, tmp_path)
    with pytest.raises(VolumeError, match=f"{name} is missing"):
        read_all(tmp_path)


def test_the_sign_of_a_ct_is_not_guessed(tmp_path: Path) -> None:
    made = series("CT")
    del made[0].PixelRepresentation
    save(made, tmp_path)
    with pytest.raises(VolumeError, match="PixelRepresentation is missing or empty"):
        read_all(tmp_path)


EMPTIED = (
    *("SeriesNumber", "InstanceNumber", "SeriesDescription", "SliceThickness", "EchoTime", "AcquisitionMatrix"),
    *("AcquisitionNumber", "SpacingBetweenSlices", "RescaleSlope", "RescaleIntercept", "NumberOfFrames", "ImageType"),
    *("SoftwareVersions", "TriggerTime", "WindowCenter", "WindowWidth", "PixelPaddingValue", "NumberOfSlices"),
    *("AcquisitionTime", "AcquisitionDate", "ContentTime", "DiffusionBValue", "Laterality", "SequenceName"),
)


def test_emptied_attributes_are_as_good_as_removed(tmp_path: Path) -> None:
    made = series()
    for instance in made:
        for name in EMPTIED:
            setattr(instance, name, None)
    save(made, tmp_path)
    (volume,) = read_all(tmp_path)
    np.testing.assert_array_equal(volume.voxels, factory.phantom())
    np.testing.assert_allclose(volume.affine, factory.expected_affine(), atol=1e-9)


@pytest.mark.parametrize(
    "attributes",
    [
        {"ImageType": ["ORIGINAL", "PRIMARY", "M", "VFRAME"], "ImagePositionPatient": None},
        {(0x0065, 0x1051, "SQ"): [Dataset()]},
    ],
    ids=["by its type", "by its items"],
)
def test_a_uih_grid_is_called_a_grid(tmp_path: Path, attributes: dict) -> None:
    save([set_attributes(one, attributes) for one in series()[:1]], tmp_path)
    with pytest.raises(VolumeError, match=r"a grid \(mosaic\).*dcm2niix"):
        read_all(tmp_path)


# --------------------------------------------------------------------------------------------------------- real series

DATA = Path(os.environ.get("ICONET_DATA", "")) / "dicom"
DCM2NIIX = program("dcm2niix")


def real_series() -> Iterator[Path]:
    files = {path.parent for path in DATA.rglob("*.dcm")} if os.environ.get("ICONET_DATA") else set()
    yield from sorted(files)


@pytest.mark.skipif(not os.environ.get("ICONET_DATA"), reason="ICONET_DATA is not set: no real series were read")
@pytest.mark.skipif(DCM2NIIX is None, reason="dcm2niix is not installed")
@pytest.mark.parametrize("folder", [*real_series()], ids=lambda path: "-".join(path.parts[-2:]))
def test_real_series_give_the_volumes_of_dcm2niix_in_its_order(folder: Path, tmp_path: Path) -> None:
    assert DCM2NIIX is not None
    subprocess.run([DCM2NIIX, "-b", "n", "-o", tmp_path, folder], check=True, capture_output=True)
    theirs = []
    for path in sorted(tmp_path.glob("*.nii")):
        image = nib.as_closest_canonical(nib.load(path))
        voxels = image.get_fdata().reshape(*image.shape[:3], -1)
        theirs += [(image.affine, voxels[..., number]) for number in range(voxels.shape[3])]
    try:
        read = read_all(folder)
    except VolumeError as error:
        assert "dcm2niix" in str(error)  # a grid
        return
    assert len(read) == len(theirs)
    for volume, (affine, voxels) in zip(read, theirs, strict=True):
        ours = nib.as_closest_canonical(nib.Nifti1Image(volume.voxels, volume.affine))
        np.testing.assert_allclose(ours.affine, affine, atol=2e-3)
        same = ours.get_fdata()
        if "dcm_qa_enh/Philips" not in folder.as_posix():  # its private scaling is not applied
            np.testing.assert_allclose(same, voxels, rtol=1e-4, atol=1e-3 * np.abs(voxels).max())
