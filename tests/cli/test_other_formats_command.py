"""MGH, NRRD and MetaImage as inputs of the command and of the MONAI route, with the same result as from NIfTI."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from cli_command import command, record, results
from conftest import blob_volume
from other_formats import matrix_of, sitk_image

from bundle.data import read_volume
from bundle.data.foreign import names

sitk = pytest.importorskip("SimpleITK")

BLOB = blob_volume((12, 10, 3), (5.5, 4.0, 1.0), sigma=3.0).astype(np.int16)
AFFINE = matrix_of(3)
ENDINGS = (".mgz", ".mgh", ".nrrd", ".nhdr", ".mha", ".mhd")


def write(path: Path, data: np.ndarray = BLOB) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if names.is_mgh(path):
        nib.save(nib.MGHImage(data, AFFINE.astype(np.float32)), path)
    else:
        sitk.WriteImage(sitk_image(data, AFFINE), str(path))
    return path


@pytest.mark.parametrize("ending", ENDINGS)
def test_the_result_is_that_of_the_same_volume_in_nifti(ending: str, tmp_path: Path) -> None:
    path = write(tmp_path / "in" / f"a{ending}")
    twin = nib.Nifti1Image(BLOB, read_volume(path).affine)
    twin.set_qform(twin.affine, 1)
    twin.set_sform(twin.affine, 1)
    nib.save(twin, tmp_path / "b.nii.gz")
    options = ("--dtype", "same", "--slice-axis", 2)
    assert command(tmp_path / "in", tmp_path / "out", *options).exit_code == 0
    assert command(tmp_path / "b.nii.gz", tmp_path / "out2", *options).exit_code == 0
    found, wanted = (nib.load(tmp_path / name) for name in ("out/a_SRx2.nii.gz", "out2/b_SRx2.nii.gz"))
    assert np.array_equal(found.get_fdata(), wanted.get_fdata()) and found.get_data_dtype() == np.int16
    assert np.allclose(found.affine, wanted.affine, atol=1e-5)
    assert np.allclose(found.affine, read_volume(path).affine @ np.diag([0.5, 0.5, 1, 1]), atol=1e-5)
    assert record(tmp_path / "out/a_SRx2.nii.gz")["Sources"] == [f"a{ending}"]


@pytest.mark.parametrize("ending", [".mhd", ".nhdr", ".mgz"])
def test_finished_volumes_are_skipped_until_any_of_their_files_changes(ending: str, tmp_path: Path) -> None:
    write(tmp_path / "in" / f"a{ending}")
    assert command(tmp_path / "in", tmp_path / "out").exit_code == 0
    assert "1 skipped" in command(tmp_path / "in", tmp_path / "out").stderr
    assert "would be skipped" in command(tmp_path / "in", tmp_path / "out", "--dry-run").stderr
    data = BLOB.copy()
    data[0, 0, 0] += 1
    write(tmp_path / "in" / f"a{ending}", data)
    done = command(tmp_path / "in", tmp_path / "out")
    assert "the input changed" in done.stderr and results(tmp_path / "out")[f"a{ending}"]["status"] == "done"


def test_volumes_of_one_name_get_results_of_their_own_and_data_files_are_not_worth_a_line(tmp_path: Path) -> None:
    for ending in ENDINGS:
        write(tmp_path / "in" / f"a{ending}")
    nib.save(nib.Nifti1Image(BLOB, AFFINE), tmp_path / "in" / "a.nii.gz")
    done = command(tmp_path / "in", tmp_path / "out")
    assert done.exit_code == 0 and "not read" not in done.stderr and "left out" not in done.stderr
    made = {path.name for path in (tmp_path / "out").glob("*.nii.gz")}
    others = {f"a-{ending[1:]}_SRx2.nii.gz" for ending in ENDINGS}
    assert made == {"a_SRx2.nii.gz", *others}


def test_the_monai_route_reads_them_too(tmp_path: Path, run_bundle: Callable) -> None:
    for ending in (".mgz", ".mhd"):
        write(tmp_path / "in" / f"a{ending}")
    done = run_bundle("inference", "inference.json", dataset_dir=tmp_path / "in", output_dir=tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert command(tmp_path / "in", tmp_path / "out2").exit_code == 0
    for name in ("a_SRx2.nii.gz", "a-mhd_SRx2.nii.gz"):
        first, second = nib.load(tmp_path / "out" / name), nib.load(tmp_path / "out2" / name)
        assert np.array_equal(first.get_fdata(), second.get_fdata()) and np.array_equal(first.affine, second.affine)
        provenance = [record(tmp_path / out / name)["SuperResolution"]["Provenance"] for out in ("out", "out2")]
        assert provenance[0]["InputSha256"] == provenance[1]["InputSha256"]


def test_without_simpleitk_nrrd_is_named_with_the_command_that_installs_it(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(names, "itk_installed", lambda: False)
    path = write(tmp_path / "in" / "a.nrrd")
    done = command(path, tmp_path / "out")
    assert done.exit_code == 2 and "pip install SimpleITK" in done.stderr and done.stderr.count("\n") == 1
    write(tmp_path / "in" / "b.mgz")
    done = command(tmp_path / "in", tmp_path / "out")
    assert done.exit_code == 0 and "1 .nrrd file not read" in done.stderr
