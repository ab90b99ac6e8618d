"""Exact patch search by the native CPU kernel, as an operator that `torch.compile` and `torch.export` understand."""

from __future__ import annotations

import torch
from torch import Tensor

from bundle.ops import native
from bundle.ops.native.patch_search import patch_search

__all__ = ["patch_search_native"]


@torch.library.custom_op("iconet::patch_search", mutates_args=(), device_types="cpu")
def _patch_search(query: Tensor, key: Tensor) -> Tensor:
    library = native.load()
    if library is None:
        raise RuntimeError(native.reason())
    return patch_search(library, query.contiguous(), key.contiguous())


@_patch_search.register_fake
def _(query: Tensor, key: Tensor) -> Tensor:
    return query.new_empty((query.shape[0], query.shape[1] * query.shape[2]), dtype=torch.int64)


def patch_search_native(query: Tensor, key: Tensor) -> Tensor:
    """Index of the key patch most similar to each query patch, by exhaustive search in the fused C++ kernel.

    ``index[b, p] = argmax_r <unfold3x3 q(p), unfold3x3 k(r)> / |unfold3x3 k(r)|`` with zeros outside the image; p and r
    count pixels row by row, ties go to the smallest r. (The norm of the query does not change the argmax.) A norm below
    1e-12 counts as 1e-12, so an empty key patch scores 0. No gradient flows through the index.

    Args:
        query: (B, H, W, C) float32 on the CPU.
        key: (B, H, W, C) float32 on the CPU.

    Returns:
        (B, H * W) int64.

    Raises:
        RuntimeError: the kernel is not available here; the message says why (`bundle.ops.native.reason`).
        TypeError, ValueError: tensors of another type, device or shape.
    """
    for name, t in (("query", query), ("key", key)):
        if t.dtype != torch.float32 or t.device.type != "cpu":
            raise TypeError(f"the native search takes float32 tensors on the CPU, {name} is {t.dtype} on {t.device}")
    if query.ndim != 4 or query.shape != key.shape or query.numel() == 0:
        shapes = f"query {tuple(query.shape)} and key {tuple(key.shape)}"
        raise ValueError(f"{shapes} must be the same non-empty (B, H, W, C)")
    return torch.ops.iconet.patch_search(query.detach(), key.detach())
