"""Private attributes of a derived image: the few without which its values, b-values or order of volumes would be lost.

All others are removed: they may describe the old matrix or the patient, and nothing tells which do.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, MutableSequence
from contextlib import suppress
from struct import error as StructError
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from pydicom.dataset import Dataset


class Block(NamedTuple):
    """Elements of one private block.

    Attributes:
        creator: its private creator; upper and lower case are the same.
        group: its group.
        usual: its block number on the vendor's scanners, used where an anonymiser dropped the creator.
        vendors: the beginnings of Manufacturer, in lower case, for which the usual number is taken to be this block.
        elements: offset in the block: VR.
    """

    creator: str
    group: int
    usual: int
    vendors: tuple[str, ...]
    elements: dict[int, str]


SIEMENS, GE, PHILIPS, UIH = ("siemens",), ("ge ", "ge_", "gems"), ("philips",), ("uih", "united imaging")

KEPT = (
    # b-value, directionality, gradient direction, b-matrix
    Block("SIEMENS MR HEADER", 0x0019, 0x10, SIEMENS, {0x0C: "IS", 0x0D: "CS", 0x0E: "FD", 0x27: "FD"}),
    # XA: number of the frame in its series, and the sequence that holds it
    Block("SIEMENS MR SDI 02", 0x0021, 0x11, SIEMENS, {0x8A: "IS", 0xFE: "SQ"}),
    Block("GEMS_PETD_01", 0x0009, 0x10, GE, {0x0D: "DT"}),  # time of the scan, to which activity is decay corrected
    # sequence names, run number, tensor file, gradient modes and direction, numbers of b=0 images and directions
    Block(
        "GEMS_ACQU_01",
        0x0019,
        0x10,
        GE,
        {0x9C: "LO", 0x9E: "LO", 0xA2: "SL"} | dict.fromkeys((0xB2, 0xB3, 0xB6, 0xBB, 0xBC, 0xBD, 0xDF, 0xE0), "DS"),
    ),
    Block("GEMS_RELA_01", 0x0021, 0x10, GE, {0x4F: "SS", 0x5E: "DS"}),  # slices in the acquisition, trigger time
    # magnitude, phase, real or imaginary; kind of diffusion image; b-value
    Block("GEMS_PARM_01", 0x0043, 0x10, GE, {0x2F: "SS", 0x30: "SS", 0x39: "IS"}),
    # b-value, direction, phase, slice, numbers of slices and dynamics
    Block(
        "Philips Imaging DD 001",
        0x2001,
        0x10,
        PHILIPS,
        {0x03: "FL", 0x04: "CS", 0x08: "IS", 0x0A: "IS", 0x18: "SL", 0x81: "IS"},
    ),
    # precise scaling (intercept, slope), fMRI, start of the dynamic, gradient direction (RL, AP, FH)
    Block(
        "Philips MR Imaging DD 001",
        0x2005,
        0x10,
        PHILIPS,
        {0x0D: "FL", 0x0E: "FL", 0x63: "SS", 0xA0: "FL", 0xB0: "FL", 0xB1: "FL", 0xB2: "FL"},
    ),
    # functional groups (shared, per frame), numbers of the b-value and of the direction, ASL label or control
    Block(
        "Philips MR Imaging DD 005",
        0x2005,
        0x14,
        PHILIPS,
        {0x0E: "SQ", 0x0F: "SQ", 0x12: "IS", 0x13: "IS", 0x29: "CS"},
    ),
    Block("Philips MR Imaging DD 006", 0x2005, 0x15, PHILIPS, {0x96: "IS"}),  # number of the diffusion volume
    # factors from counts to SUV and to Bq/ml
    Block("Philips PET Private Group", 0x7053, 0x10, PHILIPS, {0x00: "DS", 0x09: "DS"}),
    Block("Image Private Header", 0x0065, 0x10, UIH, {0x09: "FD", 0x37: "FD"}),  # b-value, gradient direction
)
"""What is kept; docs/dicom.md repeats it in words."""

_CONTRAST = (
    *("ImageType", "ScanningSequence", "SequenceVariant", "MRAcquisitionType", "EchoTime", "EchoNumbers"),
    *("InversionTime", "FlipAngle", "TriggerTime", "TemporalPositionIdentifier", "NumberOfTemporalPositions"),
    *("DiffusionBValue", "DiffusionGradientOrientation"),
)
"""Public attributes that are kept in private sequences."""

_SIEMENS_HEADER = KEPT[0]
_CSA = Block("SIEMENS CSA HEADER", 0x0029, 0x10, SIEMENS, {0x10: "OB"})
_FROM_CSA = {0x0C: "B_value", 0x0D: "DiffusionDirectionality", 0x0E: "DiffusionGradientDirection", 0x27: "B_matrix"}


def keep_private(dataset: Dataset) -> None:
    """Remove private attributes but those of KEPT, in nested items as well; a creator that was lost is restored."""
    manufacturer = str(dataset.get("Manufacturer") or "").strip().lower()
    _copy_diffusion_from_csa(dataset, manufacturer)
    _filter(dataset, manufacturer)


def precise_scaling(dataset: Dataset) -> Iterator[Any]:
    """The elements of Philips' precise scaling, intercept and slope, in a data set or its private functional groups."""
    block = next(block for block in KEPT if block.creator == "Philips MR Imaging DD 001")
    for number in _numbers(dataset, block, ""):
        yield from (element for _, element in _elements(dataset, block, number, (0x0D, 0x0E)))
    groups = next(block for block in KEPT if block.creator == "Philips MR Imaging DD 005")
    for number in _numbers(dataset, groups, ""):
        for _, element in _elements(dataset, groups, number, (0x0E, 0x0F)):
            for item in element.value if element.VR == "SQ" else ():
                yield from precise_scaling(item)


