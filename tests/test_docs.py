"""Figures in the documents match the result files, which were made with the shipped weights."""

from __future__ import annotations

import csv
import hashlib
from statistics import mean

import pytest
from comparison.pages import page, summary
from comparison.records import read_rows

from bundle.inference.shipped import weights_path


def test_the_readme_shows_the_table_that_the_comparison_wrote(bundle_root):
    readme = (bundle_root / "README.md").read_text()
    shown = readme.split("<!-- results -->")[1].split("<!-- /results -->")[0]
    assert shown.strip() == (bundle_root / "docs/results/compare.md").read_text().strip()


def test_the_tables_are_those_of_the_raw_rows(bundle_root):
    folder = bundle_root / "docs/results"
    assert (folder / "compare.md").read_text() == summary(folder)
    assert (bundle_root / "docs/results.md").read_text() == page(folder, "results")


@pytest.mark.parametrize("scale", [2, 4])
def test_the_table_has_the_means_over_subjects_of_the_raw_rows(scale, bundle_root):
    with open(bundle_root / f"docs/results/compare_x{scale}.csv", newline="") as file:
        rows = [r for r in csv.DictReader(file) if r["modality"] == "MR" and r["method"] == "ICONet small"]
    rows = [r for r in rows if float(r["consistency"]) == 1]
    subjects = {r["subject"] for r in rows}
    value = mean(mean(float(r["psnr"]) for r in rows if r["subject"] == s) for s in subjects)
    table = (bundle_root / "docs/results/compare.md").read_text().split(f"### x{scale}")[1]
    row = next(line for line in table.splitlines() if line.startswith("| ICONet small + DC |"))
    assert row.split("|")[2].strip().startswith(f"{value:.2f} ±")


@pytest.mark.parametrize("scale", [2, 4])
def test_the_figures_are_those_of_the_shipped_weights(scale, bundle_root):
    with open(weights_path(bundle_root / "models", "iconet_small", scale), "rb") as file:
        shipped = hashlib.sha256(file.read()).hexdigest()
    costs = read_rows(bundle_root / "docs/results/cost.csv")
    measured = [row["weights"] for row in costs if row["method"] == "ICONet small" and row["scale"] == scale]
    assert measured == [shipped], "run scripts/compare.py again: docs/results are of other weights"


def test_result_files_stay_small(bundle_root):
    assert all(path.stat().st_size < 2**20 for path in (bundle_root / "docs/results").iterdir())
    assert all(path.stat().st_size < 400_000 for path in (bundle_root / "docs/figures").glob("*_x?.png"))
