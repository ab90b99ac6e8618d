"""Time the kernels and networks on this machine; this is not a test.

    python scripts/benchmark.py [--quick] [--device cpu] [--threads 2] [--output_dir docs/results]

Prints which back ends run and why the others do not, writes benchmark.json, and inserts its tables into
docs/performance.md. Every figure is the median of several calls after a warm-up. Only compare figures within one run:
absolute times depend on the machine and its other load.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from comparison.cost import multiply_adds, parameters
from torch import Tensor
from torch.nn.functional import pad, softplus

from bundle.networks import NETWORKS, build_network, iconet
from bundle.networks.ss2d import SS2D
from bundle.networks.upsample import fourier_image_upsample
from bundle.ops import backend_report, patch_match, selective_scan_2d, use_backend
from bundle.ops.scan.reference import scan_orders
from bundle.training.losses import MultiStageL1Loss

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "performance.md"
BEGIN, END = "<!-- benchmark -->", "<!-- /benchmark -->"
PIPE_OPERATIONS = 9  # multiply-adds of an update, the polynomial of exp2 among them


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


# --- other forms of the scan, for the ratio


def directions_copied(x: Tensor, proj: Tensor, dt_weight: Tensor, dt_bias: Tensor, A: Tensor) -> tuple[Tensor, ...]:
    """The four sequences in the layout of public implementations: u, dt (B, 4, Di, L); b, c (B, 4, N, L)."""
    rank, state = dt_weight.shape[2], A.shape[2]
    order = scan_orders(x.shape[1], x.shape[2], x.device)
    u = x.flatten(1, 2)[:, order].permute(0, 1, 3, 2)
    p = torch.stack([proj.flatten(1, 2)[:, order[k], k] for k in range(4)], dim=1)
    dt_in, b, c = p.split([rank, state, state], dim=-1)
    dt = softplus(torch.einsum("bklr,kdr->bkdl", dt_in, dt_weight) + dt_bias[None, :, :, None])
    return u, dt, b.transpose(2, 3), c.transpose(2, 3)


def scan_python_loop(x, proj, dt_weight, dt_bias, A, D) -> Tensor:
    """As in mamba-ssm's reference: exp and input term for the whole sequence, then a loop over it."""
    u, dt, b, c = directions_copied(x, proj, dt_weight, dt_bias, A)
    decay = torch.exp(torch.einsum("bkdl,kdn->bkdln", dt, A))
    drive = torch.einsum("bkdl,bknl,bkdl->bkdln", dt, b, u)
    h, out = torch.zeros_like(decay[..., 0, :]), []
    for t in range(u.shape[-1]):
        h = decay[..., t, :] * h + drive[..., t, :]
        out.append(torch.einsum("bkdn,bkn->bkd", h, c[..., t]))
    return torch.stack(out, dim=-1)


def scan_parallel(x, proj, dt_weight, dt_bias, A, D) -> Tensor:
    """A parallel scan by doubling (Hillis and Steele): log2(L) passes over the whole sequence."""
    u, dt, b, c = directions_copied(x, proj, dt_weight, dt_bias, A)
    decay = torch.exp(torch.einsum("bkdl,kdn->bkdnl", dt, A))
    h = torch.einsum("bkdl,bknl,bkdl->bkdnl", dt, b, u)
    step = 1
    while step < u.shape[-1]:
        h = h + decay * pad(h[..., :-step], (step, 0))
        decay = decay * pad(decay[..., :-step], (step, 0), value=1.0)
        step *= 2
    return torch.einsum("bkdnl,bknl->bkdl", h, c)


def scan_inputs(side: int, d_state: int, device: str, channels: int = 192) -> list[Tensor]:
    torch.manual_seed(0)
    ss2d = SS2D(channels, d_state=d_state, dt_rank=6).to(device)
    x = torch.randn(1, side, side, channels, device=device)
    proj = ss2d.x_proj(x).view(1, side, side, 4, -1)
    tensors = [x, proj, ss2d.dt_weight, ss2d.dt_bias, -ss2d.A_log.exp(), ss2d.D]
    return [t.detach().requires_grad_() for t in tensors]


