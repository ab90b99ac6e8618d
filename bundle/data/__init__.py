"""Finding, reading and writing volumes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from bundle.data.errors import DatasetError, VolumeError
from bundle.data.find import find_volumes, inference_datalist
from bundle.data.nifti.read import Volume, VolumeFile, check_volume_file, read_header, read_volume
from bundle.data.nifti.write import write_volume, writing_volume
from bundle.data.outputs import check_folders, output_paths
from bundle.data.splits import evaluation_datalist, training_datalist

if TYPE_CHECKING:
    from bundle.data.nifti.reader import NiftiVolumeReader

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
    "write_volume",
    "writing_volume",
]


def __getattr__(name: str) -> Any:
    """MONAI's reader is imported when it is asked for: MONAI takes seconds, and the command may need none of it."""
    if name == "NiftiVolumeReader":
        from bundle.data.nifti.reader import NiftiVolumeReader

        return NiftiVolumeReader
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
