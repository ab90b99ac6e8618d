"""Sidecars: the record beside every result, by which the program recognises its own results."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from bundle.data.atomic import replacing
from bundle.data.errors import VolumeError, error_line
from bundle.data.paths import open_regular, read_json

TOOL = "ICONet SR"
RECORD = "super_resolution"
"""Key of the record: in `extra` of a nibabel image, in `meta` of a MetaTensor."""
PROVENANCE = ("InputSha256", "WeightsSha256", "Settings", "Version")
"""What every record says about the origin of its result. If any of it changes, the result is out of date."""


def sidecar_path(target: Path) -> Path:
    """Where the record of a NIfTI file or of the folder of a DICOM series is."""
    name = target.name
    for ending in (".nii.gz", ".nii"):
        if name.lower().endswith(ending):
            name = name[: -len(ending)]
            break
    return target.with_name(f"{name}.json")


def read_record(sidecar: Path) -> dict[str, Any] | None:
    """A record that this program wrote; None if there is none, or if the file is something else."""
    try:
        content: dict[str, Any] = read_json(sidecar)
        own = content["GeneratedBy"][0]["Name"] == TOOL
        return content if own and content["SuperResolution"]["Provenance"].keys() >= set(PROVENANCE) else None
    except (OSError, ValueError, TypeError, LookupError, AttributeError, RecursionError):
        return None


def is_result(path: Path) -> bool:
    """Whether a NIfTI file or the folder of a DICOM series is a result of this program, by its sidecar.

    The sidecar is looked for beside the file, and beside the file that a link leads to.
    """
    return any(_is_ours(sidecar_path(place)) for place in (path, Path(os.path.realpath(path))))


def mark_result(target: Path, source: str) -> bool:
    """Write a sidecar that says no more than that a NIfTI file is a result; false if there is one already.

    Raises:
        OSError: it cannot be written.
    """
    sidecar = sidecar_path(target)
    if sidecar.exists():
        return False
    write_json(sidecar, {"Sources": [source], "GeneratedBy": [{"Name": TOOL}]})
    return True


def _is_ours(sidecar: Path) -> bool:
    try:
        return bool(read_json(sidecar)["GeneratedBy"][0]["Name"] == TOOL)
    except (OSError, ValueError, TypeError, LookupError, RecursionError):
        return False


def generated_by(version: str) -> list[dict[str, str]]:
    """GeneratedBy of the sidecars that this version of the program writes."""
    return [{"Name": TOOL, "Version": version}]


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
