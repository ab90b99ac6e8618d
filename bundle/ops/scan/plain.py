"""The selective scan in plain PyTorch operations: any device, no compiler, scriptable, memory bounded by a chunk.

The recurrence is stepped exactly (forms that divide by cumulated decays overflow for trained ``A``). What makes it
fast is the layout: time first and channels innermost, so that one fused multiply-add advances all directions, channels
and states of a step, ``exp2`` is taken over a whole chunk, and the read-out is one batched matrix product.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import torch
from torch import Tensor

from bundle.ops.scan.reference import scan_orders

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


@functools.cache
def _scripted() -> Callable[..., Tensor]:
    compiled: Callable[..., Tensor] = torch.jit.script(selective_scan_2d_script)
    return compiled


def selective_scan_2d_scripted(
    x: Tensor, proj: Tensor, dt_weight: Tensor, dt_bias: Tensor, A: Tensor, D: Tensor
) -> Tensor:
    """:func:`selective_scan_2d_script`, compiled: a trace records its loop instead of unrolling it."""
    return _scripted()(x, proj, dt_weight, dt_bias, A, D)


def _merge_chunk(merged: Tensor, y: Tensor, order: Tensor) -> Tensor:
    """Add y (T, B*4, Di) of the four directions to their pixels of ``merged`` (B, L, Di)."""
    steps, channels, batch = y.shape[0], y.shape[2], merged.shape[0]
    y = y.view(steps, batch, 4, channels).permute(1, 2, 0, 3)
    for k in range(4):
        merged = merged.index_add(1, order[k], y[:, k])
    return merged


class _Chunks:
    """The recurrence of all groups G = batch x direction, chunk by chunk, in buffers that every chunk uses again."""

    def __init__(self, x: Tensor, proj: Tensor, dt_weight: Tensor, dt_bias: Tensor, A: Tensor, D: Tensor) -> None:
        self.batch, self.state = x.shape[0], A.shape[2]
        self.pixels, self.projections = x.flatten(1, 2), proj.flatten(1, 2)
        self.widths = [dt_weight.shape[2], self.state, self.state]
        self.weight, self.rate = (t.transpose(1, 2).repeat(self.batch, 1, 1) for t in (dt_weight, A))
        self.bias, self.skip = dt_bias.repeat(self.batch, 1), D.repeat(self.batch, 1)
        shape = (CHUNK + 1, 4 * self.batch, self.state, x.shape[3])
        self.decay, self.states, self.grads = (x.new_empty(shape) for _ in range(3))

    def advance(self, order: Tensor, h: Tensor) -> tuple[Tensor, ...]:
        """From state ``h`` (G, N, Di) through the pixels ``order`` (4, T); the states are left in ``states[1:]``.

        Returns u, dt (T, G, Di) and the projection's parts dt_in (T, G, R), b, c (T, G, N).
        """
        u, p = _gather_chunk(self.pixels, self.projections, order)
        dt_in, b, c = p.split(self.widths, dim=-1)
        raw = torch.bmm(dt_in.transpose(0, 1), self.weight).transpose(0, 1) + self.bias
        dt, steps = torch.nn.functional.softplus(raw).contiguous(), u.shape[0]
        decay, states = self.decay[:steps], self.states[: steps + 1]
        torch.mul(dt.unsqueeze(2), self.rate / math.log(2.0), out=decay).exp2_()
        states[0] = h
        torch.mul((dt * u).unsqueeze(2), b.unsqueeze(3), out=states[1:])
        each = states.unbind(0)
        for t, decay_t in enumerate(decay.unbind(0)):
            torch.addcmul(each[t + 1], decay_t, each[t], out=each[t + 1])
        return u, dt, dt_in, b, c

    def read(self, c: Tensor, u: Tensor) -> Tensor:
        """``<h, c> + D u``, (T, G, Di), of the states that :meth:`advance` left."""
        steps = u.shape[0]
        states = self.states[1 : steps + 1].flatten(0, 1)
        return torch.bmm(c.reshape(-1, 1, self.state), states).view_as(u) + u * self.skip

    def go_back(self, order: Tensor, h: Tensor, d_y: Tensor, carry: Tensor) -> tuple[Tensor, ...]:
        """Gradients of a chunk from those of its results (T, G, Di) and of its last state (G, N, Di).

        Returns those of u (T, G, Di), the projections (T, G, R + 2 N), the first state, and of dt_weight (G, R, Di),
        dt_bias (G, Di), A (G, N, Di), D (G, Di).
        """
        u, dt, dt_in, b, c = self.advance(order, h)
        steps, pairs = u.shape[0], u.shape[0] * u.shape[1]
        decay, states, grads = self.decay[:steps], self.states[: steps + 1], self.grads[:steps]
        torch.mul(d_y.unsqueeze(2), c.unsqueeze(3), out=grads)  # dL/dh, first through the read-out alone
        each, decays = grads.unbind(0), decay.unbind(0)
        each[-1].add_(carry)
        for t in range(steps - 2, -1, -1):
            torch.addcmul(each[t], decays[t + 1], each[t + 1], out=each[t])
        carry = decays[0] * each[0]
        flat = grads.flatten(0, 1)
        d_c = torch.bmm(states[1:].flatten(0, 1), d_y.reshape(pairs, -1, 1)).view_as(c)
        d_b = torch.bmm(flat, (dt * u).view(pairs, -1, 1)).view_as(b)
        d_drive = torch.bmm(b.reshape(pairs, 1, -1), flat).view_as(u)
        exponent = decay.mul_(grads).mul_(states[:-1])  # dL/d(dt A)
        d_dt = torch.mul(exponent, self.rate, out=grads).sum(2) + d_drive * u
        d_rate = torch.mul(exponent, dt.unsqueeze(2), out=grads).sum(0)
        d_raw = (d_dt * -torch.expm1(-dt)).transpose(0, 1)  # the derivative of softplus, 1 - exp(-dt)
        d_dt_in = torch.bmm(d_raw, self.weight.transpose(1, 2)).transpose(0, 1)
        d_weight = torch.bmm(dt_in.permute(1, 2, 0), d_raw)
        d_u = d_drive * dt + d_y * self.skip
        d_p = torch.cat([d_dt_in, d_b, d_c], dim=-1)
        return d_u, d_p, carry, d_weight, d_raw.sum(1), d_rate, (d_y * u).sum(0)

    def by_direction(self, x: Tensor) -> Tensor:
        """(T, G, C) -> (4, B, T, C)."""
        return x.view(x.shape[0], self.batch, 4, -1).permute(2, 1, 0, 3)


class _ChunkedScan(torch.autograd.Function):
    """Keeps the inputs and one state per chunk; the backward pass recomputes a chunk at a time."""

    @staticmethod
    def forward(ctx, x, proj, dt_weight, dt_bias, A, D):
        order = scan_orders(x.shape[1], x.shape[2], x.device)
        chunks = _Chunks(x, proj, dt_weight, dt_bias, A, D)
        h = x.new_zeros(chunks.states.shape[1:])
        merged, starts = torch.zeros_like(chunks.pixels), []
        for chunk in order.split(CHUNK, dim=1):
            starts.append(h)
            u, _, _, _, c = chunks.advance(chunk, h)
            h = chunks.states[u.shape[0]].clone()
            for k, y in enumerate(chunks.by_direction(chunks.read(c, u))):
                merged.index_add_(1, chunk[k], y)
        if any(ctx.needs_input_grad):
            ctx.save_for_backward(x, proj, dt_weight, dt_bias, A, D, order, *starts)
        return merged.view_as(x)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        *inputs, order = ctx.saved_tensors[:7]
        starts = ctx.saved_tensors[7:]
        chunks = _Chunks(*inputs)
        d_pixels, d_projections = torch.zeros_like(chunks.pixels), torch.zeros_like(chunks.projections)
        grad, carry = grad.flatten(1, 2), torch.zeros_like(starts[0])
        totals: list[Tensor] = []
        for chunk, start in zip(reversed(order.split(CHUNK, dim=1)), reversed(starts), strict=True):
            d_y = grad[:, chunk.reshape(-1)].view(chunks.batch, 4, -1, grad.shape[2]).permute(2, 0, 1, 3)
            d_u, d_p, carry, *d_weights = chunks.go_back(chunk, start, d_y.flatten(1, 2), carry)
            for k, (d_u_k, d_p_k) in enumerate(zip(chunks.by_direction(d_u), chunks.by_direction(d_p), strict=True)):
                d_pixels.index_add_(1, chunk[k], d_u_k)
                d_projections[:, chunk[k], k] = d_p_k
            totals = d_weights if not totals else [t.add_(d) for t, d in zip(totals, d_weights, strict=True)]
        d_weight, d_bias, d_rate, d_skip = (t.view(chunks.batch, 4, *t.shape[1:]).sum(0) for t in totals)
        return (
            *(d_pixels.view_as(inputs[0]), d_projections.view_as(inputs[1])),
            *(d_weight.transpose(1, 2), d_bias, d_rate.transpose(1, 2), d_skip),
        )


def selective_scan_2d_torch(
    x: Tensor, proj: Tensor, dt_weight: Tensor, dt_bias: Tensor, A: Tensor, D: Tensor
) -> Tensor:
    """See :func:`bundle.ops.selective_scan_2d`. Extra memory: one chunk, and one state per chunk while training."""
    return _ChunkedScan.apply(x, proj, dt_weight, dt_bias, A, D)
