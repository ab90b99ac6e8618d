"""Time the kernels and networks on this machine; this is not a test.

    python scripts/benchmark.py [--quick] [--device cpu] [--threads 2] [--before CHECKOUT] [--only WORD ...]

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
from collections.abc import Callable
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


def tables(args: argparse.Namespace, limits: dict[str, float]) -> dict[str, Callable[[], list[dict[str, Any]]]]:
    """What makes each table."""
    quick, device, threads, before = args.quick, args.device, args.threads, args.before
    counts = sorted({1, threads})
    cases = [case for case in CASES if case[2] <= 128 and case[0] in MAIN] if quick else CASES
    usual, large = ([case for case in cases if (case[2] > 512) == much] for much in (False, True))
    sides, searched = ([64, 128], [64, 128]) if quick else ([64, 128, 256], [64, 128, 160])
    volumes = [1, 10] if quick else [1, 130]
    return {
        "Slices": lambda: networks.slices(usual, counts, device, before),
        "Large slices": lambda: networks.slices(large, [threads], device, None),
        "Volumes of 128x128 slices": lambda: networks.volumes(MAIN, volumes, counts, device, before),
        "Training steps": lambda: networks.training_steps(MAIN, threads, device, before),
        "Beside four busy processes": lambda: networks.loaded_machine(MAIN, threads, before),
        "Start of the command": lambda: networks.command(before),
        "Networks": lambda: networks.every_network(MAIN if quick else list(NETWORKS), threads, device),
        "Selective scan (192 channels)": lambda: kernels.benchmark_scan(sides, device, limits),
        "Patch search (96 channels)": lambda: kernels.benchmark_search(searched, device, limits),
        "Where the time of a 128x128 slice goes (shares)": lambda: [kernels.where_time_goes(n, device) for n in MAIN],
        "Limits of this machine": lambda: [limits],
    }


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
    parser.add_argument("--only", nargs="+", metavar="WORD", help="make these tables again, by words of their titles")
    parser.add_argument("--output_dir", type=Path, default=machine.ROOT / "docs" / "results")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)

    for name, state in backend_report().items():
        print(f"{name}: {state}")
    facts = {"processor": platform.processor() or platform.machine(), "threads": args.threads}
    facts |= {"torch": torch.__version__, "device": args.device, "cores": os.cpu_count()}
    limits = machine.limits(args.device)
    print(facts, limits, flush=True)
    file = args.output_dir / "benchmark.json"
    old = json.loads(file.read_text())["tables"] if args.only and file.is_file() else {}
    made: dict[str, list[dict[str, Any]]] = {}
    for title, table in tables(args, limits).items():
        chosen = not args.only or any(word.lower() in title.lower() for word in args.only)
        made[title] = table() if chosen else old.get(title, [])
        result = {"machine": facts, "quick": args.quick, "backends": backend_report(), "tables": {**old, **made}}
        args.output_dir.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(result, indent=1) + "\n")  # after each table: a run may be stopped
    write_page(made, args)


def write_page(made: dict[str, list[dict[str, Any]]], args: argparse.Namespace) -> None:
    """Print the tables; if they are those of the documents, put them into their page."""
    goals = against_goals(made["Slices"], args.threads)
    shown = {"Slices against the goals (seconds x GFLOP/s of the matrix product)": goals, **made}
    text = "\n".join(markdown(title, rows) for title, rows in shown.items() if rows)
    print(text)
    if args.output_dir.resolve() == PAGE.parent / "results":
        before, rest = PAGE.read_text().split(BEGIN)
        PAGE.write_text(before + BEGIN + "\n" + text + END + rest.split(END)[1])


if __name__ == "__main__":
    main()
