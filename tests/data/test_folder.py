"""Finding volumes, splitting them by subject, and naming results."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from bundle.data import (
    DatasetError,
    VolumeError,
    find_volumes,
    inference_datalist,
    output_paths,
    read_volume,
    training_datalist,
)


def touch(root: Path, *names: str) -> list[Path]:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"x")
    return [root / name for name in names]


def names(datalist: Sequence[dict[str, str]], root: Path) -> list[str]:
    return [os.path.relpath(item["image"], root) for item in datalist]


def table(root: Path, *rows: str, header: str = "file,subject,split", name: str = "splits.csv") -> Path:
    path = root / name
    path.write_text("\n".join((header, *rows)) + "\n", encoding="utf-8")
    return path


# ------------------------------------------------------------------------------------------------------- finding


def test_volumes_are_found_in_all_folders_sorted_and_in_any_letter_case(tmp_path: Path) -> None:
    touch(tmp_path, "b.nii", "a/z.NII.GZ", "a/b/c.nii.gz", "pair.hdr", "pair.img", "notes.txt", "x.nii.gz.json")
    found = [str(path.relative_to(tmp_path)) for path in find_volumes(tmp_path)]
    assert found == ["a/b/c.nii.gz", "a/z.NII.GZ", "b.nii", "pair.hdr"]


def test_hidden_files_and_folders_are_skipped(tmp_path: Path) -> None:
    touch(tmp_path, "._a.nii", ".cache/b.nii", "c.nii")
    assert [path.name for path in find_volumes(tmp_path)] == ["c.nii"]


def test_a_single_volume_is_a_list_of_one(tmp_path: Path) -> None:
    (path,) = touch(tmp_path, "a.nii.gz")
    assert find_volumes(path) == [path]
    assert inference_datalist(str(path)) == [{"image": str(path)}]


def test_the_output_folder_inside_the_dataset_can_be_left_out(tmp_path: Path) -> None:
    touch(tmp_path, "a.nii", "out/a_sr.nii.gz")
    assert names(inference_datalist(tmp_path, exclude=tmp_path / "out"), tmp_path) == ["a.nii"]
    assert len(inference_datalist(tmp_path, exclude=tmp_path)) == 2


def test_links_to_folders_are_followed_once_and_loops_end(tmp_path: Path) -> None:
    touch(tmp_path, "data/sub/a.nii", "elsewhere/b.nii")
    (tmp_path / "data" / "loop").symlink_to(tmp_path / "data")
    (tmp_path / "data" / "more").symlink_to(tmp_path / "elsewhere")
    found = [str(path.relative_to(tmp_path)) for path in find_volumes(tmp_path / "data")]
    assert found == ["data/more/b.nii", "data/sub/a.nii"]


def test_row_63_a_dangling_link_is_listed_so_that_reading_reports_it_and_the_rest_goes_on(tmp_path: Path) -> None:
    touch(tmp_path, "a.nii")
    (tmp_path / "b.nii").symlink_to(tmp_path / "gone")
    assert [path.name for path in find_volumes(tmp_path)] == ["a.nii", "b.nii"]
    with pytest.raises(VolumeError, match="dangling link"):
        read_volume(tmp_path / "b.nii")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        pytest.param(lambda path: None, "no such folder", id="missing"),
        pytest.param(
            lambda path: path.mkdir(),
            r"no NIfTI volumes \(.nii, .nii.gz, or .hdr with .img; also .mgz, .nrrd and .mha\)",
            id="empty",
        ),
        pytest.param(lambda path: path.write_bytes(b"x"), "not a volume by its name", id="another file"),
        pytest.param(os.mkfifo, "neither a folder nor a file", id="pipe"),
    ],
)
def test_a_useless_dataset_is_an_error_that_names_it(make: object, message: str, tmp_path: Path) -> None:
    path = tmp_path / "set"
    make(path)  # type: ignore[operator]
    with pytest.raises(DatasetError, match=message) as caught:
        find_volumes(path)
    assert str(caught.value).startswith(f"{path}: ") and "\n" not in str(caught.value)


# ----------------------------------------------------------------------------------------------- splits by table


def test_a_table_gives_the_files_of_a_split_and_extra_columns_are_ignored(tmp_path: Path) -> None:
    touch(tmp_path, "a.nii", "b.nii", "c.nii")
    header = "modality, split ,file,subject"
    csv = table(tmp_path, "MR,train,a.nii,s1", "PET,val,b.nii,s2", "MR,train,c.nii,s1", header=header)
    assert names(training_datalist(tmp_path, "train", csv), tmp_path) == ["a.nii", "c.nii"]
    assert names(training_datalist(tmp_path, "val", csv), tmp_path) == ["b.nii"]


def test_files_of_a_table_are_looked_for_beside_it_and_then_in_the_dataset(tmp_path: Path) -> None:
    touch(tmp_path, "lists/a.nii", "data/b.nii", "data/a.nii")
    csv = table(tmp_path / "lists", "a.nii,s1,train", "b.nii,s2,train")
    assert names(training_datalist(tmp_path / "data", "train", csv), tmp_path) == ["lists/a.nii", "data/b.nii"]


def test_a_table_with_a_byte_order_mark_is_read(tmp_path: Path) -> None:
    touch(tmp_path, "a.nii")
    csv = tmp_path / "splits.csv"
    csv.write_text("file,subject,split\na.nii,s,test\n", encoding="utf-8-sig")
    assert len(training_datalist(tmp_path, "test", csv)) == 1


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        pytest.param(["a.nii,s1,train", "b.nii,s1,val"], "subjects in more than one split: s1", id="mixed subject"),
        pytest.param(["a.nii,s1,train", "./a.nii,s2,val"], "listed twice", id="file twice"),
        pytest.param(["gone.nii,s1,train"], r"1 files do not exist: gone.nii \(line 2\)", id="missing file"),
        pytest.param(["a.nii,s1,val"], "no row has the split 'train'", id="empty split"),
        pytest.param([], "no row has the split 'train'", id="no rows"),
        pytest.param(["a.nii,s1,training"], "line 2 has the split 'training'", id="unknown split"),
        pytest.param(["a.nii,,train"], "line 2 has no file or no subject", id="no subject"),
        pytest.param(["a.nii"], "line 2 has no file or no subject", id="short row"),
    ],
)
def test_a_bad_table_is_an_error_that_says_where(rows: list[str], message: str, tmp_path: Path) -> None:
    touch(tmp_path, "a.nii", "b.nii")
    with pytest.raises(DatasetError, match=message):
        training_datalist(tmp_path, "train", table(tmp_path, *rows))


def test_a_table_without_the_columns_is_an_error_that_lists_what_was_found(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"no column subject, split \(columns found: file, patient\)"):
        training_datalist(tmp_path, "train", table(tmp_path, "a,b", header="file,patient"))


def test_a_missing_or_binary_table_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="cannot be read"):
        training_datalist(tmp_path, "train", tmp_path / "gone.csv")
    (tmp_path / "b.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DatasetError, match="not a CSV text file"):
        training_datalist(tmp_path, "train", tmp_path / "b.csv")


# ------------------------------------------------------------------------------------------------ splits by hash


def test_without_a_table_all_volumes_of_a_bids_subject_stay_together(tmp_path: Path) -> None:
    touch(tmp_path, *(f"sub-{n:02d}/anat/sub-{n:02d}_{kind}.nii.gz" for n in range(10) for kind in ("T1w", "T2w")))
    train = names(training_datalist(tmp_path, "train"), tmp_path)
    val = names(training_datalist(tmp_path, "val"), tmp_path)
    assert (len(train), len(val)) == (16, 4)
    assert not {name[:6] for name in train} & {name[:6] for name in val}


def test_the_draw_depends_on_the_seed_and_the_names_only(tmp_path: Path) -> None:
    files = [f"scan{n}.nii" for n in range(12)]
    touch(tmp_path / "one", *files)
    touch(tmp_path / "two" / "moved", *reversed(files))
    draws = [
        {Path(item["image"]).name for item in training_datalist(tmp_path / place, "val", seed=seed)}
        for place, seed in (("one", 0), ("two", 0), ("one", 1))
    ]
    assert draws[0] == draws[1] != draws[2]


@pytest.mark.parametrize(("fraction", "expected"), [(0.01, 1), (0.5, 2), (0.99, 3)])
def test_each_side_of_the_draw_has_a_subject(fraction: float, expected: int, tmp_path: Path) -> None:
    touch(tmp_path, *(f"{n}.nii" for n in range(4)))
    assert len(training_datalist(tmp_path, "val", val_fraction=fraction)) == expected


def test_volumes_without_a_subject_label_are_reported(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    touch(tmp_path, "a_t1.nii", "a_t2.nii", "sub-1/sub-1.nii")
    with caplog.at_level(logging.WARNING, "iconet"):
        training_datalist(tmp_path, "train")
    assert "2 volumes without a BIDS subject label" in caplog.text


def test_a_single_subject_is_refused_where_its_slices_are_not_to_be_divided(tmp_path: Path) -> None:
    touch(tmp_path, "sub-1/sub-1_T1w.nii", "sub-1/sub-1_T2w.nii")
    with pytest.raises(DatasetError, match=r"only one subject .'sub-1'.*give more volumes or a split file"):
        training_datalist(tmp_path, "train")


def volume(path: Path, *shape: int, sizes: tuple[float, float, float] = (1, 1, 4)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(np.zeros(shape, np.uint8), np.diag([*sizes, 1.0])), path)
    return path


@pytest.mark.parametrize(
    ("slices", "train", "val"),
    [(2, [0, 1], [1, 2]), (3, [0, 1], [2, 3]), (11, [0, 8], [9, 11]), (40, [0, 31], [32, 40])],
)
def test_the_slices_of_a_single_subject_are_divided_with_one_between_them(
    slices: int, train: list[int], val: list[int], tmp_path: Path
) -> None:
    for name in ("sub-1_T1w.nii", "sub-1_T2w.nii"):
        volume(tmp_path / name, 6, 5, slices)
    for split, part in (("train", train), ("val", val)):
        items = training_datalist(tmp_path, split, slice_axis=2)
        assert [item["slices"] for item in items] == [[2, *part]] * 2


def test_the_slices_are_divided_along_the_axis_that_is_given_or_has_the_largest_voxels(tmp_path: Path) -> None:
    volume(tmp_path / "scan.nii", 10, 6, 5, sizes=(4, 1, 1))
    for axis, expected in ((0, [0, 0, 7]), ("auto", [0, 0, 7]), (2, [2, 0, 3])):
        assert training_datalist(tmp_path, "train", slice_axis=axis)[0]["slices"] == expected  # type: ignore[arg-type]


def test_what_figures_of_a_single_subject_are_worth_is_said_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    volume(tmp_path / "scan.nii", 6, 5, 4)
    with caplog.at_level(logging.WARNING, "iconet"):
        for split in ("train", "val"):
            training_datalist(tmp_path, split, slice_axis=2)
    (line,) = caplog.messages
    assert "only one subject (scan)" in line and "say nothing about other subjects" in line


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((6, 5), "a single 2-D image"),
        ((6, 5, 1), "a single slice along axis 2"),
        ((6, 5, 4, 2), "a series of 4 dimensions"),
    ],
)
def test_a_single_image_that_has_no_slices_to_divide_is_one_line(
    shape: tuple[int, ...], message: str, tmp_path: Path
) -> None:
    path = volume(tmp_path / "scan.nii", *shape)
    with pytest.raises(DatasetError, match=message) as caught:
        training_datalist(tmp_path, "train", slice_axis=2)
    assert str(caught.value).startswith(f"{path}: ") and "volumes of more subjects" in str(caught.value)


def test_several_subjects_keep_all_their_slices(tmp_path: Path) -> None:
    for name in ("a.nii", "b.nii"):
        volume(tmp_path / name, 6, 5, 4)
    assert [item.keys() for item in training_datalist(tmp_path, "train", slice_axis=2)] == [{"image"}]


def test_a_test_split_needs_a_table(tmp_path: Path) -> None:
    touch(tmp_path, "a.nii", "b.nii")
    with pytest.raises(DatasetError, match="a test split needs a split file"):
        training_datalist(tmp_path, "test")


@pytest.mark.parametrize("options", [{"split": "all"}, {"split": "val", "val_fraction": 1.0}], ids=str)
def test_bad_arguments_are_errors(options: dict, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"split must be|val_fraction must be"):
        training_datalist(tmp_path, **options)


# ------------------------------------------------------------------------------------------------------- outputs


def test_row_67_results_mirror_the_tree_so_that_equal_names_do_not_meet(tmp_path: Path) -> None:
    sources = touch(tmp_path / "in", "a/x.nii.gz", "b/x.nii", "b/y.HDR", "Z.NII.GZ")
    paths = output_paths(sources, tmp_path / "in", tmp_path / "out", "sr")
    expected = ["a/x_sr.nii.gz", "b/x_sr.nii.gz", "b/y_sr.nii.gz", "Z_sr.nii.gz"]
    assert [str(path.relative_to(tmp_path / "out")) for path in paths] == expected


def test_sources_that_ask_for_one_name_get_different_ones_whatever_their_order(tmp_path: Path) -> None:
    sources = touch(tmp_path / "in", "a.nii", "a.nii.gz", "a.hdr", "A.nii", "a-nii.nii.gz")
    paths = output_paths(sources, tmp_path / "in", tmp_path / "out", "sr")
    assert len({str(path).casefold() for path in paths}) == len(sources)
    assert paths[1].name == "a_sr.nii.gz" and paths[4].name == "a-nii_sr.nii.gz"
    assert output_paths(sources[::-1], tmp_path / "in", tmp_path / "out", "sr") == paths[::-1]


def test_a_single_volume_as_dataset_goes_straight_into_the_output_folder(tmp_path: Path) -> None:
    (source,) = touch(tmp_path, "deep/x.nii")
    assert output_paths([source], source, tmp_path / "out", "sr") == [tmp_path / "out" / "x_sr.nii.gz"]


def test_linked_volumes_keep_their_place_in_the_tree(tmp_path: Path) -> None:
    (real,) = touch(tmp_path, "store/123.nii.gz")
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "x.nii.gz").symlink_to(real)
    paths = output_paths(find_volumes(tmp_path / "in"), tmp_path / "in", tmp_path / "out", "sr")
    assert paths == [tmp_path / "out" / "x_sr.nii.gz"]


@pytest.mark.parametrize("name", ["../x.nii", "sub/../../x.nii"])
def test_row_68_a_source_outside_the_dataset_is_an_error(name: str, tmp_path: Path) -> None:
    touch(tmp_path, "x.nii", "in/sub/y.nii")
    with pytest.raises(DatasetError, match="outside the dataset folder"):
        output_paths([tmp_path / "in" / name], tmp_path / "in", tmp_path / "out", "sr")


def test_row_68_a_link_inside_the_output_folder_must_not_lead_out_of_it(tmp_path: Path) -> None:
    sources = touch(tmp_path, "in/sub/x.nii")
    (tmp_path / "out").mkdir()
    (tmp_path / "secret").mkdir()
    (tmp_path / "out" / "sub").symlink_to(tmp_path / "secret")
    with pytest.raises(DatasetError, match="leads outside the output folder"):
        output_paths(sources, tmp_path / "in", tmp_path / "out", "sr")


def test_row_116_the_output_folder_itself_may_be_a_link(tmp_path: Path) -> None:
    sources = touch(tmp_path, "in/x.nii")
    (tmp_path / "disk").mkdir()
    (tmp_path / "out").symlink_to(tmp_path / "disk")
    assert output_paths(sources, tmp_path / "in", tmp_path / "out", "sr") == [tmp_path / "out" / "x_sr.nii.gz"]


@pytest.mark.parametrize("suffix", ["../sr", "a/b", "", "s r", "\0"], ids=repr)
def test_row_68_an_unsafe_suffix_is_an_error(suffix: str, tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="unsafe suffix"):
        output_paths([], tmp_path, tmp_path / "out", suffix)


def test_row_66_a_result_never_takes_the_place_of_an_input(tmp_path: Path) -> None:
    sources = touch(tmp_path, "x.nii.gz", "x_sr.nii.gz")
    with pytest.raises(DatasetError, match="would overwrite an input"):
        output_paths(sources, tmp_path, tmp_path, "sr")
