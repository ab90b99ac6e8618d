"""Attributes of a derived DICOM image: which are new, which are kept, and which are removed as no longer true.

PS3.3 C.7.6.1 (General Image), C.7.5.2 (contributing equipment); codes of PS3.16. Attributes not named here are kept:
patient, study, frame of reference, orientation, acquisition, radiopharmaceutical, windows.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

from bundle.data.dicom.frame import CLASSIC, Image, Padding
from bundle.data.dicom.scaling import Encoding

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

NAME = "ICONet SR"

_KEPT_PRIVATE = {
    ("Philips PET Private Group", 0x7053): (0x00, 0x09),  # factors from counts to SUV and to Bq/ml
    ("GEMS_PETD_01", 0x0009): (0x0D,),  # time of the scan, to which activity is decay corrected
    ("SIEMENS MR HEADER", 0x0019): (0x0C, 0x0E),  # b-value and gradient direction
    ("GEMS_PARM_01", 0x0043): (0x39,),  # b-value
    ("Philips Imaging DD 001", 0x2001): (0x03,),  # b-value
}
"""(creator, group): offsets of elements without which values lose their meaning. Other private attributes are removed:
they may describe the old matrix, and there is no way to tell which do."""

_REMOVED = (
    *("IconImageSequence", "GraphicAnnotationSequence", "DigitalSignaturesSequence", "MACParametersSequence"),
    *("EncryptedAttributesSequence", "ReferencedPerformedProcedureStepSequence", "InstanceCreatorUID"),
    *("SmallestImagePixelValue", "LargestImagePixelValue", "SmallestPixelValueInSeries", "LargestPixelValueInSeries"),
    *("SmallestImagePixelValueInPlane", "LargestImagePixelValueInPlane", "PixelPaddingValue", "PixelPaddingRangeLimit"),
    *("SourceImageSequence", "DataSetTrailingPadding", "ExtendedOffsetTable", "ExtendedOffsetTableLengths"),
    *("ConcatenationUID", "SOPInstanceUIDOfConcatenationSource", "InConcatenationNumber", "InConcatenationTotalNumber"),
    *("ConcatenationFrameOffsetNumber", "PixelDataProviderURL", "StorageMediaFileSetUID"),
)

_LOSSY = {"1.2.840.10008.1.2.4.50": "ISO_10918_1", "1.2.840.10008.1.2.4.51": "ISO_10918_1"}
"""Transfer syntaxes that are always lossy, and their LossyImageCompressionMethod."""


@dataclass(frozen=True)
class Derivation:
    """How a derived series was made; shared by all its instances.

    Attributes:
        scale: in-plane factor.
        version: of this software.
        weights: sha256 of the weights, "" if not given.
        settings: JSON text of all other settings that affect the voxels.
        created: time of creation.
        series: label of the source volume, to tell the volumes of one source series apart.
    """

    scale: int
    version: str
    weights: str
    settings: str
    created: datetime
    series: str

    def uid(self, *source: object) -> str:
        """A UID (PS3.5 B.2) determined by source, weights and settings."""
        parts = [self.series, self.scale, self.version, self.weights, self.settings, *map(str, source)]
        return f"2.25.{uuid.uuid5(uuid.NAMESPACE_OID, json.dumps([NAME, *parts])).int}"

    @property
    def text(self) -> str:
        weights = f", weights sha256 {self.weights[:16]}" if self.weights else ""
        return (
            f"Super-resolution x{self.scale} in the plane of the slices by {NAME} {self.version}{weights}. "
            "Detail beyond the acquired band is estimated, not measured. Voxel 0 stays in place."
        )


def derivation_from(provenance: Mapping[str, Any], scale: int, label: str, version: str, now: datetime) -> Derivation:
    """Pick the keys of a provenance record that affect the voxels: "version", "weights_sha256", "settings"."""
    return Derivation(
        scale=scale,
        version=str(provenance.get("version", version)),
        weights=str(provenance.get("weights_sha256", "")),
        settings=json.dumps(provenance.get("settings", {}), sort_keys=True, default=str),
        created=now,
        series=label,
    )


def derive_instance(dataset: Dataset, image: Image, derivation: Derivation, instance_number: int) -> None:
    """Turn a source data set, without pixels, into a derived instance; matrix, position and values are set later.

    Raises:
        Exception: pydicom cannot convert an attribute.
    """
    _remove_stale(dataset)
    dataset.SOPInstanceUID = derivation.uid("instance", image.uid, instance_number)
    dataset.SeriesInstanceUID = derivation.uid("series", image.study, image.series)
    if not image.study:
        dataset.StudyInstanceUID = derivation.uid("study")
    if not image.frame_of_reference:
        dataset.FrameOfReferenceUID = derivation.uid("frame of reference")
    dataset.SeriesNumber = ((image.series_number or 0) * 100 + derivation.scale) % 2**31
    dataset.InstanceNumber = instance_number
    _describe(dataset, derivation)
    if image.sop_class in CLASSIC:
        _describe_classic(dataset, image, derivation)
    _keep_lossy(dataset, image)


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
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 16, encoding.bits, encoding.bits - 1
    _set_sign(dataset, encoding)
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
    kept = _kept_private(dataset)
    for tag in list(dataset.keys()):
        overlay_or_curve = tag.group & 0xFF00 in (0x6000, 0x5000) and tag.group < 0x6100
        if overlay_or_curve or tag.group <= 2 or (tag.is_private and tag not in kept):
            del dataset[tag]
    for item in nested_items(dataset):
        for tag in [tag for tag in list(item.keys()) if tag.is_private]:
            del item[tag]


def nested_items(dataset: Dataset) -> Iterator[Dataset]:
    """Every item of every sequence below a data set. Only sequences are parsed; other values stay as read."""
    from pydicom.datadict import dictionary_has_tag, dictionary_VR

    for tag in list(dataset.keys()):
        vr = dataset.get_item(tag).VR or (dictionary_VR(tag) if dictionary_has_tag(tag) else "UN")
        for item in dataset[tag].value if vr == "SQ" else ():
            yield item
            yield from nested_items(item)


def _kept_private(dataset: Dataset) -> set[int]:
    """Tags of the private attributes to keep, and of their creators."""
    kept: set[int] = set()
    for (creator, group), offsets in _KEPT_PRIVATE.items():
        for block in range(0x10, 0x100):
            tag = group << 16 | block
            if tag in dataset and str(dataset[tag].value).strip() == creator:
                kept |= {tag, *(group << 16 | block << 8 | offset for offset in offsets)}
    return kept


def _describe(dataset: Dataset, derivation: Derivation) -> None:
    suffix = f" SRx{derivation.scale} ICONet"
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
    if image.transfer_syntax in _LOSSY and dataset.get("LossyImageCompression") != "01":
        dataset.LossyImageCompression = "01"
        dataset.LossyImageCompressionMethod = _LOSSY[image.transfer_syntax]


def _set_sign(dataset: Dataset, encoding: Encoding) -> None:
    """Set the VR of attributes that follow PixelRepresentation (US or SS) to match what is written."""
    vr, (low, high) = ("SS", (-32768, 32767)) if encoding.signed else ("US", (0, 65535))
    for item in nested_items(dataset):
        for name in ("RealWorldValueFirstValueMapped", "RealWorldValueLastValueMapped"):
            if name in item and item[name].VR in ("US", "SS"):
                item[name].VR, item[name].value = vr, min(max(int(item[name].value), low), high)


def _code(value: str, meaning: str) -> Dataset:
    from pydicom.dataset import Dataset

    code = Dataset()
    code.CodeValue, code.CodingSchemeDesignator, code.CodeMeaning = value, "DCM", meaning
    return code
