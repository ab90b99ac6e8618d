"""Headers of DICOM files: the slices of classic and multi-frame images in one form."""

from __future__ import annotations

import hashlib
import math
import zlib
from collections.abc import Callable, Iterator, Sequence
from datetime import date
from functools import cache, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bundle.data.dicom.frame import (
    CLASSIC,
    KSPACE,
    MODALITIES,
    PRIVATE,
    SIDES,
    TRAITS,
    Broken,
    Frame,
    Image,
    Padding,
    Skipped,
)
from bundle.data.dicom.library import guarded
from bundle.data.errors import VolumeError, fail

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

_DEFLATED = b"1.2.840.10008.1.2.1.99"
MAX_DEFLATED = 2 * 2**30
"""Limit on the size of an inflated file (2 GiB): pydicom itself has none."""

_IDENTITY = (
    *("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID"),
    *("PatientID", "SeriesNumber", "Modality"),
)
_MATRIX = (
    *("Rows", "Columns", "NumberOfFrames", "SamplesPerPixel", "PhotometricInterpretation"),
    *("BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation"),
)
_PLACE = ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "SliceThickness", "SpacingBetweenSlices")
_SCALING = ("RescaleSlope", "RescaleIntercept")
_VALUES = ("ModalityLUTSequence", "PixelPaddingValue", "PixelPaddingRangeLimit")
_OTHER = ("FrameOfReferenceUID", "InstanceNumber", "NumberOfSlices")
_FRAMES = ("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence", "DimensionIndexSequence")
_DATES = (
    *("FrameAcquisitionDateTime", "AcquisitionDateTime", "AcquisitionDate", "AcquisitionTime"),
    *("ContentDate", "ContentTime", "DimensionIndexValues"),
)
_PUBLIC_TRAITS = tuple(name for name in TRAITS if name not in PRIVATE.values())
_BLOCKS = {0x2005: range(0x10, 0x18)}
"""Private blocks that are searched; others of PRIVATE are in one of the first three."""

_UIH_GRID = 0x00651051  # all slices of a volume, as private items of one image
_PLACE_POINTERS = (0x00209056, 0x00209057, 0x00200032, 0x00209113, 0x00200037, 0x00209116)
"""What a column of DimensionIndexValues may point to without telling volumes apart: stack, position, orientation."""


def starts_as_dicom(path: Path) -> bool | None:
    """True if the DICM prefix is there, None if the file may be a bare data set without it, else False.

    Raises:
        OSError: the file cannot be read.
    """
    with open(path, "rb") as stream:
        head = stream.read(132)
    if head[128:] == b"DICM":
        return True
    # A bare data set starts with group 0002 or 0008, in either byte order.
    return None if len(head) >= 132 and head[:2] in (b"\2\0", b"\x08\0", b"\0\x08") else False


def read_dataset(path: Path, attributes: list[str] | list[int] | None = None, pixels: bool = False) -> Dataset:
    """The data set of a file, complete or only the named attributes; without pixels unless requested.

    Raises:
        VolumeError: the file cannot be parsed, or inflates beyond MAX_DEFLATED.
    """
    import pydicom

    with guarded(path, "the DICOM header is damaged", "get an intact copy of the file"):
        _check_deflated(path)
        return pydicom.dcmread(path, stop_before_pixels=not pixels, specific_tags=attributes, force=True)  # type: ignore[arg-type]


def transfer_syntax(dataset: Dataset) -> str:
    """The declared transfer syntax, or for a bare data set the uncompressed one that it was read with."""
    if declared := _text(dataset.file_meta, "TransferSyntaxUID"):
        return declared
    implicit, little_endian = dataset.original_encoding
    return "1.2.840.10008.1.2" if implicit else "1.2.840.10008.1.2.1" if little_endian else "1.2.840.10008.1.2.2"


