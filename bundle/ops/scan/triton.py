"""The 2-D selective scan as fused Triton kernels (CUDA), forward and backward, without copies of the feature map.

**Work.** One program is one warp that owns 32 channels of one direction of one image (or of a segment of it) and walks
along the sequence in tiles of ``TILE`` steps. A tile is laid out with the channels across the lanes and the steps in
registers, so the scan inside a tile needs no exchange between lanes. The state between tiles stays in registers. Each
state element costs one exponential per pass; with ``U = 4 Di H W N`` elements the forward pass takes ``U``
exponentials and the backward pass ``2 U`` (``2 U`` and ``3 U`` when the sequence is cut into segments, see below).

**Little parallelism.** When the batch alone does not fill the device, the sequence is cut into segments that run side
by side: a first pass finds what each segment makes of a zero state, a short chain over the segments turns that into
the true state at the start of each, and the real pass starts there. Exact, as ``prod exp(dt_l A) = exp(A sum dt_l)``.

**Determinism.** No atomic operation anywhere. Every direction writes its own float32 map and PyTorch adds the four;
gradients that several programs share (``proj``, the weights) are written as partial sums, one per program, and added by
PyTorch. The same input on the same device gives the same bytes, forward and backward. The number of segments depends
on the batch size and on the device, so other batch sizes or devices may differ in the last bits.

**Memory.** Forward: four float32 maps of the size of ``x``. Between the passes: the inputs and, with segments, the
state at the start of each. Backward: the states at the tiles' starts (``4 N / TILE`` maps of the size of ``x``), four
maps for ``dx`` and ``ceil(Di / 32)`` of the size of ``proj``.

Importing this module never fails: without Triton, :func:`is_available` is false and :func:`reason` says why.
"""

from __future__ import annotations

import contextlib
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from bundle.ops.scan.reference import parameter_shapes

try:
    import triton
    import triton.language as tl
    from triton.language import constexpr

    _import_error: Exception | None = None
except Exception as error:  # a broken installation fails in many ways, and none of them is ours
    _import_error = error

__all__ = ["is_available", "reason", "selective_scan_2d_triton"]

_LOG2_E = 1.4426950408889634
# Steps and channels of a tile on a GPU. 16 x 32 fills the registers of a warp and keeps a tile's scan inside the lanes.
_TILE, _BLOCK_D = 16, 32
_WARPS_PER_MULTIPROCESSOR = 8  # as many as their registers allow


def _jit(function):
    """``triton.jit`` where there is a Triton; else the plain function, which is never called."""
    return function if _import_error is not None else triton.jit(function)


def _jit_kernel(function):
    """:func:`_jit` for a kernel, with ``channels`` left unspecialised.

    Known as a multiple of 16 it would turn loads into vectors of four channels; that spreads the steps of a tile over
    the lanes, and every scan becomes shuffles.
    """
    return function if _import_error is not None else triton.jit(function, do_not_specialize=["channels"])


# --------------------------------------------------------------------------------------------- shared by the kernels


@_jit
def _then(a0, b0, a1, b1):
    """h -> a0 h + b0, then h -> a1 h + b1."""
    return a0 * a1, tl.fma(a1, b0, b1)


@_jit
def _then_out(p0, w0, e0, p1, w1, e1):
    """Links ``g = p c + w`` of a chain whose carry is ``c' = e g``: one after the other. Gives g, not its carry."""
    into = p1 * e0
    return into * p0, tl.fma(into, w0, w1), e1


@_jit
def _row(tile, rows, i):
    """``tile[i]``. A sum of integers with one term that is not 0: exact, and no instruction when rows are registers."""
    bits = tl.where(rows[:, None] == i, tile.to(tl.int32, bitcast=True), 0)
    return tl.sum(bits, axis=0).to(tl.float32, bitcast=True)


