"""Reading and writing NIfTI: what must be refused, what must be read with a warning, what must be kept.

All files are generated. The bracketed ids name the kind of input.
"""

from __future__ import annotations

import errno
import gzip
import io
import logging
import os
import re
import struct
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import nibabel as nib
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from monai.data import DataLoader, Dataset
from monai.transforms import Compose, EnsureChannelFirstd, LoadImaged
from nifti_files import (
    ACCEPTED,
    AFFINE,
    GZ,
    INF,
    NAN,
    REFUSED,
    SHAPE,
    SLOPE_2,
    image_bytes,
    patched,
    put,
    reference,
    voxels,
    with_voxel,
)

from bundle import super_resolve
from bundle.data import (
    NiftiVolumeReader,
    VolumeError,
    read_header,
    read_volume,
    write_volume,
)
from bundle.data.nifti import stream as nifti_stream
from bundle.data.nifti import write as nifti_write


@pytest.mark.parametrize("case", REFUSED)
def test_a_bad_file_is_refused_with_one_line_that_names_it(case: str, tmp_path: Path) -> None:
    name, content, message = REFUSED[case]
    path = put(tmp_path, name, content)
    with pytest.raises(VolumeError, match=message) as caught:
        read_volume(path)
    line = str(caught.value)
    assert line.startswith(f"{path}: ") and "\n" not in line and "; " in line


@pytest.mark.parametrize("case", ACCEPTED)
def test_a_doubtful_file_is_read_right_and_what_is_doubtful_is_said(case: str, tmp_path: Path) -> None:
    name, content, warning = ACCEPTED[case]
    volume = read_volume(put(tmp_path, name, content))
    np.testing.assert_array_equal(volume.array, voxels())
    assert volume.array.dtype == np.float32
    np.testing.assert_allclose(volume.affine, AFFINE, atol=1e-5)
    if warning is None:
        assert volume.warnings == ()
    else:
        assert len(volume.warnings) == 1
        assert re.search(warning, volume.warnings[0])


def test_nothing_is_allocated_for_a_size_the_file_cannot_hold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(*args: object, **kwargs: object) -> None:
        raise AssertionError("allocated")

    for row in ("row 31 huge size", "row 61 header of 1 GiB in a small gzip"):
        name, content, message = REFUSED[row]
        path = put(tmp_path, name, content)
        with monkeypatch.context() as patch, pytest.raises(VolumeError, match=message):
            patch.setattr(np, "empty", forbidden)
            read_volume(path)


def test_row_61_a_volume_beyond_the_size_limit_is_refused(tmp_path: Path) -> None:
    path = put(tmp_path, "a.nii", image_bytes())
    with pytest.raises(VolumeError, match=r"240 bytes of voxels .* exceed the limit of 239"):
        read_volume(path, max_bytes=239)
    assert read_volume(path, max_bytes=240).array.shape == SHAPE


def test_row_61_endless_zeros_after_the_voxels_of_a_gzip_are_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nifti_stream, "MAX_EXTRA_BYTES", 1000)
    path = put(tmp_path, "a.nii.gz", gzip.compress(image_bytes() + bytes(10**6)))
    with pytest.raises(VolumeError, match="more than 1000 bytes follow"):
        read_volume(path)


@pytest.mark.parametrize("value", [NAN, INF], ids=["row 10 NaN", "row 11 Inf"])
def test_non_finite_voxels_become_zero_on_request(value: float, tmp_path: Path) -> None:
    volume = read_volume(put(tmp_path, "a.nii", with_voxel(value)), nonfinite="zero")
    expected = voxels()
    expected[1, 2, 3] = 0
    np.testing.assert_array_equal(volume.array, expected)
    assert "set to zero" in volume.warnings[0]


def test_row_12_all_nan_is_refused_even_on_request(tmp_path: Path) -> None:
    with pytest.raises(VolumeError, match="nothing is left"):
        read_volume(put(tmp_path, "a.nii", image_bytes(np.full(SHAPE, NAN, "float32"))), nonfinite="zero")


def test_an_unknown_policy_for_non_finite_voxels_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="nonfinite"):
        read_volume(tmp_path / "a.nii", nonfinite="interpolate")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("data", "warning"),
    [
        pytest.param(np.full(SHAPE, 3, "int16"), "value 3", id="row 13 constant"),
        pytest.param(np.zeros(SHAPE, "int16"), "all voxels are zero", id="row 14 all zero"),
        pytest.param((voxels() > 40).astype("uint8"), "is it a label image", id="row 46 mask"),
        pytest.param(voxels(dtype="int32") + 2**25, "24 bits", id="row 44 long integers"),
    ],
)
def test_suspicious_values_are_kept_and_a_warning_is_given(data: np.ndarray, warning: str, tmp_path: Path) -> None:
    volume = read_volume(put(tmp_path, "a.nii", image_bytes(data)))
    np.testing.assert_array_equal(volume.array, data.astype(np.float32))
    assert len(volume.warnings) == 1 and warning in volume.warnings[0]


