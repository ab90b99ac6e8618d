"""Label maps follow their image: the grid of its result, their own numbers, type, scaling and intent."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import dicom_factory
import nibabel as nib
import numpy as np
import pytest
from cli_command import command, record, results
from conftest import blob_volume
from hypothesis import given, settings
from hypothesis import strategies as st
from other_formats import matrix_of

from bundle.cli.carry import steps
from bundle.cli.labels import Grid
from bundle.data import VolumeError, evaluation_datalist, training_datalist
from bundle.workflow import inference_data

SHAPE = (12, 10, 3)
BLOB = blob_volume(SHAPE, (5.5, 4.0, 1.0), sigma=3.0)
LABELS = (BLOB > 200).astype(np.uint8) + 2 * (BLOB > 500).astype(np.uint8)
LABELS[[0, -1]] = LABELS[:, [0, -1]] = 0
AFFINE = np.diag([1.0, 1, 3, 1])
DESCRIPTION = '{"Name": "x", "BIDSVersion": "1.10.0"}'


def put(path: Path, data: np.ndarray, affine: np.ndarray = AFFINE, **header: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = nib.Nifti1Image(data, affine, dtype=data.dtype)
    image.set_sform(affine, 1)
    image.set_qform(affine, 1)
    for name, value in header.items():
        image.header[name] = value
    nib.save(image, path)
    return path


@pytest.fixture
def scans(tmp_path: Path) -> Path:
    put(tmp_path / "in/scan.nii.gz", BLOB)
    put(tmp_path / "in/scan_seg.nii.gz", LABELS)
    return tmp_path / "in"


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    root = tmp_path / "bids"
    put(root / "sub-1/anat/sub-1_T1w.nii.gz", BLOB)
    put(root / "sub-1/anat/sub-1_desc-brain_mask.nii.gz", (LABELS > 0).astype(np.uint8))
    put(root / "sub-1/anat/sub-1_dseg.nii.gz", LABELS.astype(np.int16), intent_code=1002)
    (root / "sub-1/anat/sub-1_dseg.tsv").write_text("index\tname\n1\tgrey\n2\twhite\n")
    put(root / "sub-1/func/sub-1_task-rest_bold.nii.gz", np.stack([BLOB] * 2, -1), np.diag([1.5, 1.5, 4, 1]))
    put(root / "sub-1/func/sub-1_task-rest_desc-brain_mask.nii.gz", LABELS, np.diag([1.5, 1.5, 4, 1]))
    (root / "dataset_description.json").write_text(DESCRIPTION)
    return root


@pytest.mark.parametrize("scale", [2, 4])
@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint16", "int32", "uint64", "float32", "float64", ">i2"])
def test_labels_keep_their_type_and_come_to_lie_on_the_result_of_their_image(
    scale: int, dtype: str, scans: Path, tmp_path: Path
) -> None:
    affine = matrix_of(7)
    put(scans / "scan.nii.gz", BLOB, affine)
    put(scans / "scan_seg.nii.gz", LABELS.astype(dtype), affine, intent_code=1002, descrip=b"made by hand")
    done = command(scans, tmp_path / "out", "--labels", "*_seg*", "--slice-axis", 2, "--scale", scale)
    assert done.exit_code == 0 and "label maps: 1" in done.stderr and "labels by" not in done.stderr
    image, labels = (nib.load(tmp_path / f"out/scan{name}_SRx{scale}.nii.gz") for name in ("", "_seg"))
    assert labels.shape == image.shape == (12 * scale, 10 * scale, 3)
    assert np.allclose(labels.affine, image.affine, atol=1e-6)
    assert np.allclose(labels.get_qform(), image.get_qform(), atol=1e-4) and labels.header["qform_code"] == 1
    assert labels.get_data_dtype() == np.dtype(dtype).newbyteorder("<") and labels.header["intent_code"] == 1002
    assert labels.header["descrip"].item() == b"made by hand"
    found = np.asarray(labels.dataobj)
    inside = np.bincount(found.astype(int).ravel()), np.bincount(LABELS.ravel())
    assert np.array_equal(inside[0], inside[1] * scale**2)
    assert np.array_equal(found[::scale, ::scale], LABELS)


def test_scaled_labels_keep_their_stored_numbers_and_their_scaling(scans: Path, tmp_path: Path) -> None:
    big = LABELS.astype(np.int32) + 2**30 + 1  # float32 cannot hold these
    put(scans / "scan_seg.nii.gz", big, scl_slope=2, scl_inter=-1)
    path = scans / "scan_seg.nii.gz"
    image = nib.Nifti1Image(big, AFFINE)
    image.header.set_slope_inter(2, -1)
    nib.save(image, path)
    stored = np.asarray(nib.load(path).dataobj.get_unscaled())
    assert command(scans, tmp_path / "out", "--labels", "*_seg*").exit_code == 0
    found = nib.load(tmp_path / "out/scan_seg_SRx2.nii.gz")
    assert (found.dataobj.slope, found.dataobj.inter) == (2, -1)
    assert np.array_equal(found.dataobj.get_unscaled()[::2, ::2], stored)


def test_a_bids_dataset_gets_its_masks_and_segmentations_as_derivatives(dataset: Path, tmp_path: Path) -> None:
    done = command(dataset, tmp_path / "out")
    assert done.exit_code == 0, done.stderr
    made = {path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*.nii.gz")}
    assert made == {
        "sub-1/anat/sub-1_res-SRx2_desc-ICONet_T1w.nii.gz",
        "sub-1/anat/sub-1_res-SRx2_desc-brainICONet_mask.nii.gz",
        "sub-1/anat/sub-1_res-SRx2_desc-ICONet_dseg.nii.gz",
        "sub-1/func/sub-1_task-rest_res-SRx2_desc-ICONet_bold.nii.gz",
        "sub-1/func/sub-1_task-rest_res-SRx2_desc-brainICONet_mask.nii.gz",
    }
    folder = tmp_path / "out/sub-1/anat"
    assert "white" in (folder / "sub-1_res-SRx2_desc-ICONet_dseg.tsv").read_text()
    about = record(folder / "sub-1_res-SRx2_desc-ICONet_dseg.nii.gz")
    assert about["Sources"] == ["bids:source:sub-1/anat/sub-1_dseg.nii.gz"]
    assert about["Resolution"] == "0.5 x 0.5 x 3 mm"  # required by BIDS where a name has res-
    mask = nib.load(tmp_path / "out/sub-1/func/sub-1_task-rest_res-SRx2_desc-brainICONet_mask.nii.gz")
    assert mask.shape == (24, 20, 3) and set(np.unique(np.asarray(mask.dataobj))) == {0, 1, 3}
    rows = results(tmp_path / "out")
    assert len(rows) == 5 and {row["status"] for row in rows.values()} == {"done"}
    assert rows["sub-1/anat/sub-1_dseg.nii.gz"]["result_shape"] == "24x20x3"
    assert "5 skipped" in command(dataset, tmp_path / "out").stderr


def test_labels_are_redone_when_they_or_the_grid_of_their_image_change(scans: Path, tmp_path: Path) -> None:
    options = ("--labels", "*_seg*")
    assert command(scans, tmp_path / "out", *options).exit_code == 0
    assert "2 skipped" in command(scans, tmp_path / "out", *options).stderr
    put(scans / "scan_seg.nii.gz", LABELS + 1)
    done = command(scans, tmp_path / "out", *options)
    assert "1 done, 1 skipped" in done.stderr and "the input changed" in done.stderr
    done = command(scans, tmp_path / "out", *options, "--slice-axis", 0)
    assert "2 done" in done.stderr and nib.load(tmp_path / "out/scan_seg_SRx2.nii.gz").shape == (12, 20, 6)
    (tmp_path / "out/scan_seg_SRx2.nii.gz").unlink()
    done = command(scans, tmp_path / "out", *options, "--slice-axis", 0)
    assert "the result is missing" in done.stderr and "1 done, 1 skipped" in done.stderr


def test_a_series_shares_the_grid_of_its_volumes_with_a_label_map(scans: Path, tmp_path: Path) -> None:
    put(scans / "scan.nii.gz", np.stack([BLOB] * 3, -1))
    assert command(scans, tmp_path / "out", "--labels", "*_seg*").exit_code == 0
    assert nib.load(tmp_path / "out/scan_SRx2.nii.gz").shape == (24, 20, 3, 3)
    assert nib.load(tmp_path / "out/scan_seg_SRx2.nii.gz").shape == (24, 20, 3)


@settings(max_examples=40, deadline=None)
@given(
    sizes=st.tuples(*[st.integers(2, 600)] * 3),
    factors=st.tuples(*[st.one_of(st.integers(1, 8), st.floats(0.4, 6))] * 3),
    seed=st.integers(0, 2**31),
)
def test_steps_are_those_of_the_affines_whatever_float32_made_of_them(sizes, factors, seed) -> None:
    affine = matrix_of(seed)
    shape = tuple(max(1, round(n * f)) for n, f in zip(sizes, factors, strict=True))
    old = Grid(sizes, affine.astype(np.float32).astype(np.float64))
    new = Grid(shape, (affine @ np.diag([*(1 / f for f in factors), 1])).astype(np.float32).astype(np.float64))
    found = steps(Path("x"), old, new)
    assert np.allclose(found, [1 / f for f in factors], rtol=2e-5)
    assert all(step == 1 / f for step, f in zip(found, factors, strict=True) if isinstance(f, int))
    moved = Grid(shape, nib.affines.from_matvec(np.eye(3), (9, 9, 9)) @ new.affine)
    with pytest.raises(VolumeError, match="another first voxel"):
        steps(Path("x"), old, moved)


@pytest.mark.parametrize(
    ("change", "taken"),
    [
        (np.eye(4), True),
        (nib.affines.from_matvec(np.eye(3), (0.01, 0, 0)), True),
        (nib.affines.from_matvec(np.eye(3), (0.5, 0, 0)), False),
        (np.diag([1.0, 1, 1.1, 1]), False),
        (np.diag([-1.0, 1, 1, 1]), False),
    ],
)
def test_another_affine_is_another_grid(change: np.ndarray, taken: bool, scans: Path, tmp_path: Path) -> None:
    put(scans / "scan_seg.nii.gz", LABELS, change @ AFFINE)
    done = command(scans, tmp_path / "out", "--labels", "*_seg*")
    assert done.exit_code == 0 and (tmp_path / "out/scan_seg_SRx2.nii.gz").exists() == taken
    warned = [line for line in done.stderr.splitlines() if "none of 1 images of this folder has its matrix" in line]
    assert len(warned) == (not taken) and set(results(tmp_path / "out")) >= {"scan.nii.gz"}


def test_another_matrix_another_folder_and_no_image_at_all_are_said(scans: Path, tmp_path: Path) -> None:
    put(scans / "scan_seg.nii.gz", LABELS[:, :8])
    put(scans / "sub/other_seg.nii.gz", LABELS)
    done = command(scans, tmp_path / "out", "--labels", "*_seg*")
    assert done.exit_code == 0 and done.stderr.count("left out") == 2 and "no label map of an image" in done.stderr
    assert list(results(tmp_path / "out")) == ["scan.nii.gz"]
    done = command(scans / "sub", tmp_path / "out2", "--labels", "*")
    assert done.exit_code == 2 and "holds label maps and no image" in done.stderr


def test_a_label_map_beside_a_dicom_series_follows_nothing(tmp_path: Path) -> None:
    dicom_factory.save(dicom_factory.series(), tmp_path / "in")
    put(tmp_path / "in/a_seg.nii.gz", LABELS)
    done = command(tmp_path / "in", tmp_path / "out", "--labels", "*_seg*", "--dry-run")
    assert done.exit_code == 0 and "label maps follow no DICOM series" in done.stderr and "left out" in done.stderr


def test_of_several_images_with_one_grid_the_most_alike_by_name_is_taken(tmp_path: Path) -> None:
    root = tmp_path / "bids"
    for name in ("sub-1_acq-a_T1w", "sub-1_acq-b_T1w"):
        put(root / f"sub-1/anat/{name}.nii.gz", BLOB)
    put(root / "sub-1/anat/sub-1_acq-b_dseg.nii.gz", LABELS)
    (root / "dataset_description.json").write_text(DESCRIPTION)
    assert command(root, tmp_path / "out").exit_code == 0
    grid = record(tmp_path / "out/sub-1/anat/sub-1_acq-b_res-SRx2_desc-ICONet_dseg.nii.gz")
    assert "sub-1_acq-b_res-SRx2_desc-ICONet_T1w.nii.gz" in grid["Description"]


def test_numbers_that_are_not_whole_are_no_labels(scans: Path, tmp_path: Path) -> None:
    put(scans / "scan_seg.nii.gz", LABELS * np.float32(0.3))
    done = command(scans, tmp_path / "out", "--labels", "*_seg*")
    assert done.exit_code == 1 and "not whole numbers" in done.stderr
    assert results(tmp_path / "out")["scan_seg.nii.gz"]["status"] == "failed"
    assert not (tmp_path / "out/scan_seg_SRx2.nii.gz").exists() and not (tmp_path / "out/scan_seg_SRx2.json").exists()


def test_labels_of_an_image_that_failed_fail_with_it(scans: Path, tmp_path: Path) -> None:
    broken = BLOB.copy()
    broken[0, 0, 0] = np.nan
    put(scans / "scan.nii.gz", broken)
    done = command(scans, tmp_path / "out", "--labels", "*_seg*")
    assert done.exit_code == 1 and "whose image failed" in done.stderr
    assert results(tmp_path / "out")["scan_seg.nii.gz"]["status"] == "failed"


def test_a_dry_run_names_them_and_writes_nothing(scans: Path, tmp_path: Path) -> None:
    done = command(scans, tmp_path / "out", "--labels", "*_seg*", "--dry-run")
    assert done.exit_code == 0 and "scan_seg.nii.gz (labels)" in done.stderr and not (tmp_path / "out").exists()


def test_one_output_file_has_no_place_for_them(scans: Path, tmp_path: Path) -> None:
    done = command(scans, tmp_path / "one.nii.gz", "--labels", "*_seg*")
    assert done.exit_code == 2 and "--labels asks for more" in done.stderr


def test_without_the_option_a_plain_folder_is_as_before(scans: Path, tmp_path: Path) -> None:
    assert command(scans, tmp_path / "out").exit_code == 0
    assert nib.load(tmp_path / "out/scan_seg_SRx2.nii.gz").get_data_dtype() == np.float32


def test_the_monai_route_leaves_the_label_maps_of_a_bids_dataset_out(
    dataset: Path, tmp_path: Path, run_bundle: Callable, caplog: pytest.LogCaptureFixture
) -> None:
    found = [Path(item["image"]).name for item in inference_data(str(dataset), str(tmp_path / "out"))]
    assert found == ["sub-1_T1w.nii.gz", "sub-1_task-rest_bold.nii.gz"] and "label maps left out: 3" in caplog.text
    done = run_bundle("inference", "inference.json", dataset_dir=dataset, output_dir=tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert len(list((tmp_path / "out").rglob("*.nii.gz"))) == 2


def test_label_maps_are_no_images_to_train_or_evaluate_on(dataset: Path) -> None:
    (dataset / "sub-1/func/sub-1_task-rest_bold.nii.gz").unlink()
    put(dataset / "sub-2/anat/sub-2_T1w.nii.gz", BLOB)
    put(dataset / "sub-2/anat/sub-2_dseg.nii.gz", LABELS)
    items = [*training_datalist(dataset, "train"), *training_datalist(dataset, "val")]
    for found in (items, evaluation_datalist(dataset, "val")):
        assert sorted(Path(item["image"]).name for item in found) == ["sub-1_T1w.nii.gz", "sub-2_T1w.nii.gz"]


def test_a_change_of_volume_on_a_grid_without_whole_steps_is_said(scans: Path, tmp_path: Path) -> None:
    done = command(scans, tmp_path / "out", "--labels", "*_seg*", "--voxel-size", 0.7)
    about = record(tmp_path / "out/scan_seg_SR0.7mm.nii.gz")["SuperResolution"]
    found = np.asarray(nib.load(tmp_path / "out/scan_seg_SR0.7mm.nii.gz").dataobj)
    counts = zip(np.bincount(found.ravel())[1:], np.bincount(LABELS.ravel())[1:], strict=True)
    change = max(abs(now * 0.7**2 / before - 1) for now, before in counts if before >= 20)
    assert done.exit_code == 0 and change > 0.01
    assert about["Warnings"] == [
        f"on this grid, the volume of a label changes by {100 * change:.0f} % (nearest neighbour)"
    ]


def test_two_processes_share_images_with_their_labels(
    scans: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(scans / "more/b.nii.gz", BLOB)
    put(scans / "more/b_seg.nii.gz", LABELS)
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank in ("0", "1"):
        monkeypatch.setenv("RANK", rank)
        assert command(scans, tmp_path / "out", "--labels", "*_seg*").exit_code == 0
    rows = results(tmp_path / "out")
    assert list(rows) == ["more/b.nii.gz", "more/b_seg.nii.gz", "scan.nii.gz", "scan_seg.nii.gz"]
    assert {row["status"] for row in rows.values()} == {"done"}


def test_results_of_labels_are_no_input(scans: Path, tmp_path: Path) -> None:
    assert command(scans, scans / "sr2", "--labels", "*_seg*").exit_code == 0
    done = command(scans, scans / "sr4", "--labels", "*_seg*", "--scale", 4)
    assert done.exit_code == 0 and "2 results of earlier runs" in done.stderr
    assert set(results(scans / "sr4")) == {"scan.nii.gz", "scan_seg.nii.gz"}
    assert json.loads((scans / "sr2/scan_seg_SRx2.json").read_text())["GeneratedBy"][0]["Name"] == "ICONet SR"
