"""A BIDS dataset becomes a BIDS derivatives dataset."""

from __future__ import annotations

import json
import re
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
from bundle.data import output_paths
from bundle.data.sidecar import write_json

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
        "sub-02/ses-a/anat/sub-02_ses-a_space-MNI_res-2SRx2_desc-preprocICONet_T1w.nii.gz",
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
    name = "sub-02/ses-a/anat/sub-02_ses-a_space-MNI_res-2SRx2_desc-preprocICONet_T1w.nii.gz"
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


ORDER = ["ses", "acq", "space", "res", "den", "label", "desc"]


def stem(parts: dict, suffix: str = "T1w") -> str:
    return "_".join(["sub-1", *(f"{key}-{parts[key]}" for key in ORDER if key in parts), suffix])


@given(first=entities, second=entities)
def test_names_keep_all_entities_in_order_and_stay_different(first: dict, second: dict) -> None:
    bids = Bids(Path("x"), {})
    names = [bids.rename(stem(parts), "SRx2") for parts in (first, second)]
    for parts, name in zip((first, second), names, strict=True):
        found = dict(entity.split("-") for entity in name.split("_")[1:-1])
        assert found.pop("res") == parts.get("res", "") + "SRx2"
        assert found.pop("desc") == parts.get("desc", "") + "ICONet"
        assert found == {k: v for k, v in parts.items() if k not in ("res", "desc")}
        assert name == stem(dict(entity.split("-") for entity in name.split("_")[1:-1]))  # in the order of BIDS
    assert (names[0] == names[1]) == (first == second)


volumes = st.sets(
    st.tuples(entities.map(stem), st.sampled_from([".nii", ".nii.gz", ".NII.GZ"])), min_size=1, max_size=8
)


@given(volumes, volumes)
def test_any_set_of_names_gives_different_valid_names_that_other_files_do_not_change(here: set, more: set) -> None:
    bids, root = Bids(Path("x"), {}), Path("/data")

    def names(files: set) -> dict[tuple, str]:
        paths = [root / f"{stem}{ending}" for stem, ending in sorted(files)]
        found = output_paths(paths, root, root / "out", "SRx2", lambda stem, mark: bids.rename(stem, "SRx2", mark))
        return dict(zip(sorted(files), (path.name for path in found), strict=True))

    found, with_more = names(here), names(here | more)
    assert len({name.casefold() for name in found.values()}) == len(here)
    assert all(re.fullmatch(r"sub-1(_[a-z]+-[A-Za-z0-9]+)+_T1w\.nii\.gz", name) for name in found.values())
    stems = [stem.casefold() for stem, _ in here | more]
    for (stem_of, ending), name in found.items():
        if stems.count(stem_of.casefold()) == 1:  # only files of one name can push each other aside
            assert with_more[stem_of, ending] == name


def test_the_dataset_with_two_resolutions_and_two_descriptions_of_one_image(dataset: Path, tmp_path: Path) -> None:
    folder = "sub-02/ses-a/anat/sub-02_ses-a_space-MNI_"
    for number, kind in enumerate(("res-1_desc-preproc", "desc-preproc", "res-1_desc-denoised"), start=2):
        put(dataset, f"{folder}{kind}_T1w.nii.gz", number * BLOB)
    put(dataset, f"{folder}desc-preproc_T1w.nii", 9 * BLOB)
    assert command(dataset, tmp_path / "out").exit_code == 0
    peaks = {}
    for path in (tmp_path / "out/sub-02/ses-a/anat").glob("*.nii.gz"):
        name = path.name[len("sub-02_ses-a_space-MNI_") : -len("_T1w.nii.gz")]
        peaks[name] = round(nib.load(path).get_fdata().max() / BLOB.max())
    assert peaks == {
        "res-2SRx2_desc-preprocICONet": 1,
        "res-1SRx2_desc-preprocICONet": 2,
        "res-SRx2_desc-preprocICONet": 3,
        "res-1SRx2_desc-denoisedICONet": 4,
        "res-SRx2_desc-preprocICONetNii": 9,
    }


