"""Call the patch search and the transfer of the compiled library. All tensors are float32 on the CPU; callers check."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from bundle.ops.native.library import Library, fields

__all__ = ["patch_search", "patch_transfer"]


class _Search(ctypes.Structure):
    _fields_ = fields(
        "query key index score", "batch height width channels query_step key_step stride window first last"
    )


class _Transfer(ctypes.Structure):
    _fields_ = fields("value index score out", "batch height width channels value_step stride first last weighted")


def _pixels(image: Tensor) -> tuple[Tensor, int]:
    """The map (B, H, W, C) and the distance of its pixels in memory, copied unless these are equally far apart.

    Part of the channels of a map needs no copy.
    """
    batch, height, width, channels = image.shape
    if not image.is_contiguous() and width > 1 and (channels == 1 or image.stride(3) == 1):
        row, step = image.stride(1), image.stride(2)
        rows_follow = height == 1 or row == width * step
        if rows_follow and (batch == 1 or image.stride(0) == height * width * step):
            return image, step
    return image.contiguous(), channels


def patch_search(
    library: Library,
    query: Tensor,
    key: Tensor,
    window: int | None = None,
    stride: int = 1,
    rows: tuple[int, int] | None = None,
) -> tuple[Tensor, Tensor]:
    """Index (B, pixels) int64 of the best key patch of every query patch, and their cosine (B, pixels).

    Args:
        library: the kernels.
        query, key: (B, H, W, C).
        window: only keys so many rows and columns away, or all.
        stride: side of the blocks of pixels that count as one pixel.
        rows: of blocks that are wanted, first and one past the last; the others are undefined but for one on each side.
    """
    batch, height, width, channels = query.shape
    (query, query_step), (key, key_step) = _pixels(query), _pixels(key)
    count = -(-height // stride)
    shape = (batch, count * -(-width // stride))
    # Plain tensors of stated types, whatever the defaults of the process and the class of the inputs are.
    index = torch.empty(shape, device="cpu", dtype=torch.int64)
    score = torch.empty(shape, device="cpu", dtype=torch.float32)
    limit = -1 if window is None else window
    sizes = (batch, height, width, channels, query_step, key_step, stride, limit, *(rows or (0, count)))
    library.run("iconet_patch_search", _Search(*(t.data_ptr() for t in (query, key, index, score)), *sizes))
    return index, score


def patch_transfer(
    library: Library,
    value: Tensor,
    index: Tensor,
    score: Tensor,
    weighted: bool,
    stride: int = 1,
    rows: tuple[int, int] | None = None,
) -> Tensor:
    """The value patches (B, H, W, C) that a search has found, divided by their overlap, for the rows of that search.

    Args:
        library: the kernels.
        value: (B, H, W, C).
        index, score: of :func:`patch_search` with the same stride and rows.
        weighted: multiply by the score.
        stride, rows: see :func:`patch_search`.
    """
    batch, height, width, channels = value.shape
    value, step = _pixels(value)
    first, last = rows or (0, -(-height // stride))
    shape = (batch, min(last * stride, height) - first * stride, width, channels)
    out = torch.empty(shape, device="cpu", dtype=torch.float32)
    sizes = (batch, height, width, channels, step, stride, first, last, weighted)
    library.run("iconet_patch_transfer", _Transfer(*(t.data_ptr() for t in (value, index, score, out)), *sizes))
    return out