def read_frames(path: Path) -> list[Frame] | Skipped | Broken | None:
    """The slices of one file; None if it is not a DICOM file after all.

    Raises:
        VolumeError: a DICOM file that does not say which series it belongs to.
    """
    marked = starts_as_dicom(path)
    if marked is False:
        return None
    try:
        dataset = read_dataset(path, _read_tags())
    except VolumeError:
        if marked is None:
            return None
        raise
    with guarded(path, "the DICOM header is damaged", "get an intact copy of the file"):
        sop_class = _text(dataset, "SOPClassUID") or _text(dataset.file_meta, "MediaStorageSOPClassUID")
        if marked is None and not (sop_class in MODALITIES and "Rows" in dataset and "Columns" in dataset):
            return None
        if not sop_class:
            fail(path, "a DICOM file without SOP class, truncated or damaged", "get an intact copy of the file")
        if sop_class not in MODALITIES and not _is_damaged_class(dataset, sop_class):
            return Skipped(path, _class_name(sop_class))
        identity = _identity(dataset)
        if not any(identity) and "Rows" not in dataset:
            fail(path, "the DICOM header is truncated", "get an intact copy of the file")
    try:
        with guarded(path, "an attribute of the DICOM header is damaged", "get an intact copy of the file"):
            if sop_class not in MODALITIES:
                fail(path, "an image of an unknown SOP class", "get an intact copy of the file")
            image = _image(path, dataset, sop_class, identity)
            return list(_frames(image, dataset))
    except VolumeError as error:
        return Broken(path, identity, str(error))


def _check_deflated(path: Path) -> None:
    """Refuse a deflated file that expands too far, before pydicom inflates it in one piece."""
    with open(path, "rb") as stream:
        head = stream.read(4096)
        if _DEFLATED not in head:
            return
        # Preamble, prefix and the group length element itself, then as many bytes as that element says.
        stream.seek(144 + int.from_bytes(head[140:144], "little"))
        inflater, size = zlib.decompressobj(-zlib.MAX_WBITS), 0
        while piece := inflater.unconsumed_tail or stream.read(65536):
            size += len(inflater.decompress(piece, 2**20))
            if size > MAX_DEFLATED:
                fail(path, f"inflates beyond {MAX_DEFLATED} bytes", "check where the file comes from")
            if inflater.eof:
                return


def _class_name(sop_class: str) -> str:
    from pydicom.uid import UID

    name = UID(sop_class).name
    return name if name != sop_class else "an unknown SOP class"


def _is_damaged_class(dataset: Dataset, sop_class: str) -> bool:
    """Whether an unknown SOP class is probably a damaged image class; private objects have no matrix."""
    from pydicom.uid import UID

    known = UID(sop_class).name != sop_class
    return not known and "Rows" in dataset and _text(dataset, "Modality") in ("MR", "CT", "PT")


def _identity(dataset: Dataset) -> tuple[str, str, str]:
    """(study UID, series UID, hash of the patient ID); "" if blank."""
    patient = _text(dataset, "PatientID")
    return (
        _text(dataset, "StudyInstanceUID"),
        _text(dataset, "SeriesInstanceUID"),
        hashlib.sha256(patient.encode()).hexdigest()[:16] if patient else "",
    )


def _image(path: Path, dataset: Dataset, sop_class: str, identity: tuple[str, str, str]) -> Image:
    assumed = complete(path, dataset)
    _check_plain(path, dataset, sop_class)
    bits_allocated, bits_stored = _count(path, dataset, "BitsAllocated"), _count(path, dataset, "BitsStored")
    if bits_allocated not in (8, 16, 32) or bits_stored > bits_allocated:
        fail(path, f"{bits_stored} bits stored in {bits_allocated} are not supported", "convert the series")
    if int(dataset.HighBit) != bits_stored - 1:
        fail(path, "the high bit is not BitsStored - 1", "convert the series")
    return Image(
        path=path,
        uid=_text(dataset, "SOPInstanceUID"),
        sop_class=sop_class,
        study=identity[0],
        series=identity[1],
        patient=identity[2],
        series_number=_whole(dataset, "SeriesNumber"),
        instance_number=_whole(dataset, "InstanceNumber"),
        transfer_syntax=transfer_syntax(dataset),
        frame_of_reference=_text(dataset, "FrameOfReferenceUID"),
        rows=_count(path, dataset, "Rows"),
        columns=_count(path, dataset, "Columns"),
        frames=int(dataset.get("NumberOfFrames") or 1),
        bits_allocated=bits_allocated,
        bits_stored=bits_stored,
        signed=bool(dataset.PixelRepresentation),
        inverted=dataset.PhotometricInterpretation == "MONOCHROME1",
        padding=_padding(dataset),
        slices_in_series=_whole(dataset, "NumberOfSlices"),
        dimensions=tuple(name for name in _dimensions(dataset) if name is not None),
        assumed=assumed,
    )


