"""Shared fixtures: threads, the command line, small volumes with known content."""

from __future__ import annotations

import os
import runpy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session", autouse=True)
def one_thread_per_test_process() -> None:
    """Several test processes share the cores; more threads than cores would only wait for each other."""
    torch.set_num_threads(1)


@pytest.fixture
def bundle_root() -> Path:
    return ROOT


@pytest.fixture
def run_bundle() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run ``python -m monai.bundle run ID --config_file ... --key value`` in its own process."""

    def run(
        run_id: str,
        config: str | list[str],
        cwd: Path = ROOT,
        root: Path = ROOT,
        launcher: tuple[str, ...] = (),
        **options: object,
    ) -> subprocess.CompletedProcess[str]:
        files = [str(root / "configs" / name) for name in ([config] if isinstance(config, str) else config)]
        command = [sys.executable, "-W", "ignore", *launcher, "-m", "monai.bundle", "run", run_id]
        command += ["--config_file", files[0] if len(files) == 1 else str(files), "--bundle_root", str(root)]
        for key, value in options.items():
            command += [f"--{key}", str(value)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=600)

    return run


def blob_volume(shape: tuple[int, ...], centre: tuple[float, ...], sigma: float = 4.0, amplitude: float = 800.0):
    """A Gaussian blob on a weak pedestal that fades to the border, float32."""
    grids = np.meshgrid(*(np.arange(n) for n in shape), indexing="ij")
    blob = amplitude * np.exp(-sum((g - c) ** 2 for g, c in zip(grids, centre, strict=True)) / (2 * sigma**2))
    return blob.astype(np.float32)


@pytest.fixture
def write_nifti() -> Callable[..., Path]:
    """Write an array as NIfTI with both forms set."""

    def write(path: Path, data: np.ndarray, affine: np.ndarray | None = None, code: int = 1) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        image = nib.Nifti1Image(data, np.diag([1.5, 1.25, 4.0, 1.0]) if affine is None else affine)
        image.set_sform(image.affine, code=code)
        image.set_qform(image.affine, code=code)
        image.header.set_xyzt_units("mm", "sec")
        nib.save(image, path)
        return path

    return write


@pytest.fixture
def training_folder(tmp_path: Path, write_nifti: Callable[..., Path]) -> Path:
    """Five small "subjects" of random ellipses: enough to train and validate for a few steps."""
    rng = np.random.default_rng(3)
    for number in range(5):
        x, y = np.meshgrid(np.linspace(-1, 1, 48), np.linspace(-1, 1, 40), indexing="ij")
        slices = []
        for _ in range(4):
            image = np.zeros_like(x)
            for _ in range(6):
                cx, cy, rx, ry = rng.uniform(-0.5, 0.5, 2).tolist() + rng.uniform(0.15, 0.5, 2).tolist()
                image += rng.uniform(50, 200) * (((x - cx) / rx) ** 2 + ((y - cy) / ry) ** 2 < 1)
            slices.append(image)
        write_nifti(tmp_path / "train" / f"sub-{number:02d}_T1.nii.gz", np.stack(slices, -1).astype(np.int16))
    return tmp_path / "train"


@pytest.fixture
def script(bundle_root: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Run a script of the repository in this process."""

    def run(name: str, *options: object) -> None:
        monkeypatch.setattr(sys, "argv", [name, *map(str, options)])
        runpy.run_path(str(bundle_root / "scripts" / name), run_name="__main__")

    return run


@pytest.fixture
def refused(script: Callable[..., None], capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Run a script that must fail; return its one-line error."""

    def run(name: str, *options: object) -> str:
        with pytest.raises(SystemExit) as stop:
            script(name, *options)
        said = capsys.readouterr().err.splitlines()[-1] if stop.value.code == 2 else str(stop.value)  # 2: argparse
        assert "\n" not in said and len(said) > 20
        return said

    return run
