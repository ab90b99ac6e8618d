"""Sidecars: the record beside every result, by which the program recognises its own results."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from bundle.data.atomic import replacing
from bundle.data.errors import VolumeError, error_line

TOOL = "ICONet SR"
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
        content: dict[str, Any] = json.loads(sidecar.read_bytes())
        own = content["GeneratedBy"][0]["Name"] == TOOL
        return content if own and content["SuperResolution"]["Provenance"].keys() >= set(PROVENANCE) else None
    except (OSError, ValueError, TypeError, LookupError, AttributeError, RecursionError):
        return None


def is_result(path: Path) -> bool:
    """Whether a NIfTI file or the folder of a DICOM series is a result of this program, by its sidecar."""
    return read_record(sidecar_path(path)) is not None


def content_digest(files: Iterable[Path]) -> str:
    """SHA-256 of a file's bytes; for several files, of their names and digests in the given order.

    Raises:
        VolumeError: a file cannot be read.
    """
    digests = []
    for path in files:
        try:
            with open(path, "rb") as stream:
                digests.append((path.name, hashlib.file_digest(stream, "sha256").hexdigest()))
        except OSError as error:
            wrong = f"cannot be read ({error.strerror or error})"
            raise VolumeError(error_line(path, wrong, "check the file and its access rights")) from error
    if len(digests) == 1:
        return digests[0][1]
    return hashlib.sha256(repr(digests).encode()).hexdigest()


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write JSON atomically, in pure ASCII, so that it can hold any file name."""
    with replacing(path) as stream:
        stream.write((json.dumps(content, indent=2) + "\n").encode("ascii"))
