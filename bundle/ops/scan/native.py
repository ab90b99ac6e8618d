"""SS2D scan by the native CPU kernel, as an operator that autograd, `torch.compile` and `torch.export` understand."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from bundle.ops import native
from bundle.ops.native.ss2d import ss2d_backward, ss2d_forward, states_shape
from bundle.ops.scan.reference import parameter_shapes
from bundle.ops.transformed import needs_gradient

__all__ = ["selective_scan_2d_native"]


def _library() -> native.Library:
    library = native.load()
    if library is None:
        raise RuntimeError(native.reason())
    return library


@torch.library.custom_op("iconet::ss2d", mutates_args=(), device_types="cpu")
def _ss2d(
    x: Tensor, proj: Tensor, dt_weight: Tensor, dt_bias: Tensor, A: Tensor, D: Tensor, store_states: bool
) -> tuple[Tensor, Tensor]:
    inputs = tuple(t.contiguous() for t in (x, proj, dt_weight, dt_bias, A, D))
    return ss2d_forward(_library(), inputs, store_states)


@_ss2d.register_fake
def _(
    x: Tensor, proj: Tensor, dt_weight: Tensor, dt_bias: Tensor, A: Tensor, D: Tensor, store_states: bool
) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), x.new_empty(states_shape(x, A.shape[2]) if store_states else (0,))


@torch.library.custom_op("iconet::ss2d_backward", mutates_args=(), device_types="cpu")
def _ss2d_backward(
    dy: Tensor, x: Tensor, proj: Tensor, dt_weight: Tensor, dt_bias: Tensor, A: Tensor, D: Tensor, states: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    library = _library()
    inputs = tuple(t.contiguous() for t in (x, proj, dt_weight, dt_bias, A, D))
    if states.numel() == 0:  # the forward pass was recorded without gradients in mind (a traced graph)
        states = ss2d_forward(library, inputs, store_states=True)[1]
    dx, dproj, ddt_weight, ddt_bias, dA, dD = ss2d_backward(library, dy.contiguous(), inputs, states.contiguous())
    return dx, dproj, ddt_weight, ddt_bias, dA, dD


@_ss2d_backward.register_fake
def _(
    dy: Tensor, x: Tensor, proj: Tensor, dt_weight: Tensor, dt_bias: Tensor, A: Tensor, D: Tensor, states: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    dx, dproj, ddt_weight, ddt_bias, dA, dD = (t.new_empty(t.shape) for t in (x, proj, dt_weight, dt_bias, A, D))
    return dx, dproj, ddt_weight, ddt_bias, dA, dD


def _setup_context(ctx: Any, inputs: tuple, output: tuple[Tensor, Tensor]) -> None:
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*inputs[:6], output[1])


def _backward(ctx: Any, dy: Tensor | None, _: Tensor | None) -> tuple:
    if dy is None:
        return (None,) * 7
    return *torch.ops.iconet.ss2d_backward(dy, *ctx.saved_tensors), None


_ss2d.register_autograd(_backward, setup_context=_setup_context)


def _check(x: Tensor, proj: Tensor, dt_weight: Tensor, dt_bias: Tensor, A: Tensor, D: Tensor) -> None:
    tensors = {"x": x, "proj": proj, "dt_weight": dt_weight, "dt_bias": dt_bias, "A": A, "D": D}
    for name, t in tensors.items():
        if t.dtype != torch.float32 or t.device.type != "cpu":
            raise TypeError(f"the native scan takes float32 tensors on the CPU, {name} is {t.dtype} on {t.device}")
    for name, shape in parameter_shapes(x, dt_weight, A).items():
        if tensors[name].shape != shape:
            raise ValueError(f"{name} has the shape {tuple(tensors[name].shape)}, expected {shape}")


def selective_scan_2d_native(
    x: Tensor, proj: Tensor, dt_weight: Tensor, dt_bias: Tensor, A: Tensor, D: Tensor
) -> Tensor:
    """Four-direction selective scan by the fused C++ kernel.

    Along the pixel sequence of direction k (0 row-major, 1 column-major, 2 and 3 their reverses), per channel:
    ``dt = softplus(dt_weight[k] @ proj_dt + dt_bias[k])``, ``h = exp(dt A[k]) h + dt x B``, ``y_k = <h, C> + D[k] x``;
    the result is the sum of the four ``y_k``. Without gradients nothing is stored; with gradients the states at every
    32nd step are. The result does not depend on the number of threads.

    Args:
        x: (B, H, W, Di) float32 on the CPU, as all arguments.
        proj: (B, H, W, 4, R + 2 N), per pixel and direction the dt input (R), B (N) and C (N), in pixel order.
        dt_weight: (4, Di, R).
        dt_bias: (4, Di).
        A: (4, Di, N), negative. (Growing states, A > 0, are computed too, up to exp2(127) per step.)
        D: (4, Di).

    Returns:
        (B, H, W, Di).

    Raises:
        RuntimeError: the kernel is not available here; the message says why (`bundle.ops.native.reason`).
        TypeError, ValueError: a tensor of another type, device or shape.
    """
    inputs = (x, proj, dt_weight, dt_bias, A, D)
    _check(*inputs)
    store = needs_gradient(*inputs)
    return torch.ops.iconet.ss2d(*inputs, store)[0]
