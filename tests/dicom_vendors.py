"""Diffusion series as each vendor writes them: b-values and gradient directions in private attributes, or public ones.

`diffusion(vendor)` returns the classic instances of a 4-D series, `philips_enhanced()` one multi-frame object.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence

import dicom_factory as factory
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

AXIAL = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)
VOLUMES = ((0.0, (0.0, 0.0, 0.0)), (1000.0, (0.6, 0.8, 0.0)), (1000.0, (0.0, -0.6, 0.8)), (2000.0, (1.0, 0.0, 0.0)))
"""b-value and gradient direction of each volume."""


def diffusion(vendor: str) -> list[Dataset]:
    """Four volumes, each brighter than the one before, numbered through; vendors are the keys of VENDORS."""
    made = []
    for number, (b, direction) in enumerate(VOLUMES):
        voxels = factory.phantom() * (10 + number) // 10
        for at, dataset in enumerate(factory.series("MR", voxels, AXIAL)):
            dataset.AcquisitionNumber = number + 1
            dataset.InstanceNumber = number * voxels.shape[2] + at + 1
            dataset.SOPInstanceUID = generate_uid(entropy_srcs=[vendor, str(dataset.InstanceNumber)])
            dataset.ScanningSequence, dataset.PatientPosition, dataset.ScanOptions = ["EP", "SE"], "HFS", ""
            dataset.MRAcquisitionType, dataset.ProtocolName = "2D", "diffusion"
            VENDORS[vendor](dataset, b, direction)
            made.append(dataset)
    return made


def _siemens(dataset: Dataset, b: float, direction: Sequence[float]) -> None:
    dataset.Manufacturer = "SIEMENS"
    dataset.ImageType = ["ORIGINAL", "PRIMARY", "DIFFUSION", "NONE", "ND"]
    block = dataset.private_block(0x0019, "SIEMENS MR HEADER", create=True)
    block.add_new(0x0C, "IS", str(int(b)))
    if b:
        block.add_new(0x0D, "CS", "DIRECTIONAL")
        block.add_new(0x0E, "FD", list(direction))
    block.add_new(0x28, "FD", 19.5)  # bandwidth per pixel, true of the old matrix only


def _siemens_csa(dataset: Dataset, b: float, direction: Sequence[float]) -> None:
    dataset.Manufacturer = "SIEMENS"
    dataset.ImageType = ["ORIGINAL", "PRIMARY", "DIFFUSION", "NONE", "ND"]
    tags = {"NumberOfImagesInMosaic": ("US", []), "B_value": ("IS", [f"{b:g}"])}
    if b:
        tags["DiffusionDirectionality"] = ("CS", ["DIRECTIONAL"])
        tags["DiffusionGradientDirection"] = ("FD", [f"{x:.8f}" for x in direction])
    dataset.private_block(0x0029, "SIEMENS CSA HEADER", create=True).add_new(0x10, "OB", csa(tags))


def csa(tags: dict[str, tuple[str, list[str]]]) -> bytes:
    """A CSA header of the second kind (SV10) with these tags: VR and values."""
    text = b"SV10\4\3\2\1" + struct.pack("<2I", len(tags), 77)
    for name, (vr, values) in tags.items():
        text += struct.pack("<64si4s3i", name.encode(), len(values), vr.encode(), 0, len(values), 77)
        for value in values:
            coded = value.encode() + b"\0"
            text += struct.pack("<4i", len(coded), len(coded), 77, len(coded)) + coded + b"\0" * (-len(coded) % 4)
    return text + b"\0" * (len(text) % 2)


def _ge(dataset: Dataset, b: float, direction: Sequence[float]) -> None:
    dataset.Manufacturer, dataset.InPlanePhaseEncodingDirection = "GE MEDICAL SYSTEMS", "COL"
    dataset.ScanningSequence = ["EP", "RM"]
    acquisition = dataset.private_block(0x0019, "GEMS_ACQU_01", create=True)
    for offset, value in zip((0xBB, 0xBC, 0xBD), direction, strict=True):
        acquisition.add_new(offset, "DS", f"{value:.6f}")
    acquisition.add_new(0xE0, "DS", "3")
    acquisition.add_new(0x1B, "DS", "30")  # last scan location
    dataset.private_block(0x0043, "GEMS_PARM_01", create=True).add_new(0x39, "IS", [str(10**9 + int(b)), "8", "0", "0"])


def _philips(dataset: Dataset, b: float, direction: Sequence[float]) -> None:
    dataset.Manufacturer = "Philips Medical Systems"
    dataset.RescaleSlope, dataset.RescaleIntercept, dataset.RescaleType = "1.5", "0", "normalized"
    image = dataset.private_block(0x2001, "Philips Imaging DD 001", create=True)
    image.add_new(0x03, "FL", b)
    image.add_new(0x04, "CS", "O" if b else "")
    image.add_new(0x0A, "IS", str((int(dataset.InstanceNumber) - 1) % factory.SLICES + 1))
    image.add_new(0x18, "SL", factory.SLICES)
    image.add_new(0xC8, "LO", "Secret^Name")
    scale = dataset.private_block(0x2005, "Philips MR Imaging DD 001", create=True)
    scale.add_new(0x0D, "FL", 0.0)
    scale.add_new(0x0E, "FL", 0.00625)
    for offset, value in zip((0xB0, 0xB1, 0xB2), direction, strict=True):
        scale.add_new(offset, "FL", value)


def _uih(dataset: Dataset, b: float, direction: Sequence[float]) -> None:
    dataset.Manufacturer = "UIH"
    block = dataset.private_block(0x0065, "Image Private Header", create=True)
    block.add_new(0x09, "FD", b)
    block.add_new(0x37, "FD", list(direction))
    block.add_new(0x04, "SH", "10*12")  # the old matrix


def _public(dataset: Dataset, b: float, direction: Sequence[float]) -> None:
    dataset.Manufacturer = "CANON_MEC"
    dataset.DiffusionBValue, dataset.DiffusionGradientOrientation = b, list(direction)


def _anonymous(add: Callable[[Dataset, float, Sequence[float]], None]) -> Callable[..., None]:
    """As from an anonymiser that drops all private creators."""

    def without_creators(dataset: Dataset, b: float, direction: Sequence[float]) -> None:
        add(dataset, b, direction)
        for tag in [tag for tag in dataset.keys() if tag.is_private and tag.elem <= 0xFF]:  # noqa: SIM118
            del dataset[tag]

    return without_creators


_NAMED = {"Siemens": _siemens, "GE": _ge, "Philips": _philips, "UIH": _uih}
VENDORS: dict[str, Callable[..., None]] = {
    **_NAMED,
    **{f"{name} anonymised": _anonymous(add) for name, add in _NAMED.items()},
    **{"Siemens CSA": _siemens_csa, "Siemens CSA anonymised": _anonymous(_siemens_csa), "public": _public},
}


def philips_enhanced(slope: float = 1.5) -> Dataset:
    """An enhanced object of two b-values, with precise scaling and a real world mapping in every frame."""
    dataset = factory.enhanced("MR", echoes=(20.0, 20.0), orientation=AXIAL)
    dataset.Manufacturer = "Philips Medical Systems"
    dataset.DimensionIndexSequence[1].DimensionIndexPointer = 0x00209128
    dataset.DimensionIndexSequence[1].FunctionalGroupPointer = 0x00209111
    del dataset.SharedFunctionalGroupsSequence[0].PixelValueTransformationSequence
    for group in dataset.PerFrameFunctionalGroupsSequence:
        content = group.FrameContentSequence[0]
        volume = int(content.DimensionIndexValues[1])
        content.TemporalPositionIndex = volume
        _add_philips_frame(group, slope, VOLUMES[volume - 1])
    return dataset


def siemens_enhanced() -> list[Dataset]:
    """XA: one enhanced object per volume; the number of each frame in the series lies in a private sequence."""
    made = []
    for number, (b, direction) in enumerate(VOLUMES):
        dataset = factory.enhanced("MR", factory.phantom() * (10 + number) // 10, orientation=AXIAL)
        dataset.Manufacturer, dataset.SoftwareVersions = "Siemens Healthineers", "syngo MR XA30"
        dataset.ManufacturerModelName, dataset.ProtocolName = "MAGNETOM Vida", "diffusion"
        dataset.SOPInstanceUID = generate_uid(entropy_srcs=["XA", str(number)])
        dataset.file_meta = FileMetaDataset()
        dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        dataset.InstanceNumber = dataset.AcquisitionNumber = number + 1
        dataset.DimensionIndexSequence[1].DimensionIndexPointer = 0x00209128
        dataset.DimensionIndexSequence[1].FunctionalGroupPointer = 0x00209111
        orientation = dataset.SharedFunctionalGroupsSequence[0].pop("PlaneOrientationSequence")
        dataset.PerFrameFunctionalGroupsSequence = dataset.PerFrameFunctionalGroupsSequence[::-1]
        dataset.PixelData = dataset.pixel_array[::-1].tobytes()
        for at, group in enumerate(dataset.PerFrameFunctionalGroupsSequence):
            group.add(orientation)  # per frame and upwards, otherwise dcm2niix does not stack the objects
            content = group.FrameContentSequence[0]
            content.TemporalPositionIndex = number + 1
            content.DimensionIndexValues = [content.InStackPositionNumber, number + 1]
            group.MRDiffusionSequence = _diffusion_macro(b, direction)
            frame = Dataset()
            frame.private_block(0x0021, "SIEMENS MR SDI 02", create=True).add_new(
                0x8A, "IS", str(number * factory.SLICES + at + 1)
            )
            group.private_block(0x0021, "SIEMENS MR SDI 02", create=True).add_new(0xFE, "SQ", [frame])
        made.append(dataset)
    return made


def _diffusion_macro(b: float, direction: Sequence[float]) -> list[Dataset]:
    macro = _item(DiffusionBValue=b, DiffusionDirectionality="DIRECTIONAL" if b else "NONE")
    if b:
        macro[0].DiffusionGradientDirectionSequence = _item(DiffusionGradientOrientation=list(direction))
        macro[0].DiffusionAnisotropyType = "FRACTIONAL"
    return macro


def _item(**attributes: object) -> list[Dataset]:
    item = Dataset()
    for name, value in attributes.items():
        setattr(item, name, value)
    return [item]


def _add_philips_frame(group: Dataset, slope: float, weighting: tuple[float, Sequence[float]]) -> None:
    b, direction = weighting
    group.PixelValueTransformationSequence = _item(RescaleIntercept="0", RescaleSlope=str(slope), RescaleType="US")
    group.MRDiffusionSequence = _diffusion_macro(b, direction)
    unit = factory.code("1", "UCUM", "no units")
    mapping = _item(RealWorldValueSlope=slope, RealWorldValueIntercept=0.0, LUTExplanation="x", LUTLabel="Philips")
    mapping[0].MeasurementUnitsCodeSequence = [unit]
    mapping[0].add_new("RealWorldValueFirstValueMapped", "US", 0)
    mapping[0].add_new("RealWorldValueLastValueMapped", "US", 1100)
    group.RealWorldValueMappingSequence = mapping
    frame = Dataset()
    frame.PixelSpacing, frame.RescaleSlope = ["1.5", "1.25"], str(slope)
    block = frame.private_block(0x2001, "Philips Imaging DD 001", create=True)
    block.add_new(0x03, "FL", b)
    scale = frame.private_block(0x2005, "Philips MR Imaging DD 001", create=True)
    scale.add_new(0x0D, "FL", 0.0)
    scale.add_new(0x0E, "FL", 0.00625)
    for offset, value in zip((0xB0, 0xB1, 0xB2), direction, strict=True):
        scale.add_new(offset, "FL", value)
    group.add_new(0x20050014, "LO", "Philips MR Imaging DD 005")
    group.add_new(0x2005140F, "SQ", [frame])