def test_row_18_a_negative_slope_and_an_intercept_are_exact(tmp_path: Path) -> None:
    volume = read_volume(put(tmp_path, "a.nii", patched(image_bytes(), **SLOPE_2)))
    np.testing.assert_array_equal(volume.array, voxels().astype(np.float32) * -2 + 7)
    assert float(volume.header["scl_slope"]) == 1


def test_row_43_float64_is_scaled_before_it_is_rounded(tmp_path: Path) -> None:
    content = patched(image_bytes(voxels(dtype="float64") * 1e45), scl_slope=("2f", (1e-30, 0)))
    volume = read_volume(put(tmp_path, "a.nii", content))
    np.testing.assert_allclose(volume.array, voxels() * 1e15, rtol=1e-6)


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(voxels((13, 11, 7)), id="row 54 prime sizes"),
        pytest.param(voxels() - 50, id="row 55 negative values"),
        pytest.param(voxels(dtype="float32") * 1e28, id="row 56 range to 1e30"),
        pytest.param(voxels(dtype="float32") * 1e-38, id="row 57 range to 1e-38"),
        pytest.param(np.where(voxels() == 5, 1e9, voxels()).astype("float32"), id="row 58 outlier"),
        pytest.param(voxels((6, 5)), id="row 38 two dimensions"),
        pytest.param(voxels((6, 5, 1)), id="row 39 single slice"),
        pytest.param(voxels((6, 5, 4, 3)), id="row 35 four dimensions"),
        pytest.param(voxels((6, 5, 4, 1)), id="row 36 four dimensions, the last of one"),
    ],
)
def test_shape_and_values_survive_reading_and_writing(data: np.ndarray, tmp_path: Path) -> None:
    volume = read_volume(put(tmp_path, "a.nii", image_bytes(data)))
    assert volume.warnings == ()
    out = write_volume(tmp_path / "b.nii.gz", volume.array, volume.affine, volume.header, source=volume.path)
    again = reference(out)
    assert again.shape == data.shape
    np.testing.assert_array_equal(again.get_fdata(dtype=np.float32), data.astype(np.float32))
    np.testing.assert_allclose(again.affine, AFFINE, atol=1e-5)


def test_row_35_repetition_time_and_time_offset_are_kept(tmp_path: Path) -> None:
    image = nib.Nifti1Image(voxels((6, 5, 4, 3)), AFFINE)
    image.header.set_xyzt_units("mm", "msec")
    image.header["pixdim"][4] = 2500
    image.header["toffset"] = 12
    volume = read_volume(put(tmp_path, "a.nii", image.to_bytes()))
    header = reference(write_volume(tmp_path / "b.nii", volume.array, volume.affine, volume.header)).header
    assert header.get_xyzt_units() == ("mm", "msec")
    assert (float(header["pixdim"][4]), float(header["toffset"])) == (2500, 12)


def test_a_trailing_fifth_dimension_of_one_is_dropped(tmp_path: Path) -> None:
    assert read_volume(put(tmp_path, "a.nii", image_bytes(voxels((3, 3, 3, 2, 1))))).array.shape == (3, 3, 3, 2)


# ------------------------------------------------------------------------------------------------------ geometry


@pytest.mark.parametrize("pixdim", [(1, 2, 2, 3), (1, 0, 2, 3)], ids=["row 22", "row 22 without a voxel size"])
def test_without_forms_the_codes_stay_zero_and_a_warning_is_given(pixdim: tuple[float, ...], tmp_path: Path) -> None:
    volume = read_volume(put(tmp_path, "a.nii", patched(image_bytes(codes=(0, 0)), pixdim=("4f", pixdim))))
    assert "neither sform nor qform" in volume.warnings[0]
    assert len(volume.warnings) == (2 if pixdim[1] == 0 else 1)
    fine = volume.affine @ np.diag([0.5, 0.5, 1, 1])
    out = reference(write_volume(tmp_path / "b.nii", np.zeros((12, 10, 4)) + volume.array.mean(), fine, volume.header))
    assert (int(out.header["sform_code"]), int(out.header["qform_code"])) == (0, 0)
    np.testing.assert_allclose(out.header.get_zooms(), np.array([pixdim[1] or 1, 2, 3]) * [0.5, 0.5, 1])


def test_row_34_conflicting_forms_warn_in_mm_and_both_are_carried_to_the_new_grid(tmp_path: Path) -> None:
    image = nib.Nifti1Image(voxels(), AFFINE)
    moved = AFFINE.copy()
    moved[:3, 3] += [3, 4, 0]
    image.set_sform(AFFINE, 4)
    image.set_qform(moved, 1)
    volume = read_volume(put(tmp_path, "a.nii", image.to_bytes()))
    assert volume.warnings == ("sform and qform differ by up to 5 mm; the sform is used",)
    step = np.diag([0.5, 0.5, 1, 1])
    out = reference(write_volume(tmp_path / "b.nii", np.ones((12, 10, 4)), AFFINE @ step, volume.header))
    np.testing.assert_allclose(out.get_sform(), AFFINE @ step, atol=1e-5)
    np.testing.assert_allclose(out.get_qform(), moved @ step, atol=1e-5)
    assert (int(out.header["sform_code"]), int(out.header["qform_code"])) == (4, 1)


