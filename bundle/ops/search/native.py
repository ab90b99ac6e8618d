"""Patch search and transfer by the native CPU kernels, as operators that `torch.compile` and `torch.export` take."""

from __future__ import annotations

import torch
from torch import Tensor

from bundle.ops import native
from bundle.ops.native.patch_search import patch_search, patch_transfer

__all__ = ["patch_attention_native", "patch_search_native"]


def _library() -> native.Library:
    library = native.load()
    if library is None:
        raise RuntimeError(native.reason())
    return library


@torch.library.custom_op("iconet::patch_search", mutates_args=(), device_types="cpu")
def _patch_search(query: Tensor, key: Tensor, window: int | None) -> Tensor:
    return patch_search(_library(), query, key, window)[0]


@_patch_search.register_fake
def _(query: Tensor, key: Tensor, window: int | None) -> Tensor:
    return query.new_empty((query.shape[0], query.shape[1] * query.shape[2]), dtype=torch.int64)


@torch.library.custom_op("iconet::patch_search_transfer", mutates_args=(), device_types="cpu")
def _patch_attention(
    query: Tensor, key: Tensor, value: Tensor, stride: int, window: int | None, first: int, last: int, weighted: bool
) -> tuple[Tensor, Tensor, Tensor]:
    index, score = patch_search(_library(), query, key, window, stride, (first, last))
    return patch_transfer(_library(), value, index, score, weighted, stride, (first, last)), score, index


@_patch_attention.register_fake
def _(
    query: Tensor, key: Tensor, value: Tensor, stride: int, window: int | None, first: int, last: int, weighted: bool
) -> tuple[Tensor, Tensor, Tensor]:
    batch, height, width, channels = value.shape
    rows, blocks = -(-height // stride), -(-width // stride)
    high = height - first * stride if last == rows else (last - first) * stride
    score = query.new_empty((batch, rows * blocks))
    return value.new_empty((batch, high, width, channels)), score, torch.empty_like(score, dtype=torch.int64)


def _check(**tensors: Tensor) -> None:
    for name, t in tensors.items():
        if t.dtype != torch.float32 or t.device.type != "cpu":
            raise TypeError(f"the native search takes float32 tensors on the CPU, {name} is {t.dtype} on {t.device}")
    query, key = tensors["query"], tensors["key"]
    if query.ndim != 4 or query.shape != key.shape or query.numel() == 0:
        shapes = f"query {tuple(query.shape)} and key {tuple(key.shape)}"
        raise ValueError(f"{shapes} must be the same non-empty (B, H, W, C)")


def patch_search_native(query: Tensor, key: Tensor, window: int | None = None) -> Tensor:
    """Index of the key patch most similar to each query patch, by exhaustive search in the fused C++ kernel.

    ``index[b, p] = argmax_r <unfold3x3 q(p), unfold3x3 k(r)> / |unfold3x3 k(r)|`` with zeros outside the image; p and r
    count pixels row by row, ties go to the smallest r. (The norm of the query does not change the argmax.) A norm below
    1e-12 counts as 1e-12, so an empty key patch scores 0. No gradient flows through the index.

    Args:
        query: (B, H, W, C) float32 on the CPU.
        key: (B, H, W, C) float32 on the CPU.
        window: only r at most so many rows and columns from p; all of them by default.

    Returns:
        (B, H * W) int64.

    Raises:
        RuntimeError: the kernel is not available here; the message says why (`bundle.ops.native.reason`).
        TypeError, ValueError: tensors of another type, device or shape.
    """
    _check(query=query, key=key)
    return torch.ops.iconet.patch_search(query.detach(), key.detach(), window)


def patch_attention_native(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    stride: int = 1,
    window: int | None = None,
    rows: tuple[int, int] | None = None,
    weighted: bool = True,
) -> tuple[Tensor, Tensor, Tensor]:
    """The search, the transfer of the values that it finds and their cosines; without gradients.

    Args:
        query, key: (B, H, W, C) float32 on the CPU.
        value: (B, H, W, Cv) likewise.
        stride: side of the blocks of pixels that are matched as one.
        window: only keys at most so many blocks away in rows and columns; all of them by default.
        rows: the rows of blocks that are wanted, first and one past the last; all of them by default.
        weighted: multiply the values by the cosines.

    Returns:
        values (B, rows, W, Cv); cosines (B, all blocks) and indices (B, all blocks) int64, defined for the rows.

    Raises:
        See :func:`patch_search_native`.
    """
    _check(query=query, key=key, value=value)
    first, last = rows or (0, -(-query.shape[1] // stride))
    tensors = (t.detach() for t in (query, key, value))
    out, score, index = torch.ops.iconet.patch_search_transfer(*tensors, stride, window, first, last, weighted)
    return out, score, index
