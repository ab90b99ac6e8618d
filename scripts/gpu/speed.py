"""Updates and slices per second of the networks of a plan: the step alone, on random patches that lie on the device.

    python -m gpu.speed PLAN.yaml OUTPUT.json --device cuda [--seconds 60] [--tiny]

An update is forward, the loss on the last image, backward and Adam. What a training makes of it, with its data and its
whole loss, is in the run's own table.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from comparison.cost import parameters
from torch.nn.functional import l1_loss

from bundle.networks import build_network
from gpu.kernels import synchronise
from gpu.plan import Entry, read_plan
from gpu.report import Report

SIDE, SLICES = 128, 8
"""Side of the slices, and how many are run at once."""
ROOT = Path(__file__).resolve().parents[2]


def per_second(function: Callable[[], Any], device: str, seconds: float) -> float:
    """Calls per second, after one to warm up; at least one call is timed."""
    function()
    synchronise(device)
    calls, start = 0, time.perf_counter()
    while calls == 0 or time.perf_counter() - start < seconds:
        function()
        calls += 1
        if calls % 4 == 0 or device == "cpu":
            synchronise(device)
    synchronise(device)
    return calls / (time.perf_counter() - start)


def measure(entry: Entry, device: str, seconds: float, tiny: bool = False) -> dict[str, Any]:
    """Speed of an entry's network as it is trained.

    Args:
        entry: for the network, its options, ``batch_size``, ``patch_size`` and ``bf16``.
        device: ``cuda`` or ``cpu``.
        seconds: for the updates, and again for the slices.
        tiny: one patch of 32 and one slice of 16 in place of the plan's.
    """
    batch, patch = (
        (1, 32) if tiny else (int(entry.options["batch_size"]), int(entry.options.get("patch_size", 32 * entry.scale)))
    )
    slices, side = (1, 16) if tiny else (SLICES if device == "cuda" else 1, SIDE)
    half = bool(entry.options.get("bf16", False))
    network = build_network(entry.network_name, entry.scale, **entry.network_options(ROOT)).to(device)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-4, fused=True)
    low = torch.rand(batch, 1, patch // entry.scale, patch // entry.scale, device=device)
    high = torch.rand(batch, 1, patch, patch, device=device)

    def update() -> None:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(device, dtype=torch.bfloat16, enabled=half):
            out = network(low)
        l1_loss(out.float(), high).backward()
        optimizer.step()

    updates = per_second(update, device, seconds)
    memory = torch.cuda.max_memory_allocated() / 2**20 if device == "cuda" else None
    images = torch.rand(slices, 1, side, side, device=device)

    @torch.no_grad()
    def infer() -> None:
        network(images)

    network.eval()
    inferred = slices * per_second(infer, device, seconds)
    about = {"network": entry.network_name, "scale": entry.scale, "parameters": parameters(network), "bf16": half}
    sizes = {"batch": batch, "patch": patch, "side": side}
    speeds = {"updates_per_second": round(updates, 3), "slices_per_second": round(inferred, 2)}
    return {**about, **sizes, **speeds, "training_mib": memory and round(memory)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("plan", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--seconds", type=float, default=60, help="about how long all of it takes")
    parser.add_argument("--tiny", action="store_true", help="tiny sizes, for a check")
    args = parser.parse_args()
    plan = read_plan(args.plan, ROOT, args.device)
    entries = {(entry.network_name, entry.scale): entry for entry in reversed(plan.queue) if not entry.configs}
    report = Report(args.output, args.device)
    each = 0.05 if args.tiny else min(2.0, args.seconds / (4 * max(len(entries), 1)))
    for entry in reversed(entries.values()):
        if args.device == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        try:
            row = measure(entry, args.device, each, args.tiny)
        except Exception as error:  # an unknown network or one that is too large; the others go on
            message = " ".join(str(error).split())[:300]
            row = {"network": entry.network_name, "scale": entry.scale, "failed": message}
        report.add("speed", row)
    report.set(complete=True)


if __name__ == "__main__":
    main()
