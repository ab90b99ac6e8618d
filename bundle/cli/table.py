"""The table of a run: one row per volume, rewritten after each, so that a killed run leaves a complete table."""

from __future__ import annotations

import csv
import io
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

from bundle.cli.labels import LabelJob
from bundle.cli.plan import Job
from bundle.data.atomic import replacing

Status = Literal["done", "skipped", "failed"]


@dataclass(frozen=True)
class Row:
    """A row of `results.csv`; the columns are the fields. Lists are joined with "; ", shapes with "x"."""

    volume: str
    status: Status
    result: str = ""
    seconds: str = ""
    slice_axis: str = ""
    shape: str = ""
    acquired_matrix: str = ""
    acquired_by: str = ""
    confidence: str = ""
    resolution_mm: str = ""
    result_resolution_mm: str = ""
    result_shape: str = ""
    residual: str = ""
    warnings: str = ""
    error: str = ""
    input_sha256: str = ""
    weights_sha256: str = ""
    result_sha256: str = ""

    @staticmethod
    def of(job: Job | LabelJob, status: Status, seconds: float, record: dict[str, Any]) -> Row:
        """The row of a volume or label map that has a result, from its record."""
        facts = record["SuperResolution"]
        provenance = facts["Provenance"]
        row = Row(
            volume=job.name,
            status=status,
            result=str(job.target),
            seconds=f"{seconds:.2f}",
            shape="x".join(map(str, facts["SourceShape"])),
            result_shape="x".join(map(str, facts["Shape"])),
            warnings="; ".join(facts["Warnings"]),
            input_sha256=provenance["InputSha256"],
            result_sha256=provenance["OutputSha256"],
        )
        if isinstance(job, LabelJob):  # no network has seen it
            return row
        return replace(
            row,
            slice_axis=str(facts["SliceAxis"]),
            acquired_matrix="x".join(map(str, facts["AcquiredMatrix"])),
            acquired_by=facts["AcquiredMatrixSource"] or "",
            confidence=f"{facts['AcquiredMatrixConfidence'] or 0:.2f}",
            resolution_mm="x".join(f"{size:.4g}" for size in facts["ResolutionBefore"]),
            result_resolution_mm="x".join(f"{size:.4g}" for size in facts["ResolutionAfter"]),
            residual=f"{facts['DataConsistencyResidual']:.3g}",
            weights_sha256=provenance["WeightsSha256"],
        )


def write_results(path: Path, rows: list[Row]) -> None:
    """Write the table. Raises OSError if it cannot be written."""
    text = io.StringIO(newline="")
    table = csv.DictWriter(text, [field.name for field in fields(Row)], lineterminator="\n")
    table.writeheader()
    table.writerows(asdict(row) for row in rows)
    with replacing(path) as stream:
        # File names need not be valid text.
        stream.write(text.getvalue().encode("utf-8", "backslashreplace"))
