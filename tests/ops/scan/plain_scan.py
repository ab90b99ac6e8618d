"""The equations of the scan as a plain loop over pixels, independent of the kernels' indexing."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import softplus


def plain_recurrence(x: Tensor, proj: Tensor, dt_weight: Tensor, dt_bias: Tensor, A: Tensor, D: Tensor) -> Tensor:
    height, width = x.shape[1:3]
    rank, state = dt_weight.shape[2], A.shape[2]
    rows = [(i, j) for i in range(height) for j in range(width)]
    columns = [(i, j) for j in range(width) for i in range(height)]
    y = {pixel: torch.zeros_like(x[:, 0, 0]) for pixel in rows}
    for k, order in enumerate((rows, columns, rows[::-1], columns[::-1])):
        h = x.new_zeros(x.shape[0], x.shape[3], state)
        for i, j in order:
            u = x[:, i, j]
            low, b, c = proj[:, i, j, k].split([rank, state, state], dim=-1)
            dt = softplus(low @ dt_weight[k].T + dt_bias[k])
            h = torch.exp(dt[..., None] * A[k]) * h + (dt * u)[..., None] * b[:, None]
            y[i, j] = y[i, j] + (h * c[:, None]).sum(-1) + D[k] * u
    return torch.stack([y[pixel] for pixel in rows], dim=1).view_as(x)
