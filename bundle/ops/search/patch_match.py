"""Hard attention between two feature maps: find for each 3x3 patch its most similar one, and carry it over."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from bundle.ops.backend import select_backend
from bundle.ops.search.plain import patch_search_box
from bundle.ops.transformed import is_transformed, needs_gradient


class PatchMatch(NamedTuple):
    """Result of :func:`patch_match`."""

    features: Tensor
    """(B, H, W, Cv): the matched value patches, folded together and divided by their overlap."""
    score: Tensor
    """(B, H, W, 1): cosine similarity of each query patch with its match, in [-1, 1]."""
    indices: Tensor
    """(B, H * W) int64: flat position of the match of each pixel."""


def patch_match(query: Tensor, key: Tensor, value: Tensor, window: int | None = None) -> PatchMatch:
    """Transfer to each pixel of ``query`` the value patch whose key patch is the most similar (equations 4-6).

    ``R(i, j) = <q_i, k_j> / (|q_i| |k_j|)`` over 3x3 patches with zeros outside the image; ``index_i`` is the ``j`` of
    the largest ``R(i, j)`` (the smallest such ``j`` when equal), ``score_i`` that maximum. The search is exact and
    never holds the ``HW x HW`` matrix. Gradients reach ``value`` through the transfer and ``query`` and ``key``
    through ``score``; the index has none.

    Args:
        query, key: ``(B, H, W, C)``, channels last.
        value: ``(B, H, W, Cv)``.
        window: only ``j`` at most so many rows and so many columns from ``i`` (time and memory then grow with the
            number of pixels instead of its square); all of them by default.
    """
    _check_match(query, key, value, window)
    if not torch.jit.is_scripting():
        whole = fused_attention(query, key, value, 1, window, None, False)
        if whole is not None:
            return PatchMatch(whole[0], whole[1].view(query.shape[:3]).unsqueeze(-1), whole[2])
    index = _search(query, key, window)
    return PatchMatch(transfer_patches(value, index), cosine_at(query, key, index), index)


def _check_match(query: Tensor, key: Tensor, value: Tensor, window: int | None) -> None:
    if query.shape != key.shape or query.shape[:3] != value.shape[:3]:
        raise ValueError(
            f"query {query.shape} and key {key.shape} must agree, and value {value.shape} have their pixels"
        )
    if window is not None and window < 0:
        raise ValueError(f"window must be at least 0 or None, got {window}")


@torch.jit.unused
def fused_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    stride: int = 1,
    window: int | None = None,
    rows: tuple[int, int] | None = None,
    weighted: bool = True,
) -> tuple[Tensor, Tensor, Tensor] | None:
    """Search, transfer and score by the one kernel of the back end; ``None`` where that is not for these tensors.

    See :func:`bundle.ops.search.native.patch_attention_native`. Such kernels have no gradients and keep the type.
    """
    tensors = (query, key, value)
    if torch.jit.is_tracing() or query.numel() == 0 or any(t.dtype != torch.float32 for t in tensors):
        return None
    if needs_gradient(*tensors) or is_transformed(*tensors):
        return None
    function = select_backend(query).attention_function
    return None if function is None else function(query, key, value, stride, window, rows, weighted)


def _search(query: Tensor, key: Tensor, window: int | None) -> Tensor:
    if torch.jit.is_scripting():  # its compiler takes the functions that it finds by name, not those of a table
        return patch_search_box(query, key, window)
    return _dispatch(query, key, window)


@torch.jit.unused
@torch.no_grad()
def _dispatch(query: Tensor, key: Tensor, window: int | None) -> Tensor:
    """Half precision flips many of the maxima: the search runs in float32 at least."""
    if torch.jit.is_tracing():  # a graph without casts, for the dtype of the example
        return select_backend(query).search_function(query, key, window)
    dtype = torch.float64 if query.dtype == torch.float64 else torch.float32
    with torch.autocast(query.device.type, enabled=False):
        query, key = query.detach().to(dtype), key.detach().to(dtype)
        return select_backend(query).search_function(query, key, window)


def _padded_rows(index: Tensor, width: int) -> Tensor:
    """Flat positions in an ``H x W`` image as flat positions in the same image with a border of one pixel."""
    rows = torch.div(index, width, rounding_mode="floor")
    return (rows + 1) * (width + 2) + (index - rows * width) + 1


def _take(image: Tensor, position: Tensor) -> Tensor:
    """Rows of ``image`` (B, M, C) at ``position`` (B, L): (B, L, C). Row copies, cheap both ways."""
    batch, rows, channels = image.shape
    offset = torch.arange(batch, device=image.device).unsqueeze(1) * rows
    return (
        image.reshape(batch * rows, channels)
        .index_select(0, (position + offset).reshape(-1))
        .view(batch, position.shape[1], channels)
    )


def cosine_at(query: Tensor, key: Tensor, index: Tensor, epsilon: float = 1e-12) -> Tensor:
    """Cosine similarity of every query patch with the key patch at ``index``: (B, H, W, 1), differentiable.

    Half types are raised to float32 for the sums (the energy of a patch overflows float16) and the result lowered.
    """
    dtype = query.dtype
    if dtype == torch.float16 or dtype == torch.bfloat16:
        query, key = query.float(), key.float()
    batch, height, width, channels = query.shape
    q, k = pad(query, [0, 0, 1, 1, 1, 1]), pad(key, [0, 0, 1, 1, 1, 1])
    q_flat, k_flat = q.reshape(batch, -1, channels), k.reshape(batch, -1, channels)
    pixel = torch.arange(height * width, device=query.device).unsqueeze(0).expand(batch, -1)
    at_q, at_k = _padded_rows(pixel, width), _padded_rows(index, width)
    dot = torch.zeros([batch, height * width], dtype=query.dtype, device=query.device)
    q_energy, k_energy = torch.zeros_like(dot), torch.zeros_like(dot)
    q_norm, k_norm = q_flat.square().sum(-1, keepdim=True), k_flat.square().sum(-1, keepdim=True)
    for dy in range(-1, 2):
        for dx in range(-1, 2):
            step = dy * (width + 2) + dx
            dot = dot + (_take(q_flat, at_q + step) * _take(k_flat, at_k + step)).sum(-1)
            q_energy = q_energy + _take(q_norm, at_q + step).squeeze(-1)
            k_energy = k_energy + _take(k_norm, at_k + step).squeeze(-1)
    floor = epsilon * epsilon
    norm = q_energy.clamp_min(floor).sqrt() * k_energy.clamp_min(floor).sqrt()  # their product first would overflow
    return (dot / norm).view(batch, height, width, 1).to(dtype)


def transfer_patches(value: Tensor, index: Tensor) -> Tensor:
    """Gather the 3x3 value patches at ``index``, fold them to an image, divide by the number that overlap.

    ``out(p) = sum_s value[index(p - s) + s] / #{s: p - s inside}`` over the nine offsets ``s``: equal to unfold,
    gather, fold, divided by ``fold(unfold(1))``, without the nine-fold copy.
    """
    batch, height, width, channels = value.shape
    flat = pad(value, [0, 0, 1, 1, 1, 1]).reshape(batch, -1, channels)
    centre = _padded_rows(index, width).view(batch, height, width)
    total = torch.zeros([batch, height * width, channels], dtype=value.dtype, device=value.device)
    overlap = torch.zeros([height, width], dtype=value.dtype, device=value.device)
    for dy in range(-1, 2):
        for dx in range(-1, 2):
            # the match of p - s, moved by s; where p - s is outside, row 0 of the border, which is zero
            y0, y1, x0, x1 = max(dy, 0), height + min(dy, 0), max(dx, 0), width + min(dx, 0)
            source = torch.zeros_like(centre)
            source[:, y0:y1, x0:x1] = centre[:, y0 - dy : y1 - dy, x0 - dx : x1 - dx] + (dy * (width + 2) + dx)
            total = total + _take(flat, source.view(batch, -1))
            overlap[y0:y1, x0:x1] += 1.0
    return total.view(batch, height, width, channels) / overlap.unsqueeze(-1)
