"""The command as people use it: options, file names, resuming, errors, and what it leaves behind."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import sys
import weakref
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from cli_command import command, record, results
from conftest import blob_volume
from filelock import FileLock
from monai.bundle import ConfigWorkflow

from bundle.cli.run import LOCK
from bundle.data import VolumeFile, atomic

BLOB = blob_volume((12, 10, 3), (5.5, 4.0, 1.0), sigma=3.0)

Write = Callable[..., Path]


@pytest.fixture
def one(tmp_path: Path, write_nifti: Write) -> Path:
    """A folder `in` with one volume `a/x.nii.gz`; returns the volume."""
    return write_nifti(tmp_path / "in" / "a" / "x.nii.gz", BLOB)


# -------------------------------------------------------------------------------------------------------- results


def test_a_folder_gives_the_same_tree_with_records_and_a_table(one: Path, tmp_path: Path) -> None:
    done = command(tmp_path / "in", tmp_path / "out")
    assert done.exit_code == 0, done.output
    assert tree(tmp_path / "out") == ["a/x_SRx2.json", "a/x_SRx2.nii.gz", "results.csv"]
    row = results(tmp_path / "out")["a/x.nii.gz"]
    assert (row["status"], row["shape"], row["result_shape"]) == ("done", "12x10x3", "24x20x3")
    content = record(tmp_path / "out" / "a" / "x_SRx2.nii.gz")
    facts = content["SuperResolution"]
    assert content["Sources"] == ["a/x.nii.gz"] and content["GeneratedBy"][0]["Name"] == "ICONet SR"
    assert content["Resolution"].startswith("0.75 x 0.625 x 4 mm")
    assert facts["Provenance"]["InputSha256"] == row["input_sha256"] == sha256(one)
    assert facts["Provenance"]["OutputSha256"] == sha256(tmp_path / "out" / "a" / "x_SRx2.nii.gz")
    assert 0 <= facts["DataConsistencyResidual"] < 0.05
    assert str(tmp_path) not in json.dumps(content)


def test_one_file_can_be_given_a_name(one: Path, tmp_path: Path) -> None:
    assert command(one, tmp_path / "fine.nii", "--scale", 4).exit_code == 0
    assert nib.load(tmp_path / "fine.nii").shape == (48, 40, 3)
    assert tree(tmp_path) == ["fine.json", "fine.nii", "in/a/x.nii.gz"]


def test_the_result_has_the_bytes_that_the_monai_workflow_writes(one: Path, tmp_path: Path, bundle_root: Path) -> None:
    assert command(tmp_path / "in", tmp_path / "cli").exit_code == 0
    workflow = ConfigWorkflow(
        config_file=str(bundle_root / "configs" / "inference.json"),
        workflow_type="inference",
        bundle_root=str(bundle_root),
        dataset_dir=str(tmp_path / "in"),
        output_dir=str(tmp_path / "monai"),
        device="cuda" if torch.cuda.is_available() else "cpu",
    )
    workflow.initialize()
    workflow.run()
    name = Path("a", "x_SRx2.nii.gz")
    assert (tmp_path / "cli" / name).read_bytes() == (tmp_path / "monai" / name).read_bytes()


@pytest.mark.parametrize(("option", "shape"), [("auto", (12, 20, 6)), ("1", (24, 10, 6)), ("2", (24, 20, 3))])
def test_slices_run_along_the_asked_axis_or_the_widest(option: str, shape: tuple, tmp_path: Path, write_nifti: Write):
    source = write_nifti(tmp_path / "x.nii", BLOB, np.diag([5.0, 1.0, 2.0, 1.0]))
    assert command(source, tmp_path / "y.nii", "--slice-axis", option).exit_code == 0
    assert nib.load(tmp_path / "y.nii").shape == shape


def test_row_35_a_series_is_treated_volume_by_volume_and_keeps_its_time(tmp_path: Path) -> None:
    image = nib.Nifti1Image(np.stack([BLOB, 50 * BLOB], -1), np.diag([1, 1, 3, 1]))
    image.header.set_xyzt_units("mm", "sec")
    image.header["pixdim"][4] = 2.5
    nib.save(image, tmp_path / "series.nii.gz")
    nib.save(nib.Nifti1Image(BLOB, image.affine), tmp_path / "single.nii.gz")
    for name in ("series", "single"):
        assert command(tmp_path / f"{name}.nii.gz", tmp_path / f"{name}_fine.nii.gz").exit_code == 0
    series, single = (nib.load(tmp_path / f"{name}_fine.nii.gz") for name in ("series", "single"))
    assert float(series.header["pixdim"][4]) == 2.5 and series.header.get_xyzt_units() == ("mm", "sec")
    np.testing.assert_array_equal(series.dataobj[..., 0], single.get_fdata())
    np.testing.assert_allclose(series.dataobj[..., 1], 50 * single.get_fdata(), rtol=1e-4, atol=1e-2)
    scales = record(tmp_path / "series_fine.nii.gz")["SuperResolution"]["IntensityScale"]
    assert scales[1] == pytest.approx(50 * scales[0])


def test_rows_10_and_11_nan_and_inf_become_zero_on_request_and_it_is_recorded(tmp_path: Path, write_nifti: Write):
    data = BLOB.copy()
    data[3, 4, 1], data[0, 0, 0] = np.nan, np.inf
    source = write_nifti(tmp_path / "x.nii", data)
    assert command(source, tmp_path / "y.nii").exit_code == 1
    assert command(source, tmp_path / "y.nii", "--nonfinite", "zero").exit_code == 0
    assert np.isfinite(nib.load(tmp_path / "y.nii").get_fdata()).all()
    assert "1 NaN and 1 infinite voxels of 360 set to zero" in record_of(tmp_path / "y.json")["Warnings"]


@pytest.mark.parametrize("kind", ["uint8", "int16", "uint16", "int32", "float64"])
def test_the_number_type_of_the_input_can_be_kept(kind: str, tmp_path: Path, write_nifti: Write) -> None:
    source = write_nifti(tmp_path / "x.nii", (BLOB / 10 + 20).astype(kind))
    assert command(source, tmp_path / "y.nii", "--dtype", "same").exit_code == 0
    assert command(source, tmp_path / "z.nii").exit_code == 0
    same, full = nib.load(tmp_path / "y.nii"), nib.load(tmp_path / "z.nii")
    assert same.get_data_dtype() == kind and full.get_data_dtype() == np.float32
    np.testing.assert_allclose(same.get_fdata(), full.get_fdata(), atol=0.5 if kind != "float64" else 0)


@pytest.mark.parametrize("series", [False, True])
def test_row_73_integers_that_would_overflow_get_another_slope_and_never_wrap(series, tmp_path, write_nifti):
    data = np.zeros((12, 10, 2), np.uint8)
    data[3:9, 3:7] = 255  # a box at the maximum of the type: its edges overshoot
    source = write_nifti(tmp_path / "x.nii", np.stack([data, data // 2], -1) if series else data)
    assert command(source, tmp_path / "y.nii", "--dtype", "same", "--data-consistency", 0.5).exit_code == 0
    assert command(source, tmp_path / "z.nii", "--data-consistency", 0.5).exit_code == 0
    same, full = nib.load(tmp_path / "y.nii"), nib.load(tmp_path / "z.nii")
    assert same.get_data_dtype() == np.uint8 and full.get_fdata().max() > 255
    np.testing.assert_allclose(same.get_fdata(), full.get_fdata(), atol=0.51 * same.dataobj.slope)
    assert any("do not fit the source's scaling" in text for text in record_of(tmp_path / "y.json")["Warnings"])


def test_data_consistency_can_be_turned_down(one: Path, tmp_path: Path) -> None:
    for weight in (0, 0.5, 1):
        assert command(one, tmp_path / f"{weight}.nii", "--data-consistency", weight).exit_code == 0
    residuals = [record_of(tmp_path / f"{weight}.json")["DataConsistencyResidual"] for weight in (1, 0.5, 0)]
    assert residuals == sorted(residuals) and residuals[0] < residuals[2]


def test_row_67_equal_names_in_different_folders_and_of_different_kinds_stay_apart(tmp_path, write_nifti) -> None:
    for n, name in enumerate(("a/x.nii.gz", "b/x.nii.gz", "b/x.nii"), start=1):
        write_nifti(tmp_path / "in" / name, n * BLOB)
    nib.save(nib.Nifti1Pair(4 * BLOB, np.eye(4)), tmp_path / "in" / "b" / "x.img")
    assert command(tmp_path / "in", tmp_path / "out").exit_code == 0
    peaks = {
        name: nib.load(tmp_path / "out" / name).get_fdata().max() / BLOB.max()
        for name in tree(tmp_path / "out", "*.gz")
    }
    assert {name: round(peak) for name, peak in peaks.items()} == {
        "a/x_SRx2.nii.gz": 1,
        "b/x_SRx2.nii.gz": 2,
        "b/x-nii_SRx2.nii.gz": 3,
        "b/x-hdr_SRx2.nii.gz": 4,
    }


# ------------------------------------------------------------------------------------------------------- resuming


def test_what_is_done_is_skipped_and_keeps_its_row(one: Path, tmp_path: Path) -> None:
    command(tmp_path / "in", tmp_path / "out")
    before, first = times(tmp_path / "out"), results(tmp_path / "out")["a/x.nii.gz"]
    assert command(tmp_path / "in", tmp_path / "out").exit_code == 0
    second = results(tmp_path / "out")["a/x.nii.gz"]
    assert second["status"] == "skipped"
    assert {k: v for k, v in second.items() if k not in ("status", "seconds")} == {
        k: v for k, v in first.items() if k not in ("status", "seconds")
    }
    assert times(tmp_path / "out") == before


def change_input(out: Path, source: Path) -> None:
    nib.save(nib.Nifti1Image(BLOB + 1, np.diag([1, 1, 3, 1])), source)


def delete_result(out: Path, source: Path) -> None:
    (out / "a" / "x_SRx2.nii.gz").unlink()


def damage_result(out: Path, source: Path) -> None:
    path = out / "a" / "x_SRx2.nii.gz"
    path.write_bytes(path.read_bytes()[:-9])


def older_version(out: Path, source: Path) -> None:
    path = out / "a" / "x_SRx2.json"
    content = json.loads(path.read_text())
    content["SuperResolution"]["Provenance"]["Version"] = "0.0.1"
    path.write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("change", "options", "reason"),
    [
        (change_input, (), "the input changed"),
        (delete_result, (), "the result is missing"),
        (damage_result, (), "the result is not what was written"),
        (older_version, (), "made by another version"),
        (None, ("--dtype", "same"), "the settings changed"),
        (None, ("--overwrite",), "overwrite"),
    ],
)
def test_what_changed_is_redone_and_the_reason_is_told(change, options, reason, one: Path, tmp_path: Path) -> None:
    command(tmp_path / "in", tmp_path / "out")
    if change:
        change(tmp_path / "out", one)
    done = command(tmp_path / "in", tmp_path / "out", *options)
    assert done.exit_code == 0 and f"a/x.nii.gz: {reason}" in done.stderr
    assert results(tmp_path / "out")["a/x.nii.gz"]["status"] == "done"
    assert (
        "0 done, 1 skipped" in command(tmp_path / "in", tmp_path / "out", *options).stderr or "--overwrite" in options
    )


def test_other_weights_redo_all(one: Path, tmp_path: Path, bundle_root: Path) -> None:
    command(tmp_path / "in", tmp_path / "out")
    state = torch.load(bundle_root / "models" / "model.pt", weights_only=True)
    torch.save({name: tensor * 1.01 for name, tensor in state.items()}, tmp_path / "other.pt")
    done = command(tmp_path / "in", tmp_path / "out", "--weights", tmp_path / "other.pt")
    assert "a/x.nii.gz: the weights changed" in done.stderr


@pytest.mark.parametrize("name", ["x_SRx2.nii.gz", "x_SRx2.json"])
def test_row_66_a_file_that_another_program_made_is_kept_unless_told(name: str, one: Path, tmp_path: Path) -> None:
    foreign = tmp_path / "out" / "a" / name
    foreign.parent.mkdir(parents=True)
    foreign.write_text('{"GeneratedBy": [{"Name": "something else"}]}')
    done = command(tmp_path / "in", tmp_path / "out")
    assert done.exit_code == 1 and f"{name}: exists and was not made by this program" in done.stderr
    assert "something else" in foreign.read_text()
    assert command(tmp_path / "in", tmp_path / "out", "--overwrite").exit_code == 0
    assert b"something else" not in foreign.read_bytes()


def test_a_dry_run_tells_what_would_be_done_and_writes_nothing(one: Path, tmp_path: Path) -> None:
    (tmp_path / "in" / "bad.nii").write_bytes(b"")
    done = command(tmp_path / "in", tmp_path / "out", "--dry-run")
    assert done.exit_code == 1
    assert f"a/x.nii.gz (12x10x3) -> {tmp_path / 'out' / 'a' / 'x_SRx2.nii.gz'}: new" in done.stderr
    assert "bad.nii: empty file" in done.stderr
    assert not (tmp_path / "out").exists()


def test_two_runs_do_not_share_an_output_folder(one: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with FileLock(tmp_path / "out" / LOCK):
        done = command(tmp_path / "in", tmp_path / "out")
    assert done.exit_code == 2 and "another run is writing there" in done.stderr
    assert command(tmp_path / "in", tmp_path / "out").exit_code == 0


def test_the_log_has_one_json_object_a_line_and_grows(one: Path, tmp_path: Path) -> None:
    for _ in range(2):
        command(tmp_path / "in", tmp_path / "out", "--data-consistency", "1", "--log-json", tmp_path / "log.jsonl")
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    events = [line["event"] for line in lines if "event" in line]
    assert events == ["start", "device", "volume", "done", "end", "start", "skipped", "end"]
    assert lines[-1]["skipped"] == 1 and all(line["time"].endswith("+00:00") for line in lines)


def test_a_report_shows_what_is_done_now_and_what_was_done_before(one: Path, tmp_path: Path, write_nifti: Write):
    pytest.importorskip("jinja2", reason="the report needs jinja2")
    command(tmp_path / "in", tmp_path / "out")
    write_nifti(tmp_path / "in" / "<b>&.nii", np.stack([BLOB] * 2, -1))
    (tmp_path / "in" / "bad.nii").write_bytes(b"")
    assert command(tmp_path / "in", tmp_path / "out", "--report").exit_code == 1
    page = (tmp_path / "out" / "report.html").read_text()
    for text in ("a/x.nii.gz", "&lt;b&gt;&amp;.nii", "bad.nii: empty file", "residual_sr"):
        assert text in page
    assert "<b>&.nii" not in page and str(tmp_path / "out") not in page
    assert command(one, tmp_path / "fine.nii.gz", "--report").exit_code == 0
    assert (tmp_path / "fine_report.html").is_file()


# ------------------------------------------------------------------------------------------------------ wrong use


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("in",), "Missing argument 'OUTPUT'"),
        (("gone", "out"), "no such file or folder; check the path"),
        (("in", "out", "--scale", "3"), "'3' is not one of '2', '4', '8'"),
        (("in", "out", "--slice-axes", "1"), "no such option"),
        (("in", "out", "--data-consistency", "2"), "auto or a number from 0 to 1"),
        (("in", "in"), "input and output folder are the same"),
        (("in", "in/a/x.nii.gz"), "would overwrite an input"),
        (("in/a/x.nii.gz", "in/a/x.nii.gz"), "would overwrite an input"),
        (("in", "out.hdr"), "results are written as .nii or .nii.gz"),
        (("in", "notes.txt"), "exists and is not a folder"),
        (("empty", "out"), "no NIfTI volumes"),
        (("empty.nii", "out"), "no NIfTI volumes"),
        (("notes.txt", "out"), "notes.txt"),
        (("in", "out", "--network-name", "nonet"), "no network 'nonet'; there are residual_sr"),
        (("in", "out", "--device", "abacus"), "no device 'abacus'"),
        (("in", "out", "--scale", "8"), "no weights of residual_sr 8x"),
        (("in", "out", "--weights", "notes.txt"), "not a file of plain tensors"),
        (("in", "out", "--log-json", "notes.txt"), "is not a log of JSON lines"),
        (("in", "out", "--log-json", "notes.txt/log"), "the log cannot be written"),
        (("in", "out.nii", "--to", "dicom"), "but --to dicom"),
    ],
)
def test_wrong_use_is_one_line_and_status_2(arguments, message, one: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    for folder in ("empty", "empty.nii"):
        (tmp_path / folder).mkdir()
    (tmp_path / "notes.txt").write_text("hello\n")
    before = {path: sha256(tmp_path / path) for path in tree(tmp_path)}
    done = command(*arguments)
    assert done.exit_code == 2 and message in done.stderr
    assert "Traceback" not in done.output
    assert {path: sha256(tmp_path / path) for path in tree(tmp_path)} == before


def test_nifti_does_not_become_dicom(one: Path, tmp_path: Path) -> None:
    done = command(tmp_path / "in", tmp_path / "out", "--to", "dicom")
    assert done.exit_code == 1 and "has no patient and no study" in done.stderr


def test_help_teaches_by_examples_and_names_the_exit_codes() -> None:
    text = command("--help").output
    for part in ("python -m bundle IN OUT --scale 4", "1 some failed", "Not a medical device", "--slice-axis"):
        assert part in text


# -------------------------------------------------------------------------------------------------- hostile places


def test_row_66_the_input_is_not_overwritten_through_links(one: Path, tmp_path: Path) -> None:
    before = sha256(one)
    (tmp_path / "link.nii.gz").symlink_to(one)
    (tmp_path / "hard.nii.gz").hardlink_to(one)
    assert command(one, tmp_path / "link.nii.gz", "--overwrite").exit_code == 2
    assert command(one, tmp_path / "hard.nii.gz", "--overwrite").exit_code != 0
    assert sha256(one) == before


def test_row_68_a_link_inside_the_output_folder_must_not_lead_out_of_it(one: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "out" / "a").symlink_to(tmp_path / "elsewhere")
    done = command(tmp_path / "in", tmp_path / "out")
    assert done.exit_code == 2 and "leads outside the output folder" in done.stderr
    assert tree(tmp_path / "elsewhere") == []


def test_row_116_the_output_folder_itself_may_be_a_link(one: Path, tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "out").symlink_to(tmp_path / "real")
    assert command(tmp_path / "in", tmp_path / "out").exit_code == 0
    assert "a/x_SRx2.nii.gz" in tree(tmp_path / "real")


@pytest.mark.parametrize(
    "name", ["\x1b[31mred", "new\nline", "=1+1", "%s {x} [bold]", "ü ñ 音", "\udcff raw byte", "-x"]
)
def test_row_64_any_file_name_is_carried_and_shown_without_harm(
    name, tmp_path: Path, write_nifti: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    # the log that pytest captures must be UTF-8 to reach the process that prints it
    monkeypatch.setattr(logging.getLogger("iconet"), "propagate", False)
    write_nifti(tmp_path / "in" / "plain.nii", BLOB).rename(tmp_path / "in" / f"{name}.nii")
    done = command(tmp_path / "in", tmp_path / "out", "--log-json", tmp_path / "log.jsonl")
    assert done.exit_code == 0, done.output
    assert (tmp_path / "out" / f"{name}_SRx2.nii.gz").is_file()
    assert record(tmp_path / "out" / f"{name}_SRx2.nii.gz")["Sources"] == [f"{name}.nii"]
    assert "\x1b" not in done.stderr and all(json.loads(line) for line in (tmp_path / "log.jsonl").open())
    assert len(results(tmp_path / "out")) == 1
    assert "1 skipped" in command(tmp_path / "in", tmp_path / "out").stderr


def test_row_112_options_are_text_and_nothing_in_them_is_evaluated(one: Path, tmp_path: Path) -> None:
    done = command(one, tmp_path / "out", "--network-name", f"$__import__('os').mkdir('{tmp_path / 'ran'}')")
    assert done.exit_code == 2 and "no network" in done.stderr and not (tmp_path / "ran").exists()


def test_row_119_an_npz_with_pickles_is_no_volume(tmp_path: Path, write_nifti: Write) -> None:
    write_nifti(tmp_path / "in" / "x.nii", BLOB)
    np.savez(tmp_path / "in" / "y.npz", np.array([object()], dtype=object))
    (tmp_path / "in" / "y.npz").rename(tmp_path / "in" / "y.nii.gz")
    done = command(tmp_path / "in", tmp_path / "out")
    assert done.exit_code == 1 and "y.nii.gz: not a NIfTI file" in done.stderr
    assert results(tmp_path / "out")["x.nii"]["status"] == "done"


@pytest.mark.slow
def test_row_120_a_hundred_thousand_other_files_do_not_matter(one: Path, tmp_path: Path) -> None:
    for number in range(100):
        (tmp_path / "in" / f"{number:03d}").mkdir()
        for file in range(1000):
            (tmp_path / "in" / f"{number:03d}" / f"{file}.txt").touch()
    assert command(tmp_path / "in", tmp_path / "out").exit_code == 0
    assert list(results(tmp_path / "out")) == ["a/x.nii.gz"]


# --------------------------------------------------------------------------------------------------------- the disk


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="/proc is a folder that nobody can write to")
def test_row_65_an_output_folder_that_cannot_be_written_is_wrong_use(one: Path, tmp_path: Path) -> None:
    done = command(tmp_path / "in", "/proc/nowhere")
    assert done.exit_code == 2 and "cannot be written" in done.stderr


def test_row_65_a_file_in_the_way_of_a_folder_fails_its_volumes_alone(one: Path, tmp_path: Path, write_nifti: Write):
    write_nifti(tmp_path / "in" / "b" / "y.nii", BLOB)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "a").write_text("in the way")
    done = command(tmp_path / "in", tmp_path / "out")
    assert done.exit_code == 1 and "x_SRx2.nii.gz: cannot be written" in done.stderr
    assert tree(tmp_path / "out") == ["a", "b/y_SRx2.json", "b/y_SRx2.nii.gz", "results.csv"]


def test_row_65_a_disk_that_is_full_in_the_middle_of_a_file_leaves_nothing_of_it(tmp_path: Path, write_nifti: Write):
    resource = pytest.importorskip("resource")
    noise = np.random.default_rng(0).uniform(1, 100, (40, 40, 6)).astype(np.float32)
    write_nifti(tmp_path / "in" / "big.nii", noise)
    write_nifti(tmp_path / "in" / "small.nii", BLOB)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, hard))  # a write beyond it fails as on a full disk
    try:
        done = command(tmp_path / "in", tmp_path / "out")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert done.exit_code == 1 and "big_SRx2.nii.gz: cannot be written (File too large)" in done.stderr
    assert tree(tmp_path / "out") == ["results.csv", "small_SRx2.json", "small_SRx2.nii.gz"]


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_row_65_whatever_step_the_disk_refuses_no_half_result_stays(step, one: Path, tmp_path: Path, monkeypatch):
    real, count = getattr(os, step), 0

    def refuse(*arguments: object) -> object:
        nonlocal count
        count += 1
        if count == 2:  # the first is the record's, the second that of the result itself, or the reverse
            raise OSError(28, "No space left on device")
        return real(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(atomic.os, step, refuse)
        done = command(tmp_path / "in", tmp_path / "out")
    assert done.exit_code == 1 and "No space left on device" in done.stderr
    assert tree(tmp_path / "out") == ["results.csv"]
    assert command(tmp_path / "in", tmp_path / "out").exit_code == 0


def test_of_a_series_one_volume_is_in_memory_at_a_time(tmp_path: Path, write_nifti: Write, monkeypatch) -> None:
    alive, most = 0, 0

    def counted(file: VolumeFile):
        nonlocal alive, most
        for frame in real(file):
            alive += 1
            most = max(most, alive)
            weakref.finalize(frame, lost)
            yield frame
            del frame

    def lost() -> None:
        nonlocal alive
        alive -= 1

    real = VolumeFile.frames
    monkeypatch.setattr(VolumeFile, "frames", counted)
    write_nifti(tmp_path / "x.nii", np.stack([BLOB] * 5, -1))
    assert command(tmp_path / "x.nii", tmp_path / "y.nii").exit_code == 0
    assert most <= 2


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def tree(folder: Path, pattern: str = "*") -> list[str]:
    """Files below a folder, but for the lock."""
    found = (path for path in folder.rglob(pattern) if path.is_file() and path.name != LOCK)
    return sorted(path.relative_to(folder).as_posix() for path in found)


def times(folder: Path) -> dict[str, int]:
    return {name: (folder / name).stat().st_mtime_ns for name in tree(folder) if name != "results.csv"}


def record_of(sidecar: Path) -> dict:
    return json.loads(sidecar.read_bytes())["SuperResolution"]
