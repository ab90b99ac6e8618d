"""A killed run loses only the current volume, whatever it was doing."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from cli_command import command, results
from conftest import blob_volume

from bundle.cli.run import LOCK
from bundle.data import atomic

BLOB = blob_volume((12, 10, 3), (5.5, 4.0, 1.0), sigma=3.0)
NAMES = ("a", "b", "c")

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork and SIGKILL")


@pytest.fixture
def folder(tmp_path: Path, write_nifti: Callable[..., Path]) -> Path:
    for number, name in enumerate(NAMES, start=1):
        write_nifti(tmp_path / "in" / f"{name}.nii.gz", number * BLOB)
    return tmp_path


def check_what_is_left(out: Path, shape: tuple[int, ...] = (24, 20, 3)) -> set[str]:
    """Check that every file with a final name is complete; return the names of the results."""
    found = [path for path in out.rglob("*") if not path.name.startswith(".")]
    for path in found:
        if path.name.endswith(".nii.gz"):
            assert nib.load(path).get_fdata().shape == shape
        elif path.name == "results.csv":
            assert all(row["status"] in ("done", "skipped") for row in results(out).values())
        else:
            assert path.suffix == ".json" and path.read_text().endswith("}\n")
    return {path.name.split("_")[0] for path in found if path.name.endswith(".nii.gz")}


def killed_at(folder: Path, step: str, number: int, after: bool) -> int:
    """Run the command in a forked process that kills itself at the nth call of os.<step>; return its status."""
    child = os.fork()
    if child == 0:
        real, count = getattr(os, step), 0

        def deadly(*arguments: object) -> object:
            nonlocal count
            count += 1
            if count == number and not after:
                os.kill(os.getpid(), signal.SIGKILL)
            result = real(*arguments)
            if count == number:
                os.kill(os.getpid(), signal.SIGKILL)
            return result

        setattr(atomic.os, step, deadly)
        try:
            os._exit(command(folder / "in", folder / "out").exit_code)
        finally:
            os._exit(99)
    for _ in range(600):
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.1)
    os.kill(child, signal.SIGKILL)
    raise AssertionError("the run hangs")


@pytest.mark.parametrize(
    ("step", "number", "after"),
    [("fsync", 1, False), ("fsync", 2, False), *(("replace", n, after) for n in (1, 2, 3) for after in (False, True))],
)
def test_row_69_a_kill_at_any_step_of_writing_leaves_whole_files_and_the_next_run_goes_on(
    step: str, number: int, after: bool, folder: Path
) -> None:
    out = folder / "out"
    assert killed_at(folder, step, number, after) == -signal.SIGKILL
    left = check_what_is_left(out)
    before = {name: (out / f"{name}_SRx2.nii.gz").stat().st_mtime_ns for name in left}
    done = command(folder / "in", out)
    assert done.exit_code == 0, done.output
    # Finished volumes are skipped, and nothing remains of unfinished ones.
    assert {name: (out / f"{name}_SRx2.nii.gz").stat().st_mtime_ns for name in left} == before
    assert check_what_is_left(out) == set(NAMES)
    assert [path.name for path in out.iterdir() if path.name.startswith(".") and path.name != LOCK] == []
    for number, name in enumerate(NAMES, start=1):
        assert nib.load(out / f"{name}_SRx2.nii.gz").get_fdata().max() == pytest.approx(number * BLOB.max(), rel=0.3)


def test_row_69_a_kill_while_an_older_result_is_replaced_leaves_the_old_or_the_new_and_it_is_redone(folder) -> None:
    out = folder / "out"
    assert command(folder / "in", out).exit_code == 0
    for name in NAMES:
        nib.save(nib.Nifti1Image(BLOB + 100, np.eye(4)), folder / "in" / f"{name}.nii.gz")
    assert killed_at(folder, "replace", 1, after=True) == -signal.SIGKILL  # the new record without its result
    assert check_what_is_left(out) == set(NAMES)
    assert "3 done, 0 skipped" in command(folder / "in", out).stderr
    assert nib.load(out / "a_SRx2.nii.gz").get_fdata().mean() == pytest.approx((BLOB + 100).mean(), rel=0.05)


@pytest.mark.slow
def test_row_69_a_process_that_is_killed_from_outside_goes_on_where_it_was(folder: Path, bundle_root: Path) -> None:
    out = folder / "out"
    line = [sys.executable, "-m", "bundle", str(folder / "in"), str(out)]
    big = blob_volume((64, 64, 4), (30.0, 31.0, 1.0), sigma=9.0)
    for name in NAMES:
        nib.save(nib.Nifti1Image(big, np.eye(4)), folder / "in" / f"{name}.nii.gz")
    with subprocess.Popen(line, cwd=bundle_root, stderr=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + 300
        while not (out / "a_SRx2.nii.gz").exists() and time.monotonic() < deadline:
            time.sleep(0.005)
        process.kill()
    assert process.returncode == -signal.SIGKILL
    left = check_what_is_left(out, (128, 128, 4))
    assert "a" in left
    done = subprocess.run(line, cwd=bundle_root, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0 and f"{3 - len(left)} done, {len(left)} skipped, 0 failed" in done.stderr
