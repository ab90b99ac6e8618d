"""Time the kernels and networks on this machine; this is not a test.

    python scripts/benchmark.py [--quick] [--device cpu] [--threads 2] [--before CHECKOUT] [--output_dir docs/results]

Prints which back ends run and why the others do not, writes benchmark.json, and inserts its tables into
docs/performance.md. Every figure is the median of several calls after a warm-up. Only compare figures within one run:
absolute times depend on the machine and its other load. With --before, a checkout of another version (git worktree)
takes its turn after each measurement of this one.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
from pathlib import Path
from typing import Any

import torch
from timing import kernels, machine, networks

from bundle.networks import NETWORKS
from bundle.ops import backend_report

PAGE = machine.ROOT / "docs" / "performance.md"
BEGIN, END = "<!-- benchmark -->", "<!-- /benchmark -->"
MAIN = ["residual_sr", "iconet_small"]
CASES: list[networks.Case] = [(name, 2, side) for name in MAIN for side in (128, 256, 512)]
CASES += [(name, 4, 64) for name in MAIN] + [("iconet_paper", 2, 128), *((name, 2, 2048) for name in MAIN)]
GOALS = {  # seconds of version 0.3.0 and of the goal, on two cores with 171.5 GFLOP/s together
    ("iconet_small 2x", "128x128"): (0.48, 0.15),
    ("iconet_small 2x", "256x256"): (2.3, 0.7),
    ("iconet_small 2x", "512x512"): (17.7, 3.5),
    ("iconet_small 4x", "64x64"): (0.62, 0.2),
    ("iconet_paper 2x", "128x128"): (2.0, 1.4),
}
GOALS_SGEMM = 171.5


def against_goals(rows: list[dict[str, Any]], threads: int) -> list[dict[str, Any]]:
    """Seconds times the rate of the matrix product, in GFLOP: of version 0.3.0, the goal, now and the floor."""
    table = []
    for row in rows:
        goal = GOALS.get((row["network"], row["input"]))
        if goal is not None and row["threads"] == threads:
            before, wanted = (GOALS_SGEMM * seconds for seconds in goal)
            table.append({"network": row["network"], "input": row["input"], "version_0.3.0": before, "goal": wanted})
            table[-1] |= {"now": row["product_gflop"], "floor": row["floor_gflop"]}
    return table


def measure(args: argparse.Namespace, limits: dict[str, float]) -> dict[str, list[dict[str, Any]]]:
    """All tables."""
    quick, device, threads, before = args.quick, args.device, args.threads, args.before
    counts = sorted({1, threads})
    cases = [case for case in CASES if case[2] <= 128 and case[0] in MAIN] if quick else CASES
    slices = networks.slices([case for case in cases if case[2] <= 512], counts, device, before)
    large = networks.slices([case for case in cases if case[2] > 512], [threads], device, None)
    sides = [64, 128] if quick else [64, 128, 256]
    tables = {
        "Slices against the goals (seconds x GFLOP/s of the matrix product)": against_goals(slices, threads),
        "Slices": slices,
        "Large slices": large,
        "Volumes of 128x128 slices": networks.volumes(MAIN, [1, 10] if quick else [1, 130], counts, device, before),
        "Training steps": networks.training_steps(MAIN, threads, device, before),
        "Networks": networks.every_network(MAIN if quick else list(NETWORKS), threads, device),
        "Start of the command": networks.command(before),
        "Beside four busy processes": networks.loaded_machine(MAIN, threads, before),
        "Selective scan (192 channels)": kernels.benchmark_scan(sides, device, limits),
        "Patch search (96 channels)": kernels.benchmark_search([64, 128] if quick else [64, 128, 160], device, limits),
        "Where the time of a 128x128 slice goes (shares)": [kernels.where_time_goes(name, device) for name in MAIN],
        "Limits of this machine": [limits],
    }
    return {title: rows for title, rows in tables.items() if rows}


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
    parser.add_argument("--before", type=Path, help="checkout of a version to compare with")
    parser.add_argument("--output_dir", type=Path, default=machine.ROOT / "docs" / "results")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)

    for name, state in backend_report().items():
        print(f"{name}: {state}")
    facts = {"processor": platform.processor() or platform.machine(), "threads": args.threads}
    facts |= {"torch": torch.__version__, "device": args.device, "cores": os.cpu_count()}
    limits = machine.limits(args.device)
    print(facts, limits, flush=True)
    tables = measure(args, limits)
    result = {"machine": facts, "quick": args.quick, "backends": backend_report(), "tables": tables}
    args.output_dir.mkdir(parents=True, exist_ok=True)
    (args.output_dir / "benchmark.json").write_text(json.dumps(result, indent=1) + "\n")
    text = "\n".join(markdown(title, rows) for title, rows in tables.items())
    print(text)
    if args.output_dir.resolve() == PAGE.parent / "results":
        before, rest = PAGE.read_text().split(BEGIN)
        PAGE.write_text(before + BEGIN + "\n" + text + END + rest.split(END)[1])


if __name__ == "__main__":
    main()
