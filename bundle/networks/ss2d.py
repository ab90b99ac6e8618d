"""SS2D: the selective scan of a feature map in four directions, with its parameters."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from bundle.ops import selective_scan_2d

DT_MIN, DT_MAX = 1e-3, 1e-1


class SS2D(nn.Module):
    """2-D selective scan (paper section III-B; parameters and initial values as in VMamba's first version).

    :func:`bundle.ops.selective_scan_2d` documents how it follows equations 1 to 3 and where it differs. Here A is
    diagonal, ``-exp(A_log)``.

    Args:
        channels: width of the scanned feature map (Di).
        d_state: states per channel (N).
        dt_rank: rank of the map that makes the time steps.
    """

    def __init__(self, channels: int, d_state: int = 16, dt_rank: int = 6) -> None:
        super().__init__()
        self.directions = 4
        # the projection commutes with reordering the pixels, so one linear map serves all four directions
        self.x_proj = nn.Linear(channels, self.directions * (dt_rank + 2 * d_state), bias=False)
        self.dt_weight = nn.Parameter(torch.empty(self.directions, channels, dt_rank).uniform_(-1, 1) * dt_rank**-0.5)
        self.dt_bias = nn.Parameter(self._initial_dt_bias(channels))
        rates = torch.arange(1, d_state + 1, dtype=torch.float32).log()
        self.A_log = nn.Parameter(rates.repeat(self.directions, channels, 1))
        self.D = nn.Parameter(torch.ones(self.directions, channels))

    def _initial_dt_bias(self, channels: int) -> Tensor:
        """Inverse softplus of time steps drawn log-uniformly from [DT_MIN, DT_MAX]."""
        spread = torch.rand(self.directions, channels) * math.log(DT_MAX / DT_MIN)
        dt = DT_MIN * spread.exp()
        return dt + torch.log(-torch.expm1(-dt))

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, channels) -> the same shape, the sum of the four directions."""
        batch, height, width, _ = x.shape
        proj = self.x_proj(x).view(batch, height, width, self.directions, -1)
        return selective_scan_2d(x, proj, self.dt_weight, self.dt_bias, -self.A_log.exp(), self.D)
