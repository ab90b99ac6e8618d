"""The acquired matrix and the modality that a BIDS sidecar states, on the axes of the array and on every route."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import dicom_factory as factory
import nibabel as nib
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from monai.data.utils import list_data_collate
from monai.transforms import CenterSpatialCrop, EnsureChannelFirst, LoadImage, Orientation, Spacing
from programs import program

from bundle.data import NiftiVolumeReader, check_volume_file, read_volume
from bundle.data.bids_sidecar import sidecar_metadata
from bundle.data.dicom.header import read_frames
from bundle.data.dicom.matrix import stated_matrix as stated_by_dicom
from bundle.data.meaning import modality_by_bids, modality_in_meta
from bundle.data.nifti.matrix import stated_matrix, stated_matrix_in_meta
from bundle.physics.matrix import StatedMatrix
from bundle.physics.slices import decide_slice_axis

DCM2NIIX = program("dcm2niix")
SHAPE = (32, 24, 5)
SIEMENS = {"BaseResolution": 16, "AcquisitionMatrixPE": 12, "PercentPhaseFOV": 75, "PhaseResolution": 1}
FLAT = {"MRAcquisitionType": "2D"}


def save(path: Path, shape: tuple[int, ...] = SHAPE, dim_info: tuple | None = None, **sidecar: Any) -> Path:
    image = nib.Nifti1Image(np.random.default_rng(0).gamma(2, 50, shape).astype(np.float32), np.diag([2, 2, 5, 1]))
    if dim_info is not None:
        image.header.set_dim_info(*dim_info)
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(image, path)
    path.with_name(path.name.removesuffix(".gz").removesuffix(".nii") + ".json").write_text(json.dumps(sidecar))
    return path


def stated(path: Path) -> tuple[float | None, ...] | None:
    found = stated_matrix(path, nib.load(path).header)
    assert found is None or found.source == "BIDS sidecar"
    return found and found.samples


CASES: dict[str, tuple[dict[str, Any], tuple[float | None, ...] | None]] = {
    "Siemens": ({**SIEMENS, **FLAT, "PhaseEncodingDirection": "j-"}, (16, 12, None)),
    "the axis without a sign": ({**SIEMENS, **FLAT, "PhaseEncodingAxis": "j"}, (16, 12, None)),
    "row and column of a 2-D acquisition": (
        {**SIEMENS, **FLAT, "InPlanePhaseEncodingDirectionDICOM": "COL"},
        (16, 12, None),
    ),
    "row and column of an unknown order": ({**SIEMENS, "InPlanePhaseEncodingDirectionDICOM": "COL"}, None),
    "the slice axis from the sidecar": (
        {**SIEMENS, "InPlanePhaseEncodingDirectionDICOM": "COL", "SliceEncodingDirection": "k"},
        (16, 12, None),
    ),
    "row and column from their directions": (
        {
            **SIEMENS,
            **{"InPlanePhaseEncodingDirectionDICOM": "ROW", "ImageOrientationPatientDICOM": [0, 1, 0, 1, 0, 0]},
        },
        (16, 12, None),
    ),
    "directions between the axes": (
        {
            **SIEMENS,
            **{
                "InPlanePhaseEncodingDirectionDICOM": "ROW",
                "ImageOrientationPatientDICOM": [0.7, 0.7, 0, -0.7, 0.7, 0],
            },
        },
        None,
    ),
    "phase axis without the slice axis": (
        {"BaseResolution": 16, "AcquisitionMatrixPE": 12, "PhaseEncodingDirection": "j"},
        (None, 12, None),
    ),
    "only phase": (
        {**FLAT, "AcquisitionMatrixPE": 18, "ReconMatrixPE": 24, "PhaseEncodingDirection": "j"},
        (None, 18, None),
    ),
    "resampled since": ({**SIEMENS, **FLAT, "PhaseEncodingDirection": "j", "ReconMatrixPE": 32}, None),
    "no direction": ({**SIEMENS, **FLAT}, None),
    "lines from the protocol": (
        {
            **FLAT,
            **{"BaseResolution": 16, "PercentPhaseFOV": 75, "PhaseResolution": 0.8, "PhaseEncodingDirection": "j"},
        },
        (16, pytest.approx(9.6), None),
    ),
    "a full field of view in a rectangle is cropped": (
        {
            **FLAT,
            **{"BaseResolution": 16, "AcquisitionMatrixPE": 20, "PercentPhaseFOV": 100, "PhaseEncodingDirection": "j"},
        },
        None,
    ),
    "partial Fourier": ({**SIEMENS, **FLAT, "PhaseEncodingDirection": "j", "PartialFourier": 0.75}, (16, 12, None)),
    "lines counted in partial Fourier": (
        {**SIEMENS, **FLAT, "AcquisitionMatrixPE": 9, "PhaseEncodingDirection": "j", "PartialFourier": 0.75},
        (16, None, None),
    ),
    "steps of an enhanced object": (
        {
            **FLAT,
            **{"FrequencyEncodingSteps": 16, "PhaseEncodingSteps": 12, "PercentPhaseFOV": 75},
            **{"PercentSampling": 100, "PhaseEncodingDirection": "j"},
        },
        (16, 12, None),
    ),
    "steps with oversampling": (
        {**FLAT, "FrequencyEncodingSteps": 16, "PhaseEncodingSteps": 20, "PhaseEncodingDirection": "j"},
        (16, None, None),
    ),
    "two numbers of samples": (
        {**SIEMENS, **FLAT, "FrequencyEncodingSteps": 32, "PhaseEncodingDirection": "j"},
        (None, 12, None),
    ),
    "nonsense": (
        {**FLAT, "BaseResolution": [1], "AcquisitionMatrixPE": "x", "PhaseEncodingDirection": "j"},
        None,
    ),
    "derived": ({**SIEMENS, **FLAT, "PhaseEncodingDirection": "j", "ImageType": ["DERIVED", "MPR"]}, None),
    "projected": ({**SIEMENS, **FLAT, "PhaseEncodingDirection": "j", "ImageType": ["ORIGINAL", "X", "MIP"]}, None),
    "PET": ({**SIEMENS, **FLAT, "PhaseEncodingDirection": "j", "Modality": "PT"}, None),
    "empty": ({}, None),
}


@pytest.mark.parametrize("case", CASES)
def test_the_matrix_of_a_sidecar(case: str, tmp_path: Path) -> None:
    sidecar, expected = CASES[case]
    assert stated(save(tmp_path / "a.nii.gz", **sidecar)) == expected


def test_dim_info_gives_the_direction_and_the_sidecar_wins(tmp_path: Path) -> None:
    path = save(tmp_path / "a.nii", dim_info=(0, 1, 2), **SIEMENS)
    assert stated(path) == (16, 12, None)
    path = save(tmp_path / "b.nii", (24, 32, 5), dim_info=(0, 1, 2), **SIEMENS, PhaseEncodingDirection="i")
    assert stated(path) == (12, 16, None)


@pytest.mark.parametrize("shape", [(32, 24), (32, 24, 5, 3), (32, 24, 1)])
def test_images_and_series_state_their_matrix_as_volumes_do(shape: tuple[int, ...], tmp_path: Path) -> None:
    sidecar = {**SIEMENS, **FLAT, "PhaseEncodingDirection": "j"}
    assert stated(save(tmp_path / "a.nii", shape, **sidecar)) == (16, 12, None)


def test_a_square_matrix_needs_no_direction(tmp_path: Path) -> None:
    square = {"BaseResolution": 16, "AcquisitionMatrixPE": 16, "PercentPhaseFOV": 100, "PercentSampling": 100}
    assert stated(save(tmp_path / "a.nii", (32, 32, 5), **square, **FLAT)) == (16, 16, None)
    assert stated(save(tmp_path / "b.nii", (32, 32, 5), **square)) is None


def test_a_file_that_was_resampled_by_its_name_states_nothing(tmp_path: Path) -> None:
    sidecar = {**SIEMENS, **FLAT, "PhaseEncodingDirection": "j"}
    assert stated(save(tmp_path / "sub-1_space-MNI_T1w.nii", **sidecar)) is None
    assert stated(save(tmp_path / "sub-1_acq-res_T1w.nii", **sidecar)) == (16, 12, None)


VALUES = st.one_of(
    st.none(), st.integers(-5, 600), st.floats(), st.text(max_size=3), st.lists(st.integers(), max_size=6)
)
NAMES = (
    *("BaseResolution", "AcquisitionMatrixPE", "ReconMatrixPE", "PercentPhaseFOV", "PercentSampling", "Modality"),
    *("PhaseResolution", "PhaseEncodingDirection", "InPlanePhaseEncodingDirectionDICOM", "MRAcquisitionType"),
    *("ImageOrientationPatientDICOM", "SliceEncodingDirection", "ImageType", "FrequencyEncodingSteps"),
)


@given(st.dictionaries(st.sampled_from(NAMES), VALUES), st.integers(0, 255))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_a_sidecar_holds_the_samples_fit_the_image(sidecar: dict[str, Any], info: int) -> None:
    header = nib.Nifti1Image(np.zeros(SHAPE, np.float32), np.diag([2, 2, 5, 1])).header
    header["dim_info"] = info
    found = stated_matrix(Path("a.nii"), header, {**SIEMENS, **sidecar})
    for value, size in zip(found.samples if found else (), SHAPE, strict=False):
        assert value is None or size / 8 <= value <= size


# ------------------------------------------------------------------------------------------------- against dcm2niix


ORIENTATIONS = {
    "axial": (1, 0, 0, 0, 1, 0),
    "coronal": (1, 0, 0, 0, 0, -1),
    "sagittal": (0, 1, 0, 0, 0, -1),
    "oblique": factory.OBLIQUE,
}


@pytest.mark.skipif(DCM2NIIX is None, reason="dcm2niix is not installed")
@pytest.mark.parametrize("dimensions", ["2D", "3D"])
@pytest.mark.parametrize("direction", ["ROW", "COL"])
@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_a_file_of_dcm2niix_states_on_its_axes_what_the_series_states(
    orientation: str, direction: str, dimensions: str, tmp_path: Path
) -> None:
    instances = factory.series("MR", np.ones((32, 32, 6), np.int16), ORIENTATIONS[orientation])
    for instance in instances:
        instance.PixelSpacing, instance.InPlanePhaseEncodingDirection = ["1.5", "1.5"], direction
        instance.AcquisitionMatrix = [0, 20, 17, 0] if direction == "ROW" else [20, 0, 0, 17]
        instance.PercentPhaseFieldOfView, instance.MRAcquisitionType = "100", dimensions
    folder = factory.save(instances, tmp_path / "in")
    (tmp_path / "out").mkdir()
    call = [str(DCM2NIIX), "-b", "y", "-z", "n", "-f", "a", "-o", str(tmp_path / "out"), str(folder)]
    subprocess.run(call, check=True, capture_output=True)
    path = tmp_path / "out/a.nii"
    frames = [frame for file in folder.iterdir() for frame in read_frames(file)]  # type: ignore[union-attr]
    by_dicom = stated_by_dicom(frames)
    assert by_dicom is not None and sorted(filter(None, by_dicom.samples)) == [17, 20]
    directions = np.reshape(ORIENTATIONS[orientation], (2, 3)) * (-1, -1, 1)
    affine = nib.load(path).affine[:3, :3]
    axes = np.abs(directions @ (affine / np.linalg.norm(affine, axis=0))).argmax(axis=1)
    phase = int(axes[0 if direction == "ROW" else 1])
    found = stated(path)
    # dcm2niix does not tell the samples along frequency of a scanner that it does not know.
    assert found == tuple(17 if axis == phase else None for axis in range(3))
    read = read_volume(path)
    assert decide_slice_axis("auto", read.array.shape, read.affine, read.stated) == (3 - sum(axes), ())


@pytest.mark.skipif(DCM2NIIX is None, reason="dcm2niix is not installed")
def test_a_file_that_dcm2niix_made_of_an_enhanced_object_states_both_axes(tmp_path: Path) -> None:
    dataset = factory.enhanced(voxels=np.ones((32, 32, 6), np.int16))
    groups = dataset.SharedFunctionalGroupsSequence[0]
    groups.PixelMeasuresSequence[0].PixelSpacing = ["1.5", "1.5"]
    geometry = groups.MRFOVGeometrySequence[0]
    geometry.MRAcquisitionFrequencyEncodingSteps, geometry.MRAcquisitionPhaseEncodingStepsInPlane = 20, 17
    geometry.PercentSampling = "85"
    folder = factory.save([dataset], tmp_path / "in")
    (tmp_path / "out").mkdir()
    call = [str(DCM2NIIX), "-b", "y", "-z", "n", "-f", "a", "-o", str(tmp_path / "out"), str(folder)]
    subprocess.run(call, check=True, capture_output=True)
    assert stated(tmp_path / "out/a.nii") == (17, 20, None)  # ROW: phase along the columns' index


# ------------------------------------------------------------------------------------------------- the other routes


def test_readers_and_metadata_state_the_same_matrix_and_modality(tmp_path: Path) -> None:
    path = save(tmp_path / "a.nii.gz", **SIEMENS, **FLAT, PhaseEncodingDirection="j", Modality="MR")
    expected = StatedMatrix((16, 12, None), "BIDS sidecar")
    for read in (read_volume(path), check_volume_file(path)):
        assert (read.stated_matrix, read.modality) == (expected, "MR")
    loaded = EnsureChannelFirst()(LoadImage(NiftiVolumeReader)(path))
    affine = loaded.affine.numpy()
    assert stated_matrix_in_meta(loaded.meta, affine) == expected
    assert stated_matrix_in_meta(loaded.meta, affine, shape=loaded.shape[1:]) == expected
    assert modality_in_meta(loaded.meta) == "MR"


def test_metadata_hold_for_the_voxels_that_were_read_alone(tmp_path: Path) -> None:
    path = save(tmp_path / "a.nii.gz", **SIEMENS, **FLAT, PhaseEncodingDirection="j")
    loaded = EnsureChannelFirst()(LoadImage(NiftiVolumeReader)(path))
    for changed in (Orientation("SPL", labels=None)(loaded), Spacing((1.0, 1.0, 5.0))(loaded)):
        assert stated_matrix_in_meta(changed.meta, changed.affine.numpy(), shape=changed.shape[1:]) is None
    cropped = CenterSpatialCrop((20, 20, 5))(loaded)
    assert stated_matrix_in_meta(cropped.meta, cropped.affine.numpy(), shape=cropped.shape[1:]) is None
    assert stated_matrix_in_meta({}, np.eye(4)) is None
    assert modality_in_meta({}) is None


def test_items_of_a_batch_keep_what_their_files_state(tmp_path: Path) -> None:
    sidecar = {**SIEMENS, **FLAT, "PhaseEncodingDirection": "j"}
    paths = [save(tmp_path / "a.nii", **sidecar, Modality="MR"), save(tmp_path / "b.nii")]
    batch = list_data_collate([EnsureChannelFirst()(LoadImage(NiftiVolumeReader)(path)) for path in paths])
    affines = batch.affine if batch.affine.ndim == 3 else torch.stack([batch.affine] * 2)
    matrices = [stated_matrix_in_meta(batch.meta, affines[item].numpy(), item) for item in (0, 1)]
    assert [matrix and matrix.samples for matrix in matrices] == [(16, 12, None), None]
    assert [modality_in_meta(batch.meta, item) for item in (0, 1)] == ["MR", None]


@pytest.mark.parametrize(
    ("path", "sidecar", "modality"),
    [
        ("a.nii", {"Modality": "mr"}, "MR"),
        ("a.nii", {"Modality": "PET"}, "PT"),
        ("a.nii", {"Modality": "NM"}, "NM"),
        ("a.nii", {"Modality": 3}, None),
        ("a.nii", {}, None),
        ("anat/a.nii", {}, None),
        ("sub-1/anat/sub-1_T1w.nii.gz", {}, "MR"),
        ("sub-1_run-1_FLAIR.nii.gz", {}, "MR"),
        ("sub-1/anat/sub-1_desc-x_new.nii.gz", {}, "MR"),
        ("sub-1/pet/sub-1_trc-x_pet.nii.gz", {}, "PT"),
        ("sub-1/anat/sub-1_ct.nii.gz", {}, "CT"),
        ("sub-1/pet/sub-1_T1w.nii.gz", {"Modality": ""}, "MR"),
        ("sub-1/other/sub-1_new.nii.gz", {}, None),
    ],
)
def test_the_modality_by_bids(path: str, sidecar: dict[str, Any], modality: str | None, tmp_path: Path) -> None:
    saved = save(tmp_path / path, (4, 4), **sidecar)
    assert modality_by_bids(saved, sidecar_metadata(saved)) == modality