def _filter(dataset: Dataset, manufacturer: str) -> None:
    kept: set[int] = set()
    private = any(tag.is_private for tag in dataset.keys())  # noqa: SIM118
    for block in KEPT if private else ():
        for number in _numbers(dataset, block, manufacturer):
            found = dict(_elements(dataset, block, number, block.elements))
            for element in found.values():
                if element.VR == "SQ":
                    for item in element.value:
                        _filter(item, manufacturer)
                        _remove_public(item)
            found = {
                tag: element for tag, element in found.items() if element.VR != "SQ" or any(map(len, element.value))
            }
            if found:
                creator = block.group << 16 | number
                dataset.add_new(creator, "LO", block.creator)
                kept |= {creator, *found}
    for tag in list(dataset.keys()):
        if tag.is_private and tag not in kept:
            del dataset[tag]
    for item in _public_items(dataset):
        _filter(item, manufacturer)


def _remove_public(item: Dataset) -> None:
    """Keep only contrast and time of the public attributes in a private sequence: others repeat spacing and rescale."""
    from pydicom.datadict import tag_for_keyword

    wanted = {tag_for_keyword(name) for name in _CONTRAST}
    for tag in list(item.keys()):
        if not tag.is_private and tag not in wanted:
            del item[tag]
    if isinstance(item.get("ImageType"), MutableSequence):
        item.ImageType = ["DERIVED", *item.ImageType[1:]]


def _public_items(dataset: Dataset) -> Iterator[Dataset]:
    """The items of public sequences. Only sequences are parsed; other values stay as read."""
    from pydicom.datadict import dictionary_has_tag, dictionary_VR

    for tag in [tag for tag in dataset.keys() if not tag.is_private]:  # noqa: SIM118
        vr = dataset.get_item(tag).VR or (dictionary_VR(tag) if dictionary_has_tag(tag) else "UN")
        yield from dataset[tag].value or () if vr == "SQ" else ()


def _numbers(dataset: Dataset, block: Block, manufacturer: str) -> list[int]:
    """The block numbers under which a block is stored; its usual one if the creator there is blank or missing."""
    creators = {
        tag.elem: str(dataset[tag].value or "").strip().lower()
        for tag in list(dataset.keys())
        if tag.group == block.group and 0x10 <= tag.elem <= 0xFF
    }
    numbers = [number for number, creator in creators.items() if creator == block.creator.lower()]
    if not numbers and not creators.get(block.usual) and manufacturer.startswith(block.vendors):
        return [block.usual]
    return numbers


def _elements(dataset: Dataset, block: Block, number: int, offsets: Iterable[int]) -> Iterator[tuple[int, Any]]:
    """(tag, element) of those that are there and sound, with their true VR if the file does not tell it."""
    for offset in offsets:
        tag = block.group << 16 | number << 8 | offset
        if tag not in dataset:
            continue
        element = None
        with suppress(Exception):  # a damaged private value is lost, but not the image
            element = dataset[tag]
            if element.VR == "UN" and isinstance(element.value, bytes):
                element = dataset[tag] = _with_vr(element, block.elements[offset])
        if element is not None and element.VR != "UN":
            yield tag, element


def _with_vr(element: Any, vr: str) -> Any:
    """An element that was read as unknown bytes, by its true VR (bytes of unknown VR are implicit little endian)."""
    from pydicom.dataelem import DataElement, RawDataElement
    from pydicom.values import convert_value

    raw = RawDataElement(element.tag, vr, len(element.value), element.value, 0, True, True)
    return DataElement(element.tag, vr, convert_value(vr, raw))


def _copy_diffusion_from_csa(dataset: Dataset, manufacturer: str) -> None:
    """Older Siemens software states b-value and direction only in a header (CSA) that also describes the old matrix."""
    numbers = _numbers(dataset, _CSA, manufacturer)
    stored = [element.value for number in numbers for _, element in _elements(dataset, _CSA, number, (0x10,))]
    if not stored or not isinstance(stored[0], bytes):
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # nibabel calls its readers of DICOM experimental
        from nibabel.nicom.csareader import CSAReadError, read
    try:
        tags = read(stored[0])["tags"]
    except (CSAReadError, StructError, UnicodeDecodeError, ValueError):
        return
    number = (_numbers(dataset, _SIEMENS_HEADER, manufacturer) or [_SIEMENS_HEADER.usual])[0]
    for offset, name in _FROM_CSA.items():
        tag = _SIEMENS_HEADER.group << 16 | number << 8 | offset
        values = [value for value in tags.get(name, {}).get("items", ()) if value is not None]
        if values and tag not in dataset:
            vr = _SIEMENS_HEADER.elements[offset]
            dataset.add_new(_SIEMENS_HEADER.group << 16 | number, "LO", _SIEMENS_HEADER.creator)
            dataset.add_new(tag, vr, values if vr == "FD" else str(values[0]).strip())
