"""Call the RSCFL block of the compiled library. All tensors are contiguous float32 on the CPU; the callers check."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import torch
from torch import Tensor

from bundle.ops.native.library import Library, fields

__all__ = ["PARAMETERS", "parameter_shapes", "rscfl"]

PARAMETERS = (
    *(
        "norm_weight",
        "norm_bias",
        "in_proj",
        "conv_weight",
        "conv_bias",
        "x_proj",
        "dt_weight",
        "dt_bias",
        "a_log",
        "d",
    ),
    *("out_norm_weight", "out_norm_bias", "out_proj"),
    *("squeeze_weight", "squeeze_bias", "excite_weight", "excite_bias"),
)


def parameter_shapes(features: int, inner: int, n_state: int, rank: int, squeezed: int) -> dict[str, tuple[int, ...]]:
    """Shapes of `PARAMETERS`, in their order, for a block of so many channels."""
    shapes = [
        *((features,), (features,), (2 * inner, features), (inner, 1, 3, 3), (inner,)),
        *((4 * (rank + 2 * n_state), inner), (4, inner, rank), (4, inner), (4, inner, n_state), (4, inner)),
        *((inner,), (inner,), (features, inner)),
        *((squeezed, features, 1, 1), (squeezed,), (features, squeezed, 1, 1), (features,)),
    ]
    return dict(zip(PARAMETERS, shapes, strict=True))


class _Call(ctypes.Structure):
    _fields_ = fields(f"x {' '.join(PARAMETERS)} out", "batch height width features inner n_state rank squeezed")


def rscfl(library: Library, x: Tensor, parameters: Sequence[Tensor]) -> Tensor:
    """``x + CRB(VMB(x))`` of x (B, H, W, F), with the parameters in the order of `PARAMETERS`."""
    out = torch.empty_like(x)
    by_name = dict(zip(PARAMETERS, parameters, strict=True))
    call = _Call(*(t.data_ptr() for t in (x, *parameters, out)), *x.shape)
    call.inner, call.n_state = by_name["a_log"].shape[1:]
    call.rank, call.squeezed = by_name["dt_weight"].shape[2], by_name["squeeze_bias"].shape[0]
    library.run("iconet_rscfl", call)
    return out
