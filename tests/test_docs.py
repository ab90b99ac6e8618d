"""Figures in the documents match the result files, which were made with the shipped weights."""

from __future__ import annotations

import csv
import hashlib
from statistics import mean

import pytest
from comparison.pages import page, readme_block, summary
from comparison.records import read_rows
from option_tables import PAGES, TABLES, filled

from bundle.inference.shipped import weights_path


def test_the_readme_shows_the_table_that_the_comparison_makes(bundle_root):
    readme = (bundle_root / "README.md").read_text()
    shown = readme.split("<!-- results -->\n")[1].split("<!-- /results -->")[0]
    assert shown == readme_block(bundle_root / "docs/results")


@pytest.mark.parametrize("modality", ["MR", "PET"])
@pytest.mark.parametrize("scale", [2, 4])
def test_the_readme_has_the_gain_and_the_worst_volume_of_the_raw_rows(scale, modality, bundle_root):
    with open(bundle_root / f"docs/results/compare_x{scale}.csv", newline="") as file:
        rows = [r for r in csv.DictReader(file) if r["modality"] == modality]
    before = {r["file"]: float(r["psnr"]) for r in rows if r["method"] == "zero-filled Fourier"}
    shipped = [r for r in rows if r["method"] == "Residual SR" and r["consistency"] == "auto"]
    gains = {r["file"]: float(r["psnr"]) - before[r["file"]] for r in shipped}
    subjects = {r["subject"] for r in shipped}
    gain = mean(mean(gains[r["file"]] for r in shipped if r["subject"] == s) for s in subjects)
    lines = (bundle_root / "README.md").read_text().splitlines()
    (line,) = [line for line in lines if line.startswith(f"| {modality} {scale}x |")]
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    assert cells[1] == f"{len(shipped)} ({len(subjects)})"
    assert cells[2].startswith(f"{gain:+.2f} [") and cells[4] == f"{min(gains.values()):+.2f}"


@pytest.mark.parametrize("name", PAGES)
def test_the_option_tables_are_those_of_the_declaration(name, bundle_root):
    text = (bundle_root / name).read_text()
    assert text == filled(text), "run scripts/option_tables.py"


def test_every_option_table_is_shown_once(bundle_root):
    text = "".join((bundle_root / name).read_text() for name in PAGES)
    assert {name: text.count(f"<!-- options: {name} -->") for name in TABLES} == dict.fromkeys(TABLES, 1)


def test_the_tables_are_those_of_the_raw_rows(bundle_root):
    folder = bundle_root / "docs/results"
    assert (folder / "compare.md").read_text() == summary(folder)
    assert (bundle_root / "docs/results.md").read_text() == page(folder, "results")


@pytest.mark.parametrize("scale", [2, 4])
def test_the_table_has_the_means_over_subjects_of_the_raw_rows(scale, bundle_root):
    with open(bundle_root / f"docs/results/compare_x{scale}.csv", newline="") as file:
        rows = [r for r in csv.DictReader(file) if r["modality"] == "MR" and r["method"] == "Residual SR"]
    rows = [r for r in rows if r["consistency"] == "auto"]
    subjects = {r["subject"] for r in rows}
    value = mean(mean(float(r["psnr"]) for r in rows if r["subject"] == s) for s in subjects)
    table = (bundle_root / "docs/results/compare.md").read_text().split(f"### x{scale}")[1]
    row = next(line for line in table.splitlines() if line.startswith("| Residual SR + DC |"))
    assert row.split("|")[2].strip().startswith(f"{value:.2f} ±")


@pytest.mark.parametrize("scale", [2, 4])
def test_the_figures_are_those_of_the_shipped_weights(scale, bundle_root):
    with open(weights_path(bundle_root / "models", scale=scale), "rb") as file:
        shipped = hashlib.sha256(file.read()).hexdigest()
    costs = read_rows(bundle_root / "docs/results/cost.csv")
    measured = [row["weights"] for row in costs if row["method"] == "Residual SR" and row["scale"] == scale]
    assert measured == [shipped], "run scripts/compare.py again: docs/results are of other weights"


def test_result_files_stay_small(bundle_root):
    assert all(path.stat().st_size < 2**20 for path in (bundle_root / "docs/results").iterdir())
    assert all(path.stat().st_size < 400_000 for path in (bundle_root / "docs/figures").glob("*_x?.png"))
