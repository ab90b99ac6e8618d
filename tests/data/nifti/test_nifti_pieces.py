"""Reading and writing volume by volume, and data types other than float32."""

from __future__ import annotations

import tempfile
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nifti_files import ACCEPTED, AFFINE, REFUSED, image_bytes, put, voxels

from bundle.data import VolumeError, check_volume_file, read_volume, write_volume, writing_volume
from bundle.data.atomic import remove_partial_files, replacing
from bundle.data.nifti.read import read_first_volume
from bundle.data.nifti.storage import Storage

SERIES = voxels((6, 5, 4, 3))


# -------------------------------------------------------------------------------------------------------- reading


@pytest.mark.parametrize("shape", [(6, 5), (6, 5, 4), (6, 5, 4, 1), (6, 5, 4, 3), (6, 5, 1, 3)], ids=str)
def test_volumes_one_by_one_are_the_volumes_of_the_whole(shape: tuple[int, ...], tmp_path: Path) -> None:
    path = put(tmp_path, "a.nii", image_bytes(voxels(shape)))
    file, whole = check_volume_file(path), read_volume(path)
    frames = list(file.frames())
    assert file.shape == whole.array.shape and all(frame.shape == shape[:3] for frame in frames)
    np.testing.assert_array_equal(np.stack(frames, -1).reshape(shape), whole.array)
    np.testing.assert_array_equal(read_first_volume(path).array, frames[0])


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_read_whole_is_refused_before_the_first_piece(case: str, tmp_path: Path) -> None:
    name, content, message = REFUSED[case]
    with pytest.raises(VolumeError, match=message):
        check_volume_file(put(tmp_path, name, content))


@pytest.mark.parametrize("case", ACCEPTED)
def test_what_is_doubtful_is_said_once(case: str, tmp_path: Path) -> None:
    name, content, _ = ACCEPTED[case]
    path = put(tmp_path, name, content)
    file = check_volume_file(path)
    list(file.frames())
    assert file.warnings == read_volume(path).warnings


def test_values_are_judged_over_the_whole_series(tmp_path: Path) -> None:
    two = np.zeros((3, 3, 2, 2), "uint8")
    two[..., 1] = 1
    assert "the only values are 0 and 1" in check_volume_file(put(tmp_path, "a.nii", image_bytes(two))).warnings[0]
    two[0, 0, 0, 1] = 2
    assert check_volume_file(put(tmp_path, "b.nii", image_bytes(two))).warnings == ()
    nans = SERIES.astype("float32")
    nans[0, 0, 0, 0] = nans[1, 1, 1, 2] = np.nan
    with pytest.raises(VolumeError, match="2 NaN and 0 infinite voxels of 360"):
        check_volume_file(put(tmp_path, "c.nii", image_bytes(nans)))


def test_a_file_that_changes_between_the_passes_is_refused(tmp_path: Path) -> None:
    path = put(tmp_path, "a.nii", image_bytes(SERIES))
    file = check_volume_file(path)
    put(tmp_path, "a.nii", image_bytes(voxels((3, 3, 3))))
    with pytest.raises(VolumeError, match="changed while"):
        list(file.frames())


# -------------------------------------------------------------------------------------------------------- writing


def test_pieces_give_the_bytes_of_the_whole(tmp_path: Path) -> None:
    whole = write_volume(tmp_path / "a.nii.gz", SERIES, AFFINE)
    with writing_volume(tmp_path / "b.nii.gz", SERIES.shape, AFFINE) as write:
        for number in range(3):
            write(SERIES[..., number])
    assert (tmp_path / "b.nii.gz").read_bytes() == whole.read_bytes()


def test_a_series_that_is_not_complete_is_not_written(tmp_path: Path) -> None:
    with (
        pytest.raises(ValueError, match="2 volumes are missing"),
        writing_volume(tmp_path / "a.nii", SERIES.shape, AFFINE) as write,
    ):
        write(SERIES[..., 0])
    with pytest.raises(VolumeError, match="shape"), writing_volume(tmp_path / "a.nii", SERIES.shape, AFFINE) as write:
        write(SERIES)
    assert list(tmp_path.iterdir()) == []


