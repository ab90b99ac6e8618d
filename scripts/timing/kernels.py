"""Time the kernels alone, against other forms of the same result and the limits of the machine."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import pad, softplus

from bundle.networks import build_network
from bundle.networks.ss2d import SS2D
from bundle.ops import backend_report, patch_match, selective_scan_2d, use_backend
from bundle.ops.scan.reference import scan_orders
from timing.machine import median_time

PIPE_OPERATIONS = 9  # multiply-adds of an update, the polynomial of exp2 among them


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
                        record(name, median_time(partial(form, *inputs), device, repeats=1), None)
    return rows


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
                seconds = median_time(partial(patch_match, query, key, value), device, repeats=3)
            gflops = product / seconds / 1e9
            rows.append({"side": side, "form": name, "seconds": seconds, "unfolded_gflops": gflops})
            rows[-1]["ratio_to_sgemm_time"] = limits["sgemm_gflops"] / gflops
            print("  search", rows[-1], flush=True)
    return rows


def where_time_goes(name: str, device: str) -> dict[str, str | float]:
    """Share of each kind of operation in one 2x slice of a network (PyTorch's profiler, self time)."""
    network, image = build_network(name, 2).to(device).eval(), torch.rand(1, 1, 128, 128, device=device)
    kinds = {
        "blocks": "rscfl",
        "scan": "ss2d",
        "patch search": "patch_search",
        "convolutions": "conv",
        "products": "mm",
    }
    with torch.no_grad():
        network(image)
        with torch.profiler.profile() as profile:
            network(image)
    total: dict[str, float] = dict.fromkeys([*kinds, "the rest"], 0.0)
    for event in profile.key_averages():
        kind = next((k for k, mark in kinds.items() if mark in event.key), "the rest")
        total[kind] += event.self_cpu_time_total
    return {"network": name, **{kind: value / sum(total.values()) for kind, value in total.items()}}
