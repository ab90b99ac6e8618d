"""A slice of a DICOM series as plain values, none of which identifies the patient."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

_STORAGE = "1.2.840.10008.5.1.4.1.1."
CLASSIC = {_STORAGE + "4": "MR", _STORAGE + "2": "CT", _STORAGE + "128": "PT"}
ENHANCED = {
    **{_STORAGE + "4.1": "MR", _STORAGE + "4.4": "MR", _STORAGE + "2.1": "CT", _STORAGE + "2.2": "CT"},
    **{_STORAGE + "130": "PT", _STORAGE + "128.1": "PT"},
}
MODALITIES = {**CLASSIC, **ENHANCED}
"""Supported SOP classes and their modality (names in PS3.4 B.5)."""

CONTRASTS = ("EchoTime", "EffectiveEchoTime", "DiffusionBValue", "StackID", "Laterality", "ImageLaterality")
"""Attributes that separate the volumes of one series wherever they differ."""

PHASES = (
    *("TemporalPositionIdentifier", "TemporalPositionIndex", "ImageType", "FrameType", "ComplexImageComponent"),
    *("EchoNumbers", "DiffusionGradientOrientation", "AcquisitionNumber", "TriggerTime", "FrameReferenceTime"),
    *("NominalCardiacTriggerDelayTime", "InversionTime", "FlipAngle", "KVP", "ConvolutionKernel"),
)
"""Attributes that may differ between slices of one volume; they separate slices at the same position."""


@dataclass(frozen=True, slots=True)
class Padding:
    """PixelPaddingValue and PixelPaddingRangeLimit (the value again if there is none), stored integers."""

    value: int
    limit: int


@dataclass(frozen=True, slots=True, eq=False)
class Image:
    """Attributes of a whole file. `patient` is a hash; UIDs are "" if blank."""

    path: Path
    uid: str
    sop_class: str
    study: str
    series: str
    patient: str
    series_number: int | None
    instance_number: int | None
    transfer_syntax: str
    frame_of_reference: str
    rows: int
    columns: int
    frames: int
    bits_allocated: int
    bits_stored: int
    signed: bool
    inverted: bool
    padding: Padding | None
    acquired: tuple[int, int] | None
    slices_in_series: int | None

    @property
    def modality(self) -> str:
        return MODALITIES[self.sop_class]


@dataclass(frozen=True, slots=True, eq=False)
class Frame:
    """One slice: its position (LPS, mm), its scaling, and what distinguishes it from others.

    Attributes:
        image: the file that holds it.
        index: its number in that file, from 0.
        position: centre of its first voxel.
        orientation: direction of increasing column index, then of increasing row index.
        spacing: between rows, between columns (the order of PixelSpacing).
        thickness, step: SliceThickness and SpacingBetweenSlices, if given.
        slope, intercept: value = slope * stored + intercept; `rescaled`: whether the file has them.
        contrasts, phases: values of CONTRASTS and PHASES, None if absent.
    """

    image: Image
    index: int
    position: tuple[float, ...] | None
    orientation: tuple[float, ...] | None
    spacing: tuple[float, ...] | None
    thickness: float | None
    step: float | None
    slope: float
    intercept: float
    rescaled: bool
    contrasts: tuple[Any, ...]
    phases: tuple[Any, ...]

    @property
    def path(self) -> Path:
        return self.image.path


@dataclass(frozen=True, slots=True)
class Skipped:
    """A DICOM file that is not an image of a supported modality; `reason` groups such files in the log."""

    path: Path
    reason: str


@dataclass(frozen=True, slots=True)
class Broken:
    """A DICOM file that belongs to a series but cannot be used; `series` is what is known about its identity."""

    path: Path
    series: tuple[str, str, str]
    error: str
