"""Call the SS2D scan of the compiled library. All tensors are contiguous float32 on the CPU; the callers check."""

from __future__ import annotations

import ctypes
import functools

import torch
from torch import Tensor

from bundle.ops.native.library import Library, fields

__all__ = ["ss2d_backward", "ss2d_forward", "states_shape"]

STEPS = 32  # time steps between two kept states: the kernel's kSteps
_PADDING = 16  # kept states and tasks have whole vectors of channels, of any processor
_BACKWARD_WORKERS = 2  # fewer, larger groups are 13 % faster on two cores; with a batch there are tasks enough for more


class _Call(ctypes.Structure):
    _fields_ = fields(
        "x proj dt_weight dt_bias a d y states dy dx dproj ddt_weight ddt_bias da dd",
        "batch height width channels n_state rank group",
    )


def states_shape(x: Tensor, n_state: int) -> tuple[int, int, int, int, int]:
    """Shape of the states kept for the backward pass: (B, 4, chunks, channels rounded up to 16, N)."""
    chunks = (x.shape[1] * x.shape[2] + STEPS - 1) // STEPS
    return x.shape[0], 4, chunks, -(-x.shape[3] // _PADDING) * _PADDING, n_state


def ss2d_forward(library: Library, inputs: tuple[Tensor, ...], store_states: bool) -> tuple[Tensor, Tensor]:
    """Of (x, proj, dt_weight, dt_bias, A, D) returns y (B, H, W, Di) and the states, empty if not kept."""
    x, n_state = inputs[0], inputs[4].shape[2]
    y = torch.empty_like(x)
    states = x.new_empty(states_shape(x, n_state) if store_states else (0,))
    call = _call(inputs)
    call.y, call.states = y.data_ptr(), states.data_ptr() if store_states else None
    library.run("iconet_ss2d_forward", call)
    return y, states


def ss2d_backward(library: Library, dy: Tensor, inputs: tuple[Tensor, ...], states: Tensor) -> tuple[Tensor, ...]:
    """Gradients of the six inputs, given dL/dy (B, H, W, Di) and the states of the forward pass."""
    x, proj, *weights = inputs
    call = _call(inputs)
    # dproj is summed over the groups: a grouping that followed the threads would change the last bits.
    call.group = _group_channels(call.channels, call.batch, _BACKWARD_WORKERS)
    groups = -(-call.channels // call.group)
    dx, dproj = torch.empty_like(x), proj.new_empty((groups, *proj.shape))
    per_image = [w.new_empty((x.shape[0], *w.shape)) for w in weights]
    call.dy, call.states, call.dx, call.dproj = dy.data_ptr(), states.data_ptr(), dx.data_ptr(), dproj.data_ptr()
    call.ddt_weight, call.ddt_bias, call.da, call.dd = (g.data_ptr() for g in per_image)
    library.run("iconet_ss2d_backward", call)
    return dx, _sum_first(dproj), *map(_sum_first, per_image)


def _call(inputs: tuple[Tensor, ...]) -> _Call:
    x, _, dt_weight, _, a, _ = inputs
    call = _Call(*(t.data_ptr() for t in inputs))
    call.batch, call.height, call.width, call.channels = x.shape
    call.n_state, call.rank = a.shape[2], dt_weight.shape[2]
    return call


@functools.lru_cache(maxsize=256)
def _group_channels(channels: int, batch: int, workers: int) -> int:
    """Channels of one backward task, a multiple of 16: the grouping with the least work on the busiest of `workers`.

    A task costs its vectors and about one more for fetching its pixels.
    """
    vectors = -(-channels // _PADDING)

    def cost(groups: int) -> int:
        return -(-batch * groups // workers) * (-(-vectors // groups) + 1)

    groups = min(range(1, vectors + 1), key=cost)
    return -(-vectors // groups) * _PADDING


def _sum_first(t: Tensor) -> Tensor:
    return t[0] if t.shape[0] == 1 else t.sum(0)
