"""Lets a torchvision built for CUDA be imported beside a torch without CUDA (Python reads this file at its start).

Package registries give torchvision for CUDA only. Its import then ends with "operator torchvision::nms does not
exist", although MONAI Label needs nothing of it but names. Here the operator is declared, without code behind it.
"""

from importlib import metadata

if "+cpu" in metadata.version("torch") and "+" not in metadata.version("torchvision"):
    import torch

    library = torch.library.Library("torchvision", "DEF")
    library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
