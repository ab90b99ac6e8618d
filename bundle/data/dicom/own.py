"""Recognise DICOM series that this program made, wherever they have been since."""

from __future__ import annotations

from pathlib import Path

from bundle.data.dicom.derive import NAME
from bundle.data.dicom.header import read_dataset
from bundle.data.dicom.library import guarded
from bundle.data.errors import VolumeError


def made_here(path: Path) -> bool:
    """Whether a DICOM file says that this program contributed to it (Contributing Equipment Sequence)."""
    try:
        dataset = read_dataset(path, ["ContributingEquipmentSequence"])
        with guarded(path, "an attribute cannot be read", "get an intact copy"):
            items = dataset.get("ContributingEquipmentSequence") or ()
            return any(str(item.get("Manufacturer", "")) == NAME for item in items)
    except VolumeError:  # reading the series will fail and report the error
        return False
