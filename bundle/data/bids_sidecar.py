"""Metadata of a volume by BIDS: its sidecar, and those that it inherits from folders above it in a dataset."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_DESCRIPTION = "dataset_description.json"
_MAX_BYTES = 16 * 2**20


def sidecar_metadata(volume: Path) -> dict[str, Any]:
    """All fields that apply to a volume; files closer to it win. Unreadable sidecars are passed over.

    Outside of a BIDS dataset (no folder above has a dataset_description.json), only the sidecar beside it counts.
    """
    found: dict[str, Any] = {}
    for path in _applicable(volume.absolute()):
        try:
            content = json.loads(path.read_bytes()) if path.stat().st_size <= _MAX_BYTES else None
        except (OSError, ValueError, RecursionError):
            continue
        if isinstance(content, dict):
            found |= content
    return found


def volume_stem(volume: Path) -> str:
    """The name of a volume without its extension."""
    return re.sub(r"\.(nii|hdr|img)(\.gz)?$", "", volume.name, flags=re.IGNORECASE)


def _applicable(volume: Path) -> Iterator[Path]:
    """The sidecars that apply to a volume, from the root of its dataset down to its own folder."""
    stem = volume_stem(volume)
    *entities, suffix = stem.split("_")
    root = next((folder for folder in volume.parents if (folder / _DESCRIPTION).is_file()), None)
    if root is not None:
        for folder in reversed([folder for folder in volume.parents if folder == root or root in folder.parents]):
            for path in sorted(folder.glob(f"*{suffix}.json")):
                *others, kind = path.stem.split("_")
                if kind == suffix and path.stem != stem and set(others) <= set(entities):
                    yield path
    if (own := volume.with_name(f"{stem}.json")).is_file():
        yield own