def benchmark_scan(sides: list[int], device: str, limits: dict[str, float]) -> list[dict]:
    left_out = ("reference", "torchscript")  # a Python loop; a form that keeps every state while training
    backends = [n for n, state in backend_report().items() if state == "available" and n not in left_out]
    rows = []
    for side in sides:
        for d_state in (16, 1):
            inputs = scan_inputs(side, d_state, device)
            updates = 4 * 192 * side * side * d_state
            moved = 4 * (2 * inputs[0].numel() + inputs[1].numel())  # bytes: x and proj read, the result written, once

            def record(
                name: str, forward: float, both: float | None, work=(updates, moved), row=(side, d_state)
            ) -> None:
                rows.append({"side": row[0], "d_state": row[1], "form": name})
                rows[-1] |= {"forward_s": forward, "forward_backward_s": both, "updates_per_s": work[0] / forward}
                product_rate, copy_rate = 1e9 * limits["sgemm_gflops"] / 2, 1e9 * limits["copy_gb_per_s"]
                rows[-1]["share_of_product_rate"] = PIPE_OPERATIONS * work[0] / forward / product_rate
                rows[-1]["share_of_copy_rate"] = work[1] / forward / copy_rate
                print("  scan", rows[-1], flush=True)

            for name in backends:
                with use_backend(name):

                    def forward(inputs=inputs) -> None:
                        with torch.no_grad():
                            selective_scan_2d(*inputs)

                    def both(inputs=inputs) -> None:
                        selective_scan_2d(*inputs).sum().backward()

                    record(name, median_time(forward, device), median_time(both, device, repeats=3))
            if side <= 128:  # the other forms hold every state of the sequence: 3.2 GB a tensor at 256x256
                with torch.no_grad():
                    for name, form in (("mamba-ssm formula, loop", scan_python_loop), ("doubling", scan_parallel)):
                        if form is scan_parallel and side > 64:  # a minute and more
                            continue
                        record(name, median_time(lambda f=form, i=inputs: f(*i), device, repeats=1), None)
    return rows


def machine_limits(device: str) -> dict[str, float]:
    """Peak rates of this machine: matrix product (GFLOP/s), exp2 in cache (G/s), copy (GB/s, read and write)."""
    a = torch.randn(2048, 2048, device=device)
    small, large = torch.randn(1 << 15, device=device), torch.randn(1 << 26, device=device)
    out, copy = torch.empty_like(small), torch.empty_like(large)

    def exponentials() -> None:
        for _ in range(200):
            torch.exp2(small, out=out)

    return {
        "sgemm_gflops": 2 * 2048**3 / median_time(lambda: a @ a, device) / 1e9,
        "torch_exp2_g_per_s": 200 * small.numel() / median_time(exponentials, device) / 1e9,
        "copy_gb_per_s": 8 * large.numel() / median_time(lambda: copy.copy_(large), device) / 1e9,
    }


def benchmark_search(sides: list[int], device: str, limits: dict[str, float]) -> list[dict]:
    rows = []
    for side in sides:
        torch.manual_seed(0)
        query, key, value = (torch.randn(1, side, side, 96, device=device) for _ in range(3))
        product = 2 * 9 * 96 * side**4  # of the unfolded patches, as the equations are written
        for name in ("native", "torch"):
            if backend_report()[name] != "available" or (name == "torch" and side > 128):
                continue
            with use_backend(name), torch.no_grad():
                seconds = median_time(lambda q=query, k=key, v=value: patch_match(q, k, v), device, repeats=3)
            gflops = product / seconds / 1e9
            rows.append({"side": side, "form": name, "seconds": seconds, "unfolded_gflops": gflops})
            rows[-1]["ratio_to_sgemm_time"] = limits["sgemm_gflops"] / gflops
            print("  search", rows[-1], flush=True)
    return rows


