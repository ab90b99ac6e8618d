"""MONAI transforms that MONAI lacks: k-space truncation, geometry, intensity, training patches, saving."""

from bundle.transforms.edge_taper import RandEdgeTaper, RandEdgeTaperd
from bundle.transforms.geometry import CropToMultiple, CropToMultipled, SuperResolveAffined
from bundle.transforms.intensity import NormalizeVolume, NormalizeVolumed, RestoreIntensityd
from bundle.transforms.line_mask import CartesianLineMask, CartesianLineMaskd
from bundle.transforms.save import SaveVolumed
from bundle.transforms.take_slices import TakeSlicesd
from bundle.transforms.truncation import KSpaceTruncation, KSpaceTruncationd
from bundle.transforms.voxel_size import RandVoxelSize, RandVoxelSized

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
    "TakeSlicesd",
]
