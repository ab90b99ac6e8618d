"""Functions that the configs call besides MONAI's."""

import warnings

from bundle.workflow.datasets import evaluation_data, inference_data, training_data
from bundle.workflow.folder_run import VolumesFailed, run_folder
from bundle.workflow.network import prepare_network
from bundle.workflow.options import check_overrides
from bundle.workflow.shares import own_share

# LoadImaged creates all of MONAI's readers, and this one, for DICOM on a GPU, warns if there is none
warnings.filterwarnings("ignore", message="NvImgCodecPydicomReader: nvImageCodec decoder plugin did not register")

__all__ = [
    "VolumesFailed",
    "check_overrides",
    "evaluation_data",
    "inference_data",
    "own_share",
    "prepare_network",
    "run_folder",
    "training_data",
]
