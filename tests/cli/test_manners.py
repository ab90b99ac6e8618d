"""What a newcomer gets wrong is answered in one line, and a run says no more than it has to."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from cli_command import command, results
from torch import nn

from bundle.cli import progress
from bundle.cli.progress import Progress

Write = Callable[..., Path]


@pytest.fixture
def scan(tmp_path: Path, write_nifti: Write) -> Path:
    voxels = np.random.default_rng(0).gamma(2.0, 40.0, (10, 12, 2)).astype(np.float32)
    return write_nifti(tmp_path / "in" / "scan.nii.gz", voxels)


def one_line(*arguments: object) -> str:
    done = command(*arguments)
    (line,) = done.stderr.splitlines()
    assert done.exit_code == 2 and line.startswith("Error: ")
    return line


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("brain.mnc", "mnc2nii brain.mnc"),
        ("brain.MIF", "mrconvert"),
        ("slice.png", "no voxel size"),
        ("study.zip", "unpack it"),
        ("brain.npy", "super_resolve(array, affine)"),
    ],
)
def test_a_format_that_is_not_read_is_named_with_what_to_do(name: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / name).write_bytes(b"not looked at")
    assert said in one_line(tmp_path / "in" / name, tmp_path / "out")
    in_folder = one_line(tmp_path / "in", tmp_path / "out")
    assert "no NIfTI volumes" in in_folder and Path(name).suffix.lower() in in_folder
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["fine.mif", "fine.png"])
def test_a_format_that_is_not_written_is_named(name: str, scan: Path, tmp_path: Path) -> None:
    assert "is not written; give a folder" in one_line(scan, tmp_path / name)


def test_swapped_arguments_are_noticed(scan: Path, tmp_path: Path) -> None:
    assert "are INPUT and OUTPUT swapped?" in one_line(tmp_path / "out", scan.parent)
    assert "check the path" in one_line(tmp_path / "gone", tmp_path / "out")


def test_an_output_below_the_input_is_said_and_not_read(scan: Path) -> None:
    for _ in range(2):
        done = command(scan.parent, scan.parent / "sr")
        assert done.exit_code == 0 and "lies below the input" in done.stderr
    assert list(results(scan.parent / "sr")) == ["scan.nii.gz"]


def test_results_are_not_taken_as_input(scan: Path, tmp_path: Path) -> None:
    assert command(scan, tmp_path / "out").exit_code == 0
    result = tmp_path / "out" / "scan_SRx2.nii.gz"
    assert "is a result of this program" in one_line(result, tmp_path / "again")
    assert "holds only results" in one_line(tmp_path / "out", tmp_path / "again")
    shutil.copy(scan, tmp_path / "out")
    done = command(tmp_path / "out", tmp_path / "again")
    assert done.exit_code == 0 and "1 results of earlier runs are not taken as input" in done.stderr
    assert list(results(tmp_path / "again")) == ["scan.nii.gz"]


def test_a_failure_is_one_line_once(scan: Path, tmp_path: Path) -> None:
    (scan.parent / "cut.nii.gz").write_bytes(scan.read_bytes()[:200])
    done = command(scan.parent, tmp_path / "out")
    assert done.exit_code == 1 and done.stderr.count("cut.nii.gz") == 2  # what is begun, and why it failed
    assert results(tmp_path / "out")["cut.nii.gz"]["error"] in done.stderr


def test_quiet_shows_warnings_and_errors_alone(scan: Path, tmp_path: Path) -> None:
    quiet = command(scan, tmp_path / "out", "--quiet")
    assert quiet.exit_code == 0 and all(line.startswith("warning: ") for line in quiet.stderr.splitlines())
    (scan.parent / "cut.nii.gz").write_bytes(scan.read_bytes()[:200])
    bad = command(scan.parent / "cut.nii.gz", tmp_path / "other", "--quiet")
    (line,) = bad.stderr.splitlines()
    assert bad.exit_code == 1 and line.startswith("error: ") and "cut.nii.gz" in line


def test_without_a_terminal_a_long_volume_tells_how_far_it_is(monkeypatch, caplog) -> None:
    monkeypatch.setattr(progress, "EVERY", 0.0)
    network, bar = nn.Identity(), Progress([1], shown=False, told=True)
    with caplog.at_level("INFO", "iconet"), bar.slices(6, "scan.nii.gz", network):
        for _ in range(3):
            network(torch.zeros(2, 1, 4, 4))
    assert [record.message.split(", about")[0] for record in caplog.records] == [
        f"scan.nii.gz: {done} of 6 slices" for done in (2, 4, 6)
    ]


def _loaded(arguments: list[str], bundle_root: Path, *packages: str) -> list[str]:
    """Which of some packages a successful command has imported."""
    program = (
        "import sys; from bundle.cli.command import main\n"
        f"try: main({arguments!r})\n"
        "except SystemExit as end: assert not end.code, end.code\n"
        f"print(*({set(packages)!r} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=bundle_root, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[-1].split()


@pytest.mark.parametrize("arguments", [(), ("--dry-run",), ("--help",), ("--version",)])
def test_what_needs_no_network_loads_neither_pytorch_nor_monai(
    arguments: tuple[str, ...], scan: Path, tmp_path: Path, bundle_root: Path
) -> None:
    assert command(scan, tmp_path / "out").exit_code == 0
    assert _loaded([str(scan), str(tmp_path / "out"), *arguments], bundle_root, "torch", "monai") == []


def test_a_run_loads_no_monai_whose_import_takes_longer_than_a_small_volume(
    scan: Path, tmp_path: Path, bundle_root: Path
) -> None:
    arguments = [str(scan), str(tmp_path / "out"), "--report"]
    assert _loaded(arguments, bundle_root, "torch", "monai", "torch._dynamo") == ["torch"]


def test_a_network_without_shipped_weights_is_answered_with_those_that_have_some(scan: Path, tmp_path: Path) -> None:
    line = one_line(scan, tmp_path / "out", "--network-name", "vdsr")
    assert (
        "there: residual_sr 2x, residual_sr 4x, iconet_small 2x, iconet_small 4x" in line
        and "weights of your own" in line
    )


@pytest.mark.parametrize(("old", "new"), [("--nan", "--nonfinite"), ("--network", "--network-name")])
def test_a_former_name_is_answered_with_that_of_today(old: str, new: str, scan: Path, tmp_path: Path) -> None:
    done = command(scan, tmp_path / "out", old, "x")
    assert done.exit_code == 2 and old in done.stderr and new in done.stderr


def test_the_names_of_the_configs_are_understood_too(scan: Path, tmp_path: Path) -> None:
    assert command(scan, tmp_path / "out", "--slice_axis", 1).exit_code == 0
    assert nib.load(tmp_path / "out" / "scan_SRx2.nii.gz").shape == (20, 12, 4)
