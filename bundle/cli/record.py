"""The sidecar of every result: what it was made from and how, and whether it is still up to date."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bundle.data import VolumeError
from bundle.data.errors import error_line
from bundle.data.sidecar import PROVENANCE, content_digest, read_record

_CHANGED = dict(
    zip(
        PROVENANCE,
        ("the input changed", "the weights changed", "the settings changed", "made by another version"),
        strict=True,
    )
)


def result_files(target: Path) -> list[Path]:
    """The file of a NIfTI result, or the files of a DICOM series."""
    return sorted(target.iterdir()) if target.is_dir() else [target]


def why_redo(target: Path, sidecar: Path, expected: dict[str, Any]) -> str | None:
    """Why a result has to be made; None if it exists and is up to date.

    Args:
        target, sidecar: where the result and its record are or will be.
        expected: the "Provenance" that the record must have: input, weights, settings and version.

    Raises:
        VolumeError: something exists there that this program did not make.
    """
    record = read_record(sidecar)
    if record is None:
        for path in (target, sidecar):
            if path.exists() or path.is_symlink():
                remedy = "choose another output folder, or --overwrite replaces it"
                raise VolumeError(error_line(path, "exists and was not made by this program", remedy))
        return "new"
    found = record["SuperResolution"]["Provenance"]
    if changed := [text for key, text in _CHANGED.items() if found.get(key) != expected[key]]:
        return ", ".join(changed)
    if not target.exists():
        return "the result is missing"
    try:
        same = content_digest(result_files(target)) == found.get("OutputSha256")
    except (OSError, VolumeError):
        same = False
    return None if same else "the result is not what was written"
