"""Exact search of the most similar 3x3 patch: the definition, and a form that never holds the HW x HW matrix."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import pad, unfold

EPSILON = 1e-12


def patch_search_reference(query: Tensor, key: Tensor, window: int | None = None) -> Tensor:
    """``argmax_r <q_p, k_r> / |k_r|`` over unfolded 3x3 patches, with the whole matrix in memory.

    The norm of the query does not change the place of the maximum. Of equal keys the first wins.

    Args:
        query, key: ``(B, H, W, C)``.
        window: only ``r`` at most so many rows and so many columns from ``p``; all of them by default.

    Returns:
        int64 ``(B, H * W)``.
    """
    q, k = (unfold(t.permute(0, 3, 1, 2), kernel_size=3, padding=1) for t in (query, key))
    k = k / k.norm(dim=1, keepdim=True).clamp_min(EPSILON)
    score = torch.bmm(q.transpose(1, 2), k)
    if window is not None:
        height, width = query.shape[1], query.shape[2]
        row = torch.arange(height, device=query.device).repeat_interleave(width)
        column = torch.arange(width, device=query.device).repeat(height)
        far = torch.maximum((row[:, None] - row).abs(), (column[:, None] - column).abs()) > window
        score = score.masked_fill(far, -float("inf"))
    return score.argmax(dim=2)


def inverse_patch_norm(key: Tensor, epsilon: float = EPSILON) -> Tensor:
    """1 / |unfold3x3 key|, (B, H, W): the energy of a patch is the 3x3 box sum of the energy of its pixels."""
    height, width = key.shape[1], key.shape[2]
    energy = pad(key.square().sum(-1), [1, 1, 1, 1])
    total = torch.zeros_like(energy[:, 1 : height + 1, 1 : width + 1])
    for dy in range(3):
        for dx in range(3):
            total = total + energy[:, dy : dy + height, dx : dx + width]
    return total.sqrt().clamp_min(epsilon).reciprocal()


def _diagonal_sum(correlation: Tensor) -> Tensor:
    """Sum of ``c[..., i + d, j + d]`` over ``d`` in -1, 0, 1 with zeros outside; shape kept."""
    total = correlation.clone()
    total[..., 1:, 1:] += correlation[..., :-1, :-1]
    total[..., :-1, :-1] += correlation[..., 1:, 1:]
    return total


def _row_sum(g: Tensor, first: int, count: int) -> Tensor:
    """Sum over rows ``i - 1``, ``i``, ``i + 1`` of (B, rows, ...) for ``count`` rows from ``first``, zeros outside."""
    total = g[:, first : first + count].clone()
    if first > 0:
        total += g[:, first - 1 : first - 1 + count]
    else:
        total[:, 1:] += g[:, : count - 1]
    if g.shape[1] > first + count:
        total += g[:, first + 1 :]
    else:
        total[:, :-1] += g[:, first + 1 :]
    return total


def patch_search_box(query: Tensor, key: Tensor, window: int | None = None, tile_elements: int = 1 << 24) -> Tensor:
    """The same index as :func:`patch_search_reference` at a ninth of the products, in plain PyTorch.

    ``<unfold q(p), unfold k(r)>`` is the sum over the nine offsets ``s`` of the pixel correlation ``G[p + s, r + s]``.
    For a fixed distance ``o`` between the rows of key and query, ``G`` is one batched product of rows; the sum over
    ``s`` is two diagonal sums of three. Rows of keys are visited in ascending order, so of equal keys the first wins.
    A block of at most ``tile_elements`` correlations is held at once.
    """
    batch, height, width, _ = query.shape
    if window is not None and window < max(height, width) - 1:
        return _search_band(query, key, window, tile_elements)
    inverse_norm = inverse_patch_norm(key)
    best = torch.full([batch, height, width], -float("inf"), dtype=query.dtype, device=query.device)
    index = torch.zeros([batch, height, width], dtype=torch.int64, device=query.device)
    block = max(1, tile_elements // (batch * width * width))
    for offset in range(1 - height, height):
        first, last = max(0, -offset), min(height, height - offset)
        for start in range(first, last, block):
            stop = min(start + block, last)
            low, high = max(start - 1, first), min(stop + 1, last)  # the rows above and below belong to the sum
            g = torch.matmul(query[:, low:high], key[:, low + offset : high + offset].transpose(2, 3))
            rows = _row_sum(_diagonal_sum(g), start - low, stop - start)
            score = rows * inverse_norm[:, start + offset : stop + offset].unsqueeze(2)
            column = score.argmax(dim=3)
            top = score.gather(3, column.unsqueeze(3)).squeeze(3)
            key_row = torch.arange(start + offset, stop + offset, device=query.device).view(1, -1, 1)
            better = top > best[:, start:stop]
            best[:, start:stop] = torch.where(better, top, best[:, start:stop])
            index[:, start:stop] = torch.where(better, key_row * width + column, index[:, start:stop])
    return index.view(batch, height * width)


def _search_band(query: Tensor, key: Tensor, window: int, tile_elements: int) -> Tensor:
    """:func:`patch_search_box` with a window, in time and memory that grow with it instead of with the width.

    The columns are cut into tiles, each multiplied with its own keys and those of the window around it. In the product
    row ``i`` is then moved by ``i``, which a stride does: its keys are ``i - window .. i + window``, and the sum along
    the diagonal runs down a column.
    """
    batch, height, width, channels = query.shape
    reach = min(window, width)
    tile = min(max(2 * reach, 16), width)
    tiles = (width + tile - 1) // tile
    wide, length, near = tile * tiles, tile + 2 * reach, 2 * reach + 1
    sides = [reach, reach + wide - width]
    q = pad(query, [0, 0, 0, wide - width]).view(batch, height, tiles, tile, channels)
    k = pad(key, [0, 0, sides[0], sides[1]]).unfold(2, length, tile).contiguous()
    inverse_norm = inverse_patch_norm(key)
    outside = pad(torch.zeros_like(inverse_norm), sides, value=-float("inf")).unfold(2, near, 1)
    inverse_norm = pad(inverse_norm, sides).unfold(2, near, 1)
    best = torch.full([batch, height, wide], -float("inf"), dtype=query.dtype, device=query.device)
    index = torch.zeros([batch, height, wide], dtype=torch.int64, device=query.device)
    left = torch.arange(wide, device=query.device) - reach
    block = max(1, tile_elements // (batch * wide * length))
    for offset in range(max(1 - height, -window), min(height, window + 1)):
        first, last = max(0, -offset), min(height, height - offset)
        for start in range(first, last, block):
            stop = min(start + block, last)
            low, high = max(start - 1, first), min(stop + 1, last)
            g = torch.matmul(q[:, low:high], k[:, low + offset : high + offset])
            strides = [g.stride(0), g.stride(1), g.stride(2), length + 1, 1]
            g = g.as_strided([batch, high - low, tiles, tile, near], strides).reshape(batch, high - low, wide, near)
            total = g.clone()
            total[:, :, 1:] += g[:, :, :-1]
            total[:, :, :-1] += g[:, :, 1:]
            rows = _row_sum(total, start - low, stop - start)
            score = rows * inverse_norm[:, start + offset : stop + offset] + outside[:, start + offset : stop + offset]
            column = score.argmax(dim=3)
            top = score.gather(3, column.unsqueeze(3)).squeeze(3)
            key_row = torch.arange(start + offset, stop + offset, device=query.device).view(1, -1, 1)
            better = top > best[:, start:stop]
            best[:, start:stop] = torch.where(better, top, best[:, start:stop])
            index[:, start:stop] = torch.where(better, key_row * width + left + column, index[:, start:stop])
    return index[:, :, :width].reshape(batch, height * width)


@functools.cache
def _scripted() -> Callable[[Tensor, Tensor, int | None], Tensor]:
    compiled: Callable[[Tensor, Tensor, int | None], Tensor] = torch.jit.script(patch_search_box)
    return compiled


def patch_search_scripted(query: Tensor, key: Tensor, window: int | None = None) -> Tensor:
    """:func:`patch_search_box`, compiled: a trace records its loops instead of unrolling them."""
    return _scripted()(query, key, window)


def patch_search_torch(query: Tensor, key: Tensor, window: int | None = None) -> Tensor:
    """The fastest search in plain PyTorch: large matrix products on a GPU, a ninth of the products elsewhere."""
    if query.device.type == "cuda":
        from bundle.ops.search.cuda import patch_search_tiled

        return patch_search_tiled(query, key, window)
    return patch_search_box(query, key, window)