def in_its_own_process(setup: str, call: str, threads: int, repeats: int = 7) -> tuple[float, float | None]:
    """Median seconds of ``call``, and the memory (GB) that it used on top of ``setup`` (Linux, else None)."""
    code = f"""
import statistics, time, torch
torch.set_num_threads({threads})
{setup}
def memory(field):
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith(field)) / 2**20
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
print(statistics.median(times[1:] or times), None if before is None else memory("VmHWM") - before)
"""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-W", "ignore", "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode:
        raise RuntimeError(done.stderr)
    seconds, gigabytes = done.stdout.split()[-2:]
    return float(seconds), None if gigabytes == "None" else float(gigabytes)


def benchmark_networks(device: str, threads: int, names: list[str]) -> list[dict]:
    """Every network on one slice: 2x from 128x128 and 4x from 64x64."""
    rows = []
    for name in names:
        for scale, side in ((2, 128), (4, 64)):
            setup = f"""
from bundle.networks import build_network
network = build_network("{name}", {scale}).to("{device}").eval()
image = torch.rand(1, 1, {side}, {side}, device="{device}")
with torch.no_grad(): network(image[..., :8, :8])
"""
            call = "network(image)" + ("; torch.cuda.synchronize()" if device == "cuda" else "")
            seconds, gigabytes = in_its_own_process(setup, call, threads)
            network = build_network(name, scale)
            counts = multiply_adds(network, (1, 1, side, side))
            rows.append({"network": f"{name} x{scale}", "input": f"{side}x{side}", "parameters": parameters(network)})
            rows[-1] |= {f"gmacs_{kind}": count / 1e9 for kind, count in counts.items()}
            rows[-1] |= {"seconds_per_slice": seconds, "extra_gb": gigabytes}
            print("  network", rows[-1], flush=True)
    image = torch.rand(1, 1, 128, 128, device=device)
    seconds = median_time(lambda: fourier_image_upsample(image, 2), device)
    rows.append({"network": "zero-filled Fourier x2", "input": "128x128", "seconds_per_slice": seconds})
    return rows


def where_time_goes(device: str) -> dict[str, float]:
    """Share of each kind of operation in one 2x slice of the small network (PyTorch's profiler, self time)."""
    network, image = iconet("small", 2).to(device).eval(), torch.rand(1, 1, 128, 128, device=device)
    kinds = {"scan": "ss2d", "patch search": "patch_search", "products": "mm", "convolutions": "conv"}
    with torch.no_grad():
        network(image)
        with torch.profiler.profile() as profile:
            network(image)
    total: dict[str, float] = dict.fromkeys([*kinds, "the rest"], 0.0)
    for event in profile.key_averages():
        kind = next((k for k, mark in kinds.items() if mark in event.key), "the rest")
        total[kind] += event.self_cpu_time_total
    return {kind: value / sum(total.values()) for kind, value in total.items()}


def whole_volumes(counts: list[int], threads: list[int], device: str) -> list[dict]:
    """Volumes of 128x128 slices, 2x with the small network and data consistency, as in the inference workflow."""
    rows = []
    for number in threads:
        for slices in counts if number == max(threads) else counts[:-1]:  # the longest once
            setup = f"""
from bundle.inference.inferers import VolumeInferer
from bundle.networks import iconet
network, volume = iconet("small", 2).to("{device}").eval(), torch.rand(1, 1, 128, 128, {slices}, device="{device}")
inferer, warm = VolumeInferer(), torch.rand(1, 1, 8, 8, 1, device="{device}")
inferer(warm, network)
"""
            seconds, gigabytes = in_its_own_process(setup, "inferer(volume, network)", number, repeats=1)
            result = 4 * 256 * 256 * slices / 2**30
            rows.append({"slices": slices, "threads": number, "seconds": seconds, "extra_gb": gigabytes})
            rows[-1] |= {"of_it_result_gb": result}
            print("  volume", rows[-1], flush=True)
    return rows


