"""Matrix products in float32 proper, whatever the caller allows."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch


@contextlib.contextmanager
def float32_proper() -> Iterator[None]:
    """No TF32 in matrix products on a GPU inside a ``with`` block; the caller's setting is put back.

    PyTorch keeps the setting in an older and a newer place and raises when asked in the older one for what was set in
    the newer. ``high`` is put back through the CUDA switch alone, as the common one would change the CPU's setting too.
    """
    cuda = torch.backends.cuda.matmul
    try:
        kept = torch.get_float32_matmul_precision()
    except RuntimeError:
        kept, cuda.fp32_precision = cuda.fp32_precision, "ieee"
        try:
            yield
        finally:
            cuda.fp32_precision = kept
        return
    try:
        if kept == "high":
            cuda.allow_tf32 = False
        elif kept == "medium":
            torch.set_float32_matmul_precision("highest")
        yield
    finally:
        if kept == "high":
            cuda.allow_tf32 = True
        elif kept == "medium":
            torch.set_float32_matmul_precision(kept)
