"""DICOM through the command: derived series, NIfTI, trees of both, and nothing that identifies the patient."""

from __future__ import annotations

import errno
import importlib.util
import json
import os
import signal
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from cli_command import command, record, results
from conftest import blob_volume

pytest.importorskip("pydicom", reason="needs pydicom: pip install '.[dicom]'")
import dicom_factory as factory
from test_killed import killed_at

from bundle.data.dicom.find import find_series
from bundle.data.dicom.read import read_series

FINE = np.diag([0.5, 0.5, 1, 1])


@pytest.fixture
def tree(tmp_path: Path, write_nifti: Callable[..., Path]) -> Path:
    """`in` with an MR and a PET series in one folder, an enhanced MR in another, junk, and a NIfTI volume."""
    factory.save(factory.series("MR"), tmp_path / "in" / "exam")
    factory.save(factory.series("PT", seed="p"), tmp_path / "in" / "exam")
    factory.save([factory.enhanced()], tmp_path / "in" / "multi")
    (tmp_path / "in" / "exam" / "notes.txt").write_text("not an image")
    write_nifti(tmp_path / "in" / "x.nii.gz", blob_volume((12, 10, 3), (5.5, 4.0, 1.0), sigma=3.0))
    return tmp_path


def read(folder: Path):
    (series,) = find_series(folder).series
    return read_series(series)


def test_a_tree_of_both_gives_results_of_both_kinds(tree: Path) -> None:
    done = command(tree / "in", tree / "out")
    assert done.exit_code == 0, done.output
    assert len(results(tree / "out")) == 4
    assert (tree / "out" / "x_SRx2.nii.gz").is_file()
    series = sorted(path for path in (tree / "out").rglob("*_SRx2") if path.is_dir())
    assert [path.parent.name for path in series] == ["exam", "exam", "multi"]
    for path, modality in zip(series, ("MR", "PT", "MR"), strict=True):
        made = read(path)
        assert path.name.startswith(modality) and made.series.modality == modality
        assert made.voxels.shape == (2 * factory.COLUMNS, 2 * factory.ROWS, factory.SLICES)
        np.testing.assert_allclose(made.affine, factory.expected_affine() @ FINE, atol=1e-4)
        facts = json.loads(path.with_suffix(".json").read_text())["SuperResolution"]
        assert facts["SliceAxis"] == 2 and 0 <= facts["DataConsistencyResidual"] < 0.1
    assert "files left out" in done.stderr


