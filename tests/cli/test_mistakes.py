"""Mistakes of a first hour get one line that helps, and a run says as much as was asked for."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from cli_command import command
from click.testing import Result

from bundle.cli import progress


@pytest.fixture
def scan(tmp_path: Path) -> Path:
    path = tmp_path / "in" / "x.nii.gz"
    path.parent.mkdir()
    voxels = np.random.default_rng(0).random((8, 9, 3), dtype=np.float32)
    nib.save(nib.Nifti1Image(voxels, np.diag([1.0, 1, 4, 1])), path)
    return path


def refused(done: Result, *words: str) -> None:
    """Status 2, and one line of error with these words."""
    assert done.exit_code == 2
    (line,) = [line for line in done.output.splitlines() if line.startswith("Error")]
    assert all(word in line for word in words), line


@pytest.mark.parametrize(
    ("name", "remedy"),
    [("x.mgz", "mri_convert"), ("x.nrrd", "NIfTI"), ("x.png", "voxel size"), ("x.zip", "unpack"), ("x.npy", "affine")],
)
def test_a_format_that_is_not_read_is_named_with_its_remedy(name: str, remedy: str, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / name).touch()
    refused(command(tmp_path / "in" / name, tmp_path / "out"), name, remedy)
    refused(command(tmp_path / "in", tmp_path / "out"), Path(name).suffix, remedy)


def test_a_format_that_is_not_written_is_named(scan: Path, tmp_path: Path) -> None:
    refused(command(scan, tmp_path / "fine.mgz"), "fine.mgz", ".nii.gz")


def test_swapped_arguments_are_suspected(scan: Path, tmp_path: Path) -> None:
    refused(command(tmp_path / "fine", scan.parent), "INPUT and OUTPUT swapped")
    refused(command(tmp_path / "fine", tmp_path / "nothing"), "check the path")


def test_results_of_earlier_runs_are_not_taken_as_input(scan: Path, tmp_path: Path) -> None:
    assert command(scan, scan.with_name("fine.nii.gz")).exit_code == 0
    assert command(scan.parent, tmp_path / "out").exit_code == 0
    assert [path.name for path in (tmp_path / "out").glob("*.nii.gz")] == ["x_SRx2.nii.gz"]
    refused(command(tmp_path / "out/x_SRx2.nii.gz", tmp_path / "again"), "--scale 4")
    refused(command(tmp_path / "out", tmp_path / "again"), "originals")


def test_a_folder_of_results_may_lie_below_the_input(scan: Path) -> None:
    for _ in range(2):
        assert command(scan.parent, scan.parent / "out").exit_code == 0
    assert [path.name for path in (scan.parent / "out").rglob("*.nii.gz")] == ["x_SRx2.nii.gz"]


def test_quiet_shows_nothing_of_a_run_without_doubts_and_every_failure_once(scan: Path, tmp_path: Path) -> None:
    (scan.parent / "bad.nii").write_bytes(b"")
    done = command(scan.parent, tmp_path / "out", "--quiet")
    assert done.exit_code == 1 and done.output.count("bad.nii") == 1
    assert "x.nii.gz" not in "".join(line for line in done.output.splitlines() if not line.startswith("warning"))


def test_without_a_terminal_a_long_volume_gets_lines_of_progress(
    scan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "EVERY", 0.0)
    done = command(scan.parent, tmp_path / "out", "--slice-batch", 1)
    assert "of 3 slices" in done.output and "\r" not in done.output
