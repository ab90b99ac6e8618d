"""3x3 convolutions by the native CPU kernel, as operators that `torch.export` understands."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from bundle.ops import native
from bundle.ops.native.conv3x3 import convolve
from bundle.ops.transformed import is_transformed, needs_gradient

__all__ = ["conv3x3_native"]


def _run(
    x: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor | None],
    addend: Tensor | None,
    relu: bool,
    coarse: Tensor | None,
    to_fine: Tensor | None,
    out: Tensor,
) -> None:
    library = native.load()
    if library is None:
        raise RuntimeError(native.reason())
    weights, biases = [w.contiguous() for w in weights], [b if b is None else b.contiguous() for b in biases]
    coarse, to_fine = (t if t is None else t.contiguous() for t in (coarse, to_fine))
    convolve(library, _channels_last(x), weights, biases, addend, relu, coarse, to_fine, out)


def _channels_last(tensor: Tensor) -> Tensor:
    """With (B, H, W, C) dense in memory; copied where it is not."""
    return tensor.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)


def _result(x: Tensor, weights: Sequence[Tensor]) -> Tensor:
    batch, _, height, width = x.shape
    shape = (batch, weights[-1].shape[0], height, width)
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)


def _forward(
    x: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor | None],
    addend: Tensor | None,
    relu: bool,
    coarse: Tensor | None,
    to_fine: Tensor | None,
) -> Tensor:
    out = _result(x, weights)
    addend = None if addend is None else _channels_last(addend)
    _run(x, weights, biases, addend, relu, coarse, to_fine, out)
    return out


_conv3x3 = torch.library.custom_op("iconet::conv3x3", _forward, mutates_args=(), device_types="cpu")


@_conv3x3.register_fake
def _(
    x: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor | None],
    addend: Tensor | None,
    relu: bool,
    coarse: Tensor | None,
    to_fine: Tensor | None,
) -> Tensor:
    return _result(x, weights)


def _add_(total: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, relu: bool) -> None:
    dense = _channels_last(total)
    if x.untyped_storage().data_ptr() == total.untyped_storage().data_ptr():
        x = x.clone()  # of which neighbours are read after they have been overwritten
    _run(x, [weight], [bias], dense, relu, None, None, dense)
    if dense.data_ptr() != total.data_ptr():
        total.copy_(dense)


_conv3x3_add_ = torch.library.custom_op("iconet::conv3x3_add_", _add_, mutates_args=("total",), device_types="cpu")


@_conv3x3_add_.register_fake
def _(total: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, relu: bool) -> None:
    return None


def conv3x3_native(
    x: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor | None],
    addend: Tensor | None = None,
    relu: bool = False,
    coarse: Tensor | None = None,
    to_fine: Tensor | None = None,
    in_place: bool = False,
) -> Tensor:
    """One 3x3 convolution or several with a ReLU between them, by the C++ kernel; see its file for how.

    ``y = conv(x) + addend`` for one; for several, ``x`` is replaced by ``relu(conv(x))`` for all but the last. Stride
    1, zeros outside the image. Results do not depend on the number of threads, and those of several layers are those of
    their single calls bit by bit; but the maps between layers are never held whole. A single layer is
    differentiable.

    Args:
        x: (B, c_in, H, W) float32 on the CPU, as all tensors; without a copy if its memory is channels last.
        weights, biases: for each layer (c_out, c_in, 3, 3), and (c_out,) or None.
        addend: of the shape of the result, added to it.
        relu: of the sum, at the end.
        coarse, to_fine: (B, H / 2, W / 2, features) and (4 * c_out of the first layer, features): the pixel shuffle of
            ``linear(coarse, to_fine)`` is added to the first of several layers before its ReLU.
        in_place: write the result of a single layer to ``addend`` and return that.

    Returns:
        (B, c_out, H, W), channels last in memory.

    Raises:
        RuntimeError: the kernel is not available here; the message says why (`bundle.ops.native.reason`).
        TypeError, ValueError: a tensor of another type, device or shape.
    """
    _check_types({"x": x, "addend": addend, "coarse": coarse, "to_fine": to_fine}, weights, biases)
    _check_shapes(x, weights, biases, addend)
    _check_coarse(x, weights, coarse, to_fine)
    given = [t for t in (x, *weights, *biases, addend, coarse, to_fine) if t is not None]
    if needs_gradient(*given):
        if len(weights) > 1 or addend is not None or relu:
            raise ValueError("only a single layer without addend and ReLU has gradients")
        out: Tensor = _Differentiable.apply(x, weights[0], biases[0])
        return out
    if in_place:
        if addend is None or len(weights) > 1:
            raise ValueError("only a single layer with an addend runs in place")
        add = _add_ if type(x) is Tensor is type(addend) else torch.ops.iconet.conv3x3_add_
        add(addend, x, weights[0], biases[0], relu)
        return addend
    # The first call of an operator imports PyTorch's compiler, in a second; subclasses of tensors need the operator.
    forward = _forward if type(x) is Tensor else torch.ops.iconet.conv3x3
    return forward(x, weights, biases, addend, relu, coarse, to_fine)


class _Differentiable(torch.autograd.Function):
    """The gradient of the input is a convolution too; that of the weight stays with PyTorch.

    Both are made of operations that have gradients themselves.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return conv3x3_native(x, [weight], [bias])

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        dx = None
        wanted = list(ctx.needs_input_grad)
        if wanted[0] and not is_transformed(dy):
            dx, wanted[0] = conv3x3_native(dy, [weight.flip(2, 3).transpose(0, 1)], [None]), False
        sizes = [weight.shape[0]], [1, 1], [1, 1], [1, 1], False, [0, 0], 1  # of bias, stride, padding, dilation...
        of_torch, dweight, dbias = torch.ops.aten.convolution_backward(dy, _channels_last(x), weight, *sizes, wanted)
        return of_torch if dx is None else dx, dweight, dbias