def test_the_finished_file_is_shown_before_it_takes_its_name(tmp_path: Path) -> None:
    seen: list[bytes] = []

    def look(partial: Path) -> None:
        assert not (tmp_path / "a.nii").exists()
        seen.append(partial.read_bytes())

    with writing_volume(tmp_path / "a.nii", (6, 5, 4), AFFINE, before=look) as write:
        write(voxels())
    assert seen == [(tmp_path / "a.nii").read_bytes()]


def test_what_a_killed_run_left_is_removed_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "sub" / ".0123456789abcdef.part").mkdir(parents=True)
    (tmp_path / "sub" / ".0123456789abcdef.part" / "SR00001.dcm").write_bytes(b"x")
    (tmp_path / ".0123456789abcdef.old").mkdir()
    kept = [".hidden", ".0123456789abcdef.partial", "0123456789abcdef.part", "a.part"]
    for name in (".fedcba9876543210.part", *kept):
        (tmp_path / name).write_bytes(b"x")
    assert remove_partial_files(tmp_path) == 3
    assert sorted(path.name for path in tmp_path.rglob("*")) == sorted([*kept, "sub"])


def test_a_block_that_fails_leaves_the_old_content(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"old")
    with pytest.raises(KeyError), replacing(tmp_path / "a") as stream:
        stream.write(b"new")
        raise KeyError
    assert (tmp_path / "a").read_bytes() == b"old" and len(list(tmp_path.iterdir())) == 1


# ----------------------------------------------------------------------------------------------------- data types

integer_types = st.sampled_from(["u1", "i1", "i2", "u2", "i4", "u4", "i8", "u8"])
reals = st.floats(-(2.0**100), 2.0**100, width=32)


@given(kind=integer_types, slope=st.floats(1e-3, 1e3), intercept=st.floats(-1e3, 1e3), ends=st.tuples(reals, reals))
def test_row_73_any_range_finds_a_slope_that_holds_it(kind, slope, intercept, ends) -> None:
    low, high = sorted(ends)
    storage = Storage(np.dtype(kind), slope, intercept).covering(low, high)
    values = np.linspace(low, high, 9, dtype=np.float64)
    stored = storage.encode(values)
    assert stored.dtype == np.dtype(kind).newbyteorder("<")
    back = stored.astype(np.float64) * storage.slope + storage.intercept
    rounding = 1e-9 * max(abs(low), abs(high), abs(storage.intercept))
    np.testing.assert_allclose(back, values, rtol=0, atol=0.5 * storage.slope + rounding)
    assert np.float32(storage.slope) == storage.slope or storage.slope == slope


@given(kind=integer_types, low=st.integers(-128, 0), high=st.integers(1, 127))
def test_a_range_that_fits_keeps_the_scaling(kind: str, low: int, high: int) -> None:
    storage = Storage(np.dtype(kind), 2.0, -5.0)
    if np.dtype(kind).kind == "u":
        low, high = 0, high - low
    assert storage.covering(2.0 * low - 5, 2.0 * high - 5) is storage


@pytest.mark.parametrize("value", [70_000.0, -32_769.0])
def test_row_73_values_beyond_the_type_are_an_error_and_never_wrap(value: float, tmp_path: Path) -> None:
    data = voxels(dtype="float32")
    data[1, 2, 3] = value
    with pytest.raises(VolumeError, match="1 values do not fit into int16; store the result as float32"):
        write_volume(tmp_path / "a.nii", data, AFFINE, storage=Storage(np.dtype("int16")))
    assert list(tmp_path.iterdir()) == []


@settings(max_examples=25, deadline=None)
@given(kind=st.sampled_from(["u1", "i2", "u2", "i4", "i8", "f4", "f8"]), slope=st.sampled_from([1.0, 0.5, 3.0]))
def test_another_reader_finds_the_values_in_the_asked_type(kind: str, slope: float) -> None:
    storage = Storage(np.dtype(kind), slope if kind[0] != "f" else 1.0)
    data = (voxels() % 60).astype(np.float32) * np.float32(storage.slope)
    with tempfile.TemporaryDirectory() as folder:
        image = nib.load(write_volume(Path(folder, "a.nii"), data, AFFINE, storage=storage))
        assert image.get_data_dtype() == np.dtype(kind)
        np.testing.assert_allclose(image.get_fdata(), data, rtol=1e-6)
