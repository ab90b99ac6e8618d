"""The acquired matrix as the BIDS sidecar of a NIfTI file states it, in the words of dcm2niix."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bundle.data.acquired import Encoded, Samples, agreed, fraction, in_either_direction, number, on_another_grid
from bundle.data.bids_sidecar import sidecar_metadata, volume_stem
from bundle.data.meaning import modality_by_bids
from bundle.data.nifti.axes import axis_of, dicom_axes, item_of_meta, slice_axis_of_header, turned
from bundle.data.nifti.geometry import Header

if TYPE_CHECKING:
    from bundle.physics.matrix import StatedMatrix

META_KEY = "stated_matrix"
"""Key of the metadata of MetaTensors: acquired samples of the three axes, NaN where nothing is stated."""

SOURCE = "BIDS sidecar"


def stated_matrix(path: Path, header: Header, metadata: Mapping[str, Any] | None = None) -> StatedMatrix | None:
    """What a sidecar says about the acquired matrix of a file; None if it says nothing, or the file is no MR image.

    Args:
        path: the file.
        header: its header, with geometry in mm.
        metadata: its sidecar, if that was read already (:func:`bundle.data.bids_sidecar.sidecar_metadata`).
    """
    metadata = sidecar_metadata(path) if metadata is None else metadata
    if modality_by_bids(path, metadata) not in ("MR", None) or on_another_grid(metadata.get("ImageType")):
        return None
    if re.search("(^|_)(space|res)-", volume_stem(path)):
        return None  # by its BIDS name resampled since
    shape = [int(size) for size in (*header.get_data_shape(), 1, 1)[:3]]
    affine = np.asarray(header.get_best_affine(), np.float64)[:3, :3]
    axes = _axes(metadata, header, affine)
    return _checked(_samples(metadata, axes, shape, affine), SOURCE)


def stated_matrix_in_meta(
    meta: Mapping[str, Any], affine: np.ndarray, item: int = 0, shape: Sequence[int] | None = None
) -> StatedMatrix | None:
    """What the metadata of a MetaTensor say, of one item of a batch.

    None if its axes were turned or resampled after reading, or if `shape`, of its spatial axes, is not the one that
    was read: samples are counted over the whole field of view.
    """
    read = item_of_meta(meta, "spatial_shape", (3,), item)
    if turned(meta, affine, item) or (values := item_of_meta(meta, META_KEY, (3,), item)) is None:
        return None
    if shape is not None and read is not None and list(shape) != [int(size) for size in read[: len(shape)]]:
        return None
    return _checked([float(value) if np.isfinite(value) else None for value in values], SOURCE)


def matrix_for_meta(stated: StatedMatrix | None) -> np.ndarray:
    """The value of `META_KEY`."""
    samples = (None, None, None) if stated is None else stated.samples
    return np.array([np.nan if value is None else value for value in samples])


def _checked(samples: Sequence[float | None], source: str) -> StatedMatrix | None:
    from bundle.physics.matrix import StatedMatrix  # imports PyTorch, which reading a header does not need

    first, second, third = samples
    return None if first is second is third is None else StatedMatrix((first, second, third), source)


def _samples(
    metadata: Mapping[str, Any], axes: tuple[int | None, int | None], shape: Sequence[int], affine: np.ndarray
) -> Sequence[float | None]:
    """Acquired samples of the three axes.

    Args:
        axes: the phase-encoding axis and the slice axis, None if not known.
    """
    phase, across = axes
    spacing = np.linalg.norm(affine, axis=0)
    samples: list[float | None] = [None, None, None]
    # Without the slice axis, either of the two other axes may be the frequency axis: one whose numbers do not depend
    # on that (the phase axis) can still be stated.
    found: list[dict[int, float | None]] = []
    for slices in range(3) if across is None else (across,):
        if slices != phase:
            plane = [axis for axis in range(3) if axis != slices]
            found.append(dict(zip(plane, _in_plane(metadata, phase, plane, shape, spacing), strict=True)))
    for axis in range(3):
        samples[axis] = agreed(plane.get(axis) for plane in found) if found else None
    return samples


def _in_plane(
    metadata: Mapping[str, Any], phase: int | None, plane: Sequence[int], shape: Sequence[int], spacing: np.ndarray
) -> Samples:
    stored = [shape[axis] for axis in plane]
    recon = number(metadata.get("ReconMatrixPE"))
    if recon is not None and recon not in ([shape[phase]] if phase is not None else stored):
        return None, None  # resampled or cropped since
    extent = [shape[axis] * float(spacing[axis]) for axis in plane]
    return in_either_direction(_encoded(metadata), None if phase is None else plane.index(phase), stored, extent)


def _encoded(metadata: Mapping[str, Any]) -> Encoded:
    frequency = _same(metadata, "BaseResolution", "FrequencyEncodingSteps")
    field = fraction(metadata.get("PercentPhaseFOV"))
    resolution = number(metadata.get("PhaseResolution"))
    sampling = fraction(metadata.get("PercentSampling")) or fraction(None if resolution is None else 100 * resolution)
    phase, counted = number(metadata.get("AcquisitionMatrixPE")), False
    if phase is None and frequency is not None:
        if field is not None and resolution is not None:
            phase = frequency * field * resolution
        else:  # of an enhanced object; elsewhere they contain oversampling
            phase, counted = number(metadata.get("PhaseEncodingSteps")), True
    partial = number(metadata.get("PartialFourier")) or 1.0
    if frequency is not None and phase is not None and 0.5 <= partial < 1:
        whole = frequency * (field or 1.0) * (sampling or 1.0)
        counted = counted or agreed((phase, whole * partial)) is not None
    return Encoded(frequency, phase, sampling, field, counted)


def _same(metadata: Mapping[str, Any], *names: str) -> float | None:
    given = [value for name in names if (value := number(metadata.get(name))) is not None]
    return agreed(given) if given else None


def _axes(metadata: Mapping[str, Any], header: Header, affine: np.ndarray) -> tuple[int | None, int | None]:
    """The phase-encoding axis and the slice axis of the array, None if not known.

    dcm2niix turns the volumes of 3-D acquisitions, but leaves dim_info as it was. So ROW and COL count first by the
    directions of DICOM's rows and columns among the axes of the array, and only without these by their order.
    """
    rows, columns, across = dicom_axes(metadata, affine)
    certain = rows is not None
    if across is None:
        across = slice_axis_of_header(header)
    if across is None:
        across = axis_of(metadata.get("SliceEncodingDirection"))
    if across is None and (metadata.get("MRAcquisitionType") == "2D" or len(header.get_data_shape()) < 3):
        across = 2
    if rows is None and across == 2:
        rows, columns = 0, 1
    in_plane = {"ROW": rows, "COL": columns, "COLUMN": columns}.get(
        str(metadata.get("InPlanePhaseEncodingDirectionDICOM")).upper()
    )
    sources = (
        axis_of(metadata.get("PhaseEncodingDirection")),
        axis_of(metadata.get("PhaseEncodingAxis")),
        in_plane if certain else None,
        _phase_axis_of_header(header),
        in_plane,
    )
    phase = next((axis for axis in sources if axis is not None), None)
    return phase, None if across == phase else across


def _phase_axis_of_header(header: Header) -> int | None:
    info = int(header["dim_info"])
    frequency, phase = info & 3, info >> 2 & 3
    return phase - 1 if phase and phase != frequency else None
