"""Time calls, in this process or in one of their own, and find out what the machine can do."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch

ROOT = Path(__file__).resolve().parent.parent.parent


def median_time(call: Callable[[], Any], device: str, repeats: int = 5, budget: float = 20.0) -> float:
    """Median seconds per call, after one warm-up call; fewer repeats once ``budget`` seconds are used up."""
    times: list[float] = []
    start = time.perf_counter()
    for _ in range(repeats + 1):
        begin = time.perf_counter()
        call()
        if device == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - begin)
        if time.perf_counter() - start > budget and len(times) > 1:
            break
    return statistics.median(times[1:])


def limits(device: str) -> dict[str, float]:
    """Peak rates of this machine: matrix product (GFLOP/s), exp2 in cache (G/s), copy (GB/s, read and write)."""
    small, large = torch.randn(1 << 15, device=device), torch.randn(1 << 26, device=device)
    out, copy = torch.empty_like(small), torch.empty_like(large)

    def exponentials() -> None:
        for _ in range(200):
            torch.exp2(small, out=out)

    return {
        "sgemm_gflops": sgemm_rate(device),
        "torch_exp2_g_per_s": 200 * small.numel() / median_time(exponentials, device) / 1e9,
        "copy_gb_per_s": 8 * large.numel() / median_time(lambda: copy.copy_(large), device) / 1e9,
    }


def sgemm_rate(device: str = "cpu") -> float:
    """GFLOP/s of PyTorch's single precision product of two 2048 x 2048 matrices."""
    a = torch.randn(2048, 2048, device=device)
    return 2 * 2048**3 / median_time(lambda: a @ a, device) / 1e9


class Timed(NamedTuple):
    """Of a process of its own."""

    seconds: float
    """Median of its calls."""
    peak_bytes: int | None
    """Memory at its peak on top of the setup (Linux, else None)."""
    sgemm_gflops: float
    """Rate of the matrix product in that process, with as many threads."""


def in_its_own_process(setup: str, call: str, threads: int, root: Path = ROOT, repeats: int = 7) -> Timed:
    """Time Python code in a fresh process.

    Args:
        setup: before the clock starts.
        call: what is timed.
        threads: of PyTorch.
        root: checkout whose code runs.
        repeats: calls, fewer once they have used 15 seconds; the first does not count if there are others.
    """
    code = f"""
import statistics, time, torch
torch.set_num_threads({threads})
{setup}
def memory(field):
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith(field)) * 1024
before = None
try:
    with open("/proc/self/clear_refs", "w") as file: file.write("5")  # the peak counts from here on
    before = memory("VmRSS")
except OSError: pass
times = []
with torch.no_grad():
    for _ in range({repeats}):
        start = time.perf_counter()
        {call}
        times.append(time.perf_counter() - start)
        if sum(times) > 15: break
peak = None if before is None else memory("VmHWM") - before
a = torch.randn(2048, 2048)
rates = []
for _ in range(4):
    start = time.perf_counter()
    a @ a
    rates.append(2 * 2048**3 / (time.perf_counter() - start) / 1e9)
print(statistics.median(times[1:] or times), peak, max(rates))
"""
    seconds, peak, rate = run_python(["-c", code], root).split()[-3:]
    return Timed(float(seconds), None if peak == "None" else int(peak), float(rate))


def run_python(arguments: list[str], root: Path) -> str:
    """Standard output of Python with the code of a checkout.

    Raises:
        RuntimeError: it failed.
    """
    environment = {**os.environ, "PYTHONPATH": str(root)}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", *arguments], capture_output=True, text=True, env=environment, cwd=root
    )
    if done.returncode:
        raise RuntimeError(done.stderr)
    return done.stdout


@contextmanager
def busy(processes: int) -> Iterator[None]:
    """Processes that keep a core busy each, as on a machine with other users."""
    others = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(processes)]
    time.sleep(0.5)
    try:
        yield
    finally:
        for other in others:
            other.kill()
            other.wait()
