"""The core of a 2-D selective scan (SS2D) as one function over its back ends."""

from __future__ import annotations

import torch
from torch import Tensor

from bundle.ops.backend import select_backend
from bundle.ops.scan.plain import selective_scan_2d_script


def selective_scan_2d(x: Tensor, proj: Tensor, dt_weight: Tensor, dt_bias: Tensor, A: Tensor, D: Tensor) -> Tensor:
    """Four-direction selective scan of a feature map, summed over the directions.

    Direction ``k`` visits the pixels row by row (0), column by column (1), or in the reverse of these (2, 3). Along
    its sequence ``l``, with ``proj[..., k, :]`` split into a low-rank time step (R), ``B`` (N) and ``C`` (N)::

        dt_l = softplus(dt_weight[k] @ proj_dt_l + dt_bias[k])          # per channel
        h_l  = exp(dt_l * A[k]) * h_{l-1} + dt_l * x_l * B_l            # per channel and state, h_0 = 0
        y_l  = <h_l, C_l> + D[k] * x_l

    These are equations 1 to 3 of the paper with a diagonal ``A`` and, as in every Mamba, two differences: ``B`` is
    multiplied by ``dt``, where zero-order hold (equation 2) has ``(exp(dt A) - 1) / A``, and ``D x`` is added.
    :func:`bundle.ops.scan.reference.selective_scan_2d_reference` has zero-order hold as an option.

    Args:
        x: ``(B, H, W, Di)``, channels last, float32 or float64; half types are computed in float32.
        proj: ``(B, H, W, 4, R + 2 N)`` in pixel order: one linear map of ``x`` serves the four directions.
        dt_weight: ``(4, Di, R)``. dt_bias: ``(4, Di)``. A: ``(4, Di, N)``, negative. D: ``(4, Di)``.

    Returns:
        ``(B, H, W, Di)`` in the dtype of ``x``.
    """
    if torch.jit.is_scripting():  # its compiler takes the functions that it finds by name, not those of a table
        return selective_scan_2d_script(x, proj, dt_weight, dt_bias, A, D)
    return _dispatch(x, proj, dt_weight, dt_bias, A, D)


@torch.jit.unused
def _dispatch(x: Tensor, proj: Tensor, dt_weight: Tensor, dt_bias: Tensor, A: Tensor, D: Tensor) -> Tensor:
    if torch.jit.is_tracing():  # a graph without casts, for the dtype of the example
        return select_backend(x).scan_function(x, proj, dt_weight, dt_bias, A, D)
    dtype = x.dtype
    state_dtype = torch.float64 if dtype == torch.float64 else torch.float32
    with torch.autocast(x.device.type, enabled=False):
        tensors = [t.to(state_dtype) for t in (x, proj, dt_weight, dt_bias, A, D)]
        return select_backend(tensors[0]).scan_function(*tensors).to(dtype)
