"""Whether a block runs as one kernel."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from bundle.ops.backend import select_backend
from bundle.ops.modules import is_unwatched
from bundle.ops.transformed import is_transformed, needs_gradient


def block_kernel(x: Tensor, block: nn.Module) -> Callable[[Tensor, dict[str, Tensor]], Tensor] | None:
    """The kernel that runs an RSCFL block on ``x`` at once; ``None``: run its modules one by one.

    It is for inference alone: no gradients, no graph that is recorded or compiled, no autocast, and no hooks inside the
    block that want to see the maps between its modules.

    Args:
        x: input of the block, (B, H, W, F).
        block: the block, for its parameters and hooks.
    """
    if torch.jit.is_tracing() or torch.compiler.is_compiling() or torch.is_autocast_enabled(x.device.type):
        return None
    parameters = list(block.parameters())
    if needs_gradient(x, *parameters):
        return None
    if any(t.dtype != x.dtype or t.device != x.device for t in parameters) or x.numel() == 0:
        return None
    if not is_unwatched(*block.children()) or is_transformed(x, *parameters):
        return None
    return select_backend(x).block_function
