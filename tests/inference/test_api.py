"""Super-resolution from Python: returns the kind of image it gets, with the same bytes as the command."""

from __future__ import annotations

import logging
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from cli_command import command, record
from monai.data import MetaTensor

from bundle import super_resolve
from bundle.data import VolumeError
from bundle.inference import api
from bundle.inference.model import ModelError

AFFINE = np.array([[0, -1.1, 0, 12], [1.25, 0, 0, -30], [0, 0, 5, 5], [0, 0, 0, 1.0]])


def volume(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).gamma(2.0, 40.0, shape).astype(np.float32)


@pytest.fixture
def scan(tmp_path: Path) -> nib.Nifti1Image:
    image = nib.Nifti1Image(volume(12, 14, 3), AFFINE)
    image.set_qform(AFFINE, 1)
    image.set_sform(AFFINE, 4)
    image.header.set_xyzt_units("mm", "sec")
    nib.save(image, tmp_path / "in.nii.gz")
    return nib.load(tmp_path / "in.nii.gz")


def test_a_nibabel_image_gives_what_the_command_writes(scan: nib.Nifti1Image, tmp_path: Path) -> None:
    out = super_resolve(scan, scale=2)
    assert command(tmp_path / "in.nii.gz", tmp_path / "out.nii.gz").exit_code == 0
    written = nib.load(tmp_path / "out.nii.gz")
    np.testing.assert_array_equal(out.get_fdata(), written.get_fdata())
    np.testing.assert_array_equal(out.affine, written.affine)
    for field in ("sform_code", "qform_code", "xyzt_units", "pixdim", "datatype"):
        np.testing.assert_array_equal(out.header[field], written.header[field])
    sidecar = record(tmp_path / "out.nii.gz")["SuperResolution"]
    own = out.extra["super_resolution"]
    assert {key: own[key] for key in own if key in sidecar} == {key: sidecar[key] for key in own if key in sidecar}
    assert own["WeightsSha256"] == sidecar["Provenance"]["WeightsSha256"]


def test_an_array_gives_an_array_with_affine_and_record(scan: nib.Nifti1Image) -> None:
    voxels, affine, facts = super_resolve(scan.get_fdata(), scan.affine, scale=2)
    out = super_resolve(scan)
    np.testing.assert_array_equal(voxels, out.get_fdata(dtype=np.float32))
    np.testing.assert_allclose(affine, scan.affine @ np.diag([0.5, 0.5, 1, 1]))
    assert facts["SliceAxis"] == 2 and facts["Shape"] == [24, 28, 3]


def test_a_metatensor_stays_one_and_its_channels_are_a_series(scan: nib.Nifti1Image) -> None:
    channels = np.stack([volume(12, 14, 3, seed=n) for n in range(2)])
    given = MetaTensor(torch.from_numpy(channels), affine=torch.from_numpy(AFFINE), meta={"filename_or_obj": "a"})
    out = super_resolve(given)
    series, affine, facts = super_resolve(np.moveaxis(channels, 0, -1), AFFINE)
    assert isinstance(out, MetaTensor) and out.meta["filename_or_obj"] == "a"
    np.testing.assert_array_equal(torch.as_tensor(out).numpy(), np.moveaxis(series, -1, 0))
    np.testing.assert_array_equal(out.affine.numpy(), affine)
    assert out.meta["super_resolution"]["Shape"] == facts["Shape"] == [24, 28, 3, 2]


@pytest.mark.parametrize("shape", [(13, 12), (5, 12, 13), (12, 13, 3, 2)])
def test_images_volumes_and_series_keep_their_axes(shape: tuple[int, ...]) -> None:
    affine = np.diag([6.0, 1, 1, 1]) if shape[0] == 5 else np.diag([1.0, 1, 6, 1])
    out = super_resolve(nib.Nifti1Image(volume(*shape), affine), scale=4)
    factors = (1, 4, 4) if shape[0] == 5 else (4, 4, 1, 1)
    assert out.shape == tuple(n * f for n, f in zip(shape, factors, strict=False))


