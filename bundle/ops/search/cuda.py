"""Exact search of the most similar 3x3 patch on a GPU: by tiles in plain PyTorch, and as one fused Triton kernel.

Both give ``index[b, p] = argmax_r <unfold3x3 q(p), unfold3x3 k(r)> / |unfold3x3 k(r)|`` with zeros outside the image, a
norm below 1e-12 counted as 1e-12, and the smallest ``r`` among equal scores. The norm of the query does not move the
maximum. Neither holds the ``HW x HW`` matrix. Products are taken in float32 proper: half precision flips many of the
maxima, TF32 some. Without Triton the module imports and the first form works (on any device).
"""

from __future__ import annotations

import contextlib
import math

import torch
from torch import Tensor
from torch.nn.functional import pad

from bundle.ops.precision import float32_proper
from bundle.ops.scan.triton import _jit, is_available, reason
from bundle.ops.search.plain import inverse_patch_norm, patch_search_box

with contextlib.suppress(Exception):  # `reason` tells why not
    import triton.language as tl
    from triton.language import constexpr

__all__ = ["patch_search_tiled", "patch_search_triton"]


def _check(query: Tensor, key: Tensor) -> None:
    if query.ndim != 4 or query.shape != key.shape or query.numel() == 0:
        shapes = f"query {tuple(query.shape)}, key {tuple(key.shape)}"
        raise ValueError(f"the search takes two maps (B, H, W, C) of one shape that are not empty; {shapes}")
    for name, t in (("query", query), ("key", key)):
        if not t.is_floating_point() or t.device != query.device:
            raise TypeError(f"the search takes real tensors on one device; {name}: {t.dtype}, {t.device}")


# ------------------------------------------------------------------------------------------------------------- tiled


def _patches(padded: Tensor, first: int, last: int) -> Tensor:
    """Unfolded rows ``first`` to ``last`` of an image (H + 2, W + 2, C) with its border: (rows * W, 9 C)."""
    width = padded.shape[1] - 2
    shifted = [padded[first + dy : last + dy, dx : dx + width] for dy in range(3) for dx in range(3)]
    return torch.cat(shifted, dim=-1).flatten(0, 1)