def complete(path: Path, dataset: Dataset) -> tuple[str, ...]:
    """Give attributes of the matrix that are missing or empty their only sensible value; say which.

    Raises:
        VolumeError: there is no such value.
    """
    obvious: dict[str, Any] = {"SamplesPerPixel": 1, "HighBit": _count(path, dataset, "BitsStored") - 1}
    if dataset.get("SamplesPerPixel") in (None, 1):
        obvious["PhotometricInterpretation"] = "MONOCHROME2"
    if _text(dataset, "Modality") == "MR" or not _has(dataset, "PixelRepresentation"):
        obvious["PixelRepresentation"] = 0
    missing = [name for name in obvious if not _has(dataset, name)]
    if "PixelRepresentation" in missing and _text(dataset, "Modality") != "MR":
        wrong = "PixelRepresentation is missing or empty: signed and unsigned integers cannot be told apart"
        fail(path, wrong, "correct the header")
    for name in missing:
        setattr(dataset, name, obvious[name])
    return tuple(f"{name} {obvious[name]}" for name in missing)


def _has(dataset: Dataset, name: str) -> bool:
    return dataset.get(name) not in (None, "")


def _dimensions(dataset: Dataset) -> list[str | None]:
    """What each column of DimensionIndexValues points to; None for a stack, a position or an orientation."""
    from pydicom.datadict import keyword_for_tag

    names: list[str | None] = []
    for item in dataset.get("DimensionIndexSequence") or ():
        pointer = int(item.get("DimensionIndexPointer") or 0)
        name = keyword_for_tag(pointer) or f"({pointer >> 16:04x},{pointer & 0xFFFF:04x})"
        names.append(None if pointer in _PLACE_POINTERS else f"DimensionIndexValues {name}")
    return names


def _check_plain(path: Path, dataset: Dataset, sop_class: str) -> None:
    """Refuse images without one grey value per voxel, and mosaics of several slices."""
    if int(dataset.SamplesPerPixel) != 1 or dataset.PhotometricInterpretation not in ("MONOCHROME1", "MONOCHROME2"):
        fail(path, "colour or palette image", "give the grey-scale series it was made from")
    if sop_class in CLASSIC and int(dataset.get("NumberOfFrames") or 1) != 1:
        fail(path, "several frames in a single-frame SOP class", "give the series as one slice per file")
    kind = dataset.get("ImageType") or ()
    if "MOSAIC" in kind:
        fail(path, "mosaic: all slices in one image", "convert it to one slice per image, or to NIfTI with dcm2niix")
    if _UIH_GRID in dataset or ("VFRAME" in kind and not _has(dataset, "ImagePositionPatient")):
        fail(path, "a grid (mosaic): all slices in one image", "convert it to NIfTI with dcm2niix")
    if "ModalityLUTSequence" in dataset:
        fail(path, "values are given by a look-up table (Modality LUT)", "convert the series to a linear scaling")


def _frames(image: Image, dataset: Dataset) -> Iterator[Frame]:
    general = _values([dataset])
    if image.sop_class in CLASSIC:
        yield _frame(image, 0, general)
        return
    per_frame = dataset.get("PerFrameFunctionalGroupsSequence") or []
    if len(per_frame) != image.frames:
        wrong = f"{image.frames} frames, but only {len(per_frame)} of them are described"
        fail(image.path, wrong, "get an intact copy of the file")
    general |= _values(_macros((dataset.get("SharedFunctionalGroupsSequence") or [None])[0]))
    columns = [at for at, name in enumerate(_dimensions(dataset)) if name is not None]
    for index, group in enumerate(per_frame):
        yield _frame(image, index, general | _values(_macros(group)), columns)


