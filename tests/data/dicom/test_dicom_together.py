"""The volumes of one series decide together on padding and negative values, as a 4-D NIfTI file does."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import dicom_factory as factory
import numpy as np
import pytest
from dicom_factory import phantom, save, series
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom import Dataset

from bundle.data.dicom import read, together
from bundle.data.dicom.find import find_series
from bundle.data.dicom.read import read_series
from bundle.data.values import survey


def scan(volumes: Sequence[np.ndarray], modality: str = "MR", signed: bool = True) -> list[Dataset]:
    """One series of volumes of stored integers, told apart by their echo times."""
    made = []
    for number, stored in enumerate(volumes):
        for at, instance in enumerate(series(modality, stored)):
            instance.EchoTime = 10 * (number + 1)
            instance.SOPInstanceUID = f"{instance.SOPInstanceUID}.{number + 1}"[-60:].lstrip(".0")
            instance.InstanceNumber = number * stored.shape[2] + at + 1
            instance.PixelRepresentation = int(signed)
            made.append(instance)
    return made


def with_negatives(count: int, value: int) -> np.ndarray:
    stored = phantom().astype(np.int32) + 100
    stored.reshape(-1)[:count] = value
    return stored


def test_one_volume_of_measured_negatives_makes_all_of_its_series_signed(tmp_path: Path) -> None:
    some = with_negatives(phantom().size // 2, -300)
    found = find_series(save(scan([with_negatives(1, -3), some]), tmp_path)).series
    assert [read_series(volume).values.signed for volume in found] == [True, True]
    alone = find_series(save(scan([with_negatives(1, -3)]), tmp_path / "alone")).series
    assert [read_series(volume).values.signed for volume in alone] == [False]


@settings(max_examples=40, deadline=None)
@given(
    counts=st.lists(st.sampled_from([0, 1, 40, 400]), min_size=2, max_size=3),
    value=st.sampled_from([-1, -200, -9999, -32768]),
    modality=st.sampled_from(["MR", "CT"]),
)
def test_the_decision_is_that_of_the_same_volumes_in_one_file(counts, value, modality, tmp_path_factory) -> None:
    stored = [with_negatives(count, value) for count in counts]
    folder = save(scan(stored, modality), tmp_path_factory.mktemp("dicom"))
    volumes = [read_series(found) for found in find_series(folder).series]
    assert len(volumes) == len(counts) and len({volume.values for volume in volumes}) == 1
    assert volumes[0].values == survey([volume.voxels for volume in volumes], hounsfield=modality == "CT")


def test_declared_padding_keeps_the_value_of_its_own_volume(tmp_path: Path) -> None:
    instances = scan([with_negatives(300, -2000), with_negatives(300, -2000)])
    for instance in instances:
        instance.add_new("PixelPaddingValue", "SS", -2000)
        instance.RescaleSlope, instance.RescaleIntercept = (1 if instance.EchoTime == 10 else 2), 0
    volumes = [read_series(found) for found in find_series(save(instances, tmp_path)).series]
    assert [volume.values.padding for volume in volumes] == [-2000, -4000]
    for volume in volumes:
        mask = volume.values.mask(volume.voxels)
        assert mask is not None and mask.sum() == 300 and not volume.values.signed


def test_padding_that_only_the_header_knows_is_looked_for_in_the_values_of_all(tmp_path: Path) -> None:
    instances = scan([with_negatives(300, -9999), with_negatives(0, 0)])
    for instance in instances:
        instance.add_new("PixelPaddingValue", "SS", -2000)
    volumes = [read_series(found) for found in find_series(save(instances, tmp_path)).series]
    assert [volume.values.padding for volume in volumes] == [-9999, -9999]


def test_images_of_other_kinds_have_no_say(tmp_path: Path) -> None:
    instances = scan([with_negatives(1, -3), with_negatives(phantom().size // 2, -300), with_negatives(1, -3)])
    for instance in instances:
        real = instance.EchoTime == 20
        instance.ImageType = ["ORIGINAL", "PRIMARY", "R" if real else "M", "ND"]
    found = {volume.frames[0].image: volume for volume in find_series(save(instances, tmp_path)).series}
    signed = [read_series(volume).values.signed for volume in found.values()]
    assert sorted(signed) == [False, False, True]


def test_each_volume_is_read_once_for_the_decision_and_a_broken_one_has_no_say(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = save(scan([with_negatives(1, -3)] * 3), tmp_path)
    found = find_series(folder).series
    counted: list[int] = []

    def read_values(where, frames):
        counted.append(len(frames))
        return original(where, frames)

    original = read.read_values
    monkeypatch.setattr(read, "read_values", read_values)
    monkeypatch.setattr(together, "read_values", read_values)
    for volume in found:
        read_series(volume)
    assert len(counted) == 6
    broken = find_series(folder).series
    content = broken[2].paths[0].read_bytes()
    broken[2].paths[0].write_bytes(content[: len(content) - 200])
    assert not read_series(broken[0]).values.signed
    with pytest.raises(ValueError, match=broken[2].paths[0].name):
        read_series(broken[2])


def test_the_volumes_of_an_enhanced_object_decide_together_too(tmp_path: Path) -> None:
    save([factory.enhanced(echoes=(20.0, 40.0))], tmp_path)
    found = find_series(tmp_path).series
    assert all(volume.together is found[0].together is not None for volume in found)


def test_each_of_them_knows_the_one_with_the_largest_contrast(tmp_path: Path) -> None:
    stored = [np.zeros_like(phantom()), phantom() // 2, phantom()]
    volumes = [read_series(found) for found in find_series(save(scan(stored), tmp_path)).series]
    assert len(volumes) == 3
    for volume in volumes:
        voxels, values = volume.strongest()
        np.testing.assert_array_equal(voxels, volumes[2].voxels)
        assert values == volume.values
