"""Finding, reading and writing volumes."""

from __future__ import annotations

from .folder import (
    DatasetError,
    evaluation_datalist,
    find_volumes,
    inference_datalist,
    output_paths,
    training_datalist,
    voxel_counts,
)
from .nifti import NiftiVolumeReader, Volume, VolumeError, read_header, read_volume, write_volume

__all__ = [
    "DatasetError",
    "NiftiVolumeReader",
    "Volume",
    "VolumeError",
    "evaluation_datalist",
    "find_volumes",
    "inference_datalist",
    "output_paths",
    "read_header",
    "read_volume",
    "training_datalist",
    "voxel_counts",
    "write_volume",
]
