"""What lies in the folder besides originals: other formats are named, results of earlier runs are left out."""

from __future__ import annotations

import gzip
import shutil
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from cli_command import command, results
from conftest import blob_volume
from dicom_factory import save, series

from bundle.data.find import SURFACES
from bundle.data.foreign import names
from bundle.data.formats import REMEDIES
from bundle.workflow import inference_data

BLOB = blob_volume((12, 10, 3), (5.5, 4.0, 1.0), sigma=3.0)


@pytest.fixture
def scan(tmp_path: Path, write_nifti: Callable[..., Path]) -> Path:
    return write_nifti(tmp_path / "in" / "scan.nii.gz", BLOB)


# ------------------------------------------------------------------------------------------------- other formats


@pytest.mark.parametrize("ending", sorted({*REMEDIES, ".MIF", ".Nii.Zst", ".hdr.bak", ".nii~", ".xyz"}))
def test_every_other_format_beside_a_volume_is_counted_and_named(
    ending: str, scan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(names, "itk_installed", lambda: False)
    for name in ("b", "a"):
        (scan.parent / f"{name}{ending}").write_bytes(b"not looked at")
    done = command(scan.parent, tmp_path / "out")
    assert done.exit_code == 0 and list(results(tmp_path / "out")) == ["scan.nii.gz"]
    (line,) = [line for line in done.stderr.splitlines() if "not read" in line]
    assert f"a{ending}" in line and "2 " in line
    assert line.startswith("warning: ") == (ending.lower() in REMEDIES and ending not in QUIET)


QUIET = (
    *(".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".gif", ".webp", ".pdf", ".zip", ".tar", ".tar.gz", ".tgz"),
    *(".tar.bz2", ".tar.xz", ".7z", ".rar", ".npy", ".npz", ".mat", ".h5", ".hdf5"),
)


def test_they_are_named_in_a_bids_dataset_and_by_the_monai_workflow_too(scan: Path, tmp_path: Path, caplog) -> None:
    folder = tmp_path / "bids" / "sub-1" / "anat"
    folder.mkdir(parents=True)
    (tmp_path / "bids" / "dataset_description.json").write_text('{"Name": "x", "BIDSVersion": "1.10.0"}')
    shutil.copy(scan, folder / "sub-1_T1w.nii.gz")
    (folder / "sub-1_T2w.mnc").touch()
    assert "1 .mnc file not read" in command(tmp_path / "bids", tmp_path / "out").stderr
    caplog.clear()
    assert len(inference_data(str(tmp_path / "bids"), str(tmp_path / "out2"))) == 1
    assert "1 .mnc file not read" in caplog.text


def test_texts_that_accompany_volumes_are_not_worth_a_line(scan: Path, tmp_path: Path) -> None:
    for name in ("scan.json", "participants.tsv", "README", "dwi.bval", "notes.txt"):
        (scan.parent / name).touch()
    assert "not read" not in command(scan.parent, tmp_path / "out").stderr


@pytest.mark.parametrize("ending", SURFACES)
def test_cifti_is_no_volume_whatever_its_name_ends_with(ending: str, scan: Path, tmp_path: Path) -> None:
    shutil.copy(scan, scan.parent / f"x{ending}")
    done = command(scan.parent / f"x{ending}", tmp_path / "out")
    assert done.exit_code == 2 and "CIFTI" in done.stderr and done.stderr.count("\n") == 1


@pytest.mark.parametrize("name", ["x.processed.nii.gz", "x.dseries.nii.gz", "sub-1_dlabel.nii.gz", "dlabel.nii.gz"])
def test_a_volume_with_a_name_like_cifti_is_one(name: str, scan: Path, tmp_path: Path) -> None:
    scan.rename(scan.parent / name)
    assert command(scan.parent, tmp_path / "out").exit_code == 0


@pytest.mark.parametrize(("header", "image"), [(".hdr.gz", ".img.gz"), (".hdr", ".img.gz"), (".HDR.gz", ".img")])
def test_a_compressed_pair_is_a_volume(header: str, image: str, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    nib.save(nib.Nifti1Pair(BLOB, np.diag([1, 1, 3, 1])), tmp_path / "tmp.hdr")
    for ending, part in ((header, "tmp.hdr"), (image, "tmp.img")):
        content = (tmp_path / part).read_bytes()
        (tmp_path / "in" / f"x{ending}").write_bytes(gzip.compress(content) if ending.endswith(".gz") else content)
    done = command(tmp_path / "in", tmp_path / "out")
    assert done.exit_code == 0 and "not read" not in done.stderr
    found = nib.load(tmp_path / "out" / "x_SRx2.nii.gz").get_fdata()[::2, ::2]
    assert np.abs(found - BLOB).max() < 0.1 * BLOB.max()


def test_an_image_without_its_header_is_named(scan: Path, tmp_path: Path) -> None:
    (scan.parent / "lost.img").write_bytes(bytes(100))
    assert "lost.img; its header" in command(scan.parent, tmp_path / "out").stderr


def test_dicom_in_a_file_with_the_name_of_another_format_is_still_read(tmp_path: Path) -> None:
    for number, path in enumerate(sorted(save(series(), tmp_path / "made").iterdir())):
        path.rename(tmp_path / "made" / f"slice{number}.rec")
    done = command(tmp_path / "made", tmp_path / "out")
    assert done.exit_code == 0 and "not read" not in done.stderr


# ------------------------------------------------------------------------------------------- results of earlier runs


def test_a_second_factor_does_not_refine_the_results_of_the_first(scan: Path) -> None:
    assert command(scan.parent, scan.parent / "sr2").exit_code == 0
    done = command(scan.parent, scan.parent / "sr4", "--scale", 4)
    assert done.exit_code == 0 and "1 results of earlier runs are not taken as input" in done.stderr
    assert list(results(scan.parent / "sr4")) == ["scan.nii.gz"]


def test_a_link_to_a_result_is_a_result(scan: Path, tmp_path: Path) -> None:
    assert command(scan.parent, tmp_path / "out").exit_code == 0
    (scan.parent / "linked.nii.gz").symlink_to(tmp_path / "out" / "scan_SRx2.nii.gz")
    assert command(scan.parent, tmp_path / "again").exit_code == 0
    assert list(results(tmp_path / "again")) == ["scan.nii.gz"]


def test_derivatives_made_here_are_no_input_in_any_place(scan: Path, tmp_path: Path) -> None:
    root = tmp_path / "bids"
    (root / "sub-1" / "anat").mkdir(parents=True)
    (root / "dataset_description.json").write_text('{"Name": "x", "BIDSVersion": "1.10.0"}')
    scan.rename(root / "sub-1/anat/sub-1_T1w.nii.gz")
    assert command(root, root / "derivatives/sr").exit_code == 0
    done = command(root / "derivatives/sr", tmp_path / "again")
    assert done.exit_code == 2 and "holds only results" in done.stderr
    (root / "dataset_description.json").unlink()
    assert command(root, tmp_path / "plain").exit_code == 0
    assert list(results(tmp_path / "plain")) == ["sub-1/anat/sub-1_T1w.nii.gz"]


def test_a_derived_series_is_known_by_itself_wherever_it_was_copied(tmp_path: Path) -> None:
    save(series(), tmp_path / "in")
    assert command(tmp_path / "in", tmp_path / "in/sr2").exit_code == 0
    (made,) = {path.parent for path in tmp_path.glob("in/sr2/**/SR*.dcm")}
    done = command(made, tmp_path / "out")
    assert done.exit_code == 2 and "holds only results" in done.stderr
    shutil.copytree(made, tmp_path / "archive")
    assert command(tmp_path / "archive", tmp_path / "out").exit_code == 2
    assert command(tmp_path / "in", tmp_path / "in/sr4", "--scale", 4).exit_code == 0
    assert len(results(tmp_path / "in/sr4")) == 1


def test_a_result_of_the_monai_workflow_has_a_mark_and_is_no_input(
    scan: Path, tmp_path: Path, run_bundle: Callable
) -> None:
    done = run_bundle("inference", "inference.json", dataset_dir=scan.parent, output_dir=scan.parent / "sr2")
    assert done.returncode == 0, done.stderr
    assert (scan.parent / "sr2" / "scan_SRx2.json").is_file()
    assert command(scan.parent, tmp_path / "out").exit_code == 0
    assert list(results(tmp_path / "out")) == ["scan.nii.gz"]
    assert len(inference_data(str(scan.parent), str(tmp_path / "out"))) == 1


# ---------------------------------------------------------------------------------------------- folders like BIDS


@pytest.mark.parametrize("place", ["", "sub-1", "sub-1/ses-a", "sub-1/ses-a/anat"])
def test_a_folder_like_bids_says_that_it_is_taken_as_plain_files(place: str, scan: Path, tmp_path: Path) -> None:
    (tmp_path / "raw/sub-1/ses-a/anat").mkdir(parents=True)
    scan.rename(tmp_path / "raw/sub-1/ses-a/anat/sub-1_ses-a_T1w.nii.gz")
    done = command(tmp_path / "raw" / place, tmp_path / "out", "--dry-run")
    assert done.exit_code == 0 and "plain files, not a BIDS dataset" in done.stderr
    assert "add dataset_description.json" in done.stderr
    (tmp_path / "raw/dataset_description.json").write_text('{"Name": "x", "BIDSVersion": "1.10.0"}')
    said = command(tmp_path / "raw" / place, tmp_path / "out", "--dry-run").stderr
    assert (f"give {tmp_path / 'raw'} for those" in said) == bool(place)