@settings(max_examples=30, deadline=None)
@given(
    size=st.tuples(st.integers(3, 20), st.integers(3, 20)),
    axis=st.sampled_from([0, 1, 2]),
    angles=st.tuples(*[st.floats(-1, 1)] * 3),
)
def test_a_result_of_any_voxel_size_keeps_both_frames_the_first_voxel_and_dim_info(
    size: tuple[int, int], axis: int, angles: tuple[float, float, float]
) -> None:
    image = nib.Nifti1Image(voxels(), AFFINE)
    moved = nib.affines.from_matvec(rotation(angles) @ AFFINE[:3, :3], [3, 4, 5])
    image.set_sform(AFFINE, 4)
    image.set_qform(moved, 1)
    image.header.set_dim_info(0, 1, 2)
    shape = list(SHAPE)
    for at, n in zip([a for a in range(3) if a != axis], size, strict=True):
        shape[at] = n
    step = np.diag([*(old / new for old, new in zip(SHAPE, shape, strict=True)), 1])
    with tempfile.TemporaryDirectory() as folder:
        like = read_volume(put(Path(folder), "a.nii", image.to_bytes())).header
        out = reference(write_volume(Path(folder) / "b.nii", np.ones(shape), AFFINE @ step, like))
        again = read_volume(Path(folder) / "b.nii")
    np.testing.assert_allclose(again.affine, AFFINE @ step, atol=1e-5)
    np.testing.assert_allclose(out.get_qform(), moved @ step, atol=1e-4)
    np.testing.assert_allclose(out.header.get_zooms(), np.linalg.norm((AFFINE @ step)[:3, :3], axis=0), rtol=1e-6)
    assert (int(out.header["sform_code"]), int(out.header["qform_code"])) == (4, 1)
    assert out.header.get_dim_info() == (0, 1, 2)
    assert out.get_sform()[:3, 3] == pytest.approx(AFFINE[:3, 3])


def test_an_unknown_form_code_counts_as_aligned(tmp_path: Path) -> None:
    volume = read_volume(put(tmp_path, "a.nii", patched(image_bytes(), sform_code=("h", 900))))
    assert volume.warnings == ("unknown sform_code 900; treated as 2",)
    assert int(volume.header["sform_code"]) == 2


def test_half_a_turn_whose_quaternion_float32_holds_poorly_is_no_conflict(tmp_path: Path) -> None:
    turned = nib.affines.from_matvec(rotation((3.1412, 0, 0.002)) * [0.5, 0.5, 0.5], [100, 100, 0])
    volume = read_volume(put(tmp_path, "a.nii", image_bytes(voxels((256, 256, 2)), turned)))
    assert volume.warnings == ()


def test_a_voxel_size_that_contradicts_the_sform_is_reported(tmp_path: Path) -> None:
    content = patched(image_bytes(codes=(1, 0)), pixdim=("4f", (1, 1, 1, 1)))
    volume = read_volume(put(tmp_path, "a.nii", content))
    assert "pixdim is (1, 1, 1) mm, but the sform says (2, 2, 3) mm" in volume.warnings[0]
    np.testing.assert_array_equal(volume.header.get_zooms(), (2, 2, 3))


def test_row_51_a_sheared_frame_is_kept_in_the_sform_and_the_qform_gets_code_0(tmp_path: Path) -> None:
    sheared = AFFINE.copy()
    sheared[0, 2] = 1.0
    like = read_volume(put(tmp_path, "a.nii", image_bytes())).header
    header = reference(write_volume(tmp_path / "b.nii", voxels(), sheared, like)).header
    np.testing.assert_allclose(header.get_sform(), sheared, atol=1e-5)
    assert (int(header["sform_code"]), int(header["qform_code"])) == (1, 0)
    np.testing.assert_allclose(read_volume(tmp_path / "b.nii").affine, sheared, atol=1e-5)


def test_a_shear_of_a_frame_that_only_the_qform_gave_moves_to_the_sform(tmp_path: Path) -> None:
    sheared = AFFINE.copy()
    sheared[0, 2] = 1.0
    like = read_volume(put(tmp_path, "a.nii", image_bytes(codes=(0, 1)))).header
    header = reference(write_volume(tmp_path / "b.nii", voxels(), sheared, like)).header
    np.testing.assert_allclose(header.get_best_affine(), sheared, atol=1e-5)
    assert (int(header["sform_code"]), int(header["qform_code"])) == (1, 0)


