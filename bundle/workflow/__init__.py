"""What the configs call besides MONAI."""

from bundle.workflow.datasets import evaluation_data, inference_data, training_data
from bundle.workflow.folder_run import VolumesFailed, run_folder
from bundle.workflow.network import prepare_network
from bundle.workflow.options import check_overrides

__all__ = [
    "VolumesFailed",
    "check_overrides",
    "evaluation_data",
    "inference_data",
    "prepare_network",
    "run_folder",
    "training_data",
]