def test_other_formats_of_nibabel_stay_what_they_are() -> None:
    given = nib.MGHImage(volume(12, 14, 3), AFFINE)
    out = super_resolve(given)
    assert isinstance(out, nib.MGHImage) and out.shape == (24, 28, 3)
    np.testing.assert_allclose(out.affine, AFFINE @ np.diag([0.5, 0.5, 1, 1]), atol=1e-5)


def test_lengths_in_other_units_become_millimetres() -> None:
    metres = nib.Nifti1Image(volume(12, 14, 3), np.diag([0.001, 0.001, 0.005, 1]))
    metres.header.set_xyzt_units("meter", "sec")
    out = super_resolve(metres)
    np.testing.assert_allclose(out.affine, np.diag([0.5, 0.5, 5, 1]), rtol=1e-5)
    assert out.header.get_xyzt_units() == ("mm", "sec")


def test_the_network_is_loaded_once(scan: nib.Nifti1Image, monkeypatch: pytest.MonkeyPatch) -> None:
    super_resolve(scan)

    def again(*_: object) -> None:
        raise AssertionError("loaded again")

    monkeypatch.setattr(api, "load_model", again)
    super_resolve(scan)


def test_weights_that_were_written_anew_are_read_anew(scan: nib.Nifti1Image, tmp_path: Path, bundle_root: Path) -> None:
    weights = tmp_path / "mine.pt"
    state = torch.load(bundle_root / "models/model.pt", weights_only=True)
    torch.save(state, weights)
    first = super_resolve(scan, weights=weights).extra["super_resolution"]
    torch.save({name: 0.5 * value for name, value in state.items()}, weights)
    second = super_resolve(scan, weights=weights).extra["super_resolution"]
    assert first["WeightsSha256"] != second["WeightsSha256"]


def test_what_is_doubtful_is_logged_and_recorded(caplog: pytest.LogCaptureFixture) -> None:
    labels = np.zeros((16, 16, 3), np.uint8)
    labels[4:12, 4:12] = 2
    with caplog.at_level(logging.WARNING, "iconet"):
        out = super_resolve(labels, AFFINE)
    assert any("label map" in text for text in out.record["Warnings"]) and "label map" in caplog.text


@pytest.mark.parametrize(
    ("image", "affine", "said"),
    [
        (volume(8, 8, 2), None, "give affine="),
        (volume(8, 8, 2), np.zeros((4, 4)), "affine"),
        (np.full((8, 8, 2), np.nan), AFFINE, "128 of 128 voxels are NaN"),
        (volume(8, 8, 2).astype(complex), AFFINE, "complex128"),
        (volume(8), AFFINE, "shape"),
        ("scan.nii.gz", None, "nibabel.load"),
        (nib.Nifti1Image(volume(8, 8, 2), AFFINE), AFFINE, "affine of its own"),
    ],
)
def test_what_cannot_be_super_resolved_is_one_line(image: np.ndarray, affine: np.ndarray | None, said: str) -> None:
    with pytest.raises(VolumeError, match=said) as error:
        super_resolve(image, affine)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("scale", [3, "2"])
def test_another_scale_is_answered_with_those_there_are(scale: object) -> None:
    with pytest.raises(ModelError, match="scale must be 2, 4 or 8"):
        super_resolve(volume(8, 8, 2), AFFINE, scale=scale)


def test_nan_can_be_set_to_zero() -> None:
    spoilt = volume(8, 8, 2)
    zero = spoilt.copy()
    spoilt[3, 4, 1], zero[3, 4, 1] = np.nan, 0
    voxels = super_resolve(spoilt, AFFINE, nonfinite="zero").voxels
    np.testing.assert_array_equal(voxels, super_resolve(zero, AFFINE).voxels)


def test_an_image_without_a_declared_place_claims_none_as_the_command_has_it(tmp_path: Path) -> None:
    given = nib.Nifti1Image(volume(12, 14, 3), None)
    given.header.set_zooms((1, 1, 4))
    nib.save(given, tmp_path / "in.nii")
    out = super_resolve(nib.load(tmp_path / "in.nii"))
    assert command(tmp_path / "in.nii", tmp_path / "out.nii").exit_code == 0
    written = nib.load(tmp_path / "out.nii")
    assert int(out.header["sform_code"]) == int(out.header["qform_code"]) == 0
    np.testing.assert_array_equal(out.affine, written.affine)
