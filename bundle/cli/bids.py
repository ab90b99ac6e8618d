"""BIDS datasets: their volumes, and a derivatives dataset for the results (Brain Imaging Data Structure 1.10)."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bundle.cli.record import TOOL, generated_by, write_json
from bundle.data import VolumeError
from bundle.data.atomic import replacing
from bundle.data.errors import error_line
from bundle.data.find import volumes_below

VERSION = "1.10.0"
DESCRIPTION = "dataset_description.json"
IGNORED = ("results.csv", "report.html", "*.log", "*.jsonl")

_ENTITIES_AFTER_RES = ("den", "label", "desc")

_KEPT = {
    *("TaskName", "RepetitionTime", "VolumeTiming", "EchoTime", "FlipAngle", "InversionTime", "MagneticFieldStrength"),
    *("PhaseEncodingDirection", "TotalReadoutTime", "SliceThickness", "SkullStripped", "SpatialReference", "Units"),
    *("B0FieldIdentifier", "MTState", "MTNumberOfBands", "SpoilingState", "PulseSequenceType", "MRAcquisitionType"),
    *("NumberShots", "ArterialSpinLabelingType", "PostLabelingDelay", "BackgroundSuppression", "M0Type"),
    *("LabelingDuration", "Manufacturer", "ManufacturersModelName"),
    *("TracerName", "TracerRadionuclide", "InjectedRadioactivity", "InjectedRadioactivityUnits", "InjectedMass"),
    *("InjectedMassUnits", "SpecificRadioactivity", "SpecificRadioactivityUnits", "ModeOfAdministration", "TimeZero"),
    *("ScanStart", "InjectionStart", "FrameTimesStart", "FrameDuration", "AcquisitionMode", "ImageDecayCorrected"),
    *("ImageDecayCorrectionTime", "ReconMethodName", "ReconMethodParameterLabels", "ReconFilterType"),
    *("AttenuationCorrection",),
}
"""Sidecar fields that stay valid for the result and identify nobody; the others remain in the source's sidecar."""


@dataclass(frozen=True)
class Bids:
    """A BIDS dataset at `root`, with its parsed dataset_description.json."""

    root: Path
    description: dict[str, Any]

    @staticmethod
    def at(root: Path) -> Bids | None:
        """The dataset in this folder; None if it is not a BIDS dataset.

        Raises:
            VolumeError: its description cannot be read.
        """
        path = root / DESCRIPTION
        if not path.is_file():
            return None
        try:
            content = json.loads(path.read_bytes())
        except (OSError, ValueError, RecursionError) as error:
            raise VolumeError(error_line(path, f"not readable as JSON ({error})", "correct it or remove it")) from error
        if not isinstance(content, dict):
            raise VolumeError(error_line(path, "does not hold a JSON object", "correct it or remove it"))
        return Bids(root, content)

    def volumes(self, exclude: Path) -> list[Path]:
        """The volumes of its subjects; `derivatives`, `sourcedata` and so on are separate datasets."""
        subjects = sorted(path for path in self.root.iterdir() if path.name.startswith("sub-") and path.is_dir())
        return [path for subject in subjects for path in volumes_below(subject, exclude)]

    def rename(self, stem: str, scale: int) -> str:
        """Name of a result: the source's entities plus `res-SRx<scale>` and `desc-ICONet`."""
        *entities, suffix = stem.split("_")
        kept = [entity for entity in entities if not entity.startswith(("res-", "desc-"))]
        last = [entity for entity in kept if entity.split("-")[0] in _ENTITIES_AFTER_RES]
        first = [entity for entity in kept if entity not in last]
        described = next((entity for entity in entities if entity.startswith("desc-")), "desc-")
        return "_".join([*first, f"res-SRx{scale}", *last, f"{described}ICONet", suffix])

    def metadata(self, volume: Path) -> dict[str, Any]:
        """Metadata that stay valid for a result, by BIDS inheritance: files closer to the volume win."""
        # Required in derivatives; raw volumes are not skull-stripped.
        raw = self.description.get("DatasetType", "raw") == "raw"
        found: dict[str, Any] = {"SkullStripped": False} if raw else {}
        for path in _applicable(self.root, volume, "json"):
            try:
                content = json.loads(path.read_bytes())
            except (OSError, ValueError, RecursionError):
                continue  # an error in the source that does not affect the result
            if isinstance(content, dict):
                found |= {key: value for key, value in content.items() if key in _KEPT}
        return found

    def source(self, volume: Path) -> str:
        """BIDS URI of a volume in this dataset, relative to the derivatives."""
        return f"bids:source:{volume.relative_to(self.root).as_posix()}"

    def copy_gradients(self, volume: Path, target: Path) -> None:
        """Copy diffusion directions and b-values next to the result; they do not depend on the grid.

        Their names cannot have the entities `res` and `desc`, so they keep the source's name and apply to the result by
        inheritance.

        Raises:
            OSError: they cannot be copied.
        """
        stem = _stem(volume)
        if re.search("(^|_)(res|desc)-", stem):
            stem = _stem(target)
        for ending in ("bval", "bvec"):
            if found := list(_applicable(self.root, volume, ending)):
                copy = target.with_name(f"{stem}.{ending}")
                with open(found[-1], "rb") as source, replacing(copy) as stream:
                    shutil.copyfileobj(source, stream)

    def describe(self, output: Path) -> None:
        """Make `output` a derivatives dataset, unless it already has another description.

        Raises:
            OSError: the file cannot be written.
        """
        path = output / DESCRIPTION
        if path.exists():
            return
        link = Path(os.path.relpath(self.root.resolve(), output.resolve())).as_posix()
        doi = self.description.get("DatasetDOI")
        content = {
            "Name": f"{TOOL} of {self.description.get('Name', 'a dataset')}",
            "BIDSVersion": VERSION,
            "DatasetType": "derivative",
            "GeneratedBy": generated_by(),
            "SourceDatasets": [{"DOI": doi} if doi else {"URL": link}],
            "DatasetLinks": {"source": link},
        }
        write_json(path, content)
        with replacing(output / ".bidsignore") as stream:
            stream.write("".join(f"{name}\n" for name in IGNORED).encode())


def _applicable(root: Path, volume: Path, ending: str) -> Iterator[Path]:
    """Metadata files that apply to a volume, from the dataset root down to its own folder."""
    *entities, suffix = _stem(volume).split("_")
    folders = [root, *(root.joinpath(*volume.relative_to(root).parts[:n]) for n in range(1, len(volume.parts)))]
    for folder in dict.fromkeys(folders):
        if not folder.is_dir():
            return
        for path in sorted(folder.glob(f"*.{ending}")):
            *others, kind = path.stem.split("_")
            if kind == suffix and set(others) <= set(entities):
                yield path


def _stem(volume: Path) -> str:
    return re.sub(r"\.nii(\.gz)?$", "", volume.name, flags=re.IGNORECASE)
