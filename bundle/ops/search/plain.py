"""Exact search of the most similar 3x3 patch: the definition, and a form that never holds the HW x HW matrix."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import pad, unfold

EPSILON = 1e-12


def patch_search_reference(query: Tensor, key: Tensor) -> Tensor:
    """``argmax_r <q_p, k_r> / |k_r|`` over unfolded 3x3 patches, with the whole matrix in memory.

    The norm of the query does not change the place of the maximum. Of equal keys the first wins.

    Args:
        query, key: ``(B, H, W, C)``.

    Returns:
        int64 ``(B, H * W)``.
    """
    q, k = (unfold(t.permute(0, 3, 1, 2), kernel_size=3, padding=1) for t in (query, key))
    k = k / k.norm(dim=1, keepdim=True).clamp_min(EPSILON)
    return torch.bmm(q.transpose(1, 2), k).argmax(dim=2)


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


def patch_search_box(query: Tensor, key: Tensor, tile_elements: int = 1 << 24) -> Tensor:
    """The same index as :func:`patch_search_reference` at a ninth of the products, in plain PyTorch.

    ``<unfold q(p), unfold k(r)>`` is the sum over the nine offsets ``s`` of the pixel correlation ``G[p + s, r + s]``.
    For a fixed distance ``o`` between the rows of key and query, ``G`` is one batched product of rows; the sum over
    ``s`` is two diagonal sums of three. Rows of keys are visited in ascending order, so of equal keys the first wins.
    A block of at most ``tile_elements`` correlations is held at once.
    """
    batch, height, width, _ = query.shape
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
            g = _diagonal_sum(g)
            rows = g[:, start - low : stop - low].clone()
            if start > low:
                rows += g[:, : stop - start]
            else:
                rows[:, 1:] += g[:, : stop - start - 1]
            if high > stop:
                rows += g[:, high - low - (stop - start) :]
            else:
                rows[:, :-1] += g[:, start - low + 1 :]
            score = rows * inverse_norm[:, start + offset : stop + offset].unsqueeze(2)
            column = score.argmax(dim=3)
            top = score.gather(3, column.unsqueeze(3)).squeeze(3)
            key_row = torch.arange(start + offset, stop + offset, device=query.device).view(1, -1, 1)
            better = top > best[:, start:stop]
            best[:, start:stop] = torch.where(better, top, best[:, start:stop])
            index[:, start:stop] = torch.where(better, key_row * width + column, index[:, start:stop])
    return index.view(batch, height * width)


@functools.cache
def _scripted() -> Callable[[Tensor, Tensor], Tensor]:
    compiled: Callable[[Tensor, Tensor], Tensor] = torch.jit.script(patch_search_box)
    return compiled


def patch_search_scripted(query: Tensor, key: Tensor) -> Tensor:
    """:func:`patch_search_box`, compiled: a trace records its loops instead of unrolling them."""
    return _scripted()(query, key)


def patch_search_torch(query: Tensor, key: Tensor) -> Tensor:
    """The fastest search in plain PyTorch: large matrix products on a GPU, a ninth of the products elsewhere."""
    if query.device.type == "cuda":
        from bundle.ops.search.cuda import patch_search_tiled

        return patch_search_tiled(query, key)
    return patch_search_box(query, key)
