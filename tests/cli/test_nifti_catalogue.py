"""Every odd NIfTI file of the catalogue through the real command, all in one run.

tests/data/nifti/test_nifti.py checks how each is read; this checks the results: position, values, the warning in the
record, and that a failure does not affect the others. Numbers are the rows of docs/reliability.md.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import NamedTuple

import nibabel as nib
import numpy as np
import pytest
import torch
from cli_command import command, record, results
from conftest import blob_volume
from nifti_files import ACCEPTED, AFFINE, REFUSED, SHAPE, SLOPE_2, image_bytes, patched, put, voxels

from bundle.physics import truncate

SHEARED = AFFINE + np.array([[0, 0, 1.0, 0], [0] * 4, [0] * 4, [0] * 4])
LEFT_HANDED = np.diag([-1.0, 1, 1, 1]) @ AFFINE
OBLIQUE = nib.affines.from_matvec(nib.eulerangles.euler2mat(0.4, 0.2, 0.1) * [2, 2, 3], [5, -6, 7])
CENTRED = np.array([[-2.0, 0, 0, 5.5], [0, 2, 0, -4.5], [0, 0, 3, -4.5], [0, 0, 0, 1]])
"""What nibabel assumes where the header tells no position; with half the voxel size, twice the matrix."""
METRES = np.diag([1e-3, 1e-3, 1e-3, 1]) @ AFFINE
BLOB = blob_volume((16, 14, 4), (7.5, 6.0, 1.5), sigma=3.0)


class Case(NamedTuple):
    """A readable file: its values, its position in mm, and a warning that its record must have."""

    name: str
    content: bytes
    values: np.ndarray = voxels()
    affine: np.ndarray = AFFINE
    warning: str | None = None


def plain(data: np.ndarray, warning: str | None = None) -> Case:
    return Case("a.nii", image_bytes(data), data.astype(np.float64), AFFINE, warning)


def placed(affine: np.ndarray, codes: tuple[int, int] = (1, 1)) -> Case:
    return Case("a.nii", image_bytes(affine=affine, codes=codes), affine=affine)


def big_endian() -> bytes:
    header = nib.Nifti1Header(endianness=">")
    image = nib.Nifti1Image(voxels(), AFFINE, header)
    image.set_sform(AFFINE, 1)
    assert image.header.endianness == ">"
    return image.to_bytes()


READ = {row: Case(name, content, warning=warning) for row, (name, content, warning) in ACCEPTED.items()} | {
    "row 13 constant": plain(np.full(SHAPE, 3, "int16"), "value 3"),
    "row 14 all zero": plain(np.zeros(SHAPE, "int16"), "all voxels are zero"),
    "row 18 negative slope": Case("a.nii", patched(image_bytes(), **SLOPE_2), voxels() * -2.0 + 7),
    "row 22 no forms": Case("a.nii", image_bytes(codes=(0, 0)), affine=CENTRED, warning="neither sform nor qform"),
    "row 34 forms in conflict": Case(
        "a.nii",
        patched(image_bytes(), srow_x=("4f", (2, 0, 0, -5))),
        affine=AFFINE + np.array([[0, 0, 0, 5.0], [0] * 4, [0] * 4, [0] * 4]),
        warning="differ by up to 5 mm",
    ),
    "row 35 series": plain(np.stack([BLOB, 2 * BLOB, 0.1 * BLOB], -1)),
    "row 36 series of one": plain(BLOB[..., None]),
    "row 38 two dimensions": plain(BLOB[..., 1]),
    "row 39 single slice": plain(BLOB[..., 1:2]),
    "row 43 float64": plain(BLOB.astype("float64") * 1e30),
    "row 46 mask": plain((BLOB > 300).astype("uint8"), "is it a label image"),
    "row 47 big endian": Case("a.nii", big_endian()),
    "row 51 sheared": placed(SHEARED, (1, 0)),
    "row 52 left-handed": placed(LEFT_HANDED),
    "row 53 oblique": placed(OBLIQUE),
    "row 54 prime sizes": plain(blob_volume((13, 11, 7), (6, 5, 3))),
    "row 55 negative values": plain(BLOB - 300),
    "row 56 range to 1e30": plain(BLOB * np.float32(1e27)),
    "row 57 range to 1e-38": plain(BLOB * np.float32(1e-38)),
    "row 58 outlier": plain(np.where(np.arange(BLOB.size).reshape(BLOB.shape) == 345, np.float32(1e9), BLOB)),
    "row 59 metres": Case("a.nii", patched(image_bytes(affine=METRES), xyzt_units=("B", 1)), warning="converted to mm"),
    "row 70 five by five": plain(blob_volume((5, 5, 2), (2, 2, 1), sigma=1.5)),
    "row 70 one by one": plain(voxels((1, 1, 3)).astype("float32") + 1),
}


def place(row: str) -> str:
    """Folder of a case."""
    return re.sub(r"\W+", "-", row)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All files of the catalogue in `in`, super-resolved by one run into `out`."""
    root = tmp_path_factory.mktemp("catalogue")
    for row, (name, content, *_) in {**REFUSED, **READ}.items():
        (root / "in" / place(row)).mkdir(parents=True)
        put(root / "in" / place(row), name, content)
    nib.save(nib.Nifti1Pair(voxels(), AFFINE), root / "in" / "pair.img")
    nib.save(nib.AnalyzeImage(voxels(), AFFINE), root / "in" / "analyze.img")
    (root / "in" / "dangling.nii").symlink_to(root / "gone.nii")
    (root / "in" / "folder.nii").mkdir()
    done = command(root / "in", root / "out", "--log-json", root / "log.jsonl", "--slice-axis", 2)
    assert done.exit_code == 1, done.output
    return root


