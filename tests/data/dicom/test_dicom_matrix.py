"""The acquired matrix that DICOM headers state, on the array axes of the volume (columns, rows)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import dicom_factory as factory
import numpy as np
import pytest
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset
from pydicom.multival import MultiValue

from bundle.data.dicom.frame import Frame
from bundle.data.dicom.header import read_frames
from bundle.data.dicom.matrix import stated_matrix

COLUMNS, ROWS = 32, 24
SPACING = ["1.5", "1.5"]


def frames_of(instances: list[Dataset], folder: Path) -> list[Frame]:
    files = sorted(factory.save(instances, folder).iterdir())
    return [frame for path in files for frame in read_frames(path)]  # type: ignore[union-attr]


def classic(modality: str = "MR", columns: int = COLUMNS, rows: int = ROWS, **attributes: Any) -> list[Dataset]:
    made = factory.series(modality, np.ones((columns, rows, 3), np.int16))
    for instance in made:
        factory.set_attributes(instance, {"PixelSpacing": SPACING, **attributes})
    return made


def stated(instances: list[Dataset], folder: Path) -> tuple[float | None, ...] | None:
    found = stated_matrix(frames_of(instances, folder))
    assert found is None or (found.source, found.samples[2]) == ("DICOM header", None)
    return found and found.samples[:2]


CASES: dict[str, tuple[dict[str, Any], tuple[float | None, ...] | None]] = {
    "phase along rows": ({"AcquisitionMatrix": [0, 18, 20, 0]}, (20, 18)),
    "phase along columns": (
        {"AcquisitionMatrix": [20, 0, 0, 18], "InPlanePhaseEncodingDirection": "COL"},
        (20, 18),
    ),
    "numbers in other places": ({"AcquisitionMatrix": [18, 0, 0, 20]}, (20, 18)),
    "numbers given twice": ({"AcquisitionMatrix": [18, 18, 20, 20]}, (20, 18)),
    "not interpolated": ({"AcquisitionMatrix": [0, ROWS, COLUMNS, 0]}, (COLUMNS, ROWS)),
    "percent sampling and field of view are in the lines": (
        {
            **{"AcquisitionMatrix": [16, 0, 0, 9], "InPlanePhaseEncodingDirection": "COL"},
            **{"PercentSampling": "75", "PercentPhaseFieldOfView": "75"},
        },
        (16, 9),
    ),
    "percent sampling is not in the lines": (
        {"AcquisitionMatrix": [0, 20, 20, 0], "PercentSampling": "70"},
        (None, 20),
    ),
    "neither a square nor the rectangle of the field of view": (
        {"AcquisitionMatrix": [0, 20, 20, 0], "PercentPhaseFieldOfView": "75"},
        None,
    ),
    "no direction": ({"AcquisitionMatrix": [20, 0, 0, 18], "InPlanePhaseEncodingDirection": None}, None),
    "no direction, the same both ways": (
        {"AcquisitionMatrix": [20, 0, 0, 20], "InPlanePhaseEncodingDirection": ""},
        (20, 20),
    ),
    "neither direction": ({"AcquisitionMatrix": [20, 0, 0, 20], "InPlanePhaseEncodingDirection": "OTHER"}, None),
    "more lines than stored": ({"AcquisitionMatrix": [0, 18, 64, 0]}, (None, 18)),
    "too few lines": ({"AcquisitionMatrix": [0, 18, 3, 0]}, (None, 18)),
    "no lines": ({"AcquisitionMatrix": [0, 18, 0, 0]}, (None, 18)),
    "only zeros": ({"AcquisitionMatrix": [0, 0, 0, 0]}, None),
    "two frequencies": ({"AcquisitionMatrix": [18, 17, 20, 0]}, (20, None)),
    "two numbers": ({"AcquisitionMatrix": [20, 18]}, None),
    "empty": ({"AcquisitionMatrix": []}, None),
    "absent": ({"AcquisitionMatrix": None}, None),
    "reformatted": (
        {"AcquisitionMatrix": [0, 18, 20, 0], "ImageType": ["DERIVED", "SECONDARY", "MPR"]},
        None,
    ),
    "projected": (
        {"AcquisitionMatrix": [0, 18, 20, 0], "ImageType": ["ORIGINAL", "PRIMARY", "PROJECTION IMAGE"]},
        None,
    ),
    "one image type": ({"AcquisitionMatrix": [0, 18, 20, 0], "ImageType": "ORIGINAL"}, (20, 18)),
    "no spacing": ({"AcquisitionMatrix": [0, 18, 20, 0], "PixelSpacing": None}, None),
}


@pytest.mark.parametrize("case", CASES)
def test_the_matrix_of_classic_images(case: str, tmp_path: Path) -> None:
    attributes, expected = CASES[case]
    assert stated(classic(**attributes), tmp_path) == expected


@pytest.mark.parametrize("modality", ["CT", "PT"])
def test_only_mr_images_have_an_acquired_matrix(modality: str, tmp_path: Path) -> None:
    matrix = {"AcquisitionMatrix": [0, 18, 20, 0], "InPlanePhaseEncodingDirection": "ROW"}
    assert stated(classic(modality, **matrix), tmp_path) is None


def test_an_axis_on_which_slices_differ_is_not_stated(tmp_path: Path) -> None:
    instances = classic(AcquisitionMatrix=[0, 18, 20, 0])
    instances[1].AcquisitionMatrix = MultiValue(int, [0, 18, 16, 0])
    assert stated(instances, tmp_path) == (None, 18)


def test_a_square_matrix_holds_in_either_direction_only_if_the_image_is_square(tmp_path: Path) -> None:
    unknown = {"InPlanePhaseEncodingDirection": None, "PercentPhaseFieldOfView": "100"}
    assert stated(classic(columns=32, rows=32, AcquisitionMatrix=[16, 0, 0, 16], **unknown), tmp_path / "a") == (16, 16)
    assert stated(classic(AcquisitionMatrix=[16, 0, 0, 16], **unknown), tmp_path / "b") is None


def test_a_smaller_field_of_view_in_a_square_leaves_the_phase_axis_open(tmp_path: Path) -> None:
    field = {"PercentPhaseFieldOfView": "75"}
    assert stated(classic(columns=32, rows=32, AcquisitionMatrix=[0, 20, 20, 0], **field), tmp_path) == (None, 20)


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize(
    ("direction", "steps", "changes", "expected"),
    [
        ("ROW", (18, 20), {}, (20, 18)),
        ("COLUMN", (20, 18), {}, (20, 18)),
        ("OTHER", (20, 18), {}, None),
        ("ROW", (18, 13), {"PartialFourier": "YES"}, (None, 18)),
        ("COLUMN", (20, 20), {"PartialFourier": "YES"}, (20, 20)),
        ("COLUMN", (20, 10), {"ParallelAcquisition": "YES"}, (20, None)),
    ],
)
def test_the_matrix_of_enhanced_images(
    shared: bool, direction: str, steps: tuple[int, int], changes: dict, expected: object, tmp_path: Path
) -> None:
    dataset = factory.enhanced(voxels=np.ones((COLUMNS, ROWS, 3), np.int16))
    groups = dataset.SharedFunctionalGroupsSequence[0]
    groups.PixelMeasuresSequence[0].PixelSpacing = SPACING
    geometry = groups.MRFOVGeometrySequence[0]
    factory.set_attributes(groups.MRModifierSequence[0], changes)
    geometry.InPlanePhaseEncodingDirection = direction
    geometry.MRAcquisitionFrequencyEncodingSteps, geometry.MRAcquisitionPhaseEncodingStepsInPlane = steps
    del geometry.PercentPhaseFieldOfView  # 100, of an image that is not square
    if not shared:
        del groups.MRFOVGeometrySequence
        for group in dataset.PerFrameFunctionalGroupsSequence:
            group.MRFOVGeometrySequence = [geometry]
    assert stated([dataset], tmp_path) == expected


def test_a_reformatted_image_of_a_real_scanner_states_nothing() -> None:
    path = get_testdata_file("examples_overlay.dcm")
    (frame,) = read_frames(Path(path))  # type: ignore[arg-type, misc]
    assert stated_matrix([frame]) is None
