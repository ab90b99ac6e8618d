"""An RSCFL block for inference by the native CPU kernel, as an operator."""

from __future__ import annotations

import torch
from torch import Tensor

from bundle.ops import native
from bundle.ops.native.rscfl import PARAMETERS, parameter_shapes, rscfl

__all__ = ["rscfl_native"]


@torch.library.custom_op("iconet::rscfl", mutates_args=(), device_types="cpu")
def _rscfl(x: Tensor, parameters: list[Tensor]) -> Tensor:
    library = native.load()
    if library is None:
        raise RuntimeError(native.reason())
    return rscfl(library, x.contiguous(), [t.contiguous() for t in parameters])


@_rscfl.register_fake
def _(x: Tensor, parameters: list[Tensor]) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


def rscfl_native(x: Tensor, parameters: dict[str, Tensor]) -> Tensor:
    """``x + CRB(VMB(x))``, see :class:`bundle.networks.rscfl.RSCFL`, without gradients.

    Besides the result it needs two maps of the inner width for each image that it works on. The result does not depend
    on the number of threads.

    Args:
        x: (B, H, W, F) float32 on the CPU, as all tensors.
        parameters: the tensors named in `bundle.ops.native.rscfl.PARAMETERS`, shaped as the modules have them.

    Raises:
        RuntimeError: the kernel is not available here; the message says why.
        TypeError, ValueError: a tensor of another type, device or shape.
    """
    for name, t in {"x": x, **parameters}.items():
        if t.dtype != torch.float32 or t.device.type != "cpu":
            raise TypeError(f"the native block takes float32 tensors on the CPU, {name} is {t.dtype} on {t.device}")
    _check_shapes(x, parameters)
    result: Tensor = torch.ops.iconet.rscfl(x, [parameters[name] for name in PARAMETERS])
    return result


def _check_shapes(x: Tensor, parameters: dict[str, Tensor]) -> None:
    """The kernel reads as much memory as these shapes say."""
    rates, rank = parameters["a_log"].shape, parameters["dt_weight"].shape[-1]
    if x.ndim != 4 or x.numel() == 0 or len(rates) != 3:
        shapes = f"x {tuple(x.shape)} and a_log {tuple(rates)}"
        raise ValueError(f"{shapes} must be a non-empty (B, H, W, F) and (4, Di, N)")
    squeezed = parameters["squeeze_weight"].shape[0]
    for name, shape in parameter_shapes(x.shape[3], *rates[1:], rank, squeezed).items():
        if parameters[name].shape != shape:
            raise ValueError(f"{name} has the shape {tuple(parameters[name].shape)}, expected {shape}")
