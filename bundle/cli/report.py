"""The report of a run, drawn from the input and output files, including volumes finished earlier."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bundle.cli.errors import RunError
from bundle.cli.plan import Job, Plan
from bundle.cli.table import Row
from bundle.data.dicom.find import find_series
from bundle.data.dicom.read import read_series
from bundle.data.dicom.series import DicomSeries
from bundle.data.nifti.read import read_first_volume
from bundle.data.sidecar import TOOL
from bundle.inference.shipped import tool_version
from bundle.options import CommandOptions

if TYPE_CHECKING:
    from bundle.inference.model import Model
    from bundle.physics.place import Grids
    from bundle.report import Section

NAME = "report.html"

_LABELS = {
    "Scale": "scale",
    "Network": "network",
    "SliceAxis": "slice axis",
    "Matrix": "matrix",
    "VoxelSize": "voxel size, mm",
    "DataConsistency": "data consistency",
    "NonFinite": "NaN and infinite voxels",
    "AllowGap": "gaps in DICOM series allowed",
    "Join": "single DICOM slices joined",
    "DataType": "data type of results",
}
_ANSWERS: dict[str, dict[Any, str]] = {
    "NonFinite": {"error": "refused", "zero": "set to 0"},
    "AllowGap": {False: "no", True: "yes"},
    "Join": {False: "no", True: "yes"},
    "VoxelSize": {None: "as the scale gives it"},
}
"""Titles for settings of a record and their values; others are shown unchanged."""


class Report:
    """Collects the sections of finished volumes and writes the page at the end.

    Raises:
        RunError: a package that drawing needs is missing.
    """

    def __init__(self, plan: Plan, options: CommandOptions, model: Model) -> None:
        try:
            import bundle.report  # noqa: F401
        except ImportError as error:
            raise RunError(str(error)) from error
        self._options, self._model = options, model
        self._sections: list[Section] = []
        self.path = plan.folder / NAME if plan.folder else _beside(plan.jobs[0].target)

    def add(self, job: Job, row: Row, record: dict[str, Any]) -> None:
        """Draw a volume that has a result.

        Raises:
            VolumeError: a file has disappeared in the meantime.
        """
        from bundle.report import ReportEntry, section

        facts = record["SuperResolution"]
        before, affine, header = _first(job.source, self._options)
        after, fine_affine, fine_header = _first(job.target, self._options)
        if (padding := facts.get("PaddingValue")) is not None:  # its edge would outshine everything in the pictures
            before, after = (_without(padding, voxels, facts["SliceAxis"]) for voxels in (before, after))
        entry = ReportEntry(
            job.name,
            before,
            affine,
            after,
            fine_affine,
            _grids(facts, affine, fine_affine),
            facts["SliceAxis"],
            facts["DataConsistencyResidual"],
            facts["Warnings"],
            float(row.seconds) if row.status == "done" else None,
            _lines(facts),
            header,
            fine_header,
            _acquired(facts),
        )
        self._sections.append(section(entry))

    def write(self, rows: list[Row]) -> Path:
        """Write the page. Raises OSError if it cannot be written."""
        from bundle.inference.record import versions
        from bundle.report import write_report

        settings = self._options.settings()
        facts = {
            "made by": f"{TOOL} {tool_version()}",
            **{_LABELS.get(key, key): _ANSWERS.get(key, {}).get(value, value) for key, value in settings.items()},
            "weights": f"{self._model.weights.name}, SHA-256 {self._model.digest}",
            "device": next(self._model.network.parameters()).device,
            **versions(),
        }
        failures = {row.volume: row.error for row in rows if row.status == "failed"}
        return write_report(self._sections, self.path, facts, failures)


def _lines(facts: dict[str, Any]) -> dict[str, str]:
    """What the record says about the matrix and, of a series, the volume that is shown."""

    def text(key: str, unit: str = "") -> str:
        return " x ".join(f"{value:.4g}" for value in facts[key]) + unit

    lines = {"shown": f"first of {facts['Shape'][3]} volumes"} if len(facts["Shape"]) > 3 else {}
    lines["stored matrix"] = text("StoredMatrix")
    if (source := facts["AcquiredMatrixSource"]) is not None:
        sure = f", confidence {facts['AcquiredMatrixConfidence']:.2f}" if source != "given" else ""
        lines["acquired matrix"] = f"{text('AcquiredMatrix')} (by {source}{sure})"
    if facts["KSpaceFilter"]:
        lines["k-space filter"] = facts["KSpaceFilter"]
    if facts["NetworkMatrix"] != facts["StoredMatrix"]:
        lines["the network starts at"] = text("NetworkMatrix")
    lines["in-plane resolution"] = f"{text('ResolutionBefore', ' mm')} before, {text('ResolutionAfter', ' mm')} after"
    return lines


def _grids(facts: dict[str, Any], affine: np.ndarray, fine_affine: np.ndarray) -> Grids:
    """The in-plane matrices of a result, from its record."""
    from bundle.physics.place import Grids
    from bundle.physics.slices import in_plane_axes

    plane = in_plane_axes(min(len(facts["Shape"]), 3), facts["SliceAxis"])
    before, after = (np.linalg.norm(a[:3, :3], axis=0) for a in (affine, fine_affine))
    (h, w), (rows, cols) = facts["StoredMatrix"], facts["NetworkMatrix"]
    first, second = plane
    return Grids(
        (h, w),
        (rows, cols),
        (facts["Shape"][first], facts["Shape"][second]),
        (float(after[first] / before[first]), float(after[second] / before[second])),
        facts["Scale"],
    )


def _acquired(record: Mapping[str, Any]) -> tuple[int, int] | None:
    """The acquired matrix if it is smaller than the stored one."""
    acquired = record.get("AcquiredMatrix")
    if not acquired or acquired == record["StoredMatrix"]:
        return None
    first, second = acquired
    return first, second


def _without(padding: float, voxels: np.ndarray, slice_axis: int) -> np.ndarray:
    """A volume whose padding is a continuation of its neighbourhood."""
    import torch

    from bundle.physics import fill_padding

    mask = torch.from_numpy(np.isclose(voxels, padding, rtol=1e-5))
    return np.asarray(fill_padding(torch.from_numpy(voxels), mask, slice_axis))


def _beside(target: Path) -> Path:
    return target.with_name(f"{target.name.split('.nii')[0]}_{NAME}")


def _first(source: Path | DicomSeries, options: CommandOptions) -> tuple[np.ndarray, np.ndarray, dict[str, str]]:
    """Voxels, affine and header lines of a NIfTI file (the first volume) or a DICOM series."""
    if isinstance(source, Path) and not source.is_dir():
        from bundle.report import header_facts

        volume = read_first_volume(source, options.nonfinite)
        return volume.array, volume.affine, header_facts(volume.header)
    series = source if isinstance(source, DicomSeries) else find_series(source).series[0]
    stack = read_series(series, allow_gap=options.allow_gap)
    return stack.voxels, stack.affine, {"format": "DICOM"}
