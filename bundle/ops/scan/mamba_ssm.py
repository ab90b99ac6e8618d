"""The 2-D selective scan on the CUDA kernel of the ``mamba_ssm`` package; runs only when asked for.

That kernel scans sequences of shape (channels, length), so the four directions are laid out as four groups of channels:
this back end holds four copies of the feature map and of the time steps, and gathers and merges them in PyTorch.

``mamba_ssm`` may be installed and yet have no kernel (its build is optional), and then fails only when called: the
kernel itself is looked for, not the package. Nothing is imported before the first question or call.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from functools import lru_cache

import torch
from torch import Tensor

__all__ = ["reason", "selective_scan_2d_mamba"]

_INTERFACE = "mamba_ssm.ops.selective_scan_interface"
_MAX_STATE = 256  # of the CUDA kernel


@lru_cache(maxsize=1)
def _probe() -> tuple[Callable[..., Tensor] | None, str]:
    """The scan function, or why there is none."""
    try:
        interface = importlib.import_module(_INTERFACE)
    except Exception as error:  # missing, or built for another torch or CUDA: each its own type
        return None, f"mamba_ssm cannot be imported ({error})"
    if getattr(interface, "selective_scan_cuda", None) is None or not hasattr(interface, "selective_scan_fn"):
        return None, "this mamba_ssm was built without selective_scan_cuda"
    if not torch.cuda.is_available():
        return None, "mamba_ssm needs a CUDA device"
    return interface.selective_scan_fn, ""


def reason() -> str:
    """Why this back end cannot run here, in one line; empty if it can."""
    return _probe()[1]


def _sequences(image: Tensor) -> Tensor:
    """(B, H, W, C) of one map, or (B, H, W, 4, C) of one per direction, in the order of each: (B, 4, C, H * W)."""
    if image.ndim == 4:
        image = image.unsqueeze(3).expand(-1, -1, -1, 4, -1)
    rows = image[:, :, :, 0::2].permute(0, 3, 4, 1, 2).flatten(3)  # directions 0 and 2
    columns = image[:, :, :, 1::2].permute(0, 3, 4, 2, 1).flatten(3)  # 1 and 3
    return torch.stack([rows[:, 0], columns[:, 0], rows[:, 1].flip(-1), columns[:, 1].flip(-1)], dim=1)


def _merged(y: Tensor, height: int, width: int) -> Tensor:
    """Sum over the directions of (B, 4, C, H * W), every one in its own order: (B, H, W, C)."""
    rows = y[:, 0] + y[:, 2].flip(-1)
    columns = y[:, 1] + y[:, 3].flip(-1)
    by_row = rows.unflatten(-1, (height, width))
    by_column = columns.unflatten(-1, (width, height)).transpose(-1, -2)
    return (by_row + by_column).permute(0, 2, 3, 1)


def selective_scan_2d_mamba(
    x: Tensor, proj: Tensor, dt_weight: Tensor, dt_bias: Tensor, A: Tensor, D: Tensor
) -> Tensor:
    """Four-direction selective scan of a feature map, summed over the directions; differentiable once.

    With direction ``k`` visiting the pixels row by row (0), column by column (1), or in the reverse of these (2, 3)::

        dt_l = softplus(dt_weight[k] @ proj_dt_l + dt_bias[k])
        h_l  = exp(dt_l * A[k]) * h_{l-1} + dt_l * x_l * B_l
        y_l  = <h_l, C_l> + D[k] * x_l

    Time ``O(B H W Di (N + R))``, memory about twelve float32 maps of the size of ``x``. Everything is computed in
    float32. The forward pass is deterministic; the package's kernel adds the gradients of B and C by float atomics, so
    the gradient of ``proj`` (and of what lies behind it) may differ in the last bits from run to run.

    Args:
        x: ``(B, H, W, Di)``, channels last, on a CUDA device.
        proj: ``(B, H, W, 4, R + 2 N)`` in pixel order: ``[dt (R) | B (N) | C (N)]`` of each direction; N up to 256.
        dt_weight: ``(4, Di, R)``. dt_bias: ``(4, Di)``. A: ``(4, Di, N)``. D: ``(4, Di)``.

    Returns:
        ``(B, H, W, Di)`` in the dtype of ``x``.

    Raises:
        RuntimeError: the kernel is not there (:func:`reason`).
        ValueError: N above 256.
    """
    scan, why = _probe()
    if scan is None:
        raise RuntimeError(why)
    rank, state = dt_weight.shape[2], A.shape[2]
    if state > _MAX_STATE:
        raise ValueError(f"the kernel of mamba_ssm takes up to {_MAX_STATE} states, not {state}")
    height, width = x.shape[1:3]
    with torch.autocast(x.device.type, enabled=False):
        u = _sequences(x.float())
        dt, b, c = _sequences(proj.float()).split([rank, state, state], dim=2)
        dt = torch.einsum("kdr,bkrl->bkdl", dt_weight.float(), dt)
        y = scan(
            u.flatten(1, 2),
            dt.flatten(1, 2),
            A.float().flatten(0, 1),
            b.contiguous(),
            c.contiguous(),
            D.float().flatten(),
            z=None,
            delta_bias=dt_bias.float().flatten(),
            delta_softplus=True,
        )
    return _merged(y.unflatten(1, (4, -1)), height, width).to(x.dtype)