@pytest.mark.parametrize(
    ("metadata", "kept", "said"),
    [
        ('{"EchoTime1": 0.00492, "EchoTime2": 0.00738}', {"EchoTime1": 0.00492, "EchoTime2": 0.00738}, None),
        ('{"SliceTiming": [0, 0.5, 1.0]}', {"SliceTiming": [0, 0.5, 1.0]}, None),
        (
            '{"SliceTiming": [0, 0.5, 1.0], "SliceEncodingDirection": "k-"}',
            {"SliceTiming": [0, 0.5, 1.0], "SliceEncodingDirection": "k-"},
            None,
        ),
        ('{"SliceTiming": [0, 0.5]}', {}, "SliceTiming left out: not one value for each slice"),
        ('{"SliceTiming": 3}', {}, "SliceTiming left out"),
        (
            '{"SliceTiming": [0, 1, 2], "SliceEncodingDirection": "j"}',
            {"SliceEncodingDirection": "j"},
            "SliceTiming left out",
        ),
        ('{"FlipAngle": 9, "EchoTime": NaN}', {"FlipAngle": 9}, "EchoTime left out, not a finite number"),
        ('{"FlipAngle": 1e999}', {}, "FlipAngle left out"),
        ('{"VolumeTiming": [0, -Infinity]}', {}, "VolumeTiming left out"),
        ('{"Institution": NaN, "FlipAngle": 9}', {"FlipAngle": 9}, None),
        ('{"FlipAngle": 9, }', {}, "sub-01_task-rest_bold.json is not readable as JSON"),
        ('{"FlipAngle": nan}', {}, "not readable as JSON"),
        ("[1]", {}, "does not hold a JSON object"),
        ("\xef\xbb\xbf{}", {}, None),
        ('{"FlipAngle": "\xff"}', {}, "not readable as JSON"),
        ("[" * 100_000, {}, "not readable as JSON"),
    ],
)
def test_what_a_sidecar_says_is_kept_where_it_holds_and_said_where_it_cannot_be_used(
    metadata: str, kept: dict, said: str | None, dataset: Path, tmp_path: Path
) -> None:
    (dataset / "task-rest_bold.json").write_text('{"EchoTime": 0.03, "TaskName": "rest"}')
    (dataset / "sub-01/func/sub-01_task-rest_bold.json").write_bytes(metadata.encode("latin-1"))
    bids, volume = Bids(dataset, {}), dataset / "sub-01/func/sub-01_task-rest_bold.nii.gz"
    found, doubts = bids.metadata(volume, 2, 3)
    inherited = {"TaskName": "rest", "SkullStripped": False, "EchoTime": 0.03}
    if said is not None and said.startswith("EchoTime "):
        del inherited["EchoTime"]  # the nearest file decides, even if what it says cannot be used
    assert found == {**inherited, **kept}
    assert (said is None and not doubts) or (len(doubts) == 1 and said in doubts[0])


def test_a_broken_sidecar_is_a_warning_and_every_record_is_strict_json(dataset: Path, tmp_path: Path) -> None:
    (dataset / "sub-01/anat/sub-01_T1w.json").write_text('{"EchoTime": 0.1,}')
    (dataset / "T1w.json").write_text('{"MagneticFieldStrength": NaN, "FlipAngle": 9}')
    done = command(dataset, tmp_path / "out")
    assert done.exit_code == 0 and done.stderr.count("is not readable as JSON") == 1
    made = record(tmp_path / "out/sub-01/anat/sub-01_res-SRx2_desc-ICONet_T1w.nii.gz")
    assert made["FlipAngle"] == 9 and "MagneticFieldStrength" not in made
    assert any("sub-01_T1w.json" in line for line in made["SuperResolution"]["Warnings"])
    for path in (tmp_path / "out").rglob("*.json"):
        json.loads(path.read_text(), parse_constant=pytest.fail)


def test_numbers_that_json_does_not_have_are_written_as_null(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"a": float("nan"), "b": [1.5, float("inf")], "c": {"d": (-float("inf"),)}})
    assert json.loads((tmp_path / "a.json").read_text(), parse_constant=pytest.fail) == {
        "a": None,
        "b": [1.5, None],
        "c": {"d": [None]},
    }


@pytest.mark.skipif(VALIDATOR is None, reason="needs the program bids-validator-deno (a package of that name)")
def test_the_bids_validator_finds_no_error(dataset: Path, tmp_path: Path) -> None:
    assert command(dataset, tmp_path / "out", "--report").exit_code == 0
    done = subprocess.run(
        [VALIDATOR, tmp_path / "out", "--ignoreWarnings"], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
