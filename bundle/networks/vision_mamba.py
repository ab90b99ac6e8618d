"""Vision Mamba block (VMB): the spatial half of an RSCFL module."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, silu

from bundle.networks.ss2d import SS2D
from bundle.ops import is_plain


class VisionMambaBlock(nn.Module):
    """``x + linear(gate(LN(x)) * LN(SS2D(dwconv(linear(LN(x))))))`` on channels-last maps.

    From the paper: layer norm first, two paths (linear | linear, convolution, SS2D, layer norm), their product, a
    linear layer, the residual. Chosen here, as in VMamba's first block: SiLU on the gate and after the convolution,
    ``expand``, ``d_state``, ``dt_rank = ceil(features / 16)``, and a 3x3 convolution that is depthwise only (the paper
    writes "depthwise separable convolution (DW Conv)", which would add a pointwise one). The scan visits single pixels;
    the paper speaks of patches.

    Args:
        features: channels of the input and output.
        d_state: states per channel of the scan.
        expand: ratio of the scanned channels to ``features``.
    """

    def __init__(self, features: int, d_state: int = 16, expand: float = 2.0) -> None:
        super().__init__()
        inner = int(features * expand)
        self.norm = nn.LayerNorm(features)
        self.in_proj = nn.Linear(features, 2 * inner, bias=False)
        self.dwconv = nn.Conv2d(inner, inner, kernel_size=3, padding=1, groups=inner)
        self.ss2d = SS2D(inner, d_state=d_state, dt_rank=math.ceil(features / 16))
        self.out_norm = nn.LayerNorm(inner)
        self.out_proj = nn.Linear(inner, features, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, features) -> the same shape."""
        path, gate = self._project(self.norm(x))
        path = self.dwconv(path.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        path = self.out_norm(self.ss2d(silu(path).contiguous()))
        return x + self.out_proj(path * silu(gate))

    def _project(self, normed: Tensor) -> tuple[Tensor, Tensor]:
        """The inputs of the two paths."""
        if not torch.jit.is_scripting():
            called = self._project_by_module(normed)
            if called is not None:
                return called
        to_path, to_gate = self.in_proj.weight.chunk(2)  # two products: their results need no copy to be contiguous
        return linear(normed, to_path), linear(normed, to_gate)

    @torch.jit.unused
    def _project_by_module(self, normed: Tensor) -> tuple[Tensor, Tensor] | None:
        """The same by calling the layer, where another one is in its place or hooks are on it."""
        if is_plain(self.in_proj, nn.Linear):
            return None
        path, gate = self.in_proj(normed).chunk(2, dim=-1)
        return path, gate
