"""Finding, reading and writing volumes."""

from __future__ import annotations

from .errors import VolumeError
from .folder import (
    DatasetError,
    evaluation_datalist,
    find_volumes,
    inference_datalist,
    output_paths,
    training_datalist,
    voxel_counts,
)
from .nifti_read import NiftiVolumeReader, Volume, read_header, read_volume
from .nifti_write import write_volume

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
