"""Measure what the fusion loses when it looks for matches only in a window.

    python scripts/match_window.py DATA --split_file DATA/manifest.csv [--windows 4 8 12 16 20 24 32] [--every 8]

Every volume of the validation split is degraded and reconstructed with the shipped weights of the small ICONet, with
data consistency as in inference, once for each window (in blocks of pixels, `match_window`) and once without one.
Writes the PSNR and SSIM of every volume to docs/results/match_window/x2.csv and x4.csv and prints what each window
loses against the whole image: on the mean over the volumes, and on the volume that loses most.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
from comparison.protocol import KnownVolume, Protocol, known_volumes
from comparison.records import Row, write_rows
from comparison.tables import markdown

from bundle.data.splits import SPLITS
from bundle.inference.shipped import weights_path
from bundle.networks import NETWORKS, build_network
from bundle.workflow import evaluation_data, prepare_network
from bundle.workflow.errors import one_line_exit

ROOT = Path(__file__).resolve().parent.parent
WHOLE = "none"
"""The window of the rows without one."""


@torch.no_grad()
def measure(volumes: Sequence[KnownVolume], name: str, scale: int, windows: Sequence[int], every: int) -> list[Row]:
    """One row per volume and window, the first of each volume without a window.

    Args:
        volumes: with known truth.
        name: of a network of :data:`bundle.networks.NETWORKS` that has the option ``match_window``.
        scale: 2 or 4.
        windows: in blocks.
        every: use only every n-th slice.
    """
    weights = str(weights_path(ROOT / "models", name, scale))
    networks = {
        WHOLE if window is None else str(window): prepare_network(
            build_network(name, scale, match_window=window), weights, "cpu"
        ).eval()
        for window in (None, *windows)
    }
    rows, _ = Protocol(scale, every=every).evaluate(volumes, networks, ["auto"])
    columns = ("file", "subject", "modality", "contrast", "degradation")
    return [
        {
            **{column: row[column] for column in columns},
            "window": row["method"],
            "psnr": row["psnr"],
            "ssim": row["ssim"],
        }
        for row in rows
        if row["method"] in networks
    ]


def losses(rows: Sequence[Row]) -> list[list[str]]:
    """Per window: itself, mean loss of PSNR in dB, largest loss of a volume, that volume."""
    whole = {row["file"]: row["psnr"] for row in rows if row["window"] == WHOLE}
    lines = []
    for window in dict.fromkeys(row["window"] for row in rows):
        loss = {row["file"]: whole[row["file"]] - row["psnr"] for row in rows if row["window"] == window}
        worst = max(loss, key=lambda file: loss[file])
        lines.append([window, f"{sum(loss.values()) / len(loss):.4f}", f"{loss[worst]:.4f}", worst])
    return lines


@one_line_exit
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder of high-resolution NIfTI volumes")
    parser.add_argument("--split_file", type=Path, help="CSV with the columns file, subject, split")
    parser.add_argument("--split", choices=SPLITS, default="val", help="split to measure (default: val)")
    parser.add_argument("--network", choices=[n for n in NETWORKS if n.startswith("iconet")], default="iconet_small")
    parser.add_argument("--scales", type=int, nargs="+", choices=(2, 4), default=[2, 4])
    parser.add_argument(
        "--windows", type=int, nargs="+", default=[4, 8, 12, 16, 20, 24, 32], help="in blocks of pixels"
    )
    parser.add_argument("--every", type=int, default=8, help="use only every n-th slice of each volume")
    parser.add_argument("--output_dir", type=Path, default=ROOT / "docs" / "results" / "match_window")
    args = parser.parse_args()
    datalist = evaluation_data(str(args.data), args.split, args.split_file)
    volumes = known_volumes(args.data, datalist, args.split_file)
    for scale in args.scales:
        rows = measure(volumes, args.network, scale, args.windows, args.every)
        args.output_dir.mkdir(parents=True, exist_ok=True)
        write_rows(args.output_dir / f"x{scale}.csv", rows)
        print(f"{scale}x, {len(volumes)} volumes\n")
        print(markdown(["window", "mean loss, dB", "largest, dB", "of"], losses(rows)), flush=True)


if __name__ == "__main__":
    main()
