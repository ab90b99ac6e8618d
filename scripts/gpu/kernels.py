"""Proof of the scan and the patch search on a device against float64 on the CPU, and their times beside their floors.

    python -m gpu.kernels OUTPUT.json --device cuda [--tiny]

The file is written after every row, so that a run that is stopped leaves what it measured.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import torch
from torch import Tensor, nn

from bundle.ops import backend_report, patch_match, selective_scan_2d, use_backend
from bundle.ops.backend import named_backend, select_backend
from bundle.ops.search.patch_match import cosine_at
from gpu.report import Report


class Shape(NamedTuple):
    """Of a scan: maps (batch, height, width, channels), rank of the time step, states."""

    batch: int
    height: int
    width: int
    channels: int
    rank: int
    state: int


PROOF = tuple(
    Shape(*sizes)
    for sizes in (
        *((1, 1, 1, 32, 2, 4), (1, 5, 7, 32, 2, 4), (2, 3, 17, 48, 2, 4), (1, 16, 16, 48, 2, 4)),
        *((2, 24, 24, 48, 2, 4), (1, 64, 48, 48, 2, 4), (4, 12, 12, 192, 6, 16), (1, 33, 31, 100, 6, 16)),
        *((1, 24, 24, 192, 6, 16), (2, 24, 24, 192, 6, 16), (8, 9, 16, 96, 6, 16), (1, 48, 48, 192, 6, 16)),
    )
)
"""Sizes of the small and the paper's network, odd ones, and long sequences that are cut into segments."""
TIMED = {"paper": Shape(16, 48, 48, 192, 6, 16), "small": Shape(32, 48, 48, 48, 2, 4)}
"""The scans of a training with patches of 96x96."""
TINY = (Shape(1, 3, 4, 8, 2, 4), Shape(2, 5, 3, 12, 3, 8))
# Largest error as a share of the largest value: rounding of sums in float32; of results in bfloat16 (8 bits).
TOLERANCE = {torch.float32: 2e-4, torch.bfloat16: 1.2e-2}
REGRET = 1e-5
"""A match may be this much less similar than the best one: equal up to rounding."""
NAMES = ("y", "dx", "dproj", "ddt_weight", "ddt_bias", "dA", "dD")


def scan_inputs(shape: Shape, seed: int = 0) -> list[Tensor]:
    """x, proj, dt_weight, dt_bias, A and D as a network has them, float64."""
    random = torch.Generator().manual_seed(seed)
    b, h, w, c, r, n = shape
    sizes = [(b, h, w, c), (b, h, w, 4, r + 2 * n), (4, c, r), (4, c), (4, c, n), (4, c)]
    x, proj, weight, bias, rate, skip = (torch.randn(size, generator=random, dtype=torch.float64) for size in sizes)
    return [x, proj, weight * r**-0.5, bias - 4.0, -(rate.abs() * n).clamp_min(0.1), skip]


