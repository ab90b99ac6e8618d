"""`iconet-sr doctor`, the version, and how the subcommands are chosen."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result

from bundle.cli.command import main
from bundle.inference.shipped import tool_version


@pytest.fixture
def doctor(monkeypatch: pytest.MonkeyPatch):
    """Run the doctor with a separate folder of weights."""

    def run(models: Path) -> Result:
        monkeypatch.setenv("ICONET_MODELS", str(models))
        return CliRunner().invoke(main, ["doctor"], catch_exceptions=False)

    return run


@pytest.fixture
def models(bundle_root: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(bundle_root / "models", tmp_path / "models"))


def test_whole_weights_are_listed_with_their_digests(doctor, models):
    done = doctor(models)
    assert done.exit_code == 0
    for line in (models / "sha256sums.txt").read_text().splitlines():
        digest, name = line.split()
        assert f"{digest} ok" in next(row for row in done.output.splitlines() if row.split()[0] == name)


def test_versions_back_ends_threads_and_device_are_said(doctor, models):
    words = doctor(models).output
    for name in (tool_version(), "torch", "monai", "numpy", "nibabel", "pydicom", "device", "threads", "cache folder"):
        assert name in words
    for name in ("reference", "native", "triton", "mamba_ssm"):
        assert f"  {name} " in words


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (lambda folder: (folder / "model.pt").unlink(), "missing; sha256sums.txt lists it"),
        (lambda folder: (folder / "model.pt").write_bytes(b"half"), "damaged"),
        (shutil.rmtree, "none here"),
    ],
)
def test_missing_or_damaged_weights_are_status_1(fault, words, doctor, models):
    fault(models)
    done = doctor(models)
    assert done.exit_code == 1
    assert words in next(row for row in done.output.splitlines() if row.split()[:1] == ["model.pt"])
    assert done.stderr.splitlines() == ["Error: weights are missing or damaged: model.pt; correct ICONET_MODELS"]


def test_weights_of_ones_own_without_a_list_are_no_fault(doctor, models):
    (models / "sha256sums.txt").unlink()
    assert doctor(models).exit_code == 0


def test_nothing_is_compiled_and_no_folder_made(bundle_root, tmp_path):
    environment = {**os.environ, "ICONET_CACHE_DIR": str(tmp_path / "cache"), "PYTHONPATH": str(bundle_root)}
    done = subprocess.run(
        [sys.executable, "-m", "bundle", "doctor"], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert f"{tmp_path / 'cache'} (not made yet)" in done.stdout
    native = next(line for line in done.stdout.splitlines() if line.split()[:1] == ["native"])
    assert "not compiled yet" in native or "native kernels:" in native
    assert not list(tmp_path.iterdir())


def test_a_package_that_is_not_installed_is_told_with_its_extra(doctor, models, monkeypatch):
    monkeypatch.setattr("bundle.cli.doctor._version", lambda name: None if name == "pydicom" else "1.0")
    done = doctor(models)
    assert done.exit_code == 0 and "not installed: pip install 'iconet-sr[dicom]'" in done.output


def test_a_needed_package_that_is_not_installed_is_status_1(doctor, models, monkeypatch):
    monkeypatch.setattr("bundle.cli.doctor._version", lambda name: None if name == "monai" else "1.0")
    done = doctor(models)
    assert done.exit_code == 1
    assert done.stderr == "Error: not installed: monai; install ICONet SR again\n"


@pytest.mark.parametrize("words", [("--version",), ("--help",), ("doctor", "--help"), ("export-bundle", "--help")])
def test_version_and_help_import_nothing_heavy(words, bundle_root):
    code = f"import sys; from bundle.cli.command import main; main({list(words)}, standalone_mode=False); "
    code += "print('heavy', sorted({'torch', 'monai', 'numpy'} & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(bundle_root)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "heavy []"


def test_the_version_is_that_of_the_metadata():
    assert CliRunner().invoke(main, ["--version"]).output == f"ICONet SR {tool_version()}\n"


def test_help_names_the_other_commands_and_usage_has_no_command_in_it():
    said = CliRunner().invoke(main, ["--help"], prog_name="iconet-sr").output
    assert said.startswith("Usage: iconet-sr [OPTIONS] INPUT OUTPUT\n")
    assert "iconet-sr doctor" in said and "iconet-sr export-bundle FOLDER" in said


def test_a_folder_named_like_a_command_is_input_with_its_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "doctor").mkdir()
    done = CliRunner().invoke(main, ["./doctor", "out"])
    assert done.exit_code == 2 and "Weights" not in done.output and "doctor" in done.output


def test_missing_weights_say_which_folder_was_looked_in(tmp_path, write_nifti, monkeypatch):
    volume = write_nifti(tmp_path / "x.nii", np.ones((8, 8, 2), np.float32))
    monkeypatch.setenv("ICONET_MODELS", str(tmp_path / "none"))
    done = CliRunner().invoke(main, [str(volume), str(tmp_path / "out")])
    assert done.exit_code == 2
    assert f"no weights of residual_sr 2x in {tmp_path / 'none'} (the folder that ICONET_MODELS names" in done.output