def sizes(device: str, sides: list[int], threads: list[int]) -> list[dict]:
    """Seconds and memory for one slice of the small 2x network, by in-plane size and number of threads."""
    rows = []
    for side in sides:
        row: dict[str, Any] = {"side": side}
        for number in threads:
            setup = f"""
from bundle.networks import iconet
network, image = iconet("small", 2).to("{device}").eval(), torch.rand(1, 1, {side}, {side}, device="{device}")
with torch.no_grad(): network(image[..., :8, :8])
"""
            seconds, gigabytes = in_its_own_process(setup, "network(image)", number)
            row |= {f"seconds_{number}_threads": seconds, "extra_gb": gigabytes}
        rows.append(row)
        print("  size", row, flush=True)
    return rows


def training_step(device: str) -> list[dict]:
    """One update of the small network on four 96x96 high-resolution patches: forward only, and with backward."""
    rows = []
    for scale in (2, 4):
        network, loss = iconet("small", scale).to(device), MultiStageL1Loss()
        label = torch.rand(4, 1, 96, 96, device=device)
        image = label[..., ::scale, ::scale].contiguous()

        def forward(network=network, image=image) -> None:
            with torch.no_grad():
                network(image)

        def update(network=network, loss=loss, image=image, label=label) -> None:
            loss(network(image, return_stages=True), label).backward()

        rows.append({"scale": scale, "forward_s": median_time(forward, device)})
        rows[-1]["forward_backward_s"] = median_time(update, device)
        print("  training", rows[-1], flush=True)
    return rows


def markdown(title: str, rows: list[dict]) -> str:
    columns = list(dict.fromkeys(key for row in rows for key in row))

    def cell(value: Any) -> str:
        return "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)

    lines = [f"### {title}", "", "| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    lines += ["| " + " | ".join(cell(row.get(c)) for c in columns) + " |" for row in rows]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="smaller sizes and volumes: a few minutes")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--output_dir", type=Path, default=ROOT / "docs" / "results")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)

    for name, state in backend_report().items():
        print(f"{name}: {state}")
    machine = {"processor": platform.processor() or platform.machine(), "threads": args.threads}
    machine |= {"torch": torch.__version__, "device": args.device, "cores": os.cpu_count()}
    limits = machine_limits(args.device)
    print(machine, limits, flush=True)
    quick, counts = args.quick, sorted({1, args.threads})
    names = ["iconet_small"] if quick else list(NETWORKS)
    tables = {
        "Selective scan (192 channels)": benchmark_scan([64, 128] if quick else [64, 128, 256], args.device, limits),
        "Patch search (96 channels)": benchmark_search([64, 128] if quick else [64, 128, 160], args.device, limits),
        "Networks": benchmark_networks(args.device, args.threads, names),
        "Small network, 2x: by slice size": sizes(args.device, [64, 128] if quick else [64, 128, 256, 512], counts),
        "Small network, 2x: volumes of 128x128 slices": whole_volumes(
            [1, 10] if quick else [1, 130, 300], counts, args.device
        ),
        "Training step of the small network": training_step(args.device),
        "Small network, 2x: where the time of a slice goes (shares)": [where_time_goes(args.device)],
        "Limits of this machine": [limits],
    }
    result = {"machine": machine, "quick": quick, "backends": backend_report(), "tables": tables}
    args.output_dir.mkdir(parents=True, exist_ok=True)
    (args.output_dir / "benchmark.json").write_text(json.dumps(result, indent=1) + "\n")
    text = "\n".join(markdown(title, rows) for title, rows in tables.items())
    print(text)
    if args.output_dir.resolve() == PAGE.parent / "results":
        before, rest = PAGE.read_text().split(BEGIN)
        PAGE.write_text(before + BEGIN + "\n" + text + END + rest.split(END)[1])


if __name__ == "__main__":
    main()
