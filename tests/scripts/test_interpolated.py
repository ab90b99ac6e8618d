"""The evaluation of interpolated images simulates what it says, and counts right."""

from __future__ import annotations

import csv
import runpy
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from comparison.interpolated import FILTERS, Scan, about, harmless, interpolated, random_scan, simulate

from bundle.physics import fft2c

ROOT = Path(__file__).resolve().parents[2]


def disc(size: int = 96, slices: int = 3) -> torch.Tensor:
    y, x = torch.meshgrid(*[torch.linspace(-1, 1, size)] * 2, indexing="ij")
    return (torch.sigmoid(30 * (0.6 - torch.hypot(y, x))) * 500).expand(slices, -1, -1).contiguous()


def test_a_scan_has_the_stored_matrix_and_whole_numbers():
    image = simulate(disc(), Scan((72, 80), (144, 101), "Fermi", snr=30), np.random.default_rng(0))
    assert image.shape == (3, 144, 101)
    assert torch.equal(image, image.round())


def test_noise_in_the_tissue_has_the_snr_that_is_asked_for():
    rng = np.random.default_rng(1)
    image = simulate(torch.full((4, 96, 96), 500.0), Scan((96, 96), (96, 96), snr=20), rng)
    assert float(image.mean() / image.std()) == pytest.approx(20, rel=0.1)


def test_k_space_beyond_the_acquired_matrix_is_empty_before_the_magnitude_alone():
    noise = torch.randn(3, 96, 96, generator=torch.Generator().manual_seed(0)) * 100
    image = simulate(900 + noise, Scan((64, 64), (96, 96)), np.random.default_rng(2))
    power = fft2c(image).abs().square().mean(dim=0)
    assert power[:, 48 + 34 :].mean() < 0.05 * power[:, 48 + 24 : 48 + 30].mean()


def test_random_scans_stay_within_their_limits():
    rng = np.random.default_rng(3)
    for _ in range(200):
        scan = random_scan((100, 120), "none", rng)
        for size, acquired, stored in zip((100, 120), scan.acquired, scan.stored, strict=True):
            assert 0.59 * size <= acquired <= size
            assert acquired <= stored <= 2.51 * acquired
        assert scan.stored != scan.acquired


def test_every_harmless_change_is_named_once_and_keeps_the_volume_finite():
    changes = dict(harmless(disc().numpy(), np.random.default_rng(4)))
    assert len(changes) == len(list(harmless(disc().numpy(), np.random.default_rng(4))))
    assert all(np.isfinite(image).all() for image in changes.values())


def test_the_command_writes_rows_report_and_figure(tmp_path, monkeypatch):
    rng = np.random.default_rng(5)
    volume = disc(64).numpy().transpose(1, 2, 0) + rng.random((64, 64, 3)) * 20
    rows = []
    for split in ("train", "val", "test"):
        nib.save(nib.Nifti1Image(volume.astype(np.float32), np.eye(4)), tmp_path / f"{split}.nii.gz")
        rows.append(f"{split}.nii.gz,{split},MR,T1,{split}")
    (tmp_path / "manifest.csv").write_text("\n".join(["file,subject,modality,contrast,split", *rows]))
    table, out = str(tmp_path / "manifest.csv"), tmp_path / "out"
    monkeypatch.setattr(
        sys, "argv", ["interpolated.py", str(tmp_path), "--split_file", table, "--output_dir", str(out)]
    )
    runpy.run_path(str(ROOT / "scripts/interpolated.py"), run_name="__main__")
    with open(out / "results/interpolated/detection.csv", newline="") as file:
        written = list(csv.DictReader(file))
    assert {row["split"] for row in written} == {"train", "val", "test"}
    assert {row["filter"] for row in written if row["case"] == "interpolated"} == set(FILTERS)
    assert "| all | test |" in (out / "results/interpolated/about.md").read_text()
    assert (out / "figures/interpolation_roc.png").stat().st_size > 1000


def test_the_report_counts_alarms_and_detections():
    base = {
        "split": "test",
        "modality": "MR",
        "axis": 0,
        "partial": 1.0,
        "elliptical": 0,
        "coils": 1,
        "after": "",
        "snr": 0,
    }
    clean = {**base, "case": "as it is", "filter": "none", "stored": 100, "acquired": 100, "found": 80}
    scan = {**base, "case": "interpolated", "filter": "none", "stored": 150, "acquired": 100}
    rows = [
        {**clean, "confidence": 0.95},
        {**clean, "confidence": 0.2},
        {**scan, "found": 101, "confidence": 0.99},
        {**scan, "found": 60, "confidence": 0.3},
    ]
    assert [interpolated(row) for row in rows] == [False, False, True, True]
    text = about(rows)
    assert "| as it is | 0 | 0 | 0.00 | 2 | 1 | 0.95 | 0 | 0 | 0.00 |" in text
    assert "| all | test | 2 | 50.0% | 1.0% | 1.0% | 100.0% |" in text
