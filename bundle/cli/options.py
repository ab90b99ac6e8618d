"""What the command line asked for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal


@dataclass(frozen=True)
class Options:
    """Options of a run; the help of the command describes them. `weights` and `device` None: chosen by the run."""

    input: Path
    output: Path
    scale: int = 2
    network: str = "iconet_small"
    weights: Path | None = None
    device: str | None = None
    slice_axis: int | None = None
    slice_batch: int = 4
    data_consistency: float = 1.0
    nonfinite: Literal["error", "zero"] = "error"
    allow_gap: bool = False
    dtype: Literal["float32", "same"] = "float32"
    to: Literal["nifti", "dicom"] | None = None
    overwrite: bool = False
    dry_run: bool = False
    report: bool = False
    log_json: Path | None = None

    def settings(self) -> dict[str, Any]:
        """What decides about the content of a result, besides the input and the weights, for its sidecar."""
        return {
            "Scale": self.scale,
            "Network": self.network,
            "SliceAxis": "auto" if self.slice_axis is None else self.slice_axis,
            "DataConsistency": self.data_consistency,
            "NonFinite": self.nonfinite,
            "AllowGap": self.allow_gap,
            "DataType": self.dtype,
        }


class RunError(Exception):
    """The run cannot start (exit status 2); the message is one line."""
