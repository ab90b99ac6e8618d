"""The network as ONNX can hold it: few long steps, no complex numbers, no loop that the exporter would unroll.

TorchScript takes the loops of :mod:`bundle.ops` as they are. For ONNX the network is traced; here loops over the size
of the input are scripted functions, which become ``Loop`` nodes, and everything else is made of operators that ONNX
has. The results are those of the usual forms up to rounding; networks run these nowhere else.
"""

from __future__ import annotations

import copy
import math

import torch
from torch import Tensor, nn
from torch.nn.functional import pad, softplus

from bundle.networks.fusion import SemanticAttentionBlock
from bundle.networks.upsample import FourierUpsample
from bundle.ops import Backend, use_backend
from bundle.ops.search.plain import inverse_patch_norm


class OnnxForm(nn.Module):
    """A network that is traced in the forms of this module; when it is called otherwise, it runs as usual.

    Args:
        network: ICONet, or another with the Fourier upsampling module.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.scale = network.scale

    def forward(self, image: Tensor) -> Tensor:
        """(B, 1, h, w) -> (B, 1, scale * h, scale * w)."""
        if not torch.jit.is_tracing():
            result: Tensor = self.network(image)
            return result
        with use_backend(ONNX):
            traced: Tensor = with_onnx_parts(self.network)(image)
        return traced


def with_onnx_parts(network: nn.Module) -> nn.Module:
    """A copy that shares the tensors of the network and upsamples and cuts blocks by the modules below."""
    shared = {id(tensor): tensor for tensor in (*network.parameters(), *network.buffers())}
    copied = copy.deepcopy(network, shared)
    for parent in list(copied.modules()):
        for name, part in parent.named_children():
            if isinstance(part, FourierUpsample):
                setattr(parent, name, UpsampleByProducts(part.scale))
            elif isinstance(part, SemanticAttentionBlock):
                setattr(parent, name, AttentionByIndex(part.stride, part.window))
    return copied


# -------------------------------------------------------------------------------------------------- selective scan


def selective_scan_segments(
    x: Tensor, proj: Tensor, dt_weight: Tensor, dt_bias: Tensor, A: Tensor, D: Tensor
) -> Tensor:
    """See :func:`bundle.ops.selective_scan_2d`. Loops of ``W + H`` steps instead of ``H W``, twice.

    The rows (for two of the directions the columns) cut the sequence into segments. A first loop steps the recurrence
    in all segments at once, each from zero; a second one, over the segments, brings the state from each to the next.
    The recurrence is linear: the two results add up. Nothing is divided, so no decay can overflow.
    """
    rank, state = dt_weight.shape[2], A.shape[2]
    dt_in, b, c = proj.split([rank, state, state], dim=-1)
    dt = torch.stack([softplus(dt_in[..., k, :] @ dt_weight[k].t() + dt_bias[k]) for k in range(4)], dim=3)
    by_rows = _two_directions(x, dt[..., 0::2, :], b[..., 0::2, :], c[..., 0::2, :], A[0::2])
    dt, b, c = (t[..., 1::2, :].transpose(1, 2) for t in (dt, b, c))
    by_columns = _two_directions(x.transpose(1, 2), dt, b, c, A[1::2])
    return by_rows + by_columns.transpose(1, 2) + x * D.sum(0)


def _two_directions(x: Tensor, dt: Tensor, b: Tensor, c: Tensor, A: Tensor) -> Tensor:
    """``<h, C>`` of the recurrence row by row and of its reverse, summed: (B, H, W, Di).

    x: (B, H, W, Di). dt: (B, H, W, 2, Di). b, c: (B, H, W, 2, N). A: (2, Di, N).
    """
    rate = A.transpose(1, 2)[:, None, None]  # (2, 1, 1, N, Di)
    steps, drive, b, c = (_by_visit(t) for t in (dt, dt * x.unsqueeze(3), b, c))
    within, added = _along_rows(steps, drive, b, c, rate)
    time, c = (t.permute(3, 0, 1, 2, 4) for t in (steps.cumsum(0), c))
    carried = _row_by_row(time, c, added.permute(2, 0, 1, 3, 4), rate[:, 0])
    forward, backward = (within.permute(1, 2, 3, 0, 4) + carried.permute(2, 3, 0, 1, 4)).unbind(0)
    return forward + backward.flip(1, 2)


def _by_visit(tensor: Tensor) -> Tensor:
    """(B, H, W, 2, C) of a direction and its reverse -> (W, 2, B, H, C) in the order of their visits."""
    return torch.stack([tensor[:, :, :, 0], tensor[:, :, :, 1].flip(1, 2)]).permute(3, 0, 1, 2, 4)


@torch.jit.script
def _along_rows(dt: Tensor, drive: Tensor, b: Tensor, c: Tensor, rate: Tensor) -> tuple[Tensor, Tensor]:
    """One pixel of every row after the other: ``<h, C>`` (W, 2, B, H, Di), last states (2, B, H, N, Di)."""
    h = torch.zeros_like(b[0]).unsqueeze(4) * torch.zeros_like(dt[0]).unsqueeze(3)
    read: list[Tensor] = []
    for t in range(dt.shape[0]):
        h = torch.exp(dt[t].unsqueeze(3) * rate) * h + drive[t].unsqueeze(3) * b[t].unsqueeze(4)
        read.append((h * c[t].unsqueeze(4)).sum(3))
    return torch.stack(read), h


@torch.jit.script
def _row_by_row(time: Tensor, c: Tensor, added: Tensor, rate: Tensor) -> Tensor:
    """What the states before each row add to ``<h, C>`` of its pixels: (H, W, 2, B, Di).

    time: (H, W, 2, B, Di) since the start of the row. c: (H, W, 2, B, N). added: (H, 2, B, N, Di). rate: (2, 1, N, Di).
    """
    h = torch.zeros_like(added[0])
    read: list[Tensor] = []
    for row in range(time.shape[0]):
        left = torch.exp(time[row].unsqueeze(3) * rate) * h
        read.append((left * c[row].unsqueeze(4)).sum(3))
        h = left[-1] + added[row]
    return torch.stack(read)


# ----------------------------------------------------------------------------------------------------- patch search


def patch_search_rows(query: Tensor, key: Tensor, window: int | None = None) -> Tensor:
    """See :func:`bundle.ops.search.plain.patch_search_reference`; a ninth of its products, ``3 H W W`` in memory.

    With a window a loop of ``2 window + 1`` steps instead of ``H``, in memory of a few ``H W (2 window + 1)``.
    """
    if window is not None:
        return _compare_offsets(query, key, inverse_patch_norm(key), window)
    return _compare_rows(query, key.transpose(0, 1), inverse_patch_norm(key).transpose(0, 1)).flatten(1)


@torch.jit.script
def _compare_rows(query: Tensor, key_rows: Tensor, norms: Tensor) -> Tensor:
    """Index (B, H, W) of the best key for queries (B, H, W, C), keys (H, B, W, C), inverse norms (H, B, W).

    A step takes one row of keys: its pixel correlations with the whole query, summed along the diagonal, wait for
    those of the next row, because a patch needs three. Rows come in ascending order, so of equal keys the first wins.
    """
    below = pad(key_rows, [0, 0, 0, 0, 0, 0, 0, 1])  # below the last row there is nothing
    g = torch.matmul(query, below[0].transpose(1, 2).unsqueeze(1))
    here = g + pad(g, [1, -1, 1, -1]) + pad(g, [-1, 1, -1, 1])
    above = torch.zeros_like(here)
    best = torch.zeros_like(query[:, :, :, 0]) - float("inf")
    index = torch.zeros_like(best, dtype=torch.int64)
    width = torch.ones_like(norms[0, 0], dtype=torch.int64).sum()
    first = torch.zeros_like(width)
    for row in range(norms.shape[0]):
        g = torch.matmul(query, below[row + 1].transpose(1, 2).unsqueeze(1))
        following = g + pad(g, [1, -1, 1, -1]) + pad(g, [-1, 1, -1, 1])
        score = pad(above, [0, 0, 0, 0, 1, -1]) + here + pad(following, [0, 0, 0, 0, -1, 1])
        score = score * norms[row].unsqueeze(1).unsqueeze(1)
        top, column = score.max(dim=3)
        better = top > best
        best, index = torch.where(better, top, best), torch.where(better, column + first, index)
        above, here, first = here, following, first + width
    return index


def _in_tiles(rows: Tensor, tile: int, reach: int) -> Tensor:
    """(B, H, W, C) -> (B, H, tiles, C, tile + 2 reach): tiles of columns and those beside them, zeros outside."""
    count = (rows.shape[2] + tile - 1) // tile
    longer = pad(rows, [0, 0, reach, 2 * tile])[:, :, : tile * (count + 1)]
    pieces = longer.reshape(rows.shape[0], rows.shape[1], count + 1, tile, rows.shape[3])
    return torch.cat([pieces[:, :, :-1], pieces[:, :, 1:, : 2 * reach]], dim=3).transpose(3, 4)


def _in_band(tiles: Tensor, near: int) -> Tensor:
    """(B, H, tiles, tile, length) -> (B, H, tiles * tile, near): row ``i`` of a tile from its column ``i`` on."""
    batch, height, count, tile, length = tiles.shape
    flat = pad(tiles.reshape(batch, height, count, tile * length), [0, tile])
    moved = flat.reshape(batch, height, count, tile, length + 1)[:, :, :, :, :near]
    return moved.reshape(batch, height, count * tile, near)


@torch.jit.script
def _compare_offsets(query: Tensor, key: Tensor, norms: Tensor, window: int) -> Tensor:
    """Index (B, H W) of the best key in the window for queries and keys (B, H, W, C), inverse norms (B, H, W).

    A step takes one distance between the rows of keys and queries; see `_search_band` of bundle.ops.search.plain.
    """
    batch, height, width, channels = query.shape
    tile = max(2 * window, 16)
    near = 2 * window + 1
    count = (width + tile - 1) // tile
    q = pad(query, [0, 0, 0, tile])[:, :, : tile * count].reshape(batch, height, count, tile, channels)
    above_below = [0, 0, 0, 0, 0, 0, window, window]
    keys = pad(_in_tiles(key, tile, window), above_below)
    scale = _in_tiles(norms.unsqueeze(3), tile, window).expand(-1, -1, -1, tile, -1)
    scale = pad(_in_band(scale, near), [0, 0, 0, 0, window, window])
    row = torch.arange(height, device=query.device).unsqueeze(1)
    column = torch.arange(tile * count, device=query.device)
    first = (row - window) * width + column - window  # of the keys of a query in the row of this step
    best = torch.zeros_like(q[:, :, :, :, 0]).reshape(batch, height, count * tile) - float("inf")
    index = torch.zeros_like(best, dtype=torch.int64)
    for step in range(near):
        g = _in_band(torch.matmul(q, keys[:, step : step + height]), near)
        g = g + pad(g, [0, 0, 1, -1]) + pad(g, [0, 0, -1, 1])
        g = g + pad(g, [0, 0, 0, 0, 1, -1]) + pad(g, [0, 0, 0, 0, -1, 1])
        unit = scale[:, step : step + height]
        score = torch.where(unit > 0, g * unit, torch.full_like(g, -float("inf")))
        top, place = score.max(dim=3)
        better = top > best
        best, index = torch.where(better, top, best), torch.where(better, place + first, index)
        first = first + width
    return index[:, :, :width].reshape(batch, height * width)


ONNX = Backend("onnx", scan=selective_scan_segments, search=patch_search_rows, traceable=True)
"""The back end in force while :class:`OnnxForm` is traced."""


# ------------------------------------------------------------------------------------------------- parts of networks


class AttentionByIndex(SemanticAttentionBlock):
    """Without a padding that repeats the border by an amount known only when the file runs."""

    def forward(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """query, key (B, H, W, C) and value (B, H, W, Cv) -> (B, H, W, Cv)."""
        if self.stride == 1:
            return self.match(query, key, value)
        stride, height, width = self.stride, query.shape[1], query.shape[2]
        blocks = self.match(*(_blocks(t, stride) for t in (query, key, value)))
        batch, high, wide, _ = blocks.shape
        image = blocks.reshape(batch, high, wide, -1, stride, stride).permute(0, 1, 4, 2, 5, 3)
        return image.reshape(batch, high * stride, wide * stride, -1)[:, :height, :width]


def _blocks(features: Tensor, stride: int) -> Tensor:
    """(B, H, W, C) -> (B, ceil(H / stride), ceil(W / stride), C stride^2); the last row and column are repeated."""
    batch, channels = features.shape[0], features.shape[3]
    longer = []
    for axis in (1, 2):
        length = features.shape[axis]  # a tensor while tracing, of which // keeps track
        count = (length + stride - 1) // stride
        longer.append(count)
        taken = torch.arange(count * stride, device=features.device).clamp(max=length - 1)
        features = features.index_select(axis, taken)
    high, wide = longer
    blocks = features.reshape(batch, high, stride, wide, stride, channels).permute(0, 1, 3, 5, 2, 4)
    return blocks.reshape(batch, high, wide, channels * stride * stride)


class UpsampleByProducts(FourierUpsample):
    """The transforms as products with matrices."""

    def forward(self, image: Tensor) -> Tensor:
        """(..., h, w) -> (..., scale * h, scale * w)."""
        rows_real, rows_imag = _zero_fill_matrix(image.shape[-2], self.scale, image)
        cols_real, cols_imag = _zero_fill_matrix(image.shape[-1], self.scale, image)
        return rows_real @ image @ cols_real.t() - rows_imag @ image @ cols_imag.t()


def _zero_fill_matrix(length: int, scale: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """Real and imaginary part of the matrix (scale * n, n) that zero-fills the k-space of one axis of ``n`` samples.

    ``U[i, j] = sum_k exp(2 pi i k (i - scale j) / (scale n)) / n`` over the ``n`` measured ``k``. Summed: a Dirichlet
    kernel of the paired ``k`` and, for an even ``n``, the term of Nyquist, which alone has an imaginary part.
    """
    n = torch.as_tensor(length, device=like.device)  # so that a trace records what is made of it
    fine, even = scale * n, 1 - n % 2
    coarse = torch.arange(length, device=like.device)
    offset = torch.arange(scale * length, device=like.device)[:, None] - scale * coarse
    half = torch.div(fine, 2, rounding_mode="floor")
    offset = torch.remainder(offset + half, fine) - half  # one period of it: sines of small angles are exact
    unit = math.pi / fine.to(like.dtype)
    angle = offset.to(like.dtype) * unit
    wave = torch.remainder(offset * (n - even), 2 * fine).to(like.dtype) * unit
    centre = offset == 0
    ratio = torch.sin(wave) / torch.sin(torch.where(centre, torch.ones_like(angle), angle))
    kernel = torch.where(centre, (n - even).to(like.dtype), ratio)
    nyquist = angle * n
    return (kernel + even * torch.cos(nyquist)) / n, -even * torch.sin(nyquist) / n