def _check_types(tensors: dict[str, Tensor | None], weights: Sequence[Tensor], biases: Sequence[Tensor | None]) -> None:
    named = [*tensors.items(), *(("weight", w) for w in weights), *(("bias", b) for b in biases)]
    for name, t in named:
        if t is not None and (t.dtype != torch.float32 or t.device.type != "cpu"):
            raise TypeError(
                f"the native convolution takes float32 tensors on the CPU, {name} is {t.dtype} on {t.device}"
            )


def _check_shapes(x: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor | None], addend: Tensor | None) -> None:
    if x.ndim != 4 or x.numel() == 0:
        raise ValueError(f"x must be a non-empty (B, C, H, W), got {tuple(x.shape)}")
    channels = x.shape[1]
    for weight, bias in zip(weights, biases, strict=True):
        if weight.ndim != 4 or weight.shape[1:] != (channels, 3, 3) or weight.numel() == 0:
            raise ValueError(f"weight must be (channels, {channels}, 3, 3), got {tuple(weight.shape)}")
        channels = weight.shape[0]
        if bias is not None and bias.shape != (channels,):
            raise ValueError(f"bias must be ({channels},), got {tuple(bias.shape)}")
    shape = (x.shape[0], channels, *x.shape[2:])
    if addend is not None and addend.shape != shape:
        raise ValueError(f"addend must be {shape}, got {tuple(addend.shape)}")


def _check_coarse(x: Tensor, weights: Sequence[Tensor], coarse: Tensor | None, to_fine: Tensor | None) -> None:
    if coarse is None and to_fine is None:
        return
    if coarse is None or to_fine is None or len(weights) < 2:
        raise ValueError("coarse and to_fine come together and with at least two layers")
    size = (x.shape[0], x.shape[2] / 2, x.shape[3] / 2)
    fits = coarse.ndim == 4 and coarse.shape[:3] == size and coarse.shape[3] > 0
    if not fits or to_fine.shape != (4 * weights[0].shape[0], coarse.shape[3]):
        shapes = f"coarse {tuple(coarse.shape)} and to_fine {tuple(to_fine.shape)}"
        raise ValueError(f"{shapes} do not fit x {tuple(x.shape)} and {weights[0].shape[0]} channels")
