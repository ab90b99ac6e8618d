"""MONAI transforms that MONAI lacks: k-space truncation, geometry, intensity, training patches, saving."""

from bundle.transforms.geometry import CropToMultiple, CropToMultipled, SuperResolveAffined
from bundle.transforms.intensity import NormalizeVolume, NormalizeVolumed, RestoreIntensityd
from bundle.transforms.kspace import (
    CartesianLineMask,
    CartesianLineMaskd,
    KSpaceTruncation,
    KSpaceTruncationd,
)
from bundle.transforms.patch import RandEdgeTaper, RandEdgeTaperd, RandVoxelSize, RandVoxelSized
from bundle.transforms.save import SaveVolumed

__all__ = [
    "CartesianLineMask",
    "CartesianLineMaskd",
    "CropToMultiple",
    "CropToMultipled",
    "KSpaceTruncation",
    "KSpaceTruncationd",
    "NormalizeVolume",
    "NormalizeVolumed",
    "RandEdgeTaper",
    "RandEdgeTaperd",
    "RandVoxelSize",
    "RandVoxelSized",
    "RestoreIntensityd",
    "SaveVolumed",
    "SuperResolveAffined",
]