def test_a_folder_that_cannot_be_listed_is_named_once(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    closed, scandir = tree / "in" / "closed", os.scandir
    closed.mkdir()

    def refuse(path: str = ".") -> object:
        if os.fspath(path) == str(closed):
            raise PermissionError(errno.EACCES, "Permission denied", str(closed))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    done = command(tree / "in", tree / "out", "--dry-run")
    assert done.exit_code == 0 and done.stderr.count("cannot be listed") == 1


def test_row_117_nothing_that_is_written_beside_the_images_names_the_patient(tree: Path) -> None:
    command(tree / "in", tree / "out", "--log-json", tree / "log.jsonl", "--report")
    texts = [
        tree / "log.jsonl",
        *(path for path in (tree / "out").rglob("*") if path.suffix in (".json", ".csv", ".html")),
    ]
    assert len(texts) > 5
    for path in texts:
        for secret in ("Secret", "SECRET", "1950"):
            assert secret not in path.read_text(), path
    assert not any("ecret" in str(path).replace(str(tree), "") for path in tree.rglob("*"))


def test_a_second_run_skips_series_and_redoes_what_was_touched(tree: Path) -> None:
    command(tree / "in", tree / "out")
    assert "0 done, 4 skipped" in command(tree / "in", tree / "out").stderr
    one, *_ = sorted((tree / "out" / "exam").rglob("*.dcm"))
    one.unlink()
    assert "1 done, 3 skipped" in command(tree / "in", tree / "out").stderr
    (instance, *_) = sorted((tree / "in" / "multi").iterdir())
    instance.write_bytes(instance.read_bytes() + b"\0\0")
    assert "1 done, 3 skipped" in command(tree / "in", tree / "out").stderr
    assert "0 done, 4 skipped" in command(tree / "in", tree / "out").stderr


@pytest.mark.parametrize("modality", ["MR", "CT", "PT"])
def test_a_series_becomes_nifti_in_the_same_place_with_the_same_values(modality: str, tmp_path: Path) -> None:
    factory.save(factory.series(modality), tmp_path / "in")
    assert command(tmp_path / "in", tmp_path / "out.nii.gz").exit_code == 0
    assert command(tmp_path / "in", tmp_path / "out").exit_code == 0
    image = nib.load(tmp_path / "out.nii.gz")
    (folder,) = (tmp_path / "out").glob("*_SRx2")
    derived = read(folder)
    np.testing.assert_allclose(image.affine, factory.expected_affine() @ FINE, atol=1e-4)
    assert (int(image.header["sform_code"]), int(image.header["qform_code"])) == (1, 1)
    assert image.header.get_xyzt_units()[0] == "mm"
    # Integers are rounded, and those of MR are unsigned.
    expected = image.get_fdata().clip(0) if modality == "MR" else image.get_fdata()
    np.testing.assert_allclose(derived.voxels, expected, atol=1.2)
    assert record(tmp_path / "out.nii.gz")["Sources"] == [find_series(tmp_path / "in").series[0].label]


def test_one_instance_is_enough_and_is_taken_alone(tmp_path: Path) -> None:
    factory.save(factory.series("MR"), tmp_path / "in")
    first = sorted((tmp_path / "in").iterdir())[0]
    assert command(first, tmp_path / "out.nii").exit_code == 0
    assert nib.load(tmp_path / "out.nii").shape == (2 * factory.COLUMNS, 2 * factory.ROWS, 1)


def test_row_74_a_gap_is_refused_unless_allowed_and_then_only_dicom_can_hold_it(tmp_path: Path) -> None:
    factory.save([s for n, s in enumerate(factory.series("MR")) if n != 3], tmp_path / "in")
    done = command(tmp_path / "in", tmp_path / "out")
    assert done.exit_code == 1 and "1 slices are missing" in done.stderr
    assert command(tmp_path / "in", tmp_path / "out", "--allow-gap").exit_code == 0
    done = command(tmp_path / "in", tmp_path / "nifti", "--allow-gap", "--to", "nifti")
    assert done.exit_code == 1 and "no single affine" in done.stderr


def test_a_series_is_cut_in_its_images_unless_it_becomes_nifti(tmp_path: Path) -> None:
    factory.save(factory.series("MR"), tmp_path / "in")
    done = command(tmp_path / "in", tmp_path / "out", "--slice-axis", 0)
    assert done.exit_code == 1 and "its images (axis 2)" in done.stderr
    assert command(tmp_path / "in", tmp_path / "out.nii", "--slice-axis", 0).exit_code == 0
    assert nib.load(tmp_path / "out.nii").shape == (factory.COLUMNS, 2 * factory.ROWS, 2 * factory.SLICES)


def test_row_89_a_damaged_instance_fails_its_series_alone(tree: Path) -> None:
    victim = sorted((tree / "in" / "multi").iterdir())[0]
    victim.write_bytes(victim.read_bytes()[:-500])
    done = command(tree / "in", tree / "out")
    assert done.exit_code == 1 and "3 done, 0 skipped, 1 failed" in done.stderr and victim.name in done.stderr


def test_a_magnitude_series_gives_one_without_a_voxel_to_clip(tmp_path: Path) -> None:
    box = np.zeros((24, 20, 3), np.int32)
    box[6:18, 5:15] = 900  # its edges ring below zero
    factory.save(factory.series("MR", box), tmp_path / "in")
    assert command(tmp_path / "in", tmp_path / "out").exit_code == 0
    (sidecar,) = (tmp_path / "out").glob("*.json")
    facts = json.loads(sidecar.read_text())["SuperResolution"]
    assert facts["NegativeVoxelsSetToZero"] > 0.05 and not any("below 0" in text for text in facts["Warnings"])


def test_a_folder_of_nifti_says_nothing_of_dicom(tmp_path: Path, write_nifti: Callable[..., Path]) -> None:
    write_nifti(tmp_path / "in" / "x.nii.gz", blob_volume((12, 10, 3), (5.5, 4.0, 1.0)))
    assert "left out" not in command(tmp_path / "in", tmp_path / "out").stderr


def test_a_missing_pydicom_is_named(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "pydicom" else real(name))
    done = command(tree / "in", tree / "out")
    assert done.exit_code == 2 and 'pip install ".[dicom]"' in done.stderr


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork and SIGKILL")
@pytest.mark.parametrize("number", [1, 2, 3])
@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_row_69_a_kill_leaves_whole_series_and_the_next_run_goes_on(number: int, after: bool, tmp_path: Path) -> None:
    factory.save(factory.series("MR"), tmp_path / "in")
    assert killed_at(tmp_path, "replace", number, after) == -signal.SIGKILL
    for folder in (tmp_path / "out").glob("*_SRx2"):
        assert read(folder).voxels.shape[2] == factory.SLICES
    assert command(tmp_path / "in", tmp_path / "out").exit_code == 0
    (folder,) = (path for path in (tmp_path / "out").iterdir() if path.is_dir())
    assert read(folder).voxels.shape[2] == factory.SLICES
    assert "1 skipped" in command(tmp_path / "in", tmp_path / "out").stderr
