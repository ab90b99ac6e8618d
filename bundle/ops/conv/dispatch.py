"""The 3x3 convolution as one function over its back ends."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn.functional import conv2d

from bundle.ops.backend import Backend, convolution_backend
from bundle.ops.transformed import is_transformed, needs_gradient

_FEWEST_PIXELS = 768  # of an image; below, putting the weights in order costs more than the products saved

_FEWEST_TRAINED = 2048  # pixels of a batch with gradients, for which the weights are put in order twice
_FEWEST_LINES = 3  # rows and columns; below, most of a tile of the kernel lies outside the image


def own_convolution(x: Tensor, tensors: Sequence[Tensor | None]) -> Callable[..., Tensor] | None:
    """The back end's own convolution for inference (:func:`bundle.ops.conv.native.conv3x3_native`); None for PyTorch's.

    Nothing may need a gradient, and nothing may be recorded or cast on the way. Whether it runs depends on the size of
    the image, never on the batch.

    Args:
        x: the input.
        tensors: what else takes part.
    """
    others = [t for t in tensors if t is not None]
    if needs_gradient(x, *others):
        return None
    backend = _backend_for(x, others)
    return None if backend is None else backend.convolution_function


def _backend_for(x: Tensor, others: Sequence[Tensor]) -> Backend | None:
    if torch.jit.is_tracing() or torch.compiler.is_compiling() or torch.is_autocast_enabled("cpu"):
        return None
    if x.device.type != "cpu" or x.dtype != torch.float32 or x.ndim != 4 or x.numel() == 0:
        return None
    if x.shape[2] * x.shape[3] < _FEWEST_PIXELS or min(x.shape[2:]) < _FEWEST_LINES:
        return None
    if any(t.dtype != x.dtype or t.device != x.device for t in others):  # PyTorch's error is the one that users know
        return None
    if is_transformed(x, *others):
        return None
    return convolution_backend(x)


def conv3x3(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    addend: Tensor | None = None,
    relu: bool = False,
    in_place: bool = False,
) -> Tensor:
    """``conv(x) + addend``, then ReLU if asked for: 3x3, stride 1, zeros outside the image.

    On the CPU maps are kept with channels last in memory, which is the faster layout in both forms.

    Args:
        x: (B, c_in, H, W).
        weight, bias: (c_out, c_in, 3, 3) and (c_out,).
        addend: (B, c_out, H, W).
        in_place: the caller needs ``addend`` no more: its memory may take the result.
    """
    run = own_convolution(x, (weight, bias, addend))
    if run is not None:
        return run(x, [weight], [bias], addend, relu, in_place=in_place and addend is not None)
    backend = _backend_for(x, [weight] if bias is None else [weight, bias])
    if backend is not None and x[:, 0].numel() < _FEWEST_TRAINED:
        backend = None
    if backend is not None and backend.convolution_function is not None:
        out = backend.convolution_function(x, [weight], [bias])
    elif torch.jit.is_tracing() or x.device.type != "cpu" or is_transformed(x):
        out = conv2d(x, weight, bias, padding=1)
    else:
        out = conv2d(x.contiguous(memory_format=torch.channels_last), weight, bias, padding=1)
        out = out.contiguous(memory_format=torch.channels_last)  # a copy after a single channel, whose order is either
    # A subclass (MetaTensor) is a view of what an operator returned, which autograd does not let us change.
    own = type(out) is Tensor and not torch.jit.is_tracing()
    if addend is not None:
        out = out.add_(addend) if own and addend.dtype == out.dtype else out + addend
    if relu:
        out = out.relu_() if own else out.relu()
    return out
