"""Tensors for which only PyTorch's own operations know what to do."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd.forward_ad import unpack_dual


def is_transformed(*tensors: Tensor) -> bool:
    """Whether one belongs to a transform of ``torch.func`` (grad, vmap, jvp, ...) or carries a forward-mode gradient.

    The native operators have no rule for either: they would stop, or lose the gradient without a word. What is being
    compiled counts as not transformed.
    """
    if torch.compiler.is_compiling():
        return False
    wrapped, batched = torch._C._functorch.is_functorch_wrapped_tensor, torch._C._functorch.is_legacy_batchedtensor
    return any(wrapped(t) or batched(t) or unpack_dual(t).tangent is not None for t in tensors)


def needs_gradient(*tensors: Tensor) -> bool:
    """Whether autograd will want the gradient of one of them."""
    return torch.is_grad_enabled() and any(t.requires_grad for t in tensors)
