"""Files that say they are no image are refused on every route, unless the user insists; good images never are."""

from __future__ import annotations

import json
from pathlib import Path

import dicom_factory as factory
import nibabel as nib
import numpy as np
import pytest
from cli_command import command
from hypothesis import given
from hypothesis import strategies as st
from monai.transforms import EnsureChannelFirst, LoadImage

from bundle import super_resolve
from bundle.data import NiftiVolumeReader, VolumeError
from bundle.data.dicom.find import find_series
from bundle.data.meaning import by_bids, by_intent, check_dicom


def save(path: Path, code: int = 0, shape: tuple[int, ...] = (8, 7, 4)) -> Path:
    image = nib.Nifti1Image(np.random.default_rng(0).gamma(2, 50, shape).astype(np.float32), np.diag([1, 1, 3, 1]))
    image.header["intent_code"] = code
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(image, path)
    return path


REFUSED = {
    "displacement in dim 4": ("a", 1006, (8, 7, 4, 3)),
    "displacement with a time axis of 2": ("a", 1006, (8, 7, 4, 2)),
    "vectors": ("a", 1007, (8, 7, 4, 3)),
    "tensors": ("a", 1005, (8, 7, 4, 6)),
    "matrices": ("a", 1004, (8, 7, 4, 9)),
    "quaternions": ("a", 1010, (8, 7, 4, 4)),
    "points": ("a", 1008, (8, 7, 4)),
    "triangles": ("a", 1009, (8, 7, 4)),
    "FNIRT field": ("a", 2006, (8, 7, 4, 3)),
    "FNIRT cubic": ("a", 2007, (8, 7, 4, 3)),
    "FNIRT DCT": ("a", 2008, (8, 7, 4, 3)),
    "FNIRT quadratic": ("a", 2009, (8, 7, 4, 3)),
    "topup cubic": ("a", 2016, (8, 7, 4)),
    "topup quadratic": ("a", 2017, (8, 7, 4)),
    "part-phase": ("sub-01_task-rest_part-phase_bold", 0, (8, 7, 4, 2)),
    "phase difference": ("sub-01_phasediff", 0, (8, 7, 4)),
    "phase of an echo": ("sub-01_ses-b_run-1_phase2", 0, (8, 7, 4)),
    "old phase suffix": ("sub-01_task-rest_phase", 0, (8, 7, 4)),
}
WARNED = {
    "t": ("a", 3, (8, 7, 4)),
    "correlation": ("a", 2, (8, 7, 4)),
    "p-value": ("a", 22, (8, 7, 4)),
    "logarithm of p": ("a", 24, (8, 7, 4)),
    "Weibull": ("a", 18, (8, 7, 4)),
    "estimate": ("a", 1001, (8, 7, 4)),
    "labels": ("a", 1002, (8, 7, 4)),
    "one component": ("a", 1006, (8, 7, 4)),
    "field of topup": ("a", 2018, (8, 7, 4)),
    "real part": ("sub-01_part-real_T1w", 0, (8, 7, 4)),
    "imaginary part": ("sub-01_part-imag_T1w", 0, (8, 7, 4)),
    "segmentation": ("sub-01_space-MNI_dseg", 0, (8, 7, 4)),
    "mask": ("sub-01_desc-brain_mask", 0, (8, 7, 4)),
    "probabilities": ("sub-01_label-GM_probseg", 0, (8, 7, 4)),
    "statistics": ("sub-01_contrast-a_stat-t_statmap", 0, (8, 7, 4)),
}
IMAGES = {
    "plain": ("a", 0, (8, 7, 4)),
    "time series": ("a", 2001, (8, 7, 4, 2)),
    "dimensionless": ("a", 1011, (8, 7, 4)),
    "unknown code": ("a", 777, (8, 7, 4)),
    "magnitude": ("sub-01_task-rest_part-mag_bold", 0, (8, 7, 4, 2)),
    "field map": ("sub-01_fieldmap", 0, (8, 7, 4)),
    "T1 map": ("sub-01_T1map", 0, (8, 7, 4)),
    "phase of a contrast agent": ("ct_arterial_phase", 0, (8, 7, 4)),
    "phase of contrast in another scheme": ("sub-01_ct_arterial_phase", 0, (8, 7, 4)),
    "phase encoding": ("sub-01_dir-AP_epi", 0, (8, 7, 4)),
    "mask in words": ("patient_no_mask", 0, (8, 7, 4)),
}


def said(folder: Path, stem: str) -> str:
    record = json.loads((folder / f"{stem}_SRx2.json").read_text())
    return "\n".join(record["SuperResolution"]["Warnings"])


@pytest.mark.parametrize("name", REFUSED)
def test_what_says_that_it_is_no_image_is_refused_on_every_route(name: str, tmp_path: Path) -> None:
    stem, code, shape = REFUSED[name]
    path = save(tmp_path / f"{stem}.nii.gz", code, shape)
    for options in ([], ["--dry-run"]):
        result = command(path, tmp_path / "out", *options)
        assert result.exit_code == 1 and "not an image" in result.output and "--force" in result.output
    with pytest.raises(VolumeError, match="not an image"):
        super_resolve(nib.load(path))
    with pytest.raises(VolumeError, match="not an image"):
        LoadImage(NiftiVolumeReader)(path)
    with pytest.raises(VolumeError, match="not an image"):
        super_resolve(EnsureChannelFirst()(LoadImage("NibabelReader")(path)))


