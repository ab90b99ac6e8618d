"""Networks as files that run without this package: TorchScript and ONNX, written, checked and described."""

from release.exports.check import TOLERANCE, Runner, compare, onnx_runner, torchscript_runner
from release.exports.operators import OnnxForm
from release.exports.write import describe, write_onnx, write_torchscript

__all__ = [
    "TOLERANCE",
    "OnnxForm",
    "Runner",
    "compare",
    "describe",
    "onnx_runner",
    "torchscript_runner",
    "write_onnx",
    "write_torchscript",
]
