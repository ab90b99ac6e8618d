"""The compiled kernels as Python functions of tensors, through ctypes."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bundle.ops.native.threads import run_workers

__all__ = ["Library"]

_LANES = 8


def _fields(pointers: str, integers: str) -> list[tuple[str, Any]]:
    return [(n, ctypes.c_void_p) for n in pointers.split()] + [(n, ctypes.c_int64) for n in integers.split()]


class _Ss2dCall(ctypes.Structure):
    _fields_ = _fields(
        "x proj dt_weight dt_bias a d y states dy dx dproj ddt_weight ddt_bias da dd",
        "batch height width channels n_state rank group",
    )


class _PatchSearchCall(ctypes.Structure):
    _fields_ = _fields(
        "query key best_index best_score workspace locks",
        "batch height width channels pack_next packed norm_next normed search_next",
    )


_BACKWARD_WORKERS = 2  # fewer, larger groups are 13 % faster on two cores; with a batch there are tasks enough for more


@functools.lru_cache(maxsize=256)
def _group_channels(channels: int, batch: int, workers: int) -> int:
    """Channels of one task, a multiple of 8: the grouping with the least work on the busiest of `workers`.

    A task costs its vectors of 8 channels and about two more for fetching its pixels.
    """
    vectors = -(-channels // _LANES)

    def cost(groups: int) -> int:
        return -(-batch * groups // workers) * (-(-vectors // groups) + 2)

    groups = min(range(1, vectors + 1), key=cost)
    return -(-vectors // groups) * _LANES


class Library:
    """The loaded kernels. All tensors are contiguous float32 on the CPU; the callers check."""

    def __init__(self, path: Path) -> None:
        self.path = path
        lib = ctypes.CDLL(str(path))
        self._forward, self._backward = lib.iconet_ss2d_forward, lib.iconet_ss2d_backward
        self._search = lib.iconet_patch_search
        for function in (self._forward, self._backward):
            function.restype, function.argtypes = ctypes.c_int, (ctypes.c_void_p, ctypes.c_void_p)
        self._search.restype, self._search.argtypes = ctypes.c_int, (ctypes.c_void_p,)
        self._workspace = lib.iconet_patch_search_workspace
        self._workspace.restype, self._workspace.argtypes = ctypes.c_int64, (ctypes.c_int64,) * 4
        lib.iconet_ss2d_steps.restype = ctypes.c_int64
        self.steps: int = lib.iconet_ss2d_steps()

    def states_shape(self, x: Tensor, n_state: int) -> tuple[int, int, int, int, int]:
        """Shape of the states kept for the backward pass: (B, 4, chunks, channels rounded up to 8, N)."""
        chunks = (x.shape[1] * x.shape[2] + self.steps - 1) // self.steps
        return x.shape[0], 4, chunks, (x.shape[3] + _LANES - 1) // _LANES * _LANES, n_state

    def ss2d_forward(self, inputs: tuple[Tensor, ...], store_states: bool) -> tuple[Tensor, Tensor]:
        """Of (x, proj, dt_weight, dt_bias, A, D) returns y (B, H, W, Di) and the states, empty if not kept."""
        x, n_state = inputs[0], inputs[4].shape[2]
        y = torch.empty_like(x)
        states = x.new_empty(self.states_shape(x, n_state) if store_states else (0,))
        # The channels do not meet in the forward pass: their grouping may follow the threads, the result does not.
        call = self._ss2d_call(inputs, torch.get_num_threads())
        call.y, call.states = y.data_ptr(), states.data_ptr() if store_states else None
        self._run_ss2d(self._forward, call)
        return y, states

    def ss2d_backward(self, dy: Tensor, inputs: tuple[Tensor, ...], states: Tensor) -> tuple[Tensor, ...]:
        """Gradients of the six inputs, given dL/dy (B, H, W, Di) and the states of the forward pass."""
        x, proj, *weights = inputs
        # Here dproj is summed over the groups: a grouping that followed the threads would change the last bits.
        call = self._ss2d_call(inputs, _BACKWARD_WORKERS)
        groups = -(-call.channels // call.group)
        dx, dproj = torch.empty_like(x), proj.new_empty((groups, *proj.shape))
        per_image = [w.new_empty((x.shape[0], *w.shape)) for w in weights]
        call.dy, call.states, call.dx, call.dproj = dy.data_ptr(), states.data_ptr(), dx.data_ptr(), dproj.data_ptr()
        call.ddt_weight, call.ddt_bias, call.da, call.dd = (g.data_ptr() for g in per_image)
        self._run_ss2d(self._backward, call)
        return dx, _sum_first(dproj), *map(_sum_first, per_image)

    def patch_search(self, query: Tensor, key: Tensor) -> Tensor:
        """Index (B, H * W) int64 of the best key patch of every query patch; query and key (B, H, W, C)."""
        batch, height, width, channels = query.shape
        # Plain tensors of stated types, whatever the defaults of the process and the class of the inputs are.
        index = torch.zeros((batch, height * width), device="cpu", dtype=torch.int64)
        score = torch.full((batch, height * width), -torch.inf, device="cpu", dtype=torch.float32)
        room = self._workspace(batch, height, width, channels)
        workspace = torch.empty(room, device="cpu", dtype=torch.float32)
        locks = torch.zeros(batch, device="cpu", dtype=torch.int32)
        call = _PatchSearchCall(
            *(t.data_ptr() for t in (query, key, index, score, workspace, locks)), batch, height, width, channels
        )
        address = ctypes.addressof(call)
        run_workers(lambda: self._search(address), batch * (2 * height - 1))
        return index

    @staticmethod
    def _ss2d_call(inputs: tuple[Tensor, ...], workers: int) -> _Ss2dCall:
        x, _, dt_weight, _, a, _ = inputs
        call = _Ss2dCall(*(t.data_ptr() for t in inputs))
        call.batch, call.height, call.width, call.channels = x.shape
        call.n_state, call.rank = a.shape[2], dt_weight.shape[2]
        call.group = _group_channels(call.channels, call.batch, workers)
        return call

    @staticmethod
    def _run_ss2d(function: Callable[[int, int], int], call: _Ss2dCall) -> None:
        counter = ctypes.c_int64(0)
        at_call, at_counter = ctypes.addressof(call), ctypes.addressof(counter)
        tasks = call.batch * -(-call.channels // call.group)
        run_workers(lambda: function(at_call, at_counter), tasks)


def _sum_first(t: Tensor) -> Tensor:
    return t[0] if t.shape[0] == 1 else t.sum(0)
