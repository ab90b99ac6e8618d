"""BIDS datasets: their volumes, and a derivatives dataset for the results (Brain Imaging Data Structure 1.10)."""

from __future__ import annotations

import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bundle.data import VolumeError
from bundle.data.atomic import replacing
from bundle.data.bids_sidecar import DESCRIPTION, applicable, volume_stem
from bundle.data.errors import error_line
from bundle.data.find import files_below
from bundle.data.paths import open_regular, read_json
from bundle.data.sidecar import TOOL, finite, generated_by, write_json
from bundle.inference.shipped import tool_version

VERSION = "1.10.0"
IGNORED = ("results.csv", "report.html", "*.log", "*.jsonl")

_EXTENDED = ("res", "desc")

_ENTITIES_AFTER_RES = ("den", "label", "desc")

_KEPT = {
    *("TaskName", "RepetitionTime", "VolumeTiming", "EchoTime", "EchoTime1", "EchoTime2", "FlipAngle"),
    *("InversionTime", "MagneticFieldStrength", "SliceEncodingDirection"),
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


_OF_SLICES = {"SliceTiming"}
"""Fields with a value for each slice: valid while the slices are those of the source."""


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
            content = read_json(path)
        except (OSError, ValueError, RecursionError) as error:
            raise VolumeError(error_line(path, f"not readable as JSON ({error})", "correct it or remove it")) from error
        if not isinstance(content, dict):
            raise VolumeError(error_line(path, "does not hold a JSON object", "correct it or remove it"))
        return Bids(root, content)

    def files(self, exclude: Path) -> list[Path]:
        """The files of its subjects; `derivatives`, `sourcedata` and so on are separate datasets."""
        subjects = sorted(path for path in self.root.iterdir() if path.name.startswith("sub-") and path.is_dir())
        return [path for subject in subjects for path in files_below(subject, exclude)]

    def rename(self, stem: str, resolution: str, mark: str = "") -> str:
        """Name of a result: the source's entities, with its resolution (`SRx2`) added to `res` and `ICONet` to `desc`.

        The labels of the source stay in front, so that different names stay different whatever else is there:
        `res-2_desc-preproc_T1w` becomes `res-2SRx2_desc-preprocICONet_T1w`.

        Args:
            stem: name of the source without extension.
            resolution: of the result; of anything but letters and digits, "." becomes "p" and the rest drops out.
            mark: letters and digits that tell files of one stem apart.
        """
        *entities, suffix = stem.split("_")
        labels = {key: "".join(e[len(key) + 1 :] for e in entities if e.startswith(f"{key}-")) for key in _EXTENDED}
        kept = [entity for entity in entities if entity.split("-")[0] not in _EXTENDED]
        last = [entity for entity in kept if entity.split("-")[0] in _ENTITIES_AFTER_RES]
        first = [entity for entity in kept if entity not in last]
        grid = re.sub(r"[^A-Za-z0-9]", "", resolution.replace(".", "p"))
        ends = f"res-{labels['res']}{grid}", f"desc-{labels['desc']}ICONet{mark.capitalize()}"
        return "_".join([*first, ends[0], *last, ends[1], suffix])

    def metadata(self, volume: Path, slice_axis: int, slices: int) -> tuple[dict[str, Any], list[str]]:
        """Metadata that stay valid for a result, by BIDS inheritance: files closer to the volume win.

        Args:
            volume: the source.
            slice_axis, slices: the axis that keeps its size, and that size.

        Returns:
            The metadata, and one line for each file or value that cannot be used.
        """
        # Required in derivatives; raw volumes are not skull-stripped.
        raw = self.description.get("DatasetType", "raw") == "raw"
        found: dict[str, Any] = {"SkullStripped": False} if raw else {}
        doubts: list[str] = []
        for path in applicable(self.root, volume, "json"):
            name = path.relative_to(self.root).as_posix()
            try:
                content = read_json(path)
            except (OSError, ValueError, RecursionError) as error:
                doubts.append(f"{name} is not readable as JSON ({_reason(error)}); its metadata are left out")
                continue
            if not isinstance(content, dict):
                doubts.append(f"{name} does not hold a JSON object; it is left out")
                continue
            kept = {key: value for key, value in content.items() if key in _KEPT | _OF_SLICES}
            if bad := {key for key, value in kept.items() if finite(value) != value}:
                doubts.append(f"{name}: {', '.join(sorted(bad))} left out, not a finite number")
            found = {key: value for key, value in (found | kept).items() if key not in bad}
        if not _times_apply(found, slice_axis, slices) and (bad := _OF_SLICES & found.keys()):
            doubts.append(f"{', '.join(sorted(bad))} left out: not one value for each slice of the result")
            found = {key: value for key, value in found.items() if key not in bad}
        return found, doubts

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
        stem = volume_stem(volume)
        if re.search("(^|_)(res|desc)-", stem):
            stem = volume_stem(target)
        for ending in ("bval", "bvec"):
            if found := list(applicable(self.root, volume, ending)):
                copy = target.with_name(f"{stem}.{ending}")
                with open_regular(found[-1]) as source, replacing(copy) as stream:
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
            "GeneratedBy": generated_by(tool_version()),
            "SourceDatasets": [{"DOI": doi} if doi else {"URL": link}],
            "DatasetLinks": {"source": link},
        }
        write_json(path, content)
        with replacing(output / ".bidsignore") as stream:
            stream.write("".join(f"{name}\n" for name in IGNORED).encode())


def like_bids(root: Path) -> str | None:
    """A line about a folder that has the look of BIDS without being the folder of a dataset; None otherwise."""
    place = root.absolute()
    inside = any(part.startswith("sub-") for part in place.parts[-3:])  # sub-01, sub-01/ses-a or sub-01/ses-a/anat
    if not inside and not any(path.name.startswith("sub-") and path.is_dir() for path in root.iterdir()):
        return None
    dataset = next((folder for folder in place.parents if (folder / DESCRIPTION).is_file()), None)
    remedy = f"add {DESCRIPTION} to it" if dataset is None else f"give {dataset}"
    return f"{root}: plain files, not a BIDS dataset: no BIDS names, metadata and gradients; {remedy} for those"


def _reason(error: Exception) -> str:
    return (isinstance(error, OSError) and error.strerror) or str(error)


def _times_apply(found: dict[str, Any], slice_axis: int, slices: int) -> bool:
    """Whether the values for each slice are for those that the result keeps."""
    axis = "ijk".find(str(found.get("SliceEncodingDirection", "k"))[:1])
    return axis == slice_axis and all(
        isinstance(found.get(key, []), list) and len(found.get(key, [])) in (0, slices) for key in _OF_SLICES
    )
