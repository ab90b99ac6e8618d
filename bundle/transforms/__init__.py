"""MONAI transforms that MONAI lacks: k-space truncation, geometry, intensity, saving."""

from bundle.transforms.geometry import CropToMultiple, CropToMultipled
from bundle.transforms.intensity import NormalizeVolume, NormalizeVolumed
from bundle.transforms.line_mask import CartesianLineMask, CartesianLineMaskd
from bundle.transforms.save import SaveVolumed
from bundle.transforms.slices_last import SlicesLast, SlicesLastd
from bundle.transforms.take_slices import TakeSlicesd
from bundle.transforms.truncation import KSpaceTruncation, KSpaceTruncationd

__all__ = [
    "CartesianLineMask",
    "CartesianLineMaskd",
    "CropToMultiple",
    "CropToMultipled",
    "KSpaceTruncation",
    "KSpaceTruncationd",
    "NormalizeVolume",
    "NormalizeVolumed",
    "SaveVolumed",
    "SlicesLast",
    "SlicesLastd",
    "TakeSlicesd",
]