def prove_scan(shape: Shape, dtype: torch.dtype, device: str) -> dict[str, Any]:
    """Errors of the scan, forward and backward, as shares of the largest value, with maps of a type."""
    inputs = scan_inputs(shape)
    upstream = torch.randn(shape[:4], generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    inputs = [t.to(dtype if i < 2 else torch.float32).double() for i, t in enumerate(inputs)]  # rounded once for both
    upstream = upstream.to(dtype).double()
    with use_backend("torch"):
        right = _scan_and_gradients(inputs, upstream)
    given = [t.to(device, dtype if i < 2 else torch.float32) for i, t in enumerate(inputs)]
    with torch.autocast(device, dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
        found = _scan_and_gradients(given, upstream.to(device, dtype))
    errors = {n: _error(a, b) for n, a, b in zip(NAMES, found, right, strict=True)}
    ok = all(error <= TOLERANCE[dtype] for error in errors.values())  # False for NaN
    return {"kernel": "scan", "shape": list(shape), "dtype": str(dtype)[6:], "errors": errors, "ok": ok}


def _scan_and_gradients(inputs: Sequence[Tensor], upstream: Tensor) -> list[Tensor]:
    leaves = [t.detach().requires_grad_() for t in inputs]
    y = selective_scan_2d(*leaves)
    return [y.detach(), *torch.autograd.grad(y, leaves, upstream)]


def _error(found: Tensor, right: Tensor) -> float:
    scale = float(right.abs().max()) or 1.0
    return float(f"{float((found.cpu().double() - right).abs().max()) / scale:.2e}")


def prove_search(shape: Shape, dtype: torch.dtype, device: str) -> dict[str, Any]:
    """How much less similar the matches are than the best ones, and the share of equal places."""
    random = torch.Generator().manual_seed(2)
    size = (shape.batch, shape.height, shape.width, max(shape.channels // 2, 1))
    query, key = (torch.randn(size, generator=random).to(dtype).double() for _ in range(2))
    with use_backend("torch"):
        right = patch_match(query, key, key).indices
    with torch.autocast(device, dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
        there = [t.to(device, dtype) for t in (query, key)]
        found = patch_match(there[0], there[1], there[1]).indices.cpu()
    regret = float((cosine_at(query, key, right) - cosine_at(query, key, found)).abs().max())
    errors = {"regret": float(f"{regret:.2e}"), "other_places": float((found != right).double().mean())}
    return {"kernel": "search", "shape": list(size), "dtype": str(dtype)[6:], "errors": errors, "ok": regret <= REGRET}


def prove(report: Report, shapes: Sequence[Shape], device: str) -> bool:
    """Prove both kernels on all shapes in both types; whether all of it held and the fast back end ran."""
    backend = select_backend(torch.zeros(1, device=device)).name
    wanted = {"cuda": "triton", "cpu": backend}[device]
    proved = backend == wanted
    report.set(backend=backend, backends=backend_report() if device == "cuda" else {})
    for dtype in TOLERANCE:
        for function in (prove_scan, prove_search):
            for shape in shapes:
                try:
                    row = function(shape, dtype, device)
                except Exception as error:  # a kernel that fails on one shape may run on the others
                    row = {"kernel": function.__name__, "shape": list(shape), "dtype": str(dtype)[6:], "ok": False}
                    row["errors"] = {"message": " ".join(str(error).split())[:300]}
                proved = proved and row["ok"]
                report.add("proof", row)
    report.set(proved=proved)
    return proved


# -------------------------------------------------------------------------------------------------------------- times


def milliseconds(function: Callable[[], Any], device: str, repeats: int = 20) -> float:
    """Median time of a call, after two to warm up."""
    times = []
    for number in range(repeats + 2):
        synchronise(device)
        start = time.perf_counter()
        function()
        synchronise(device)
        if number > 1:
            times.append(time.perf_counter() - start)
    return round(1e3 * statistics.median(times), 4)


def synchronise(device: str) -> None:
    """Wait for a GPU."""
    if device == "cuda":
        torch.cuda.synchronize()


def floors(shape: Shape) -> dict[str, float]:
    """Milliseconds below which this GPU cannot be, by its exponentials (scan) or its float32 products (search).

    A multiprocessor takes 16 exponentials or 128 multiply-adds a cycle. The scan takes one exponential for each state
    of each channel, pixel and direction forward, and two more backward.
    """
    properties = torch.cuda.get_device_properties(0)
    cycles = properties.multi_processor_count * 1e3 * getattr(properties, "clock_rate", 1_755_000)
    b, h, w, c, _, n = shape
    scan, search = 4 * b * h * w * c * n / (16 * cycles), b * (h * w) ** 2 * 9 * (c // 2) / (128 * cycles)
    return {"scan": 1e3 * scan, "scan and gradient": 3e3 * scan, "search": 1e3 * search}


@contextlib.contextmanager
def cut_into(segments: int | None) -> Iterator[None]:
    """Run the scan with a number of segments; ``None`` is the product's own choice."""
    if segments is None:
        yield
        return
    with mock.patch("bundle.ops.scan.triton._segments", lambda programs, tiles, device: min(segments, tiles)):
        yield


def time_kernels(report: Report, shapes: dict[str, Shape], device: str, repeats: int = 20) -> None:
    """Times of the scan (on a GPU for several numbers of segments), the searches and the depthwise convolution."""
    for name, shape in shapes.items():
        floor = floors(shape) if device == "cuda" else {}
        for what, variant, function in _timed(shape, device):
            try:
                spent: float | str = milliseconds(function, device, repeats)
            except Exception as error:  # out of memory, say: the others are still worth their time
                spent = " ".join(str(error).split())[:200]
            row = {"what": what, "size": name, "variant": variant, "ms": spent}
            report.add("times", {**row, "floor_ms": round(floor.get(what, 0.0), 3) or None})


def _timed(shape: Shape, device: str) -> Iterator[tuple[str, str, Callable[[], Any]]]:
    """(what, variant, function) of everything that is timed for a size."""
    inputs = [t.to(device, torch.float32) for t in scan_inputs(shape)]
    upstream = torch.ones(shape[:4], device=device)
    for segments in (None, 1, 2, 3, 4) if device == "cuda" else (None,):
        variant = "as chosen" if segments is None else f"{segments} segments"

        def forward(segments: int | None = segments) -> None:
            with cut_into(segments), torch.no_grad():
                selective_scan_2d(*inputs)

        def both(segments: int | None = segments) -> None:
            with cut_into(segments):
                _scan_and_gradients(inputs, upstream)

        yield "scan", variant, forward
        yield "scan and gradient", variant, both
    query, key = (torch.randn(*shape[:3], max(shape.channels // 2, 1), device=device) for _ in range(2))
    searches = {"cuda": ("triton", "mamba_ssm"), "cpu": ("torch",)}[device]  # the row of mamba_ssm has the tiled form
    for row in searches:
        function = named_backend(row).search_function
        yield "search", function.__name__, partial(function, query, key)
    for dtype in (torch.float32, torch.bfloat16):
        yield from _depthwise(shape, dtype, device)


def _depthwise(shape: Shape, dtype: torch.dtype, device: str) -> Iterator[tuple[str, str, Callable[[], Any]]]:
    """The vision Mamba block's convolution on its channels-last view, and on a copy that is contiguous."""
    convolution = nn.Conv2d(shape.channels, shape.channels, 3, padding=1, groups=shape.channels).to(device, dtype)
    view = torch.randn(shape[:4], device=device, dtype=dtype).permute(0, 3, 1, 2).requires_grad_()

    def step(contiguous: bool) -> None:
        y = convolution(view.contiguous() if contiguous else view)
        torch.autograd.grad(y, [view, *convolution.parameters()], torch.ones_like(y))

    for contiguous in (False, True):
        variant = f"{str(dtype)[6:]}, {'contiguous' if contiguous else 'channels last'}"
        yield "depthwise convolution and gradient", variant, partial(step, contiguous)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path)
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--tiny", action="store_true", help="a few tiny shapes, for a check without a GPU")
    args = parser.parse_args()
    report = Report(args.output, args.device)
    prove(report, TINY if args.tiny else PROOF, args.device)
    if args.tiny:
        time_kernels(report, {"tiny": TINY[0]}, args.device, repeats=2)
    else:
        time_kernels(report, TIMED, args.device)
    report.set(complete=True)


if __name__ == "__main__":
    main()