def _rows_per_tile(height: int, width: int, channels: int, element_size: int, memory_limit: int) -> int:
    """Rows of ``n / W`` with ``n^2`` scores, a mask of them, and two times ``9 C n`` features within the limit."""
    elements = memory_limit / (2 * element_size)
    n = math.sqrt((9 * channels) ** 2 + elements) - 9 * channels
    return min(max(int(n) // width, 1), height)


@torch.library.custom_op("iconet::patch_search_tiled", mutates_args=())
def _tiled(query: Tensor, key: Tensor, window: int | None, memory_limit: int) -> Tensor:
    batch, height, width, channels = query.shape
    if window is not None and window < max(height, width) - 1:
        with torch.autocast(query.device.type, enabled=False), float32_proper():
            return patch_search_box(query, key, window, memory_limit // (6 * query.element_size()))
    rows = _rows_per_tile(height, width, channels, query.element_size(), memory_limit)
    index = torch.zeros(batch, height * width, dtype=torch.int64, device=query.device)
    inverse_norm = inverse_patch_norm(key).flatten(1)
    with torch.autocast(query.device.type, enabled=False), float32_proper():
        for image in range(batch):
            q, k = pad(query[image], (0, 0, 1, 1, 1, 1)), pad(key[image], (0, 0, 1, 1, 1, 1))
            for top in range(0, height, rows):
                q_tile = _patches(q, top, min(top + rows, height))
                best = q_tile.new_full(q_tile.shape[:1], -math.inf)
                index_tile = index[image, top * width : top * width + len(q_tile)]
                for start in range(0, height, rows):  # a later score must be larger: the first of equals wins
                    k_tile = _patches(k, start, min(start + rows, height))
                    score = q_tile @ k_tile.t()
                    score *= inverse_norm[image, start * width : start * width + len(k_tile)]
                    value, place = score.max(dim=1)
                    better = value > best
                    torch.where(better, value, best, out=best)
                    index_tile.copy_(torch.where(better, place + start * width, index_tile))
    return index


@_tiled.register_fake
def _(query: Tensor, key: Tensor, window: int | None, memory_limit: int) -> Tensor:
    return query.new_empty((query.shape[0], query.shape[1] * query.shape[2]), dtype=torch.int64)


def patch_search_tiled(query: Tensor, key: Tensor, window: int | None = None, memory_limit: int = 1 << 28) -> Tensor:
    """Index of the key patch most similar to each query patch (see the module), by matrix products of tiles.

    A tile is some rows of queries against some rows of keys, unfolded to ``9 C`` features; a running maximum goes over
    the tiles. Time ``O(B (HW)^2 9 C)``. Equal patches give equal scores only as far as the matrix product rounds them
    alike; where all products and sums are exact (integers, empty background) the smallest ``r`` wins strictly.

    Args:
        query, key: ``(B, H, W, C)`` on one device; float64 is kept, anything else is computed in float32.
        window: only keys so many rows and columns away (`patch_search_box` of :mod:`bundle.ops.search.plain`).
        memory_limit: bytes for a tile's scores and features. One row against one row is the least that is held.

    Returns:
        int64 ``(B, H * W)``; no gradient flows through it.

    Raises:
        TypeError, ValueError: tensors of another type, device or shape; a limit that is not positive.
    """
    _check(query, key)
    if memory_limit <= 0:
        raise ValueError(f"memory_limit must be a positive number of bytes, not {memory_limit}")
    dtype = torch.promote_types(torch.promote_types(query.dtype, key.dtype), torch.float32)
    return torch.ops.iconet.patch_search_tiled(query.detach().to(dtype), key.detach().to(dtype), window, memory_limit)


# ------------------------------------------------------------------------------------------------------------ Triton


@_jit
def _moved(pixel, dy, dx, height, width):
    """Pixels moved by (dy, dx), and which of them lie in the image."""
    y, x = pixel // width + dy, pixel % width + dx
    return y * width + x, (y >= 0) & (y < height) & (x >= 0) & (x < width)


@_jit
def _products(
    query, key, p, r, p_in, r_in, height, width, channels,
    BLOCK_Q: constexpr, BLOCK_K: constexpr, BLOCK_C: constexpr,
):  # fmt: skip
    """Products of the 3x3 patches around the queries p and the keys r: sums of nine shifted pixel products.

    Nothing is unfolded; every pair adds its terms in the same order, so equal patches have equal products.
    """
    within = tl.arange(0, BLOCK_C)
    steps = tl.cdiv(channels, BLOCK_C)
    product = tl.zeros([BLOCK_Q, BLOCK_K], tl.float32)
    for i in range(0, 9 * steps):
        shift, c = i // steps, (i % steps) * BLOCK_C + within
        q_at, q_there = _moved(p, shift // 3 - 1, shift % 3 - 1, height, width)
        k_at, k_there = _moved(r, shift // 3 - 1, shift % 3 - 1, height, width)
        q_there, k_there, c_in = q_there & p_in, k_there & r_in, c < channels
        q = tl.load(query + q_at[:, None] * channels + c[None, :], mask=q_there[:, None] & c_in[None, :], other=0.0)
        k = tl.load(key + k_at[None, :] * channels + c[:, None], mask=k_there[None, :] & c_in[:, None], other=0.0)
        product = tl.dot(q, k, product, input_precision="ieee")
    return product


@_jit
def _better(score, r, top, place, pixels):
    """The running maximum of each row of scores and the smallest key that has it."""
    value = tl.max(score, axis=1)
    smallest = tl.min(tl.where(score == value[:, None], r[None, :], pixels), axis=1)
    better = value > top
    return tl.where(better, value, top), tl.where(better, smallest, place)


@_jit
def _search_kernel(
    query, key, inverse_norm, best, index, height, width, channels, keys_per_part,
    BLOCK_Q: constexpr, BLOCK_K: constexpr, BLOCK_C: constexpr,
):  # fmt: skip
    """Best score and index (parts, B, HW) of a block of queries among the keys of one part.

    Grid: (blocks of queries, parts, B).
    """
    part, image = tl.program_id(1), tl.program_id(2).to(tl.int64)
    pixels = height * width
    query += image * pixels * channels
    key += image * pixels * channels
    inverse_norm += image * pixels
    p = tl.program_id(0) * BLOCK_Q + tl.arange(0, BLOCK_Q)
    top = tl.full([BLOCK_Q], float("-inf"), tl.float32)
    place = tl.zeros([BLOCK_Q], tl.int32)
    last = tl.minimum((part + 1) * keys_per_part, pixels)
    for first in range(part * keys_per_part, last, BLOCK_K):
        r = first + tl.arange(0, BLOCK_K)
        product = _products(
            query, key, p, r, p < pixels, r < pixels, height, width, channels, BLOCK_Q, BLOCK_K, BLOCK_C
        )
        score = product * tl.load(inverse_norm + r, mask=r < last, other=0.0)[None, :]
        top, place = _better(tl.where((r < last)[None, :], score, float("-inf")), r, top, place, pixels)
    out = (part * tl.num_programs(2) + image) * pixels + p
    tl.store(best + out, top, mask=p < pixels)
    tl.store(index + out, place, mask=p < pixels)


@_jit
def _window_kernel(
    query, key, inverse_norm, index, height, width, channels, window,
    BLOCK_Q: constexpr, BLOCK_K: constexpr, BLOCK_C: constexpr,
):  # fmt: skip
    """Best index (B, HW) of a block of queries of one row among the keys at most `window` rows and columns away.

    Grid: (H times blocks of a row, B).
    """
    image = tl.program_id(1).to(tl.int64)
    pixels, blocks = height * width, tl.cdiv(width, BLOCK_Q)
    query += image * pixels * channels
    key += image * pixels * channels
    inverse_norm += image * pixels
    row, left = tl.program_id(0) // blocks, tl.program_id(0) % blocks * BLOCK_Q
    x = left + tl.arange(0, BLOCK_Q)
    p = row * width + x
    top = tl.full([BLOCK_Q], float("-inf"), tl.float32)
    place = tl.zeros([BLOCK_Q], tl.int32)
    across = tl.cdiv(BLOCK_Q + 2 * window, BLOCK_K)
    first, last = tl.maximum(row - window, 0), tl.minimum(row + window + 1, height)
    for i in range(first * across, last * across):
        key_x = left - window + i % across * BLOCK_K + tl.arange(0, BLOCK_K)
        r, r_in = i // across * width + key_x, (key_x >= 0) & (key_x < width)
        product = _products(query, key, p, r, x < width, r_in, height, width, channels, BLOCK_Q, BLOCK_K, BLOCK_C)
        score = product * tl.load(inverse_norm + r, mask=r_in, other=0.0)[None, :]
        far = x[:, None] - key_x[None, :]
        near = r_in[None, :] & (far <= window) & (far >= -window)
        top, place = _better(tl.where(near, score, float("-inf")), r, top, place, pixels)
    tl.store(index + image * pixels + p, place, mask=x < width)


def _blocks(query: Tensor) -> tuple[int, int, int, int, int]:
    """Queries, keys and channels of a tile; parts of the keys, to fill a GPU that a batch does not; keys of a part."""
    batch, height, width, _ = query.shape
    pixels = height * width
    if query.device.type != "cuda":
        return 16, 16, 16, 2, 16 * -(-pixels // 32)
    block_q, block_k, block_c = 64, 64, 32
    room = 2 * torch.cuda.get_device_properties(query.device).multi_processor_count
    parts = max(1, min(room // (batch * -(-pixels // block_q)), -(-pixels // (4 * block_k))))
    per_part = block_k * -(-pixels // (block_k * parts))
    return block_q, block_k, block_c, -(-pixels // per_part), per_part


@torch.library.custom_op("iconet::patch_search_triton", mutates_args=())
def _fused(query: Tensor, key: Tensor, window: int | None) -> Tensor:
    query, key = query.contiguous(), key.contiguous()
    batch, height, width, channels = query.shape
    block_q, block_k, block_c, parts, per_part = _blocks(query)
    inverse_norm = inverse_patch_norm(key).contiguous()
    if window is not None and window < max(height, width) - 1:
        found = torch.empty(batch, height * width, dtype=torch.int32, device=query.device)
        with torch.cuda.device(query.device) if query.is_cuda else contextlib.nullcontext():
            _window_kernel[(height * -(-width // block_q), batch)](
                query, key, inverse_norm, found, height, width, channels, window,
                BLOCK_Q=block_q, BLOCK_K=block_k, BLOCK_C=block_c, num_warps=4,
            )  # fmt: skip
        return found.long()
    best = query.new_empty(parts, batch, height * width)
    index = torch.empty_like(best, dtype=torch.int32)
    with torch.cuda.device(query.device) if query.is_cuda else contextlib.nullcontext():
        _search_kernel[(-(-height * width // block_q), parts, batch)](
            query, key, inverse_norm, best, index, height, width, channels, per_part,
            BLOCK_Q=block_q, BLOCK_K=block_k, BLOCK_C=block_c, num_warps=4,
        )  # fmt: skip
    part = best.argmax(dim=0, keepdim=True)  # the first of equals, and the parts rise
    return index.gather(0, part).squeeze(0).long()


@_fused.register_fake
def _(query: Tensor, key: Tensor, window: int | None) -> Tensor:
    return query.new_empty((query.shape[0], query.shape[1] * query.shape[2]), dtype=torch.int64)


def patch_search_triton(query: Tensor, key: Tensor, window: int | None = None) -> Tensor:
    """Index of the key patch most similar to each query patch (see the module), in one fused Triton kernel.

    A program keeps the running maximum of 64 queries while it walks over the keys; a tile of pixel products is summed
    over the nine shifts in registers and never leaves the chip. Time ``O(B (HW)^2 9 C)``, memory ``O(B HW)``. Every
    score is summed in the same order, so equal patches tie exactly and the smallest ``r`` wins: deterministic.

    Args:
        query, key: ``(B, H, W, C)``, float32 or half types (computed in float32), on a CUDA device (on the CPU in
            Triton's interpreter, for checks).
        window: only keys so many rows and columns away; time is then ``O(B HW window^2 9 C)``.

    Returns:
        int64 ``(B, H * W)``; no gradient flows through it.

    Raises:
        RuntimeError: Triton cannot run here; the message says why.
        TypeError, ValueError: tensors of another type (float64 too), device or shape.
    """
    if not is_available():
        raise RuntimeError(reason())
    _check(query, key)
    if torch.float64 in (query.dtype, key.dtype):
        raise TypeError("the Triton search computes in float32; use patch_search_tiled for float64")
    return torch.ops.iconet.patch_search_triton(query.detach().float(), key.detach().float(), window)
