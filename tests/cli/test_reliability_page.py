"""docs/reliability.md names tests that exist."""

from __future__ import annotations

import re

import pytest

FILES = {
    "F": "nifti_files.py",
    "N": "data/nifti/test_nifti.py",
    "P": "data/nifti/test_nifti_pieces.py",
    "D": "data/test_folder.py",
    "C": "cli/test_nifti_catalogue.py",
    "M": "cli/test_command.py",
    "K": "cli/test_killed.py",
    "X": "cli/test_dicom_command.py",
    "I": "inference/test_volume.py",
    "W": "inference/test_weights.py",
}


def rows_of(text: str) -> set[int]:
    """Numbers of the catalogue in names and ids of tests: row 5, row_5_..., rows_10_and_11, rows_44_to_53."""
    numbers: set[int] = set()
    for first, joint, last in re.findall(r"rows?[ _](\d+)(?:_(and|to)_(\d+))?", text):
        numbers |= set(range(int(first), int(last) + 1)) if joint == "to" else {int(first), int(last or first)}
    return numbers


@pytest.fixture(scope="module")
def page(request: pytest.FixtureRequest) -> dict[int, str]:
    """The last column of each numbered line."""
    text = (request.config.rootpath / "docs" / "reliability.md").read_text()
    lines = [line.split("|") for line in text.splitlines() if re.match(r"\| \d+ \|", line)]
    assert len(lines) == len({line[1] for line in lines})
    return {int(line[1]): line[-2].strip() for line in lines}


def test_all_rows_of_the_catalogue_are_there(page: dict[int, str]) -> None:
    assert set(page) == {*range(1, 74), *range(109, 121)}


def test_every_named_test_file_has_the_row(page: dict[int, str], request: pytest.FixtureRequest) -> None:
    tests = request.config.rootpath / "tests"
    found = {letter: rows_of((tests / name).read_text()) for letter, name in FILES.items()}
    named = {(row, letter) for row, column in page.items() for letter in column.split(", ") if letter in FILES}
    assert len(named) > 100
    assert {(row, letter) for row, letter in named if row not in found[letter]} == set()
