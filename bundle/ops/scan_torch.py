"""The selective scan in plain PyTorch operations: any device, no compiler, scriptable, memory bounded by a chunk.

The recurrence is stepped exactly (forms that divide by cumulated decays overflow for trained ``A``). What makes it
fast is the layout: time first and channels innermost, so that one fused multiply-add advances all directions, channels
and states of a step, ``exp2`` is taken over a whole chunk, and the read-out is one batched matrix product.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from bundle.ops.scan_reference import scan_orders

CHUNK = 32


def _gather_chunk(x: Tensor, proj: Tensor, order: Tensor) -> tuple[Tensor, Tensor]:
    """Pixels ``order`` (4, T) of ``x`` (B, L, Di) as (T, B*4, Di), and of ``proj`` (B, L, 4, P) as (T, B*4, P)."""
    batch, length, channels = x.shape
    steps = order.shape[1]
    u = x[:, order.reshape(-1)].view(batch, 4, steps, channels).permute(2, 0, 1, 3)
    rows = order * 4 + torch.arange(4, device=order.device)[:, None]
    p = proj.reshape(batch, length * 4, -1)[:, rows.reshape(-1)].view(batch, 4, steps, -1).permute(2, 0, 1, 3)
    return u.reshape(steps, batch * 4, channels), p.reshape(steps, batch * 4, -1)


def _scan_chunk(
    u: Tensor, p: Tensor, h: Tensor, dt_weight: Tensor, dt_bias: Tensor, A: Tensor, D: Tensor
) -> tuple[Tensor, Tensor]:
    """Advance all groups (batch x direction) by one chunk of T steps.

    u: (T, G, Di); p: (T, G, R + 2N); h: (G, N, Di) the state before the chunk.
    Returns y (T, G, Di) and the state after the chunk.
    """
    steps, groups, channels = u.shape
    batch, rank, state = groups // 4, dt_weight.shape[2], A.shape[2]
    dt_in, b, c = p.split([rank, state, state], dim=-1)
    weight = dt_weight.transpose(1, 2).repeat(batch, 1, 1)
    dt = torch.nn.functional.softplus(
        torch.bmm(dt_in.transpose(0, 1), weight).transpose(0, 1) + dt_bias.repeat(batch, 1)
    )
    decay_rate = (A / math.log(2.0)).transpose(1, 2).repeat(batch, 1, 1)
    decay = torch.exp2(dt.unsqueeze(2) * decay_rate)
    drive = (dt * u).unsqueeze(2) * b.unsqueeze(3)
    states: list[Tensor] = []
    for decay_t, drive_t in zip(decay.unbind(0), drive.unbind(0)):  # noqa: B905 (strict= does not script)
        h = torch.addcmul(drive_t, decay_t, h)
        states.append(h)
    read = torch.bmm(
        c.reshape(steps * groups, 1, state), torch.stack(states).view(steps * groups, state, channels)
    ).view(steps, groups, channels)
    return read + u * D.repeat(batch, 1), h


def selective_scan_2d_script(
    x: Tensor, proj: Tensor, dt_weight: Tensor, dt_bias: Tensor, A: Tensor, D: Tensor, steps: int = CHUNK
) -> Tensor:
    """The chunk loop as a scriptable function: what exported networks contain, and what the tests differentiate."""
    batch, height, width, channels = x.shape
    length = height * width
    order = scan_orders(height, width, x.device)
    pixels, projections = x.reshape(batch, length, channels), proj.reshape(batch, length, 4, -1)
    h = torch.zeros([batch * 4, A.shape[2], channels], dtype=x.dtype, device=x.device)
    merged = torch.zeros_like(pixels)
    for start in range(0, length, steps):
        chunk = order[:, start : start + steps]
        u, p = _gather_chunk(pixels, projections, chunk)
        y, h = _scan_chunk(u, p, h, dt_weight, dt_bias, A, D)
        merged = _merge_chunk(merged, y, chunk)
    return merged.view(batch, height, width, channels)


def _merge_chunk(merged: Tensor, y: Tensor, order: Tensor) -> Tensor:
    """Add y (T, B*4, Di) of the four directions to their pixels of ``merged`` (B, L, Di)."""
    steps, channels, batch = y.shape[0], y.shape[2], merged.shape[0]
    y = y.view(steps, batch, 4, channels).permute(1, 2, 0, 3)
    for k in range(4):
        merged = merged.index_add(1, order[k], y[:, k])
    return merged


class _ChunkedScan(torch.autograd.Function):
    """Keeps the inputs and one state per chunk; the backward pass recomputes a chunk at a time."""

    @staticmethod
    def forward(ctx, x, proj, dt_weight, dt_bias, A, D):
        batch, height, width, channels = x.shape
        order = scan_orders(height, width, x.device)
        pixels, projections = x.flatten(1, 2), proj.flatten(1, 2)
        h = x.new_zeros(batch * 4, A.shape[2], channels)
        merged, starts = torch.zeros_like(pixels), []
        for chunk in order.split(CHUNK, dim=1):
            starts.append(h)
            u, p = _gather_chunk(pixels, projections, chunk)
            y, h = _scan_chunk(u, p, h, dt_weight, dt_bias, A, D)
            y = y.view(-1, batch, 4, channels).permute(1, 2, 0, 3)
            for k in range(4):
                merged.index_add_(1, chunk[k], y[:, k])
        if any(ctx.needs_input_grad):
            ctx.save_for_backward(x, proj, dt_weight, dt_bias, A, D, order, *starts)
        return merged.view_as(x)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        x, proj, *weights, order = ctx.saved_tensors[:7]
        starts = ctx.saved_tensors[7:]
        batch, channels = x.shape[0], x.shape[3]
        pixels, projections = x.flatten(1, 2), proj.flatten(1, 2)
        d_pixels, d_projections = torch.zeros_like(pixels), torch.zeros_like(projections)
        d_weights = [torch.zeros_like(w) for w in weights]
        d_state = torch.zeros_like(starts[0])
        for chunk, start in zip(reversed(order.split(CHUNK, dim=1)), reversed(starts), strict=True):
            with torch.enable_grad():
                leaves = [t.detach().requires_grad_() for t in (*_gather_chunk(pixels, projections, chunk), start)]
                params = [w.detach().requires_grad_() for w in weights]
                y, h = _scan_chunk(*leaves, *params)
            d_y = grad.flatten(1, 2)[:, chunk.reshape(-1)].view(batch, 4, -1, channels).permute(2, 0, 1, 3)
            d_u, d_p, d_state, *d_params = torch.autograd.grad(
                (y, h), [*leaves, *params], (d_y.reshape(y.shape), d_state)
            )
            d_u = d_u.view(-1, batch, 4, channels).permute(1, 2, 0, 3)
            d_p = d_p.view(d_u.shape[2], batch, 4, -1).permute(1, 2, 0, 3)
            for k in range(4):
                d_pixels.index_add_(1, chunk[k], d_u[:, k])
                d_projections[:, chunk[k], k] = d_p[:, k]
            for total, part in zip(d_weights, d_params, strict=True):
                total += part
        return d_pixels.view_as(x), d_projections.view_as(proj), *d_weights


def selective_scan_2d_torch(
    x: Tensor, proj: Tensor, dt_weight: Tensor, dt_bias: Tensor, A: Tensor, D: Tensor
) -> Tensor:
    """See :func:`bundle.ops.selective_scan_2d`. Extra memory: one chunk, and one state per chunk while training."""
    return _ChunkedScan.apply(x, proj, dt_weight, dt_bias, A, D)