def test_the_user_may_insist(tmp_path: Path) -> None:
    path = save(tmp_path / "a.nii.gz", 1006, (8, 7, 4, 3))
    assert command(path, tmp_path / "out", "--force").exit_code == 0
    assert "displacement vectors" in said(tmp_path / "out", "a") and "--force" in said(tmp_path / "out", "a")
    assert "all the same" in super_resolve(nib.load(path), force=True).extra["super_resolution"]["Warnings"][0]
    assert "all the same" in LoadImage(NiftiVolumeReader, force=True)(path).meta["warnings"]


@pytest.mark.parametrize("name", WARNED)
def test_what_can_be_read_as_an_image_gives_a_warning(name: str, tmp_path: Path) -> None:
    stem, code, shape = WARNED[name]
    path = save(tmp_path / f"{stem}.nii.gz", code, shape)
    assert "as if it were an image" in LoadImage(NiftiVolumeReader)(path).meta["warnings"]
    assert "as if it were an image" in super_resolve(nib.load(path)).extra["super_resolution"]["Warnings"][0]


@pytest.mark.parametrize("name", IMAGES)
def test_images_pass_without_a_word(name: str, tmp_path: Path) -> None:
    stem, code, shape = IMAGES[name]
    meta = LoadImage(NiftiVolumeReader)(save(tmp_path / f"{stem}.nii.gz", code, shape)).meta
    assert "image" not in meta["warnings"]


@pytest.mark.parametrize(
    ("sidecar", "refused", "warned"),
    [
        ({"ImageType": ["ORIGINAL", "PRIMARY", "P", "ND"]}, True, False),
        ({"ImageType": ["DERIVED", "PRIMARY", "PHASE MAP", "P", "FFE"], "Modality": "MR"}, True, False),
        ({"ComplexImageComponent": "PHASE"}, True, False),
        ({"ImageType": ["ORIGINAL", "PRIMARY", "I"]}, False, True),
        ({"ImageType": ["ORIGINAL", "PRIMARY", "M", "ND"], "ComplexImageComponent": "MAGNITUDE"}, False, False),
        ({"ImageType": ["ORIGINAL", "PRIMARY", "P"], "Modality": "PT"}, False, False),
        ({"ImageType": "P_IMAGE"}, False, False),
        ({"ImageType": None, "ComplexImageComponent": 3, "Modality": ["MR"]}, False, False),
        ({"PhaseEncodingDirection": "j-"}, False, False),
    ],
)
def test_the_sidecar_of_a_converter_tells_a_phase(sidecar: dict, refused: bool, warned: bool, tmp_path: Path) -> None:
    (tmp_path / "scan.json").write_text(json.dumps(sidecar))
    found = list(by_bids(tmp_path / "scan.nii.gz"))
    assert [item.refused for item in found] == ([True] if refused else [False] if warned else [])


@pytest.mark.parametrize(
    ("types", "refused"),
    [
        (["ORIGINAL", "PRIMARY", "P", "ND"], True),
        (["ORIGINAL", "PRIMARY", "PHASE MAP", "P"], True),
        (["ORIGINAL", "PRIMARY", "M", "ND"], False),
        (["ORIGINAL", "PRIMARY", "R", "ND"], False),
        (["DERIVED", "SECONDARY", "ADC"], False),
    ],
)
def test_the_image_type_of_dicom_tells_a_phase(types: list[str], refused: bool, tmp_path: Path) -> None:
    instances = factory.series()
    for instance in instances:
        instance.ImageType = types
    factory.save(instances, tmp_path / "in")
    (series,) = find_series(tmp_path / "in").series
    if refused:
        with pytest.raises(VolumeError, match="phase image by ImageType"):
            check_dicom("name", series, False)
        assert "--force" in check_dicom("name", series, True)[0]
        assert command(tmp_path / "in", tmp_path / "out", "--dry-run").exit_code == 1
    else:
        assert len(check_dicom("name", series, False)) == ("R" in types)


@pytest.mark.parametrize(
    ("vr", "value", "what"),
    [("SS", 0, None), ("SS", 1, "phase"), ("UN", b"\1\0", "phase"), ("SS", 2, "real"), ("UN", b"\3\0", "imaginary")],
)
@pytest.mark.parametrize("creator", [True, False])
def test_ge_tells_a_phase_in_a_private_attribute(
    vr: str, value: object, what: str | None, creator: bool, tmp_path: Path
) -> None:
    instances = factory.series()
    for instance in instances:
        if creator:
            instance.add_new(0x00430010, "LO", "GEMS_PARM_01")
        instance.add_new(0x0043102F, vr, value)
    (series,) = find_series(factory.save(instances, tmp_path / "in")).series
    if what == "phase":
        with pytest.raises(VolumeError, match="phase image by GE's private"):
            check_dicom("name", series, False)
    assert [(what or "") in line for line in check_dicom("name", series, True)] == [True] * bool(what)


@given(st.integers(-(2**15), 2**15 - 1), st.integers(1, 6))
def test_no_intent_code_gives_more_than_one_finding(code: int, components: int) -> None:
    found = list(by_intent(code, components))
    assert len(found) <= 1
    if code in (0, 2001, 1011) or code < 0:
        assert not found
