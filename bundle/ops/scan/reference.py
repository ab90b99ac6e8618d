"""The two-dimensional selective scan, written as its equations. Slow; it defines what every back end computes."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import softplus


def scan_orders(height: int, width: int, device: torch.device | None = None) -> Tensor:
    """Pixel order of the four directions: row by row, column by column, and the reverse of each.

    Returns:
        int64 ``(4, height * width)``: the flat (row-major) pixel that each direction visits at each step.
    """
    rows = torch.arange(height * width, device=device)
    cols = rows.view(height, width).t().reshape(-1)
    return torch.stack([rows, cols, rows.flip(0), cols.flip(0)])


def parameter_shapes(x: Tensor, dt_weight: Tensor, A: Tensor) -> dict[str, tuple[int, ...]]:
    """Shapes that go with x (B, H, W, Di), dt_weight (4, Di, R) and A (4, Di, N), by argument name."""
    channels, rank, state = x.shape[3], dt_weight.shape[2], A.shape[2]
    return {
        "proj": (*x.shape[:3], 4, rank + 2 * state),
        "dt_weight": (4, channels, rank),
        "dt_bias": (4, channels),
        "A": (4, channels, state),
        "D": (4, channels),
    }


def selective_scan_2d_reference(
    x: Tensor, proj: Tensor, dt_weight: Tensor, dt_bias: Tensor, A: Tensor, D: Tensor, exact: bool = False
) -> Tensor:
    """See :func:`bundle.ops.selective_scan_2d`. One Python step per pixel: for checks only.

    Args:
        exact: zero-order hold of ``B`` too, ``(exp(dt A) - 1) / A * B`` as in equation 2 of the paper. Every back end
            has ``dt * B`` instead, as Mamba does, and the weights are trained with that.
    """
    batch, height, width, channels = x.shape
    rank, state = dt_weight.shape[2], A.shape[2]
    merged = torch.zeros_like(x).flatten(1, 2)
    for k, order in enumerate(scan_orders(height, width, x.device)):
        u = x.flatten(1, 2)[:, order]
        dt_in, b, c = proj[:, :, :, k].flatten(1, 2)[:, order].split([rank, state, state], dim=-1)
        dt = softplus(dt_in @ dt_weight[k].t() + dt_bias[k])
        h = x.new_zeros(batch, channels, state)
        out = []
        for u_t, dt_t, b_t, c_t in zip(u.unbind(1), dt.unbind(1), b.unbind(1), c.unbind(1), strict=True):
            held = torch.expm1(dt_t[..., None] * A[k]) / A[k] if exact else dt_t[..., None]
            h = torch.exp(dt_t[..., None] * A[k]) * h + held * u_t[..., None] * b_t[:, None]
            out.append((h * c_t[:, None]).sum(-1) + D[k] * u_t)
        merged = merged.index_add(1, order, torch.stack(out, dim=1))
    return merged.view_as(x)