def _values(datasets: list[Dataset]) -> dict[str, Any]:
    """The attributes that describe a frame in these data sets, by name; visiting each tag once keeps this fast."""
    wanted = _frame_tags()
    return {wanted[tag]: dataset[tag].value for dataset in datasets for tag in dataset.keys() if tag in wanted}  # noqa: SIM118


@cache
def _frame_tags() -> dict[int, str]:
    from pydicom.datadict import tag_for_keyword

    names = (*_PLACE, *_SCALING, *_DATES, *SIDES, *_PUBLIC_TRAITS, *KSPACE)
    private = {
        (group << 16) + (block << 8) + offset: name
        for (group, offset), name in PRIVATE.items()
        for block in _BLOCKS.get(group, range(0x10, 0x13))
    }
    return {tag_for_keyword(name) or 0: name for name in names} | private


@cache
def _read_tags() -> list[int]:
    """All that is read of a header; tags instead of names save pydicom the look-up in each file."""
    from pydicom.datadict import tag_for_keyword
    from pydicom.tag import Tag

    names = (*_IDENTITY, *_MATRIX, *_VALUES, *_OTHER, *_FRAMES)
    return [Tag(tag) for tag in (*(tag_for_keyword(name) or 0 for name in names), *_frame_tags(), _UIH_GRID)]


def _macros(group: Dataset | None) -> list[Dataset]:
    """The items of a frame's functional groups, and one level below (where gradient directions are)."""
    items: list[Dataset] = []
    for element in group or ():
        if element.VR != "SQ" or len(element.value) != 1:
            continue
        if element.tag.is_private:  # its public attributes may repeat or contradict those of the standard's groups
            items.append(element.value[0].group_dataset(0x2001))
            items.append(element.value[0].group_dataset(0x2005))
        else:
            items.append(element.value[0])
            if "DiffusionGradientDirectionSequence" in element.value[0]:
                items.extend(element.value[0].DiffusionGradientDirectionSequence)
    return items


def _frame(image: Image, index: int, values: dict[str, Any], columns: Sequence[int] = ()) -> Frame:
    get = values.get
    slope, intercept = _numbers(image.path, get, "RescaleSlope", 1), _numbers(image.path, get, "RescaleIntercept", 1)
    _check_scaling(image.path, slope, intercept)
    thickness, step = _numbers(image.path, get, "SliceThickness", 1), _numbers(image.path, get, _PLACE[4], 1)
    return Frame(
        image=image,
        index=index,
        position=_numbers(image.path, get, "ImagePositionPatient", 3),
        orientation=_numbers(image.path, get, "ImageOrientationPatient", 6),
        spacing=_numbers(image.path, get, "PixelSpacing", 2),
        thickness=thickness[0] if thickness else None,
        step=abs(step[0]) if step else None,
        slope=slope[0] if slope else 1.0,
        intercept=intercept[0] if intercept else 0.0,
        rescaled=slope is not None or intercept is not None,
        sides=_shared(tuple(_comparable(get(name)) for name in SIDES)),
        traits=_shared(tuple(_comparable(get(name)) for name in TRAITS)),
        indices=_indices(get("DimensionIndexValues"), columns),
        acquired=_seconds(get("FrameAcquisitionDateTime") or get("AcquisitionDateTime"))
        or _seconds(get("AcquisitionTime"), get("AcquisitionDate")),
        content=_seconds(get("ContentTime"), get("ContentDate")),
        kspace=_shared(tuple(_comparable(get(name)) for name in KSPACE)),
    )


@lru_cache(maxsize=4096)
def _shared(values: tuple[Any, ...]) -> tuple[Any, ...]:
    """One object for equal tuples: most slices of a series have the same values."""
    return values


@lru_cache(maxsize=64)
def _days(day: str) -> int:
    """Number of a day (DA); 0 if it is none."""
    digits = day.replace(".", "")
    try:
        return date(int(digits[:4]), int(digits[4:6]), int(digits[6:8])).toordinal()
    except ValueError:
        return 0


