"""What states the meaning of stored integers besides the rescale: Real World Value Mappings, Philips' precise scaling.

When the integers of a result are those of the source divided by a factor, these follow, so that every reader finds the
same values whichever of them it uses.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from bundle.data.dicom.pixels import stored_range
from bundle.data.dicom.private import precise_scaling
from bundle.data.dicom.scaling import Encoding

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

_FIRST, _LAST = "RealWorldValueFirstValueMapped", "RealWorldValueLastValueMapped"


def follow_encoding(group: Dataset, factor: float, encoding: Encoding) -> None:
    """Adapt the mappings of a data set or functional group to integers that are the source's divided by `factor`."""
    if factor != 1:
        # value = (stored - intercept) / slope
        for element in precise_scaling(group):
            element.value = float(element.value) / factor
    if "RealWorldValueMappingSequence" in group:
        mappings = _linear(group.RealWorldValueMappingSequence) if factor != 1 else group.RealWorldValueMappingSequence
        for mapping in mappings:
            if "RealWorldValueSlope" in mapping:
                mapping.RealWorldValueSlope = float(mapping.RealWorldValueSlope) * factor
        _set_ranges(mappings, factor, encoding)
        if mappings:
            group.RealWorldValueMappingSequence = mappings
        else:
            del group.RealWorldValueMappingSequence


def _linear(mappings: list[Dataset]) -> list[Dataset]:
    """Those with a slope: a look-up table has one entry per integer, so it cannot follow a coarser scaling."""
    return [mapping for mapping in mappings if "RealWorldValueSlope" in mapping]


def _set_ranges(mappings: list[Dataset], factor: float, encoding: Encoding) -> None:
    """Scale the ranges of integers; the outer ends of linear ones are widened, since a result overshoots its source."""
    bottom, top = stored_range(16, encoding.signed)
    low, high = stored_range(encoding.bits, encoding.signed)
    ends = [(int(mapping[_FIRST].value), int(mapping[_LAST].value)) for mapping in mappings if _has_range(mapping)]
    for mapping in mappings:
        if not _has_range(mapping):
            continue
        first, last = int(mapping[_FIRST].value), int(mapping[_LAST].value)
        linear = "RealWorldValueSlope" in mapping
        widen_low, widen_high = (
            linear and first == min(end[0] for end in ends),
            linear and last == max(end[1] for end in ends),
        )
        mapping[_FIRST].VR = mapping[_LAST].VR = "SS" if encoding.signed else "US"
        mapping[_FIRST].value = low if widen_low else min(max(round(first / factor), bottom), top)
        mapping[_LAST].value = high if widen_high else min(max(round(last / factor), bottom), top)


def _has_range(mapping: Dataset) -> bool:
    return all(name in mapping and mapping[name].VR in ("US", "SS") for name in (_FIRST, _LAST))