@pytest.mark.parametrize(("unit", "factor"), [("meter", 1000), ("micron", 0.001)], ids=["row 59 metre", "micron"])
def test_lengths_in_other_units_are_read_and_written_in_mm(unit: str, factor: float, tmp_path: Path) -> None:
    native = np.diag([1 / factor] * 3 + [1]) @ AFFINE
    image = nib.Nifti1Image(voxels(), native)
    image.set_sform(native, 1)
    image.set_qform(native, 1)
    image.header.set_xyzt_units(unit, "sec")
    volume = read_volume(put(tmp_path, "a.nii", image.to_bytes()))
    np.testing.assert_allclose(volume.affine, AFFINE, rtol=1e-5)
    assert len(volume.warnings) == 1 and "converted to mm" in volume.warnings[0]
    # Also with the unmodified header of the source as `like`.
    for like in (volume.header, image.header):
        out = reference(write_volume(tmp_path / "b.nii", volume.array, volume.affine, like))
        assert out.header.get_xyzt_units() == ("mm", "sec")
        np.testing.assert_allclose(out.get_sform(), AFFINE, rtol=1e-5)
        np.testing.assert_allclose(out.get_qform(), AFFINE, rtol=1e-5)


def rotation(angles: tuple[float, float, float]) -> np.ndarray:
    return nib.eulerangles.euler2mat(*angles)


affines = st.builds(
    lambda angles, zooms, hand, offset: nib.affines.from_matvec(
        rotation(angles) * (np.array(zooms) * [hand, 1, 1]), offset
    ),
    st.tuples(*[st.floats(-3.1, 3.1)] * 3),
    st.tuples(*[st.floats(0.1, 10)] * 3),
    st.sampled_from([1, -1]),
    st.tuples(*[st.floats(-300, 300)] * 3),
)
numeric_types = st.sampled_from(["u1", "i1", "i2", "u2", "i4", "u4", "i8", "u8", "f4", "f8"])
shapes = st.lists(st.integers(1, 5), min_size=2, max_size=4).map(tuple)


def exact_in_float32(kind: str) -> st.SearchStrategy:
    if kind[0] == "f":
        return st.floats(-(2.0**100), 2.0**100, width=32)
    return st.integers(max(np.iinfo(kind).min, -(2**24)), min(np.iinfo(kind).max, 2**24))


@settings(max_examples=60, deadline=None)
@given(data=st.data(), shape=shapes, kind=numeric_types, order=st.sampled_from("<>"), affine=affines)
def test_rows_44_to_53_any_type_shape_byte_order_frame_code_unit_and_time_survive(
    data: st.DataObject, shape: tuple[int, ...], kind: str, order: Literal["<", ">"], affine: np.ndarray
) -> None:
    array = data.draw(hnp.arrays(kind, shape, elements=exact_in_float32(kind)))
    codes = data.draw(st.sampled_from([(1, 1), (4, 1), (2, 0), (0, 3)]))
    time = data.draw(st.sampled_from([8, 16, 24, 0]))
    header = data.draw(st.sampled_from([nib.Nifti1Header, nib.Nifti2Header]))(endianness=order)
    header.set_data_dtype(kind)
    header.set_data_shape(shape)
    header["pixdim"][4] = 2.5
    header.set_qform(affine, codes[1])
    header.set_sform(affine, codes[0])
    header["xyzt_units"] = 2 | time
    header["descrip"] = b"note"
    suffix = data.draw(st.sampled_from([".nii", ".nii.gz"]))
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder, "a.nii"), Path(folder, "b" + suffix)
        with open(source, "wb") as stream:
            header.write_to(stream)
            stream.write(bytes(int(header["vox_offset"]) - stream.tell()))
            stream.write(array.astype(array.dtype.newbyteorder(order)).tobytes("F"))
        volume = read_volume(source)
        scale = np.abs(affine).max() * max(shape)
        np.testing.assert_array_equal(volume.array, array.astype(np.float32))
        # Near half a turn, float32 holds a quaternion's rotation only to the root of its precision.
        precision = 1e-5 if codes[0] else 2e-3
        np.testing.assert_allclose(volume.affine, affine, atol=precision * scale)
        assert not any("form" in warning for warning in volume.warnings)
        write_volume(target, volume.array, volume.affine, volume.header, source=source)
        out = reference(target)
        np.testing.assert_array_equal(out.get_fdata(dtype=np.float32), volume.array)
        np.testing.assert_allclose(out.affine, affine, atol=precision * scale)
        if codes[1]:
            np.testing.assert_allclose(out.get_qform(), affine, atol=2e-3 * scale)
        result = out.header
        assert result.endianness == "<" and result.get_data_dtype() == np.float32
        assert (int(result["sform_code"]), int(result["qform_code"])) == codes
        assert int(result["xyzt_units"]) == 2 | time
        assert float(result["pixdim"][4]) == 2.5 and bytes(result["descrip"]).startswith(b"note")
        assert np.linalg.det(out.affine[:3, :3]) * np.linalg.det(affine[:3, :3]) > 0


