"""Call the 3x3 convolutions of the compiled library. All tensors are float32 on the CPU; the callers check."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import torch
from torch import Tensor

from bundle.ops.native.library import Library, fields

__all__ = ["convolve"]

_BAND_PIXELS = 4096  # of a chain, for each thread: the input and output of a layer stay in its L2 cache


class _Layer(ctypes.Structure):
    _fields_ = fields("weight bias", "c_in c_out relu")


class _Call(ctypes.Structure):
    _fields_ = fields("x addend coarse to_fine y layers", "count batch height width features band")


def convolve(
    library: Library,
    x: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor | None],
    addend: Tensor | None,
    relu: bool,
    coarse: Tensor | None,
    to_fine: Tensor | None,
    out: Tensor,
) -> None:
    """Write the result of one or several layers to ``out``; the arguments are those of the operator.

    ``x`` (B, C, H, W), ``addend`` (which may be ``out``) and ``out`` are dense with channels last, the rest contiguous.
    """
    layers = (_Layer * len(weights))()
    for layer, weight, bias in zip(layers, weights, biases, strict=True):
        layer.weight, layer.bias, layer.relu = weight.data_ptr(), _address(bias), True
        layer.c_out, layer.c_in = weight.shape[:2]
    layers[-1].relu = relu
    call = _Call(*(_address(t) for t in (x, addend, coarse, to_fine, out)), ctypes.addressof(layers), len(weights))
    call.batch, _, call.height, call.width = x.shape
    call.features = 0 if coarse is None else coarse.shape[3]
    rows = -(-_BAND_PIXELS * torch.get_num_threads() // call.width)
    call.band = max(-(-rows // 4) * 4, 8)  # whole tiles
    library.run("iconet_conv3x3", call)


def _address(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()
