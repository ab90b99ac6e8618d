"""Finding, reading and writing volumes."""

from __future__ import annotations

from .errors import VolumeError
from .folder import (
    DatasetError,
    check_folders,
    evaluation_datalist,
    find_volumes,
    inference_datalist,
    output_paths,
    training_datalist,
    voxel_counts,
)
from .nifti_read import NiftiVolumeReader, Volume, VolumeFile, check_volume_file, read_header, read_volume
from .nifti_write import write_volume, writing_volume

__all__ = [
    "DatasetError",
    "NiftiVolumeReader",
    "Volume",
    "VolumeError",
    "VolumeFile",
    "check_folders",
    "check_volume_file",
    "evaluation_datalist",
    "find_volumes",
    "inference_datalist",
    "output_paths",
    "read_header",
    "read_volume",
    "training_datalist",
    "voxel_counts",
    "write_volume",
    "writing_volume",
]
