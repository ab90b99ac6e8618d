"""Derived multi-frame objects: the functional groups of an enhanced image (PS3.3 C.7.6.16)."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from typing import TYPE_CHECKING

from bundle.data.dicom.derive import Derivation, decimal_text, resampling_code, source_item, values_of
from bundle.data.dicom.frame import Image

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

_FRAME_TYPES = (
    *("MRImageFrameTypeSequence", "CTImageFrameTypeSequence", "PETFrameTypeSequence"),
    *("CommonCTMRPETImageFrameTypeSequence",),
)

_PULSE_SEQUENCE = (
    *("PulseSequenceName", "MRAcquisitionType", "EchoPulseSequence", "MultipleSpinEcho", "MultiPlanarExcitation"),
    *("PhaseContrast", "TimeOfFlightContrast", "ArterialSpinLabelingContrast", "SteadyStatePulseSequence"),
    *("EchoPlanarPulseSequence", "SaturationRecovery", "SpectrallySelectedSuppression", "OversamplingPhase"),
    *("GeometryOfKSpaceTraversal", "RectilinearPhaseEncodeReordering", "SegmentedKSpaceTraversal"),
    *("CoverageOfKSpace", "NumberOfKSpaceTrajectories"),
)
"""Attributes of the MR Pulse Sequence module (PS3.3 C.8.13.4), allowed only in ORIGINAL or MIXED images."""


def derive_frames(dataset: Dataset, image: Image, indices: Sequence[int], derivation: Derivation) -> None:
    """Keep the given frames of an enhanced image, in this order, and mark their functional groups as derived.

    Args:
        dataset: of the derived instance (`derive_instance`).
        image: the source.
        indices: frames of the source.
        derivation: how it was made.
    """
    from pydicom.dataset import Dataset

    groups = dataset.PerFrameFunctionalGroupsSequence
    frames = [deepcopy(groups[index]) for index in indices]
    shared = _shared_groups(dataset)
    for group in (shared, *frames):
        _divide_spacing(group, derivation.scale)
        for name in _FRAME_TYPES:
            for item in group.get(name) or ():
                item.FrameType = _derived_type(values_of(item, "FrameType"))
    for index, group in zip(indices, frames, strict=True):
        step = Dataset()
        step.DerivationDescription = derivation.text
        step.DerivationCodeSequence = [resampling_code()]
        if image.uid:
            step.SourceImageSequence = [source_item(image, [index])]
        group.DerivationImageSequence = [step]
    if "DerivationImageSequence" in shared:
        del shared.DerivationImageSequence
    _renumber(frames)
    dataset.PerFrameFunctionalGroupsSequence = frames
    dataset.NumberOfFrames = len(frames)
    dataset.ImageType = _derived_type(values_of(dataset, "ImageType"))
    for name in _PULSE_SEQUENCE:
        if name in dataset:
            del dataset[name]
    if image.uid and image.study and image.series:
        dataset.SourceImageEvidenceSequence = [_evidence(image)]
    if "LossyImageCompression" not in dataset:
        dataset.LossyImageCompression = "00"


def set_scaling(dataset: Dataset, slopes: Sequence[float], intercepts: Sequence[float]) -> None:
    """Give each frame its own linear scaling, replacing the source's."""
    from pydicom.dataset import Dataset

    shared = _shared_groups(dataset)
    frames = dataset.PerFrameFunctionalGroupsSequence
    if "PixelValueTransformationSequence" in shared:
        kept = shared.PixelValueTransformationSequence[0].get("RescaleType", "US")
        del shared.PixelValueTransformationSequence
    else:
        kept = "US"
    for group, slope, intercept in zip(frames, slopes, intercepts, strict=True):
        scaling = (group.get("PixelValueTransformationSequence") or [Dataset()])[0]
        scaling.RescaleIntercept, scaling.RescaleSlope = decimal_text(intercept), decimal_text(slope)
        scaling.RescaleType = scaling.get("RescaleType", kept)
        group.PixelValueTransformationSequence = [scaling]
    for group in (shared, *frames):
        if "RealWorldValueMappingSequence" in group:
            del group.RealWorldValueMappingSequence


def _shared_groups(dataset: Dataset) -> Dataset:
    """The item of the shared functional groups, made if there is none (every group may be per frame)."""
    from pydicom.dataset import Dataset

    if not dataset.get("SharedFunctionalGroupsSequence"):
        dataset.SharedFunctionalGroupsSequence = [Dataset()]
    item: Dataset = dataset.SharedFunctionalGroupsSequence[0]
    return item


def _divide_spacing(group: Dataset, scale: int) -> None:
    for item in group.get("PixelMeasuresSequence") or ():
        if "PixelSpacing" in item:
            item.PixelSpacing = [decimal_text(float(size) / scale) for size in item.PixelSpacing]


def _derived_type(source: Sequence[str]) -> list[str]:
    """Keep values 2 and 3; set value 4, derived pixel contrast, to RESAMPLED if it was NONE (C.8.16.1)."""
    values = [*source, *("ORIGINAL", "PRIMARY", "VOLUME", "NONE")[len(source) :]]
    return ["DERIVED", *values[1:3], "RESAMPLED" if values[3] == "NONE" else values[3], *values[4:]]


def _renumber(frames: Sequence[Dataset]) -> None:
    """Renumber dimension indices from 1 without gaps, even if frames were left out."""
    contents = [content for group in frames for content in group.get("FrameContentSequence") or ()]
    indices = [values_of(content, "DimensionIndexValues") for content in contents]
    if len({len(values) for values in indices}) != 1:
        return
    columns = [sorted(set(column)) for column in zip(*indices, strict=True)]
    for content, values in zip(contents, indices, strict=True):
        if values:
            content.DimensionIndexValues = [c.index(value) + 1 for c, value in zip(columns, values, strict=True)]


def _evidence(image: Image) -> Dataset:
    """The source as study > series > instance, as SourceImageSequence requires in multi-frame objects."""
    from pydicom.dataset import Dataset

    instance, series, study = Dataset(), Dataset(), Dataset()
    instance.ReferencedSOPClassUID, instance.ReferencedSOPInstanceUID = image.sop_class, image.uid
    series.SeriesInstanceUID, series.ReferencedSOPSequence = image.series, [instance]
    study.StudyInstanceUID, study.ReferencedSeriesSequence = image.study, [series]
    return study
