"""Attributes of a derived DICOM image: which are new, which are kept, and which are removed as no longer true.

PS3.3 C.7.6.1 (General Image), C.7.5.2 (contributing equipment); codes of PS3.16. Attributes not named here are kept:
patient, study, frame of reference, orientation, acquisition, radiopharmaceutical, windows.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import TYPE_CHECKING, Any

from bundle.data.dicom.frame import CLASSIC, Image, Padding
from bundle.data.dicom.header import read_dataset
from bundle.data.dicom.private import keep_private
from bundle.data.dicom.scaling import Encoding
from bundle.data.dicom.series import DicomSeries

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

NAME = "ICONet SR"

_REMOVED = (
    *("IconImageSequence", "GraphicAnnotationSequence", "DigitalSignaturesSequence", "MACParametersSequence"),
    *("EncryptedAttributesSequence", "ReferencedPerformedProcedureStepSequence", "InstanceCreatorUID"),
    *("SmallestImagePixelValue", "LargestImagePixelValue", "SmallestPixelValueInSeries", "LargestPixelValueInSeries"),
    *("SmallestImagePixelValueInPlane", "LargestImagePixelValueInPlane", "PixelPaddingValue", "PixelPaddingRangeLimit"),
    *("SourceImageSequence", "DataSetTrailingPadding", "ExtendedOffsetTable", "ExtendedOffsetTableLengths"),
    *("ConcatenationUID", "SOPInstanceUIDOfConcatenationSource", "InConcatenationNumber", "InConcatenationTotalNumber"),
    *("ConcatenationFrameOffsetNumber", "PixelDataProviderURL", "StorageMediaFileSetUID"),
)

_SYNTAX = "1.2.840.10008.1.2"
_LOSSLESS = {
    *(_SYNTAX + end for end in ("", ".1", ".1.99", ".2", ".5", ".8.1")),  # uncompressed, deflated, RLE
    *(f"{_SYNTAX}.4.{end}" for end in (57, 58, 65, 66, 70, 80, 90, 92, 110, 201, 202)),
    "1.2.840.113619.5.2",  # GE, uncompressed
}
"""Transfer syntaxes that lose nothing. All others are lossy, or may be."""

_MAY_BE_LOSSLESS = {f"{_SYNTAX}.4.{end}" for end in (91, 93, 111, 112, 203)}
"""JPEG 2000, JPEG XL and HTJ2K with or without loss: believed if the header says that nothing was lost."""

_METHODS = {
    **dict.fromkeys((f"{_SYNTAX}.4.{end}" for end in range(50, 65)), "ISO_10918_1"),
    **{f"{_SYNTAX}.4.81": "ISO_14495_1", f"{_SYNTAX}.4.91": "ISO_15444_1", f"{_SYNTAX}.4.203": "ISO_15444_15"},
    **{f"{_SYNTAX}.4.111": "ISO_18181_1", f"{_SYNTAX}.4.112": "ISO_18181_1"},
}
"""LossyImageCompressionMethod of lossy transfer syntaxes (PS3.3 C.7.6.1.1.5.1)."""


_TORN = ("PatientName", "PatientID", "StudyInstanceUID", "StudyID", "AccessionNumber", "FrameOfReferenceUID")


@dataclass(frozen=True)
class Derivation:
    """How a derived series was made; shared by all its instances.

    Attributes:
        scale: in-plane factor of the network.
        version: of this software.
        weights: sha256 of the weights, "" if not given.
        settings: JSON text of all other settings that affect the voxels.
        created: time of creation.
        source: the source series as read; its volumes become one derived series.
        factors: voxel size of the source by that of the result, between columns and between rows; None if both are
            `scale`.
        size: voxel size of the result between columns and between rows, mm; None if it follows from `scale`.
    """

    scale: int
    version: str
    weights: str
    settings: str
    created: datetime
    source: DicomSeries
    factors: tuple[float, float] | None = None
    size: tuple[float, float] | None = None

    def uid(self, *source: object) -> str:
        """A UID (PS3.5 B.2) determined by source, weights and settings."""
        lead = self.source.lead
        # If an anonymiser blanked the series UID, the folder identifies it.
        origin = lead and [lead.study, lead.series or str(lead.path.parent), lead.patient]
        grid = [] if self.size is None else [self._size]
        parts = [origin, self.scale, self.version, self.weights, self.settings, *grid, *map(str, source)]
        return f"2.25.{uuid.uuid5(uuid.NAMESPACE_OID, json.dumps([NAME, *parts])).int}"

    @property
    def text(self) -> str:
        weights = f", weights sha256 {self.weights[:16]}" if self.weights else ""
        volume = " Volume {} of {} of its series.".format(*self.source.volume) if self.source.volume else ""
        grid = "" if self.size is None else f", on voxels of {self._size}"
        return (
            f"Super-resolution x{self.scale} in the plane of the slices by {NAME} {self.version}{weights}{grid}. "
            f"Detail beyond the acquired band is estimated, not measured. Voxel 0 stays in place.{volume}"
        )

    @property
    def mark(self) -> str:
        """What the description of the series says about the result."""
        return f"SRx{self.scale}" if self.size is None else f"SR {self._size.replace(' ', '')}"

    def spacing(self, source: Sequence[float]) -> list[str]:
        """PixelSpacing (between rows, between columns) from that of the source."""
        columns, rows = self.factors or (self.scale, self.scale)
        return [decimal_text(float(size) / factor) for size, factor in zip(source, (rows, columns), strict=False)]

    @property
    def _size(self) -> str:
        return f"{' x '.join(f'{length:.4g}' for length in self.size or ())} mm"


def derivation_from(
    provenance: Mapping[str, Any],
    scale: int,
    source: DicomSeries,
    version: str,
    now: datetime,
    factors: tuple[float, float] | None = None,
    size: tuple[float, float] | None = None,
) -> Derivation:
    """Pick the keys of a provenance record that affect the voxels: "version", "weights_sha256", "settings"."""
    return Derivation(
        scale=scale,
        version=str(provenance.get("version", version)),
        weights=str(provenance.get("weights_sha256", "")),
        settings=json.dumps(provenance.get("settings", {}), sort_keys=True, default=str),
        created=now,
        source=source,
        factors=factors,
        size=size,
    )


def derive_instance(dataset: Dataset, image: Image, derivation: Derivation, instance_number: int) -> None:
    """Turn a source data set, without pixels, into a derived instance; matrix, position and values are set later.

    Raises:
        Exception: pydicom cannot convert an attribute.
    """
    _remove_stale(dataset)
    dataset.SOPInstanceUID = derivation.uid("instance", derivation.source.label, image.uid, instance_number)
    dataset.SeriesInstanceUID = derivation.uid("series")
    dataset.StudyInstanceUID = image.study or derivation.uid("study")
    dataset.FrameOfReferenceUID = image.frame_of_reference or derivation.uid("frame of reference")
    first = derivation.source.lead or image
    dataset.SeriesNumber = ((first.series_number or 0) * 100 + derivation.scale) % 2**31
    dataset.InstanceNumber = instance_number
    _describe(dataset, derivation)
    if image.sop_class in CLASSIC:
        _describe_classic(dataset, image, derivation)
    _keep_lossy(dataset, image)


def adopt(dataset: Dataset, image: Image, lead: Image) -> Image:
    """Give an instance the patient, study, series and frame of reference of the series' lead.

    They differ where slices were joined that an anonymiser has torn apart.
    """
    if _identity(image) == _identity(lead):
        return image
    source = read_dataset(lead.path, list(_TORN))
    for name in _TORN:
        if name in source:
            dataset[name] = source[name]
        elif name in dataset:
            del dataset[name]
    return replace(
        image, study=lead.study, series=lead.series, patient=lead.patient, frame_of_reference=lead.frame_of_reference
    )


def _identity(image: Image) -> tuple[str, ...]:
    return image.patient, image.study, image.series, image.frame_of_reference


def source_item(image: Image, frames: list[int] | None = None) -> Dataset:
    """An item of SourceImageSequence; `frames` (from 0) for a multi-frame source."""
    from pydicom.dataset import Dataset

    item = Dataset()
    item.ReferencedSOPClassUID = image.sop_class
    item.ReferencedSOPInstanceUID = image.uid
    if frames is not None:
        item.ReferencedFrameNumber = [number + 1 for number in frames]
    item.PurposeOfReferenceCodeSequence = [_code("121322", "Source image for image processing operation")]
    return item


def resampling_code() -> Dataset:
    """The item of DerivationCodeSequence (CID 7203)."""
    return _code("113085", "Spatial resampling")


def set_pixels(dataset: Dataset, encoding: Encoding, rows: int, columns: int, pixels: bytes) -> None:
    """Set matrix, integer type and pixels."""
    from pydicom.dataelem import DataElement

    dataset.Rows, dataset.Columns = rows, columns
    dataset.SamplesPerPixel = 1
    dataset.PhotometricInterpretation = dataset.get("PhotometricInterpretation") or "MONOCHROME2"
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 16, encoding.bits, encoding.bits - 1
    dataset.PixelRepresentation = int(encoding.signed)
    dataset["PixelData"] = DataElement("PixelData", "OW", pixels)


def set_padding(dataset: Dataset, encoding: Encoding, padding: Padding | None) -> None:
    """Declare the padding that the pixels hold; None if they hold none that the source declares."""
    vr = "SS" if encoding.signed else "US"
    if padding is not None:
        dataset.add_new("PixelPaddingValue", vr, padding.value)
        if padding.limit != padding.value:
            dataset.add_new("PixelPaddingRangeLimit", vr, padding.limit)


def decimal_text(value: float) -> str:
    """A decimal string of at most 16 characters (PS3.5 6.2)."""
    from pydicom.valuerep import format_number_as_ds

    return str(format_number_as_ds(float(value)))


def values_of(dataset: Dataset, name: str) -> list:
    """The values of an attribute as a list (pydicom returns a single value bare); empty if there are none."""
    value = dataset.get(name)
    if value is None or value == "":
        return []
    return list(value) if isinstance(value, Sequence) and not isinstance(value, str) else [value]


def _remove_stale(dataset: Dataset) -> None:
    for name in _REMOVED:
        if name in dataset:
            del dataset[name]
    for tag in list(dataset.keys()):
        overlay_or_curve = tag.group & 0xFF00 in (0x6000, 0x5000) and tag.group < 0x6100
        if overlay_or_curve or tag.group <= 2:
            del dataset[tag]
    keep_private(dataset)


def _describe(dataset: Dataset, derivation: Derivation) -> None:
    suffix = f" {derivation.mark} ICONet"
    dataset.SeriesDescription = (str(dataset.get("SeriesDescription") or "")[: 64 - len(suffix)] + suffix).strip()
    for prefix in ("InstanceCreation", "Content"):
        setattr(dataset, f"{prefix}Date", derivation.created.strftime("%Y%m%d"))
        setattr(dataset, f"{prefix}Time", derivation.created.strftime("%H%M%S"))
    dataset.ContributingEquipmentSequence = [
        *(dataset.get("ContributingEquipmentSequence") or ()),
        _equipment(derivation),
    ]
    dataset.SoftwareVersions = [*values_of(dataset, "SoftwareVersions"), f"{NAME} {derivation.version}"[:64]]


def _describe_classic(dataset: Dataset, image: Image, derivation: Derivation) -> None:
    # C.7.6.1.1.2: SECONDARY, made after the examination; a PET image may only be PRIMARY (C.8.9.4.1.3).
    dataset.ImageType = [
        "DERIVED",
        "PRIMARY" if image.modality == "PT" else "SECONDARY",
        *values_of(dataset, "ImageType")[2:],
    ]
    dataset.DerivationDescription = derivation.text
    dataset.DerivationCodeSequence = [resampling_code()]
    if image.uid:
        dataset.SourceImageSequence = [source_item(image)]


def _equipment(derivation: Derivation) -> Dataset:
    from pydicom.dataset import Dataset

    item = Dataset()
    item.PurposeOfReferenceCodeSequence = [_code("109102", "Processing Equipment")]
    item.Manufacturer = NAME
    item.ManufacturerModelName = f"{NAME} x{derivation.scale}"
    item.SoftwareVersions = derivation.version[:64]
    item.ContributionDateTime = derivation.created.strftime("%Y%m%d%H%M%S")
    item.ContributionDescription = "Super-resolution"
    return item


def _keep_lossy(dataset: Dataset, image: Image) -> None:
    """Once lossy, always marked lossy (PS3.3 C.7.6.1.1.5), even if only the transfer syntax shows it."""
    mark = str(dataset.get("LossyImageCompression") or "")
    syntax = image.transfer_syntax
    if mark == "01" or syntax in _LOSSLESS or (mark == "00" and syntax in _MAY_BE_LOSSLESS):
        return
    dataset.LossyImageCompression = "01"
    if syntax in _METHODS:
        dataset.LossyImageCompressionMethod = _METHODS[syntax]
    ratio = image.frames * image.rows * image.columns * image.bits_allocated / 8 / image.path.stat().st_size
    dataset.LossyImageCompressionRatio = f"{max(ratio, 1):.2f}"


def _code(value: str, meaning: str) -> Dataset:
    from pydicom.dataset import Dataset

    code = Dataset()
    code.CodeValue, code.CodingSchemeDesignator, code.CodeMeaning = value, "DCM", meaning
    return code