def _indices(value: Any, columns: Sequence[int]) -> tuple[int, ...]:
    """The given columns of DimensionIndexValues; empty if there are fewer."""
    every = () if value is None else tuple(value) if hasattr(value, "__iter__") else (value,)
    return tuple(int(every[at]) for at in columns) if columns and len(every) > max(columns) else ()


def _seconds(time: Any, on: Any = None) -> float | None:
    """Seconds of a date and time (DT, or TM with DA), None if it is no valid time of day."""
    text = str(time or "").strip()
    day = str(on or "").strip()
    digits = text.partition("+")[0].partition("-")[0].partition("&")[0].strip().replace(":", "")
    whole, _, fraction = digits.partition(".")
    if len(whole) > 8:
        day, whole = whole[:8], whole[8:]
    if not whole.isdecimal() or len(whole) not in (2, 4, 6) or (fraction and not fraction.isdecimal()):
        return None
    hours, minutes, seconds = (int(whole[at : at + 2] or 0) for at in (0, 2, 4))
    if hours > 23 or minutes > 59 or seconds > 60:
        return None
    return round(_days(day) * 86400 + hours * 3600 + minutes * 60 + seconds + float(f"0.{fraction or 0}"), 6)


def _check_scaling(path: Path, slope: tuple[float, ...] | None, intercept: tuple[float, ...] | None) -> None:
    size = abs(slope[0]) if slope else 1.0
    if size < 1e-30:
        fail(path, f"RescaleSlope is {size:g}", "correct the header")
    if intercept and abs(intercept[0]) >= 2**23 * size:
        fail(path, "RescaleIntercept is so large that steps of RescaleSlope vanish in float32", "correct the header")


# ------------------------------------------------------------------------------------------ values of attributes


def _text(dataset: Any, name: str) -> str:
    return str(dataset.get(name) or "").strip()


def _whole(dataset: Dataset, name: str) -> int | None:
    value = dataset.get(name)
    return None if value is None else int(value)


def _count(path: Path, dataset: Dataset, name: str) -> int:
    value = int(dataset.get(name) or 0)
    if value < 1:
        fail(path, f"{name} is missing or zero", "get an intact copy of the file")
    return value


def _numbers(path: Path, get: Callable[[str], Any], name: str, length: int) -> tuple[float, ...] | None:
    """`length` finite numbers, or None if the attribute is absent or empty."""
    value = get(name)
    if value is None or value == "" or (hasattr(value, "__len__") and len(value) == 0):
        return None
    numbers = tuple(float(item) for item in (value if hasattr(value, "__len__") else [value]))
    if len(numbers) != length or not all(math.isfinite(number) and abs(number) < 1e9 for number in numbers):
        fail(path, f"{name} is not {length} finite number{'s' * (length > 1)}", "correct the header")
    return numbers


def _comparable(value: Any) -> Any:
    """A comparable and hashable value: numbers rounded to 3 decimals (times in ms to a microsecond), else text."""
    if value is None or value == "":
        return None
    if isinstance(value, bytes):
        return value.hex()
    if hasattr(value, "__iter__") and not isinstance(value, str):
        return tuple(_comparable(item) for item in value)
    try:
        number = float(value)
    except (TypeError, ValueError):
        return str(value)
    return round(number, 3) if math.isfinite(number) else str(value)


def _padding(dataset: Dataset) -> Padding | None:
    value, limit = (_padding_end(dataset, f"PixelPadding{name}") for name in ("Value", "RangeLimit"))
    return None if value is None else Padding(value, value if limit is None else limit)


def _padding_end(dataset: Dataset, name: str) -> int | None:
    """A stored integer, None if it is none; some files write it as unsigned where pixels are signed, or reversed."""
    try:
        value = _whole(dataset, name)
    except (TypeError, ValueError):
        return None
    if value is None:
        return None
    signed, size = bool(dataset.get("PixelRepresentation", 0)), 2 ** int(dataset.get("BitsAllocated") or 16)
    if signed and size // 2 <= value < size:
        return value - size
    return value + size if not signed and -size // 2 <= value < 0 else value
