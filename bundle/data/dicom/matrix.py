"""The acquired matrix as the headers of a DICOM series state it.

The position of a number in AcquisitionMatrix (frequency rows, frequency columns, phase rows, phase columns) says
nothing reliable about its axis: what is meant by "rows" differs. InPlanePhaseEncodingDirection does.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from bundle.data.acquired import Encoded, Samples, agreed, fraction, in_either_direction, number, on_another_grid
from bundle.data.dicom.frame import KSPACE, TRAITS, Frame

if TYPE_CHECKING:
    from bundle.physics.matrix import StatedMatrix

SOURCE = "DICOM header"

_PHASE_AXIS = {"ROW": 0, "COL": 1, "COLUMN": 1}
"""Array axis of InPlanePhaseEncodingDirection: along a row, the index of the column changes."""

_TYPES = tuple(TRAITS.index(name) for name in ("ImageType", "FrameType"))


def stated_matrix(frames: Sequence[Frame]) -> StatedMatrix | None:
    """What the headers say about the acquired matrix, for the array axes of the volume: columns, rows, slices.

    None if they say nothing; an axis is None where slices contradict each other, or the numbers make no sense.

    Args:
        frames: the slices of one volume, all of one matrix.
    """
    from bundle.physics.matrix import StatedMatrix  # imports PyTorch, which reading a header does not need

    alike = {(frame.kspace, frame.spacing, *(frame.traits[at] for at in _TYPES)): frame for frame in frames}
    columns, rows = map(agreed, zip(*map(_of_frame, alike.values()), strict=True))
    return None if columns is None and rows is None else StatedMatrix((columns, rows, None), SOURCE)


def _of_frame(frame: Frame) -> Samples:
    image, spacing = frame.image, frame.spacing
    values = dict(zip(KSPACE, frame.kspace, strict=True))
    direction = str(values["InPlanePhaseEncodingDirection"] or "").strip().upper()
    if (
        image.modality != "MR"
        or spacing is None
        or min(spacing) <= 0
        or any(on_another_grid(frame.traits[at]) for at in _TYPES)
        or direction == "OTHER"
    ):
        return None, None
    stored = image.columns, image.rows
    extent = image.columns * spacing[1], image.rows * spacing[0]
    return in_either_direction(_encoded(values), _PHASE_AXIS.get(direction), stored, extent)


def _encoded(values: dict[str, Any]) -> Encoded:
    sampling, field = fraction(values["PercentSampling"]), fraction(values["PercentPhaseFieldOfView"])
    steps = [number(values[f"MRAcquisition{name}"]) for name in ("FrequencyEncodingSteps", "PhaseEncodingStepsInPlane")]
    if all(steps):
        counted = "YES" in (values["PartialFourier"], values["ParallelAcquisition"])
        return Encoded(steps[0], steps[1], sampling, field, counted)
    matrix = values["AcquisitionMatrix"]
    if not isinstance(matrix, tuple) or len(matrix) != 4:
        return Encoded(None, None)
    return Encoded(_single(matrix[:2]), _single(matrix[2:]), sampling, field)


def _single(pair: Sequence[Any]) -> float | None:
    """The number of rows or of columns, one of which is unused: 0, or the same again."""
    given = {number(value) for value in pair if value}
    return given.pop() if len(given) == 1 else None