@pytest.mark.parametrize("kind", [nib.Nifti1Header, nib.Nifti2Header])
@pytest.mark.parametrize(
    "excess", [1e-15, 1e-8, pytest.param(3e-7, id="float32"), pytest.param(1e-5, id="no rounding")]
)
def test_a_quaternion_that_rounding_made_too_long_is_half_a_turn(kind, excess, tmp_path) -> None:
    header = kind()
    header.set_data_shape((3, 4, 2))
    header.set_data_dtype(np.float32)
    header.set_qform(np.diag([-2.0, 3.0, -4.0, 1.0]), 1)  # half a turn about y
    unit = np.array([0.0, 0.6, 0.8]) * (1 + excess) ** 0.5
    for name, value in zip(("quatern_b", "quatern_c", "quatern_d"), unit, strict=True):
        header[name] = value
    header["xyzt_units"] = 2
    source, target = tmp_path / "a.nii", tmp_path / "b.nii"
    with open(source, "wb") as stream:
        header.write_to(stream)
        stream.write(bytes(int(header["vox_offset"]) - stream.tell()) + bytes(4 * 24))
    if excess > 1e-6:
        with pytest.raises(VolumeError, match="no usable orientation"):
            read_volume(source)
        return
    volume = read_volume(source)
    turn = np.array([[-1, 0, 0], [0, -0.28, 0.96], [0, 0.96, 0.28]])
    np.testing.assert_allclose(volume.affine[:3, :3], turn * [2, 3, 4], atol=2e-3)
    write_volume(target, volume.array, volume.affine, volume.header, source=source)
    np.testing.assert_allclose(reference(target).get_qform(), volume.affine, atol=1e-5)


@settings(max_examples=200, deadline=None)
@given(
    cls=st.sampled_from([nib.Nifti1Image, nib.Nifti2Image]),
    codes=st.sampled_from([(1, 1), (1, 0), (0, 1), (0, 0)]),
    changes=st.lists(st.tuples(st.integers(0, 543), st.integers(0, 255)), min_size=1, max_size=8),
)
def test_a_header_with_random_damage_is_read_or_refused_but_never_crashes(
    cls: type, codes: tuple[int, int], changes: list[tuple[int, int]]
) -> None:
    content = bytearray(image_bytes(codes=codes, cls=cls))
    for position, value in changes:
        content[position] = value
    with tempfile.TemporaryDirectory() as folder:
        path = put(Path(folder), "a.nii", bytes(content))
        try:
            volume = read_volume(path)
        except VolumeError as error:
            assert "\n" not in str(error)
        else:
            assert np.isfinite(volume.array).all() and np.isfinite(volume.affine).all()
            write_volume(Path(folder, "b.nii"), volume.array, volume.affine, volume.header)


# -------------------------------------------------------------------------------------------------- pairs, paths


def pair(folder: Path, cls: type = nib.Nifti1Pair) -> Path:
    nib.save(cls(voxels(), AFFINE), folder / "a.img")
    return folder / "a.hdr"


@pytest.mark.parametrize("name", ["a.hdr", "a.img"])
def test_row_49_a_pair_is_read_from_either_of_its_files(name: str, tmp_path: Path) -> None:
    volume = read_volume(pair(tmp_path).with_name(name))
    np.testing.assert_array_equal(volume.array, voxels())
    np.testing.assert_allclose(volume.affine, AFFINE)
    assert volume.path.name == "a.hdr" and volume.warnings == ()
    out = write_volume(tmp_path / "out.nii.gz", volume.array, volume.affine, volume.header)
    np.testing.assert_array_equal(reference(out).get_fdata(), voxels())


def test_row_49_a_pair_may_differ_in_letter_case_and_compression(tmp_path: Path) -> None:
    header = pair(tmp_path)
    put(tmp_path, "a.IMG.gz", gzip.compress((tmp_path / "a.img").read_bytes()))
    (tmp_path / "a.img").unlink()
    np.testing.assert_array_equal(read_volume(header).array, voxels())


def test_row_49_a_pair_without_its_image_names_the_missing_file(tmp_path: Path) -> None:
    header = pair(tmp_path)
    (tmp_path / "a.img").unlink()
    with pytest.raises(VolumeError, match=r"a\.img: no such file"):
        read_volume(header)


def test_row_50_analyze_is_read_with_unknown_orientation(tmp_path: Path) -> None:
    volume = read_volume(pair(tmp_path, nib.AnalyzeImage))
    np.testing.assert_array_equal(volume.array, voxels())
    assert any("orientation unknown" in warning for warning in volume.warnings)
    assert (int(volume.header["sform_code"]), int(volume.header["qform_code"])) == (0, 0)
    np.testing.assert_allclose(volume.header.get_zooms(), (2, 2, 3))


def test_row_62_a_directory_named_like_a_volume_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.nii").mkdir()
    with pytest.raises(VolumeError, match=r"x\.nii: is a directory"):
        read_volume(tmp_path / "x.nii")


def test_row_63_a_dangling_link_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.nii").symlink_to(tmp_path / "gone.nii")
    with pytest.raises(VolumeError, match=r"x\.nii: dangling link to .*gone\.nii"):
        read_volume(tmp_path / "x.nii")


