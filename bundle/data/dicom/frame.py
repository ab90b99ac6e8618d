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

SIDES = ("Laterality", "ImageLaterality", "FrameLaterality", "StackID")
"""Attributes that separate stacks wherever they differ, as SOP class, matrix and orientation do."""

VALUES = (
    *("ImageType", "FrameType", "ComplexImageComponent", "ASLContext", "TemporalPositionIdentifier"),
    *("TemporalPositionIndex", "EchoTime", "EffectiveEchoTime", "EchoNumbers", "DiffusionBValue"),
    *("DiffusionDirectionality", "DiffusionGradientOrientation", "NominalPercentageOfCardiacPhase"),
    *("NominalPercentageOfRespiratoryPhase", "InversionTime", "InversionTimes", "FlipAngle", "RepetitionTime", "KVP"),
    *("ConvolutionKernel", "ReceiveCoilName", "VelocityEncodingDirection", "SequenceName", "ScanOptions"),
)
"""Attributes of a whole volume, the most meaningful first; they are compared by value."""

TEXTS = ("ImageComments", "SeriesDescription", "ProtocolName")
"""As VALUES, but free text, which may name the patient: only the name of the attribute is ever shown."""

TIMES = (
    *("TriggerTime", "NominalCardiacTriggerDelayTime", "ActualCardiacTriggerDelayTime", "FrameReferenceTime"),
    *("TemporalPositionTimeOffset", "NominalRespiratoryTriggerDelayTime"),
)
"""Attributes of a volume that may drift from slice to slice; where they do, they are compared by rank in a place."""

ACQUISITIONS = ("FrameAcquisitionNumber", "AcquisitionNumber")
"""They number volumes, or what is acquired at a time: compared as TIMES."""

KSPACE = (
    *("AcquisitionMatrix", "InPlanePhaseEncodingDirection", "PercentSampling", "PercentPhaseFieldOfView"),
    *("MRAcquisitionFrequencyEncodingSteps", "MRAcquisitionPhaseEncodingStepsInPlane", "PartialFourier"),
    "ParallelAcquisition",
)
"""How the k-space of an MR image was sampled (:mod:`bundle.data.dicom.matrix`); they tell no volumes apart."""

GE_PART = "GE image part"
PRIVATE = {
    (0x0043, 0x2F): GE_PART,
    **{(0x0019, 0x0C): "Siemens b-value", (0x0043, 0x39): "GE b-value"},
    **{(0x2001, 0x03): "Philips b-value", (0x0065, 0x09): "UIH b-value"},
    **{(0x0019, 0x0E): "Siemens gradient direction", (0x0065, 0x37): "UIH gradient direction"},
    **{(0x0019, 0xBB): "GE gradient x", (0x0019, 0xBC): "GE gradient y", (0x0019, 0xBD): "GE gradient z"},
    **{(0x2005, 0xB0): "Philips gradient x", (0x2005, 0xB1): "Philips gradient y"},
    **{(0x2005, 0xB2): "Philips gradient z", (0x2001, 0x04): "Philips diffusion direction"},
    **{(0x2005, 0x12): "Philips b-value number", (0x2005, 0x13): "Philips gradient number"},
    **{(0x2001, 0x08): "Philips phase number", (0x2005, 0x29): "Philips label type"},
}
"""(group, offset in a private block) of values that tell volumes apart, whether or not the block names its creator:
anonymisers remove creators, and a value that means something else is either the same in all volumes or no obstacle."""

TRAITS = (*VALUES, *PRIVATE.values(), *TEXTS, *TIMES, *ACQUISITIONS)
"""What distinguishes frames, in the order of `Frame.traits`."""


@dataclass(frozen=True, slots=True)
class Padding:
    """PixelPaddingValue and PixelPaddingRangeLimit (the value again if there is none), stored integers."""

    value: int
    limit: int


@dataclass(frozen=True, slots=True, eq=False)
class Image:
    """Attributes of a whole file. `patient` is a hash; UIDs are "" if blank.

    `dimensions` names the columns of DimensionIndexValues that are neither a stack nor a position in it; `assumed` are
    attributes that are missing or empty, with the value that is assumed instead.
    """

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
    slices_in_series: int | None
    dimensions: tuple[str, ...] = ()
    assumed: tuple[str, ...] = ()

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
        sides, traits: values of SIDES and TRAITS, None if absent.
        indices: DimensionIndexValues, for the columns in `image.dimensions`.
        acquired: date and time of acquisition, in seconds; `content`: ContentDate and ContentTime. None if absent.
        kspace: values of KSPACE, None if absent.
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
    sides: tuple[Any, ...]
    traits: tuple[Any, ...]
    indices: tuple[int, ...] = ()
    acquired: float | None = None
    content: float | None = None
    kspace: tuple[Any, ...] = (None,) * len(KSPACE)

    @property
    def path(self) -> Path:
        return self.image.path

    @property
    def name(self) -> str:
        """The file's name, with the number of the frame (from 1) if it holds several."""
        return self.path.name + (f" frame {self.index + 1}" if self.image.frames > 1 else "")


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