def result(root: Path, row: str) -> Path:
    (found,) = (root / "out" / place(row)).glob("*.nii.gz")
    return found


def test_every_volume_is_in_the_table_and_in_the_log_once(root: Path) -> None:
    rows = results(root / "out")
    assert len(rows) == len(REFUSED) + len(READ) + 3
    events = [json.loads(line) for line in (root / "log.jsonl").read_text().splitlines()]
    ended = [event["volume"] for event in events if event.get("event") in ("done", "failed")]
    assert sorted(ended) == sorted(rows)
    assert {event["event"] for event in events if event["level"] == "error" and "event" in event} == {"failed"}
    said = [event["message"] for event in events if event["level"] == "error"]
    assert sorted(said) == sorted(row["error"] for row in rows.values() if row["status"] == "failed")
    assert events[-1]["event"] == "end"


@pytest.mark.parametrize("row", REFUSED)
def test_a_bad_volume_fails_with_its_reason_and_leaves_nothing(row: str, root: Path) -> None:
    name, _, message = REFUSED[row]
    line = results(root / "out")[f"{place(row)}/{name}"]
    assert line["status"] == "failed"
    assert re.search(message, line["error"]) and name in line["error"]
    assert not (root / "out" / place(row)).exists()


@pytest.mark.parametrize("row", READ)
def test_a_volume_that_can_be_read_comes_out_in_its_place(row: str, root: Path) -> None:
    case = READ[row]
    image = nib.load(result(root, row))
    factors = np.array([2, 2, 1, 1][: case.values.ndim])
    assert image.shape == tuple(np.array(case.values.shape) * factors)
    assert image.get_data_dtype() == np.float32 and image.header.endianness == "<"
    expected = case.affine @ np.diag([0.5, 0.5, 1, 1])
    np.testing.assert_allclose(image.affine, expected, rtol=1e-5, atol=1e-5)
    line = results(root / "out")[f"{place(row)}/{case.name}"]
    assert line["status"] == "done" and line["result_shape"] == "x".join(map(str, image.shape))
    facts = record(result(root, row))["SuperResolution"]
    if case.warning:
        assert any(re.search(case.warning, text) for text in facts["Warnings"])
        assert re.search(case.warning, line["warnings"])


@pytest.mark.parametrize("row", READ)
def test_the_result_of_a_volume_is_true_to_what_was_measured(row: str, root: Path) -> None:
    values = READ[row].values.astype(np.float64)
    fine = nib.load(result(root, row)).get_fdata()
    assert np.isfinite(fine).all()
    slices, fine_slices = (x.reshape(*x.shape[:2], -1) for x in (values, fine))
    for n in range(slices.shape[2]):
        offset = min(values.min(), 0.0)
        measured, image = (torch.from_numpy(x[..., n] - offset).double() for x in (slices, fine_slices))
        own = truncate(image, (measured.shape[0], measured.shape[1]))
        # A single voxel of 1e9 among ordinary ones rings below zero by a fifth of its value; that is set to zero.
        most = 0.06 if measured.max() < 1e6 * measured.median() else 0.25
        assert float((own - measured).norm()) <= most * float(measured.norm())