def test_row_63_a_file_without_read_permission_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def deny(*args: object, **kwargs: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    path = put(tmp_path, "x.nii", image_bytes())
    monkeypatch.setattr("builtins.open", deny)
    with pytest.raises(VolumeError, match=r"x\.nii: permission denied"):
        read_volume(path)


def test_a_missing_file_and_a_pipe_are_refused(tmp_path: Path) -> None:
    with pytest.raises(VolumeError, match="no such file"):
        read_volume(tmp_path / "x.nii")
    os.mkfifo(tmp_path / "y.nii")
    with pytest.raises(VolumeError, match="not a regular file"):
        read_volume(tmp_path / "y.nii")


def test_a_line_break_in_a_name_does_not_break_the_line(tmp_path: Path) -> None:
    with pytest.raises(VolumeError) as caught:
        read_volume(tmp_path / "a\nb.nii")
    assert "\n" not in str(caught.value)


# --------------------------------------------------------------------------------------------- header, extensions


def test_the_header_is_read_without_the_voxels(tmp_path: Path) -> None:
    # The gzip stream is broken after the header: reading further would fail.
    path = put(tmp_path, "a.nii.gz", GZ[: len(GZ) // 2])
    assert read_header(path).get_data_shape() == (20, 20, 20)


def test_the_header_alone_tells_that_the_data_are_cut(tmp_path: Path) -> None:
    with pytest.raises(VolumeError, match="data are truncated"):
        read_header(put(tmp_path, "a.nii", image_bytes()[:-50]))


def image_with_extension(order: str = "<") -> bytes:
    header = nib.Nifti1Header(endianness=order)
    header.set_data_dtype("int16")
    header.set_data_shape(SHAPE)
    header.set_qform(AFFINE, 1)
    header.set_sform(AFFINE, 1)
    header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"hello"))
    stream = io.BytesIO()
    header.write_to(stream)
    stream.write(voxels().astype(order + "i2").tobytes("F"))
    return stream.getvalue()


@pytest.mark.parametrize("order", ["<", ">"], ids=["little endian", "big endian"])
def test_sound_extensions_are_kept(order: str, tmp_path: Path) -> None:
    volume = read_volume(put(tmp_path, "a.nii", image_with_extension(order)))
    assert volume.warnings == ()
    out = reference(write_volume(tmp_path / "b.nii.gz", volume.array, volume.affine, volume.header))
    assert [extension.content.rstrip(b"\0") for extension in out.header.extensions] == [b"hello"]
    np.testing.assert_array_equal(out.get_fdata(), voxels())


@pytest.mark.parametrize(("code", "name"), [(4, "afni"), (2, "dicom"), (8, "xcede"), (10, "jimdiminfo"), (32, "cifti")])
def test_extensions_that_may_state_the_old_grid_are_dropped_and_named(code: int, name: str, tmp_path: Path) -> None:
    image = nib.Nifti1Image(voxels(), AFFINE)
    extensions = [nib.nifti1.Nifti1Extension(n, b"DATASET_DIMENSIONS 6 5 4") for n in (6, code, 9998, code)]
    image.header.extensions.extend(extensions)
    nib.save(image, tmp_path / "a.nii")
    volume = read_volume(tmp_path / "a.nii")
    (warning,) = (line for line in volume.warnings if "not copied" in line)
    assert f": {name} ({code}), 9998" in warning and warning.count(name) == 1
    np.testing.assert_array_equal(volume.array, voxels())
    out = nib.load(write_volume(tmp_path / "out.nii", volume.array, volume.affine, volume.header))
    assert [extension.get_code() for extension in out.header.extensions] == [6]
    fine = super_resolve(image)
    assert [extension.get_code() for extension in fine.header.extensions] == [6]
    assert warning in fine.extra["super_resolution"]["Warnings"]


@pytest.mark.parametrize("size", [-16, 7, 8, 4096], ids=str)
def test_row_60_a_damaged_extension_is_dropped_with_a_warning(size: int, tmp_path: Path) -> None:
    content = bytearray(image_with_extension())
    content[352:356] = struct.pack("<i", size)
    volume = read_volume(put(tmp_path, "a.nii", bytes(content)))
    np.testing.assert_array_equal(volume.array, voxels())
    assert volume.warnings == ("a damaged header extension is dropped",)
    assert len(volume.header.extensions) == 0


def test_description_and_intent_are_kept_and_what_describes_the_old_grid_is_reset(tmp_path: Path) -> None:
    image = nib.Nifti1Image(voxels(), AFFINE)
    image.header.set_intent("estimate", name="T2 map")
    image.header.set_dim_info(0, 1, 2)
    for name, value in {"descrip": b"x", "cal_max": 90, "cal_min": 5, "slice_end": 3, "slice_code": 1}.items():
        image.header[name] = value
    image.header["slice_duration"] = 0.1
    volume = read_volume(put(tmp_path, "a.nii", image.to_bytes()))
    header = reference(write_volume(tmp_path / "b.nii", volume.array, volume.affine, volume.header)).header
    assert header.get_intent()[::2] == ("estimate", "T2 map")
    assert header.get_dim_info() == (0, 1, 2)
    assert header["descrip"] == b"x"
    for name in ("cal_max", "cal_min", "slice_start", "slice_end", "slice_code", "slice_duration"):
        assert header[name] == 0


# ------------------------------------------------------------------------------------------------------- writing


def test_the_same_volume_gives_the_same_bytes(tmp_path: Path) -> None:
    first = write_volume(tmp_path / "a.nii.gz", voxels(), AFFINE).read_bytes()
    second = write_volume(tmp_path / "other.nii.gz", np.asfortranarray(voxels()), AFFINE).read_bytes()
    assert first == second


def test_a_long_axis_is_written_as_nifti_2(tmp_path: Path) -> None:
    data = np.zeros((32768, 1, 1), np.float32)
    data[-1] = 1
    image = reference(
        write_volume(tmp_path / "a.nii", data, AFFINE, read_header(put(tmp_path, "s.nii", image_bytes())))
    )
    assert isinstance(image, nib.Nifti2Image) and image.shape == data.shape
    np.testing.assert_array_equal(read_volume(tmp_path / "a.nii").array, data)


def test_missing_folders_are_made_and_the_file_has_ordinary_rights(tmp_path: Path) -> None:
    path = write_volume(tmp_path / "new" / "folder" / "a.nii", voxels(), AFFINE)
    plain = put(tmp_path, "plain", b"")
    assert path.stat().st_mode == plain.stat().st_mode


@pytest.mark.parametrize("link", [None, os.symlink, os.link], ids=["itself", "symbolic link", "hard link"])
def test_row_66_the_input_is_never_overwritten(link: Callable | None, tmp_path: Path) -> None:
    source = put(tmp_path, "a.nii", image_bytes())
    target = source
    if link is not None:
        target = tmp_path / "b.nii"
        link(source, target)
    with pytest.raises(VolumeError, match="the output is the input"):
        write_volume(target, voxels(), AFFINE, source=source)
    assert source.read_bytes() == image_bytes()


@pytest.mark.parametrize("name", ["out.nii", "out.nii.gz"])
@pytest.mark.parametrize("failing", ["os.fsync", "os.replace"])
def test_row_65_a_full_disk_is_an_error_and_leaves_nothing(
    name: str, failing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(failing, full)
    with pytest.raises(VolumeError, match=r"out\.nii.*No space left on device"):
        write_volume(tmp_path / name, voxels(), AFFINE)
    assert list(tmp_path.iterdir()) == []


def test_row_69_an_interrupted_write_keeps_the_old_file_and_leaves_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(stream: object, *rest: object) -> None:
        stream.write(b"half")  # type: ignore[attr-defined]
        raise KeyboardInterrupt

    old = put(tmp_path, "out.nii", b"old")
    monkeypatch.setattr(nifti_write, "_write_voxels", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_volume(old, voxels(), AFFINE)
    assert [path.name for path in tmp_path.iterdir()] == ["out.nii"] and old.read_bytes() == b"old"


def test_row_65_a_folder_that_cannot_be_made_is_an_error(tmp_path: Path) -> None:
    put(tmp_path, "file", b"x")
    with pytest.raises(VolumeError, match="cannot be written"):
        write_volume(tmp_path / "file" / "out.nii", voxels(), AFFINE)


@pytest.mark.parametrize(
    ("data", "affine", "name", "message"),
    [
        pytest.param(voxels(dtype="float32") * NAN, AFFINE, "a.nii", "120 of 120 voxels .* NaN", id="NaN"),
        pytest.param(voxels(dtype="float64") * 1e60, AFFINE, "a.nii", "beyond float32", id="beyond float32"),
        pytest.param(voxels((120,)), AFFINE, "a.nii", r"shape \(120,\)", id="one dimension"),
        pytest.param(voxels(dtype="complex64"), AFFINE, "a.nii", "complex64", id="complex"),
        pytest.param(voxels(), np.zeros((4, 4)), "a.nii", "affine", id="singular affine"),
        pytest.param(voxels(), AFFINE, "a.nrrd", "does not end with", id="other format"),
    ],
)
def test_what_cannot_be_stored_truly_is_not_written(
    data: np.ndarray, affine: np.ndarray, name: str, message: str, tmp_path: Path
) -> None:
    with pytest.raises(VolumeError, match=message):
        write_volume(tmp_path / name, data, affine)
    assert list(tmp_path.iterdir()) == []


# --------------------------------------------------------------------------------------------------------- MONAI


def loaded(path: Path, **options: Any) -> dict:
    return LoadImaged("image", reader=NiftiVolumeReader, **options)({"image": str(path)})


def test_monai_gets_the_metadata_of_its_own_reader(tmp_path: Path) -> None:
    path = put(tmp_path, "a.nii.gz", gzip.compress(image_bytes()))
    ours = LoadImaged("image", reader="bundle.data.NiftiVolumeReader")({"image": str(path)})["image"]
    theirs = LoadImaged("image", reader="NibabelReader")({"image": str(path)})["image"]
    torch.testing.assert_close(ours.as_tensor(), theirs.as_tensor())
    torch.testing.assert_close(ours.affine, theirs.affine)
    assert set(ours.meta) == set(theirs.meta) | {"warnings", "stated_slice_axes", "stated_matrix", "stated_modality"}
    for key in ("original_affine", "spatial_shape", "original_channel_dim", "filename_or_obj", "space"):
        np.testing.assert_equal(np.asarray(ours.meta[key]), np.asarray(theirs.meta[key]))


@pytest.mark.parametrize(
    ("shape", "expected"),
    [((6, 5), (1, 6, 5)), ((6, 5, 4), (1, 6, 5, 4)), ((6, 5, 4, 3), (3, 6, 5, 4)), ((6, 5, 4, 1), (1, 6, 5, 4))],
    ids=str,
)
def test_monai_moves_time_to_the_channels(shape: tuple[int, ...], expected: tuple[int, ...], tmp_path: Path) -> None:
    item = loaded(put(tmp_path, "a.nii", image_bytes(voxels(shape))))
    assert EnsureChannelFirstd("image")(item)["image"].shape == expected


def test_monai_batches_volumes_with_their_metadata(tmp_path: Path) -> None:
    paths = [put(tmp_path, "a.nii", image_bytes()), put(tmp_path, "b.nii", image_bytes(codes=(0, 0)))]
    transform = Compose([LoadImaged("image", reader=NiftiVolumeReader), EnsureChannelFirstd("image")])
    batch = next(iter(DataLoader(Dataset([{"image": str(path)} for path in paths], transform), batch_size=2)))["image"]
    assert batch.shape == (2, 1, *SHAPE) and batch.affine.shape == (2, 4, 4)
    assert batch.meta["filename_or_obj"] == [str(path) for path in paths]
    assert batch.meta["warnings"][0] == "" and "neither sform" in batch.meta["warnings"][1]


@pytest.mark.parametrize("case", ["row 5 gzip checksum", "row 10 NaN", "row 42 complex"])
def test_monai_does_not_fall_back_to_a_reader_that_accepts_the_bad_file(case: str, tmp_path: Path) -> None:
    name, content, message = REFUSED[case]
    with pytest.raises(VolumeError, match=message):
        loaded(put(tmp_path, name, content))


def test_the_policy_for_non_finite_voxels_is_an_argument_of_the_reader(tmp_path: Path) -> None:
    path = put(tmp_path, "a.nii", with_voxel(NAN))
    assert torch.isfinite(loaded(path, nonfinite="zero")["image"]).all()


def test_each_warning_is_logged_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = put(tmp_path, "a.nii", image_bytes(codes=(0, 0)))
    with caplog.at_level(logging.WARNING, "iconet"):
        loaded(path)
        loaded(path)
    assert [record.getMessage().split(":")[0] for record in caplog.records if record.name == "iconet"] == [str(path)]


def test_several_files_as_one_image_are_refused(tmp_path: Path) -> None:
    path = str(put(tmp_path, "a.nii", image_bytes()))
    with pytest.raises(VolumeError, match="2 files"):
        LoadImaged("image", reader=NiftiVolumeReader)({"image": [path, path]})


# ------------------------------------------------------------------------------------------------ a single slice


@given(
    st.sampled_from([(6, 5, 1), (6, 1, 4), (1, 5, 4), (6, 5)]),
    st.integers(0, 2**32 - 1),
    st.sampled_from([0.0, 4.0, float("nan")]),
)
def test_a_slice_without_a_direction_across_gets_one(shape: tuple[int, ...], seed: int, size: float) -> None:
    rng = np.random.default_rng(seed)
    turned = np.linalg.qr(rng.normal(size=(3, 3)))[0]
    turned = turned * np.linalg.det(turned)  # right-handed
    axis = shape.index(1) if 1 in shape else 2
    spacing = rng.uniform(0.5, 4, 3)
    spacing[axis] = size if size > 0 else 1.0
    full = np.eye(4)
    full[:3, :3], full[:3, 3] = turned * spacing, rng.uniform(-50, 50, 3)
    flat = full.copy()
    flat[:3, axis] = 0
    pixdim = [1.0, *np.where(np.arange(3) == axis, size, spacing)]
    content = image_bytes(voxels(shape), AFFINE, (1, 0))
    content = patched(content, srow_x=("12f", tuple(flat[:3].ravel())), pixdim=("4f", tuple(pixdim)))
    with tempfile.TemporaryDirectory() as folder:
        volume = read_volume(put(Path(folder), "a.nii", content))
    np.testing.assert_allclose(volume.affine, full, atol=1e-4)
    assert any("no direction along axis" in warning for warning in volume.warnings)


@pytest.mark.parametrize("missing", [(0, 2), (0,), (2,)])
def test_a_direction_that_more_than_one_voxel_needs_is_not_made_up(missing: tuple[int, ...], tmp_path: Path) -> None:
    flat = AFFINE.copy()
    flat[:3, list(missing)] = 0
    shape = (6, 5, 4) if missing == (2,) else (6, 5, 1)
    content = patched(image_bytes(voxels(shape), AFFINE, (1, 0)), srow_x=("12f", tuple(flat[:3].ravel())))
    with pytest.raises(VolumeError, match="no usable orientation"):
        read_volume(put(tmp_path, "a.nii", content))