@_jit
def _pixel(step, k, height, width):
    """Row-major pixel that direction ``k`` visits at ``step``."""
    forward = tl.where(k >= 2, height * width - 1 - step, step)
    return tl.where(k % 2 == 1, (forward % height) * width + forward // height, forward)


@_jit
def _softplus(a):
    """``log(1 + exp(a))`` and ``z = exp(-|a|)``. log1p(z) / z is a polynomial: relative error 3e-8 for every a."""
    z = tl.exp2(tl.abs(a) * -1.4426950408889634)
    q = tl.fma(z, 0.00523269465, -0.029505242)
    q = tl.fma(q, z, 0.0782259604)
    q = tl.fma(q, z, -0.136632469)
    q = tl.fma(q, z, 0.191060075)
    q = tl.fma(q, z, -0.248429825)
    q = tl.fma(q, z, 0.333190969)
    q = tl.fma(q, z, -0.499994931)
    q = tl.fma(q, z, 0.99999997)
    return tl.fma(z, q, tl.maximum(a, 0.0)), z


@_jit
def _time_step(row, weight, bias, valid, channel, owned, channels, RANK: constexpr):
    """dt and its slope by the pre-activation ``W p + b``, both (TILE, BLOCK_D); 0 past the end of the sequence.

    With dt = 0 the state stands still and takes nothing in, so a partly filled tile needs no other care.
    """
    a = tl.zeros([valid.shape[0], channel.shape[0]], tl.float32) + bias[None, :]
    for r in tl.static_range(RANK):
        p = tl.load(row + r).to(tl.float32)
        w = tl.load(weight + r * channels + channel, mask=owned, other=0.0)
        a = tl.fma(p[:, None], w[None, :], a)
    dt, z = _softplus(a)
    slope = tl.where(a >= 0.0, 1.0, z) / (1.0 + z)
    return tl.where(valid[:, None], dt, 0.0), tl.where(valid[:, None], slope, 0.0)


# ----------------------------------------------------------------------------------------------------------- kernels
# Common arguments. x, dy, proj: the maps. weight (4, R, Di), bias and skip (4, Di), decay = A log2(e) (4, N, Di):
# float32 with the channels innermost. Grid: (channel blocks, segments, 4 B), direction innermost in the last.
#
# The loops over the N states are not unrolled: one iteration is work enough for a tile, and unrolled the backward
# kernel takes minutes to compile. A register array cannot be indexed by such a loop, so what is carried from tile to
# tile (state, gradient of the state, sums for the weights) lies in memory; each program owns its slots there, and they
# stay in cache.


@_jit_kernel
def _forward_kernel(
    x, proj, weight, bias, decay, skip, start, y, states, end, elapsed,
    channels, height, width, tiles, segment_tiles,
    RANK: constexpr, STATE: constexpr, TILE: constexpr, BLOCK_D: constexpr,
    HAS_START: constexpr, WRITE_Y: constexpr, WRITE_STATES: constexpr,
):  # fmt: skip
    """Walk one segment from ``start`` (4 B, S, N, Di) or from 0 to the state ``end`` of the same shape.

    On the way: y (4, B, L, Di), or the elapsed time (4 B, S, Di); and the states (4 B, tiles, N, Di) at tiles' starts.
    """
    segment, bk = tl.program_id(1), tl.program_id(2).to(tl.int64)
    k = (bk % 4).to(tl.int32)
    length = height * width
    place = bk * tl.num_programs(1) + segment
    step = tl.arange(0, TILE)
    channel = tl.program_id(0) * BLOCK_D + tl.arange(0, BLOCK_D)
    owned = channel < channels

    x += bk // 4 * length * channels
    y += (k * (tl.num_programs(2) // 4) + bk // 4) * length * channels
    proj += (bk // 4 * length * 4 + k) * (RANK + 2 * STATE)
    states += bk * tiles * STATE * channels + channel
    start += place * STATE * channels + channel
    end += place * STATE * channels + channel
    weight += k * RANK * channels
    decay += k * STATE * channels + channel
    bias_k = tl.load(bias + k * channels + channel, mask=owned, other=0.0)
    skip_k = tl.load(skip + k * channels + channel, mask=owned, other=0.0)

    for n in range(STATE):
        h = tl.zeros([BLOCK_D], tl.float32)
        if HAS_START:
            h = tl.load(start + n * channels, mask=owned, other=0.0)
        tl.store(end + n * channels, h, mask=owned)
    time = tl.zeros([BLOCK_D], tl.float32)
    for tile in range(segment * segment_tiles, tl.minimum((segment + 1) * segment_tiles, tiles)):
        tl.debug_barrier()  # what the last tile left in `end` is read below
        at_step = tile * TILE + step
        valid = at_step < length
        pixel = _pixel(tl.minimum(at_step, length - 1), k, height, width)
        at, mine = pixel[:, None] * channels + channel[None, :], valid[:, None] & owned[None, :]
        row = proj + pixel * (4 * (RANK + 2 * STATE))
        u = tl.load(x + at, mask=mine, other=0.0).to(tl.float32)
        dt, _ = _time_step(row, weight, bias_k, valid, channel, owned, channels, RANK)
        du = dt * u
        out = u * skip_k[None, :]
        for n in range(STATE):
            a = tl.load(decay + n * channels, mask=owned, other=0.0)
            b = tl.load(row + RANK + n).to(tl.float32)
            h0 = tl.load(end + n * channels, mask=owned, other=0.0)
            whole, local = tl.associative_scan((tl.exp2(dt * a[None, :]), du * b[:, None]), 0, _then)
            h = tl.fma(whole, h0[None, :], local)
            tl.store(end + n * channels, _row(h, step, TILE - 1), mask=owned)
            if WRITE_STATES:
                tl.store(states + (tile * STATE + n) * channels, h0, mask=owned)
            if WRITE_Y:
                c = tl.load(row + RANK + STATE + n).to(tl.float32)
                out = tl.fma(h, c[:, None], out)
        if WRITE_Y:
            tl.store(y + at, out, mask=mine)
        else:
            time += tl.sum(dt, axis=0)
    if not WRITE_Y:
        tl.store(elapsed + place * channels + channel, time, mask=owned)


@_jit_kernel
def _carry_kernel(
    dy, proj, weight, bias, decay, carry, elapsed,
    channels, height, width, tiles, segment_tiles,
    RANK: constexpr, STATE: constexpr, TILE: constexpr, BLOCK_D: constexpr,
):  # fmt: skip
    """Walk one segment backward from no gradient: what it hands to the segment before (4 B, S, N, Di), and its time.

    The gradient of the state is ``g_l = dy_l C_l + c_{l+1}`` with the carry ``c_l = exp(dt_l A) g_l``.
    """
    segment, bk = tl.program_id(1), tl.program_id(2).to(tl.int64)
    k = (bk % 4).to(tl.int32)
    length = height * width
    place = bk * tl.num_programs(1) + segment
    step = tl.arange(0, TILE)
    channel = tl.program_id(0) * BLOCK_D + tl.arange(0, BLOCK_D)
    owned = channel < channels

    dy += bk // 4 * length * channels
    proj += (bk // 4 * length * 4 + k) * (RANK + 2 * STATE)
    carry += place * STATE * channels + channel
    weight += k * RANK * channels
    decay += k * STATE * channels + channel
    bias_k = tl.load(bias + k * channels + channel, mask=owned, other=0.0)

    time = tl.zeros([BLOCK_D], tl.float32)
    first, last = segment * segment_tiles, tl.minimum((segment + 1) * segment_tiles, tiles)
    for n in range(STATE):
        tl.store(carry + n * channels, tl.zeros([BLOCK_D], tl.float32), mask=owned)
    for i in range(0, last - first):
        tl.debug_barrier()  # what the last tile left in `carry` is read below
        at_step = (last - 1 - i) * TILE + TILE - 1 - step  # falling, so that the scan runs back in time
        valid = at_step < length
        pixel = _pixel(tl.minimum(at_step, length - 1), k, height, width)
        at, mine = pixel[:, None] * channels + channel[None, :], valid[:, None] & owned[None, :]
        row = proj + pixel * (4 * (RANK + 2 * STATE))
        dout = tl.load(dy + at, mask=mine, other=0.0).to(tl.float32)
        dt, _ = _time_step(row, weight, bias_k, valid, channel, owned, channels, RANK)
        time += tl.sum(dt, axis=0)
        for n in range(STATE):
            a = tl.load(decay + n * channels, mask=owned, other=0.0)
            c = tl.load(row + RANK + STATE + n).to(tl.float32)
            later = tl.load(carry + n * channels, mask=owned, other=0.0)
            e = tl.exp2(dt * a[None, :])
            whole, local = tl.associative_scan((e, e * dout * c[:, None]), 0, _then)
            tl.store(carry + n * channels, _row(tl.fma(whole, later[None, :], local), step, TILE - 1), mask=owned)
    tl.store(elapsed + place * channels + channel, time, mask=owned)


@_jit_kernel
def _chain_kernel(
    local, elapsed, decay, start, channels, segments, STATE: constexpr, BLOCK_D: constexpr, REVERSE: constexpr
):
    """Value at the start of every segment from what each makes of zero. Grid: (channel blocks, N, 4 B)."""
    n, bk = tl.program_id(1), tl.program_id(2).to(tl.int64)
    channel = tl.program_id(0) * BLOCK_D + tl.arange(0, BLOCK_D)
    owned = channel < channels
    a = tl.load(decay + ((bk % 4) * STATE + n) * channels + channel, mask=owned, other=0.0)
    h = tl.zeros([BLOCK_D], tl.float32)
    for i in range(0, segments):
        place = bk * segments + i
        if REVERSE:
            place = bk * segments + segments - 1 - i
        at = (place * STATE + n) * channels + channel
        tl.store(start + at, h, mask=owned)
        time = tl.load(elapsed + place * channels + channel, mask=owned, other=0.0)
        h = tl.fma(tl.exp2(time * a), h, tl.load(local + at, mask=owned, other=0.0))


@_jit_kernel
def _backward_kernel(
    x, dy, proj, weight, bias, decay, skip, states, carry, dx, dproj, dparams,
    channels, height, width, tiles, segment_tiles,
    RANK: constexpr, STATE: constexpr, TILE: constexpr, BLOCK_D: constexpr,
):  # fmt: skip
    """Walk one segment backward from the ``carry`` (4 B, S, N, Di) that it receives; the carry is overwritten.

    Writes dx (4, B, L, Di) and dproj (channel blocks, B, L, 4, R + 2 N), and adds to dparams (4 B, S, N + R + 2, Di)
    the sums over its steps for A, dt_weight, dt_bias and D.
    """
    segment, bk = tl.program_id(1), tl.program_id(2).to(tl.int64)
    k = (bk % 4).to(tl.int32)
    length = height * width
    place = bk * tl.num_programs(1) + segment
    step = tl.arange(0, TILE)
    channel = tl.program_id(0) * BLOCK_D + tl.arange(0, BLOCK_D)
    owned = channel < channels
    batch = tl.num_programs(2) // 4

    x += bk // 4 * length * channels
    dy += bk // 4 * length * channels
    dx += (k * batch + bk // 4) * length * channels
    proj += (bk // 4 * length * 4 + k) * (RANK + 2 * STATE)
    dproj += ((tl.program_id(0) * batch + bk // 4) * length * 4 + k) * (RANK + 2 * STATE)
    states += bk * tiles * STATE * channels + channel
    carry += place * STATE * channels + channel
    dparams += place * (STATE + RANK + 2) * channels + channel
    weight += k * RANK * channels
    decay += k * STATE * channels + channel
    bias_k = tl.load(bias + k * channels + channel, mask=owned, other=0.0)
    skip_k = tl.load(skip + k * channels + channel, mask=owned, other=0.0)

    d_bias, d_skip = tl.zeros([BLOCK_D], tl.float32), tl.zeros([BLOCK_D], tl.float32)
    first, last = segment * segment_tiles, tl.minimum((segment + 1) * segment_tiles, tiles)
    for i in range(0, last - first):
        tl.debug_barrier()  # what the last tile left in `carry` and `dparams` is read below
        tile = last - 1 - i
        at_step = tile * TILE + step
        valid = at_step < length
        pixel = _pixel(tl.minimum(at_step, length - 1), k, height, width)
        at, mine = pixel[:, None] * channels + channel[None, :], valid[:, None] & owned[None, :]
        row = proj + pixel * (4 * (RANK + 2 * STATE))
        d_row = dproj + pixel * (4 * (RANK + 2 * STATE))
        u = tl.load(x + at, mask=mine, other=0.0).to(tl.float32)
        dout = tl.load(dy + at, mask=mine, other=0.0).to(tl.float32)
        dt, slope = _time_step(row, weight, bias_k, valid, channel, owned, channels, RANK)
        du = dt * u
        d_dt, d_du = tl.zeros([TILE, BLOCK_D], tl.float32), tl.zeros([TILE, BLOCK_D], tl.float32)
        for n in range(STATE):
            a = tl.load(decay + n * channels, mask=owned, other=0.0)
            b = tl.load(row + RANK + n).to(tl.float32)
            c = tl.load(row + RANK + STATE + n).to(tl.float32)
            h0 = tl.load(states + (tile * STATE + n) * channels, mask=owned, other=0.0)
            later = tl.load(carry + n * channels, mask=owned, other=0.0)
            summed = tl.load(dparams + n * channels, mask=owned, other=0.0)
            e, taken = tl.exp2(dt * a[None, :]), du * b[:, None]
            whole, local = tl.associative_scan((e, taken), 0, _then)
            h = tl.fma(whole, h0[None, :], local)
            # the same, back in time: Triton's own reverse scan is not to be trusted (its issue 4362), so flip
            back, seen = tl.flip(e, 0), tl.flip(dout * c[:, None], 0)
            into, local, _ = tl.associative_scan((tl.full(back.shape, 1.0, tl.float32), seen, back), 0, _then_out)
            g = tl.flip(tl.fma(into, later[None, :], local), 0)
            kept = g * (h - taken)  # h - taken = e h_{l-1}: the exponential times its own gradient
            tl.store(carry + n * channels, _row(e * g, step, 0), mask=owned)
            tl.store(dparams + n * channels, summed + tl.sum(kept * dt, axis=0), mask=owned)
            tl.store(d_row + RANK + n, tl.sum(g * du, axis=1), mask=valid)
            tl.store(d_row + RANK + STATE + n, tl.sum(dout * h, axis=1), mask=valid)
            d_du = tl.fma(g, b[:, None], d_du)
            d_dt = tl.fma(kept, a[None, :] * 0.6931471805599453, d_dt)
        tl.store(dx + at, tl.fma(d_du, dt, dout * skip_k[None, :]), mask=mine)
        d_pre = tl.fma(d_du, u, d_dt) * slope
        for r in range(RANK):
            w = tl.load(weight + r * channels + channel, mask=owned, other=0.0)
            p = tl.load(row + r).to(tl.float32)
            summed = tl.load(dparams + (STATE + r) * channels, mask=owned, other=0.0)
            tl.store(d_row + r, tl.sum(d_pre * w[None, :], axis=1), mask=valid)
            tl.store(dparams + (STATE + r) * channels, summed + tl.sum(d_pre * p[:, None], axis=0), mask=owned)
        d_bias += tl.sum(d_pre, axis=0)
        d_skip += tl.sum(dout * u, axis=0)
    tl.store(dparams + (STATE + RANK) * channels, d_bias, mask=owned)
    tl.store(dparams + (STATE + RANK + 1) * channels, d_skip, mask=owned)


# -------------------------------------------------------------------------------------------------------------- host


class _Problem(NamedTuple):
    """Sizes of one call, how it is cut, and the weights as the kernels read them (see above)."""

    batch: int
    height: int
    width: int
    channels: int
    rank: int
    state: int
    tile: int
    block: int
    segments: int
    segment_tiles: int
    weight: Tensor
    bias: Tensor
    decay: Tensor
    skip: Tensor

    @property
    def length(self) -> int:
        return self.height * self.width

    @property
    def blocks(self) -> int:
        return -(-self.channels // self.block)

    @property
    def tiles(self) -> int:
        return -(-self.length // self.tile)

    def boundary(self) -> Tensor:
        """Memory for one state at an end of each segment: (4 B, S, N, Di)."""
        return self.weight.new_empty(4 * self.batch, self.segments, self.state, self.channels)

    def elapsed(self) -> Tensor:
        """Memory for the time that passes in each segment: (4 B, S, Di)."""
        return self.weight.new_empty(4 * self.batch, self.segments, self.channels)

    def launch(self, kernel: Any, *arguments: Tensor, **flags: bool) -> None:
        """Run a kernel that walks along segments."""
        sizes = (self.channels, self.height, self.width, self.tiles, self.segment_tiles)
        shape = {"RANK": self.rank, "STATE": self.state, "TILE": self.tile, "BLOCK_D": self.block}
        kernel[(self.blocks, self.segments, 4 * self.batch)](*arguments, *sizes, **shape, **flags, num_warps=1)

    def chain(self, local: Tensor, elapsed: Tensor, reverse: bool) -> Tensor:
        """Value that enters each segment, (4 B, S, N, Di), from what each makes of zero."""
        start = torch.empty_like(local)
        _chain_kernel[(self.blocks, self.state, 4 * self.batch)](
            local, elapsed, self.decay, start, self.channels, self.segments,
            STATE=self.state, BLOCK_D=self.block, REVERSE=reverse, num_warps=1,
        )  # fmt: skip
        return start


def _interpreted() -> bool:
    return not isinstance(_forward_kernel, triton.JITFunction)


def _segments(programs: int, tiles: int, device: torch.device) -> int:
    """How many segments keep the device busy; 1 where fewer than three would, as they cost a second pass."""
    if device.type != "cuda":
        return 1
    room = torch.cuda.get_device_properties(device).multi_processor_count * _WARPS_PER_MULTIPROCESSOR
    segments = min(-(-room // programs), tiles // 8)
    return segments if segments >= 3 else 1


def _cut(x: Tensor) -> tuple[int, int, int, int]:
    """Steps and channels of a tile, segments, tiles of a segment (none is empty)."""
    batch, height, width, channels = x.shape
    tile, block = _TILE, _BLOCK_D
    if _interpreted():  # its scans are Python loops: short tiles and no idle lanes
        tile, block = 4, min(block, triton.next_power_of_2(channels))
    tiles = -(-height * width // tile)
    segments = _segments(4 * batch * -(-channels // block), tiles, x.device)
    segment_tiles = -(-tiles // segments)
    return tile, block, -(-tiles // segment_tiles), segment_tiles


def _problem(x: Tensor, dt_weight: Tensor, dt_bias: Tensor, A: Tensor, D: Tensor) -> _Problem:
    weight = dt_weight.float().transpose(1, 2).contiguous()
    decay = (A.float() * _LOG2_E).transpose(1, 2).contiguous()
    bias, skip = dt_bias.float().contiguous(), D.float().contiguous()
    batch, height, width, channels = x.shape
    rank, state = dt_weight.shape[2], A.shape[2]
    return _Problem(batch, height, width, channels, rank, state, *_cut(x), weight, bias, decay, skip)


def _on_device_of(x: Tensor) -> contextlib.AbstractContextManager:
    return torch.cuda.device(x.device) if x.is_cuda else contextlib.nullcontext()


@torch.library.custom_op("iconet::ss2d_triton", mutates_args=())
def _ss2d(x: Tensor, proj: Tensor, dt_weight: Tensor, dt_bias: Tensor, A: Tensor, D: Tensor) -> tuple[Tensor, Tensor]:
    """y, and the state at the start of each segment (empty for one segment)."""
    x, proj = x.contiguous(), proj.contiguous()
    p = _problem(x, dt_weight, dt_bias, A, D)
    weights = (p.weight, p.bias, p.decay, p.skip)
    with _on_device_of(x):
        end, elapsed, start = p.boundary(), p.elapsed(), p.weight.new_empty(0)
        if p.segments > 1:
            flags = {"HAS_START": False, "WRITE_Y": False, "WRITE_STATES": False}
            p.launch(_forward_kernel, x, proj, *weights, start, end, end, end, elapsed, **flags)
            start = p.chain(end, elapsed, reverse=False)
        y = p.weight.new_empty(4, *x.shape)
        flags = {"HAS_START": p.segments > 1, "WRITE_Y": True, "WRITE_STATES": False}
        p.launch(_forward_kernel, x, proj, *weights, start, y, end, end, elapsed, **flags)
        return y.sum(0).to(x.dtype), start


@torch.library.custom_op("iconet::ss2d_triton_backward", mutates_args=())
def _ss2d_backward(
    dy: Tensor, x: Tensor, proj: Tensor, dt_weight: Tensor, dt_bias: Tensor, A: Tensor, D: Tensor, start: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    inputs = (x, proj, dt_weight, dt_bias, A, D)
    dy, x, proj = dy.contiguous(), x.contiguous(), proj.contiguous()
    p = _problem(x, dt_weight, dt_bias, A, D)
    weights = (p.weight, p.bias, p.decay, p.skip)
    with _on_device_of(x):
        end, elapsed = p.boundary(), p.elapsed()
        states = p.weight.new_empty(4 * p.batch, p.tiles, p.state, p.channels)
        flags = {"HAS_START": p.segments > 1, "WRITE_Y": False, "WRITE_STATES": True}
        p.launch(_forward_kernel, x, proj, *weights, start, states, states, end, elapsed, **flags)
        carry = torch.zeros_like(end)
        if p.segments > 1:
            p.launch(_carry_kernel, dy, proj, p.weight, p.bias, p.decay, end, elapsed)
            carry = p.chain(end, elapsed, reverse=True)
        dx = p.weight.new_empty(4, *x.shape)
        dproj = p.weight.new_empty(p.blocks, *proj.shape)
        dparams = p.weight.new_zeros(4 * p.batch, p.segments, p.state + p.rank + 2, p.channels)
        p.launch(_backward_kernel, x, dy, proj, *weights, states, carry, dx, dproj, dparams)
        shared = dparams.view(p.batch, 4, p.segments, -1, p.channels).sum((0, 2))
        dA, dw, db, dD = shared.split([p.state, p.rank, 1, 1], dim=1)
        gradients = (dx.sum(0), dproj.sum(0), dw.transpose(1, 2), db.squeeze(1), dA.transpose(1, 2), dD.squeeze(1))
        dx, dproj, dw, db, dA, dD = (g.to(t.dtype).contiguous() for g, t in zip(gradients, inputs, strict=True))
        return dx, dproj, dw, db, dA, dD


@_ss2d.register_fake
def _(x: Tensor, proj: Tensor, dt_weight: Tensor, dt_bias: Tensor, A: Tensor, D: Tensor) -> tuple[Tensor, Tensor]:
    segments = _cut(x)[2]
    shape = (4 * x.shape[0], segments, A.shape[2], x.shape[3]) if segments > 1 else (0,)
    return x.new_empty(x.shape), x.new_empty(shape, dtype=torch.float32)


@_ss2d_backward.register_fake
def _(
    dy: Tensor, x: Tensor, proj: Tensor, dt_weight: Tensor, dt_bias: Tensor, A: Tensor, D: Tensor, start: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    dx, dproj, dw, db, dA, dD = (t.new_empty(t.shape) for t in (x, proj, dt_weight, dt_bias, A, D))
    return dx, dproj, dw, db, dA, dD


def _setup_context(ctx: Any, inputs: tuple, output: tuple[Tensor, Tensor]) -> None:
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*inputs, output[1])


def _backward(ctx: Any, dy: Tensor | None, _: Tensor | None) -> tuple:
    return (None,) * 6 if dy is None else torch.ops.iconet.ss2d_triton_backward(dy, *ctx.saved_tensors)


_ss2d.register_autograd(_backward, setup_context=_setup_context)


@lru_cache(maxsize=1)
def reason() -> str:
    """Why these kernels cannot run here, in one line; empty if they can.

    Triton also needs a GPU that it knows and, to start a kernel, a C compiler: asking its driver for the device tells.
    """
    if _import_error is not None:
        return f"Triton cannot be imported ({_import_error})"
    if _interpreted():
        return ""
    if not torch.cuda.is_available():
        return "no CUDA device (Triton's interpreter is used if TRITON_INTERPRET=1 is set before the start)"
    if torch.cuda.get_device_capability() < (7, 0):
        return "Triton needs a CUDA device of compute capability 7.0 or more"
    try:
        triton.runtime.driver.active.get_current_target()
    except Exception as error:  # no compiler, no headers, no driver, ...: each its own type
        return f"Triton cannot use the CUDA device ({' '.join(str(error).split())[:200]})"
    return ""


def is_available() -> bool:
    """Whether :func:`selective_scan_2d_triton` can run here."""
    return not reason()


def _check(x: Tensor, proj: Tensor, dt_weight: Tensor, dt_bias: Tensor, A: Tensor, D: Tensor) -> None:
    given = {"x": x, "proj": proj, "dt_weight": dt_weight, "dt_bias": dt_bias, "A": A, "D": D}
    for name, t in given.items():
        if t.dtype not in (torch.float32, torch.float16, torch.bfloat16):
            raise TypeError(f"the Triton scan takes float32, float16 or bfloat16, {name} is {t.dtype}")
        if t.device != x.device or not (t.is_cuda or _interpreted()):
            raise TypeError(f"the Triton scan takes tensors on one CUDA device, {name} is on {t.device}")
    if x.ndim != 4 or dt_weight.ndim != 3 or A.ndim != 3 or min(t.numel() for t in given.values()) == 0:
        raise ValueError("the scan takes x (B, H, W, Di), dt_weight (4, Di, R) and A (4, Di, N), none of them empty")
    for name, shape in parameter_shapes(x, dt_weight, A).items():
        if given[name].shape != shape:
            raise ValueError(f"{name} must be {shape} for x {tuple(x.shape)}, and is {tuple(given[name].shape)}")


def selective_scan_2d_triton(
    x: Tensor, proj: Tensor, dt_weight: Tensor, dt_bias: Tensor, A: Tensor, D: Tensor
) -> Tensor:
    """Four-direction selective scan of a feature map, summed over the directions; differentiable once.

    With direction ``k`` visiting the pixels row by row (0), column by column (1), or in the reverse of these (2, 3)::

        dt_l = softplus(dt_weight[k] @ proj_dt_l + dt_bias[k])
        h_l  = exp(dt_l * A[k]) * h_{l-1} + dt_l * x_l * B_l
        y_l  = <h_l, C_l> + D[k] * x_l

    Time ``O(B H W Di (N + R))``; memory and determinism: see the module. State and sums are float32 for every dtype.

    Args:
        x: ``(B, H, W, Di)``, channels last, on a CUDA device (on the CPU in Triton's interpreter, for checks).
        proj: ``(B, H, W, 4, R + 2 N)`` in pixel order: ``[dt (R) | B (N) | C (N)]`` of each direction.
        dt_weight: ``(4, Di, R)``. dt_bias: ``(4, Di)``. A: ``(4, Di, N)``. D: ``(4, Di)``.

    Returns:
        ``(B, H, W, Di)`` in the dtype of ``x``.

    Raises:
        RuntimeError: the kernels cannot run here (:func:`reason`).
        TypeError, ValueError: a tensor of another type (float64 too), device or shape.
    """
    if not is_available():
        raise RuntimeError(reason())
    _check(x, proj, dt_weight, dt_bias, A, D)
    return torch.ops.iconet.ss2d_triton(x, proj, dt_weight, dt_bias, A, D)[0]
