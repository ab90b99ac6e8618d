"""Write a network as TorchScript or ONNX, with what its user has to know inside the file."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from pathlib import Path

import torch
from monai.data import save_net_with_metadata
from monai.networks.utils import convert_to_onnx, convert_to_torchscript
from torch import nn

from bundle.data.atomic import replacing
from release.exports.operators import OnnxForm

OPSET = 18
DESCRIPTION = "export.json"
"""Name of the description among the extra files of a TorchScript file."""
_AXES = {"image": {0: "batch", 2: "height", 3: "width"}, "pred": {0: "batch", 2: "fine_height", 3: "fine_width"}}


def describe(name: str, scale: int, sha256: str) -> dict[str, str]:
    """What goes into the file: network, scale, checksum of the weights, and what the weights assume.

    Args:
        name: of the network, see :data:`bundle.networks.NETWORKS`.
        scale: 2, 4 or 8.
        sha256: of the file of weights.
    """
    return {
        "network": name,
        "scale": str(scale),
        "weights_sha256": sha256,
        "input": "float32 (batch, 1, height, width): one slice each, scaled to order 1 by its volume",
        "degradation": "k-space truncation, magnitude",
        "grid_rule": "low-resolution voxel j lies on high-resolution voxel scale * j: "
        "affine @ diag(1/scale, 1/scale, 1, 1), same origin",
        "intensity": "(x - offset) / width; offset 0, or the 0.1th percentile if any voxel is negative; "
        "width the 99.9th percentile of (x - offset) where x > offset; result * width + offset",
        "data_consistency": "not in the file",
    }


def write_torchscript(network: nn.Module, path: Path, description: Mapping[str, str]) -> None:
    """Script a network and save it with its description, as MONAI's ``ckpt_export`` does (which knows one scale only).

    ``torch.jit.load(path, _extra_files={"export.json": ""})`` gives the description back.

    Args:
        network: on the CPU; put into evaluation mode.
        path: ends in ``.ts``; written as a whole or not at all.
    """
    scripted = convert_to_torchscript(network.eval())
    extra = {DESCRIPTION: json.dumps(dict(description)).encode()}
    with replacing(path) as file:
        save_net_with_metadata(
            scripted, file, include_config_vals=False, append_timestamp=False, more_extra_files=extra
        )


def write_onnx(network: nn.Module, path: Path, description: Mapping[str, str]) -> None:
    """Trace a network to ONNX with free batch, height and width; input ``image``, output ``pred``.

    By PyTorch's exporter from traces: with ``torch.export``, from which the newer one starts, two blocks took half a
    minute of reasoning about symbolic sizes (loops written as its ``scan`` operator), docs/exports.md.

    Args:
        network: ICONet or the default network, on the CPU; put into evaluation mode.
        path: ends in ``.onnx``; written as a whole or not at all. The description becomes its ``metadata_props``.
    """
    import onnx

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's age; sizes that are compared while tracing
        model = convert_to_onnx(
            OnnxForm(network).eval(),
            [torch.rand(2, 1, 6, 8)],
            input_names=["image"],
            output_names=["pred"],
            opset_version=OPSET,
            dynamic_axes=_AXES,
            dynamo=False,
        )
    onnx.helper.set_model_props(model, dict(description))
    onnx.checker.check_model(model)
    with replacing(path) as file:
        file.write(model.SerializeToString())
