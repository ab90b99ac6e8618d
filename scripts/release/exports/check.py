"""Is an exported file the network? Both are run on the same slices."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

Runner = Callable[[Tensor], Tensor]
"""Slices (B, 1, h, w) to slices (B, 1, scale * h, scale * w)."""
TOLERANCE = 1e-4
"""Largest difference that an export may have, in units of the largest magnitude of the network's result."""


@dataclass(frozen=True)
class Comparison:
    """Largest difference, relative to the largest result, and median processor seconds per batch of each side."""

    difference: float
    expected_seconds: float
    seconds: float


def torchscript_runner(path: Path) -> Runner:
    """A TorchScript file, as its user loads it."""
    loaded: Runner = torch.jit.load(str(path)).eval()
    return loaded


def onnx_runner(path: Path) -> Runner:
    """An ONNX file in ONNX Runtime on the CPU, with as many threads as PyTorch has."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return lambda image: torch.from_numpy(session.run(["pred"], {"image": image.numpy()})[0])


@torch.no_grad()
def compare(expected: Runner, actual: Runner, batches: Sequence[Tensor]) -> Comparison:
    """Run both on the same batches, in turns.

    Raises:
        ValueError: another shape, or a value that is not finite.
    """
    times: list[tuple[float, float]] = []
    off = largest = 0.0
    for batch in batches:
        start = time.process_time()
        wanted = expected(batch)
        middle = time.process_time()
        got = actual(batch)
        times.append((middle - start, time.process_time() - middle))
        if got.shape != wanted.shape or not bool(got.isfinite().all()):
            raise ValueError(f"{tuple(got.shape)} or not finite for a batch {tuple(batch.shape)}")
        off = max(off, float((got - wanted).abs().max()))
        largest = max(largest, float(wanted.abs().max()))
    expected_seconds, seconds = (statistics.median(side) for side in zip(*times, strict=True))
    return Comparison(off / largest, expected_seconds, seconds)
