"""What files state about the acquired matrix and the modality reaches the volume path of the command."""

from __future__ import annotations

import json
from pathlib import Path

import dicom_factory as factory
import nibabel as nib
import numpy as np
from cli_command import command

from bundle.cli.plan import Job
from bundle.cli.read import Source, open_source
from bundle.data.dicom.find import find_series
from bundle.options import CommandOptions
from bundle.physics.matrix import StatedMatrix


def opened(source: object, folder: Path) -> Source:
    job = Job("a", "a", source, folder / "b.nii", folder / "b.json", "nifti")  # type: ignore[arg-type]
    return open_source(job, CommandOptions())


def test_a_dicom_series_states_its_matrix_and_modality(tmp_path: Path) -> None:
    instances = factory.series("MR", np.ones((32, 24, 3), np.int16) * np.arange(24)[None, :, None].astype(np.int16))
    for instance in instances:
        instance.AcquisitionMatrix, instance.InPlanePhaseEncodingDirection = [20, 0, 0, 18], "COL"
    (series,) = find_series(factory.save(instances, tmp_path / "in")).series
    source = opened(series, tmp_path)
    assert (source.stated_matrix, source.modality) == (StatedMatrix((20, 18, None), "DICOM header"), "MR")


def test_a_nifti_file_states_what_its_sidecar_does(tmp_path: Path) -> None:
    voxels = np.random.default_rng(0).gamma(2, 50, (32, 24, 3)).astype(np.float32)
    nib.save(nib.Nifti1Image(voxels, np.diag([2, 2, 5, 1])), tmp_path / "a.nii")
    source = opened(tmp_path / "a.nii", tmp_path)
    assert (source.stated_matrix, source.modality) == (None, None)
    sidecar = {"BaseResolution": 20, "AcquisitionMatrixPE": 18, "PhaseEncodingDirection": "j", "Modality": "MR"}
    (tmp_path / "a.json").write_text(json.dumps({**sidecar, "MRAcquisitionType": "2D"}))
    source = opened(tmp_path / "a.nii", tmp_path)
    assert (source.stated_matrix, source.modality) == (StatedMatrix((20, 18, None), "BIDS sidecar"), "MR")


def test_the_modality_of_a_sidecar_chooses_the_training_range(tmp_path: Path) -> None:
    voxels = np.random.default_rng(0).gamma(2, 50, (32, 24, 3)).astype(np.float32)
    (tmp_path / "in").mkdir()
    nib.save(nib.Nifti1Image(voxels, np.diag([1, 1, 5, 1])), tmp_path / "in/a.nii")
    (tmp_path / "in/a.json").write_text('{"Modality": "CT"}')
    assert command(tmp_path / "in/a.nii", tmp_path / "out").exit_code == 0
    warnings = json.loads((tmp_path / "out/a_SRx2.json").read_text())["SuperResolution"]["Warnings"]
    assert [line for line in warnings if line.startswith("modality CT: the weights were trained on")]
