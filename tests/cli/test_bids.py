"""A BIDS dataset becomes a BIDS derivatives dataset."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from cli_command import command, record, results
from conftest import blob_volume
from hypothesis import given
from hypothesis import strategies as st
from programs import program

from bundle.cli.bids import Bids

VALIDATOR = program("bids-validator-deno")
BLOB = blob_volume((12, 10, 3), (5.5, 4.0, 1.0), sigma=3.0)


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    """Two subjects, anatomy, a bold series, diffusion; metadata at the root; and files that must not be touched."""
    root = tmp_path / "raw"
    series = np.stack([BLOB] * 2, -1)
    put(root, "sub-01/anat/sub-01_T1w.nii.gz", BLOB)
    put(root, "sub-01/func/sub-01_task-rest_bold.nii.gz", series)
    put(root, "sub-02/ses-a/dwi/sub-02_ses-a_dwi.nii.gz", series)
    put(root, "sub-02/ses-a/anat/sub-02_ses-a_space-MNI_res-2_desc-preproc_T1w.nii.gz", BLOB)
    put(root, "derivatives/other/sub-01/anat/sub-01_desc-x_T1w.nii.gz", BLOB)
    put(root, "sourcedata/scan.nii.gz", BLOB)
    write(root, "dataset_description.json", {"Name": "Raw", "BIDSVersion": "1.8.0"})
    write(root, "task-rest_bold.json", {"TaskName": "rest", "RepetitionTime": 3.0})
    near = {"RepetitionTime": 2.5, "PatientName": "Doe^Jane", "InstitutionName": "Clinic"}
    write(root, "sub-01/func/sub-01_task-rest_bold.json", near)
    write(root, "T1w.json", {"MagneticFieldStrength": 3})
    write(root, "space-MNI_T1w.json", {"SpatialReference": "MNI152NLin2009cAsym", "SkullStripped": True})
    (root / "dwi.bval").write_text("0 1000\n")
    (root / "sub-02/ses-a/dwi/sub-02_ses-a_dwi.bvec").write_text("0 1\n0 0\n0 0\n")
    (root / "README").write_text("A dataset made for a test.\n")
    return root


def put(root: Path, name: str, data: np.ndarray) -> None:
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    image = nib.Nifti1Image(data, np.diag([1, 1, 3, 1]))
    image.header.set_xyzt_units("mm", "sec")
    if data.ndim == 4:
        image.header["pixdim"][4] = 2.5
    nib.save(image, root / name)


def write(root: Path, name: str, content: dict) -> None:
    (root / name).write_text(json.dumps(content))


def test_subjects_give_a_derivatives_dataset_that_describes_itself(dataset: Path) -> None:
    out = dataset / "derivatives" / "iconet"
    assert command(dataset, out).exit_code == 0
    made = {path.relative_to(out).as_posix() for path in out.rglob("*.nii.gz")}
    assert made == {
        "sub-01/anat/sub-01_res-SRx2_desc-ICONet_T1w.nii.gz",
        "sub-01/func/sub-01_task-rest_res-SRx2_desc-ICONet_bold.nii.gz",
        "sub-02/ses-a/anat/sub-02_ses-a_space-MNI_res-SRx2_desc-preprocICONet_T1w.nii.gz",
        "sub-02/ses-a/dwi/sub-02_ses-a_res-SRx2_desc-ICONet_dwi.nii.gz",
    }
    description = json.loads((out / "dataset_description.json").read_text())
    assert description["DatasetType"] == "derivative" and description["GeneratedBy"][0]["Name"] == "ICONet SR"
    assert description["SourceDatasets"] == [{"URL": "../.."}] and description["DatasetLinks"] == {"source": "../.."}
    assert "results.csv" in (out / ".bidsignore").read_text().splitlines()
    assert len(results(out)) == 4
    assert "4 skipped" in command(dataset, out).stderr


def test_metadata_are_inherited_the_nearest_wins_and_no_person_is_named(dataset: Path, tmp_path: Path) -> None:
    assert command(dataset, tmp_path / "out").exit_code == 0
    bold = record(tmp_path / "out/sub-01/func/sub-01_task-rest_res-SRx2_desc-ICONet_bold.nii.gz")
    assert (bold["TaskName"], bold["RepetitionTime"]) == ("rest", 2.5)
    assert "PatientName" not in bold and "InstitutionName" not in bold
    assert bold["Sources"] == ["bids:source:sub-01/func/sub-01_task-rest_bold.nii.gz"]
    plain = record(tmp_path / "out/sub-01/anat/sub-01_res-SRx2_desc-ICONet_T1w.nii.gz")
    assert plain["MagneticFieldStrength"] == 3 and plain["SkullStripped"] is False
    name = "sub-02/ses-a/anat/sub-02_ses-a_space-MNI_res-SRx2_desc-preprocICONet_T1w.nii.gz"
    assert record(tmp_path / "out" / name)["SkullStripped"] is True


def test_diffusion_gradients_are_copied_from_wherever_they_apply(dataset: Path, tmp_path: Path) -> None:
    assert command(dataset, tmp_path / "out").exit_code == 0
    folder = tmp_path / "out/sub-02/ses-a/dwi"
    assert (folder / "sub-02_ses-a_dwi.bval").read_text() == "0 1000\n"
    assert (folder / "sub-02_ses-a_dwi.bvec").read_text() == "0 1\n0 0\n0 0\n"


def test_a_dataset_with_a_doi_is_named_by_it(dataset: Path, tmp_path: Path) -> None:
    description = {"Name": "Raw", "BIDSVersion": "1.8.0", "DatasetDOI": "doi:10.0.2.3/abc"}
    write(dataset, "dataset_description.json", description)
    Bids(dataset, description).describe(tmp_path)
    made = json.loads((tmp_path / "dataset_description.json").read_text())
    assert made["SourceDatasets"] == [{"DOI": "doi:10.0.2.3/abc"}]


@pytest.mark.parametrize("content", ["{", '"text"', "[" * 10_000])
def test_a_damaged_description_is_wrong_use(content: str, dataset: Path, tmp_path: Path) -> None:
    (dataset / "dataset_description.json").write_text(content)
    done = command(dataset, tmp_path / "out")
    assert done.exit_code == 2 and "dataset_description.json" in done.stderr


labels = st.from_regex(r"[A-Za-z0-9]{1,6}", fullmatch=True)
entities = st.dictionaries(st.sampled_from(["ses", "acq", "space", "res", "den", "label", "desc"]), labels)


@given(first=entities, second=entities)
def test_names_keep_all_entities_but_the_resolution_and_stay_different(first: dict, second: dict) -> None:
    bids = Bids(Path("x"), {})

    def stem(parts: dict) -> str:
        order = ["ses", "acq", "space", "res", "den", "label", "desc"]
        return "_".join(["sub-1", *(f"{key}-{parts[key]}" for key in order if key in parts), "T1w"])

    names = [bids.rename(stem(parts), 2).split("_") for parts in (first, second)]
    for parts, name in zip((first, second), names, strict=True):
        found = dict(entity.split("-") for entity in name[1:-1])
        assert found["res"] == "SRx2" and found["desc"] == parts.get("desc", "") + "ICONet"
        assert {k: v for k, v in found.items() if k not in ("res", "desc")} == {
            k: v for k, v in parts.items() if k not in ("res", "desc")
        }
        keys = list(found)
        assert keys.index("res") < keys.index("desc") and keys[-1] == "desc"
    same = {k: v for k, v in first.items() if k != "res"} == {k: v for k, v in second.items() if k != "res"}
    assert (names[0] == names[1]) == same


@pytest.mark.skipif(VALIDATOR is None, reason="needs the program bids-validator-deno (a package of that name)")
def test_the_bids_validator_finds_no_error(dataset: Path, tmp_path: Path) -> None:
    assert command(dataset, tmp_path / "out", "--report").exit_code == 0
    done = subprocess.run(
        [VALIDATOR, tmp_path / "out", "--ignoreWarnings"], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
