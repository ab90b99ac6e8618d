"""Metadata of a volume by BIDS: its sidecar, and those that it inherits from folders above it in a dataset."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bundle.data.paths import read_json

DESCRIPTION = "dataset_description.json"
_MAX_BYTES = 16 * 2**20


def sidecar_metadata(volume: Path) -> dict[str, Any]:
    """All fields that apply to a volume; files closer to it win. Unreadable sidecars are passed over.

    Outside of a BIDS dataset (no folder above has a dataset_description.json), only the sidecar beside it counts.
    """
    found: dict[str, Any] = {}
    place = volume.absolute()
    root = next((folder for folder in place.parents if (folder / DESCRIPTION).is_file()), None)
    for path in applicable(root, place, "json"):
        try:
            content = read_json(path) if path.stat().st_size <= _MAX_BYTES else None
        except (OSError, ValueError, RecursionError):
            continue
        if isinstance(content, dict):
            found |= content
    return found


def volume_stem(volume: Path) -> str:
    """The name of a volume without its extension."""
    return re.sub(r"\.((nii|hdr|img|mgh)(\.gz)?|mgz|nrrd|nhdr|mha|mhd)$", "", volume.name, flags=re.IGNORECASE)


def applicable(root: Path | None, volume: Path, ending: str) -> Iterator[Path]:
    """The metadata files that apply to a volume, from the root of its dataset down to its own folder.

    Of one folder, those with more entities come later, and the volume's own last: later ones win.

    Args:
        root: of the dataset, a folder above the volume; None outside of one: only the file beside it counts.
        volume: need not exist.
        ending: of the metadata, without its dot.
    """
    stem = volume_stem(volume)
    own = volume.with_name(f"{stem}.{ending}")
    if root is None:
        if own.exists():
            yield own
        return
    *entities, suffix = stem.split("_")
    for folder in reversed([folder for folder in volume.parents if folder == root or root in folder.parents]):
        found = []
        for path in folder.glob(f"*.{ending}"):
            *others, kind = path.stem.split("_")
            if path == own or (kind == suffix and set(others) <= set(entities)):
                found.append((path == own, len(others), path))
        yield from (path for *_, path in sorted(found))
