"""Derived multi-frame objects: the functional groups of an enhanced image (PS3.3 C.7.6.16)."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from typing import TYPE_CHECKING

from bundle.data.dicom.derive import Derivation, decimal_text, resampling_code, source_item, values_of
from bundle.data.dicom.frame import Image
from bundle.data.dicom.integers import follow_encoding
from bundle.data.dicom.scaling import Encoding

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


def select_frames(dataset: Dataset, indices: Sequence[int]) -> None:
    """Keep only these frames of a source, in this order."""
    groups = dataset.PerFrameFunctionalGroupsSequence
    dataset.PerFrameFunctionalGroupsSequence = [groups[index] for index in indices]
    dataset.NumberOfFrames = len(indices)


def derive_frames(dataset: Dataset, image: Image, indices: Sequence[int], derivation: Derivation) -> None:
    """Mark the functional groups of an enhanced image as derived.

    Their dimension indices stay: they count through the series, whose volumes are one object each now.

    Args:
        dataset: of the derived instance (`derive_instance`), after `select_frames`.
        image: the source.
        indices: what its frames are in the source.
        derivation: how it was made.
    """
    from pydicom.dataset import Dataset

    frames = dataset.PerFrameFunctionalGroupsSequence
    shared = _shared_groups(dataset)
    for group in (shared, *frames):
        for item in group.get("PixelMeasuresSequence") or ():
            if "PixelSpacing" in item:
                item.PixelSpacing = derivation.spacing(item.PixelSpacing)
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
    dataset.ImageType = _derived_type(values_of(dataset, "ImageType"))
    for name in _PULSE_SEQUENCE:
        if name in dataset:
            del dataset[name]
    if image.uid and image.study and image.series:
        dataset.SourceImageEvidenceSequence = [_evidence(image)]
    if "LossyImageCompression" not in dataset:
        dataset.LossyImageCompression = "00"


def set_scaling(dataset: Dataset, encoding: Encoding, slices: Sequence[int]) -> None:
    """Let all that tells the meaning of the stored integers follow the encoding of these slices of the volume."""
    from pydicom.dataset import Dataset

    shared = _shared_groups(dataset)
    frames = dataset.PerFrameFunctionalGroupsSequence
    coarser = [float(encoding.coarser[at]) for at in slices]
    if len(set(coarser)) > 1:
        _share_no_more(shared, frames, "RealWorldValueMappingSequence")
    else:
        follow_encoding(shared, coarser[0], encoding)
    for group, factor in zip(frames, coarser, strict=True):
        follow_encoding(group, factor, encoding)
    if max(coarser) > 1:
        _share_no_more(shared, frames, "PixelValueTransformationSequence")
        for at, group in zip(slices, frames, strict=True):
            scaling = (group.get("PixelValueTransformationSequence") or [Dataset()])[0]
            scaling.RescaleSlope = decimal_text(float(encoding.slopes[at]))
            scaling.RescaleIntercept = decimal_text(encoding.frames[at].intercept)
            scaling.RescaleType = scaling.get("RescaleType", "US")
            group.PixelValueTransformationSequence = [scaling]


def _share_no_more(shared: Dataset, frames: Sequence[Dataset], name: str) -> None:
    """Move a shared functional group into every frame."""
    if name in shared:
        for group in frames:
            group[name] = deepcopy(shared[name])
        del shared[name]


def _shared_groups(dataset: Dataset) -> Dataset:
    """The item of the shared functional groups, made if there is none (every group may be per frame)."""
    from pydicom.dataset import Dataset

    if not dataset.get("SharedFunctionalGroupsSequence"):
        dataset.SharedFunctionalGroupsSequence = [Dataset()]
    item: Dataset = dataset.SharedFunctionalGroupsSequence[0]
    return item


def _derived_type(source: Sequence[str]) -> list[str]:
    """Keep values 2 and 3; set value 4, derived pixel contrast, to RESAMPLED if it was NONE (C.8.16.1)."""
    values = [*source, *("ORIGINAL", "PRIMARY", "VOLUME", "NONE")[len(source) :]]
    return ["DERIVED", *values[1:3], "RESAMPLED" if values[3] == "NONE" else values[3], *values[4:]]


def _evidence(image: Image) -> Dataset:
    """The source as study > series > instance, as SourceImageSequence requires in multi-frame objects."""
    from pydicom.dataset import Dataset

    instance, series, study = Dataset(), Dataset(), Dataset()
    instance.ReferencedSOPClassUID, instance.ReferencedSOPInstanceUID = image.sop_class, image.uid
    series.SeriesInstanceUID, series.ReferencedSOPSequence = image.series, [instance]
    study.StudyInstanceUID, study.ReferencedSeriesSequence = image.study, [series]
    return study
