"""The sidecar of every result: what it was made from and how, and whether it is still up to date."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from bundle.data import VolumeError
from bundle.data.atomic import replacing
from bundle.data.errors import error_line
from bundle.data.paths import open_regular
from bundle.data.sidecar import PROVENANCE, TOOL, read_record
from bundle.inference.shipped import tool_version

_CHANGED = dict(
    zip(
        PROVENANCE,
        ("the input changed", "the weights changed", "the settings changed", "made by another version"),
        strict=True,
    )
)


def content_digest(files: Iterable[Path]) -> str:
    """SHA-256 of a file's bytes; for several files, of their names and digests in the given order.

    Raises:
        VolumeError: a file cannot be read.
    """
    digests = []
    for path in files:
        try:
            with open_regular(path) as stream:
                digests.append((path.name, hashlib.file_digest(stream, "sha256").hexdigest()))
        except OSError as error:
            wrong = f"cannot be read ({error.strerror or error})"
            raise VolumeError(error_line(path, wrong, "check the file and its access rights")) from error
    if len(digests) == 1:
        return digests[0][1]
    return hashlib.sha256(repr(digests).encode()).hexdigest()


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


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write strict JSON atomically: in pure ASCII, so that it can hold any file name, and without NaN (null)."""
    with replacing(path) as stream:
        stream.write((json.dumps(finite(content), indent=2, allow_nan=False) + "\n").encode("ascii"))


def finite(value: Any) -> Any:
    """A value that JSON can hold: null in place of NaN and infinite numbers, which JSON does not have."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: finite(entry) for key, entry in value.items()}
    return [finite(entry) for entry in value] if isinstance(value, (list, tuple)) else value


def generated_by() -> list[dict[str, str]]:
    return [{"Name": TOOL, "Version": tool_version()}]
