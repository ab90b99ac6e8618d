"""Make a torchvision built for CUDA importable with a torch without CUDA (Python runs this file at startup).

Package registries only have torchvision for CUDA. Importing it fails with "operator torchvision::nms does not exist",
although MONAI Label only needs its names. This file declares the operator without an implementation.
"""

from importlib import metadata

if "+cpu" in metadata.version("torch") and "+" not in metadata.version("torchvision"):
    import torch

    library = torch.library.Library("torchvision", "DEF")
    library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
