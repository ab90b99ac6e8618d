"""Call the patch search of the compiled library. All tensors are contiguous float32 on the CPU; the callers check."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from bundle.ops.native.library import Library, fields

__all__ = ["patch_search"]


class _Call(ctypes.Structure):
    _fields_ = fields(
        "query key best_index best_score workspace locks",
        "batch height width channels pack_next packed norm_next normed search_next",
    )


def patch_search(library: Library, query: Tensor, key: Tensor) -> Tensor:
    """Index (B, H * W) int64 of the best key patch of every query patch; query and key (B, H, W, C)."""
    batch, height, width, channels = query.shape
    # Plain tensors of stated types, whatever the defaults of the process and the class of the inputs are.
    index = torch.zeros((batch, height * width), device="cpu", dtype=torch.int64)
    score = torch.full((batch, height * width), -torch.inf, device="cpu", dtype=torch.float32)
    room = library.integer("iconet_patch_search_workspace", batch, height, width, channels)
    workspace = torch.empty(room, device="cpu", dtype=torch.float32)
    locks = torch.zeros(batch, device="cpu", dtype=torch.int32)
    tensors = (query, key, index, score, workspace, locks)
    library.run("iconet_patch_search", _Call(*(t.data_ptr() for t in tensors), batch, height, width, channels))
    return index
