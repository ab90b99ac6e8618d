"""What the configs call besides MONAI."""

import warnings

from bundle.workflow.datasets import evaluation_data, inference_data, training_data
from bundle.workflow.folder_run import VolumesFailed, run_folder
from bundle.workflow.network import prepare_network
from bundle.workflow.options import check_overrides

# LoadImaged makes every reader that MONAI knows, and this one, for DICOM on a GPU, complains that it has none
warnings.filterwarnings("ignore", message="NvImgCodecPydicomReader: nvImageCodec decoder plugin did not register")

__all__ = [
    "VolumesFailed",
    "check_overrides",
    "evaluation_data",
    "inference_data",
    "prepare_network",
    "run_folder",
    "training_data",
]
