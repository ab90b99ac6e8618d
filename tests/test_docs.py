"""Figures in the documents are those of the result files."""

from __future__ import annotations

import csv
from statistics import mean

import pytest


def test_the_readme_shows_the_table_that_the_comparison_wrote(bundle_root):
    readme = (bundle_root / "README.md").read_text()
    shown = readme.split("<!-- results -->")[1].split("<!-- /results -->")[0]
    assert shown.strip() == (bundle_root / "docs/results/compare.md").read_text().strip()


@pytest.mark.parametrize("scale", [2, 4])
def test_the_table_has_the_means_over_subjects_of_the_raw_rows(scale, bundle_root):
    with open(bundle_root / f"docs/results/compare_x{scale}.csv", newline="") as file:
        rows = [r for r in csv.DictReader(file) if r["modality"] == "MR" and r["method"] == "ICONet small"]
    subjects = {r["subject"] for r in rows}
    value = mean(mean(float(r["psnr"]) for r in rows if r["subject"] == s) for s in subjects)
    table = (bundle_root / "docs/results/compare.md").read_text().split(f"### x{scale}")[1]
    row = next(line for line in table.splitlines() if line.startswith(f"| MR | {len(subjects)} | ICONet small |"))
    assert row.split("|")[4].strip().startswith(f"{value:.2f} ±")
