"""Copy the weights of a training run to models/ with their checksum and a record of the run.

    python scripts/ship_weights.py runs/residual_sr_x2 models/model.pt --scale 2 --dataset_dir DATA \\
        --split_file DATA/manifest.csv --command "python -m monai.bundle run training ..." \\
        --data "75 volumes of 60 subjects" --machine "2 cores, no GPU" --commit 1a2b3c4

Writes the run's best weights by validation as a state dict, models/sha256sums.txt, and models/training/<name>.json: the
command, the curves of loss and validation metrics, versions, times, what the weights assume, and the range of voxel
sizes and intensities of the training split, which inference compares its inputs with. Nothing is written before the
whole run has been read.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import sys
from pathlib import Path

import monai
import torch
from comparison.cost import parameters
from comparison.records import write_text
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from bundle.data import training_datalist
from bundle.data.atomic import replacing
from bundle.data.paths import sha256_of
from bundle.data.splits import read_table
from bundle.inference.weights import load_weights
from bundle.networks import NETWORKS, build_network
from bundle.options import DEFAULT_NETWORK
from bundle.trust import training_range
from bundle.workflow.errors import one_line_exit

ASSUMES = {
    "degradation": "k-space truncation, magnitude; bundle.transforms.KSpaceTruncation",
    "grid_rule": "low-resolution voxel j lies on high-resolution voxel scale * j",
    "intensity": "volume divided by its 99.9th percentile of non-background voxels",
}


def curves(events: EventAccumulator, points: int = 200) -> dict[str, list[list[float]]]:
    """Scalar series of TensorBoard events as [step, value]; long series are averaged to at most ``points``."""
    series = {}
    for tag in events.Tags()["scalars"]:
        pairs = [(e.step, e.value) for e in events.Scalars(tag)]
        width = -(-len(pairs) // points)
        blocks = [pairs[i : i + width] for i in range(0, len(pairs), width)]
        series[tag] = [[block[-1][0], round(sum(v for _, v in block) / len(block), 6)] for block in blocks]
    return series


def hours(run: Path) -> float:
    """Time from the first to the last event of each start of a run; every start writes files with its own timestamp."""
    spans: dict[str, tuple[float, float]] = {}
    for file in run.glob("events.out.tfevents.*"):
        events = EventAccumulator(str(file), size_guidance={"scalars": 0}).Reload()
        times = [e.wall_time for tag in events.Tags()["scalars"] for e in events.Scalars(tag)]
        start = file.name.split(".")[3]
        first, last = spans.get(start, (math.inf, -math.inf))
        spans[start] = min([first, *times]), max([last, *times])
    return round(sum(max(0.0, last - first) for first, last in spans.values()) / 3600, 2)


def train_volumes(dataset_dir: Path, split_file: Path | None, seed: int) -> list[dict[str, str]]:
    """The training split, with the modality if the split file has that column."""
    items = training_datalist(dataset_dir, "train", split_file, seed=seed)
    if split_file is None:
        return items
    rows = [row for _, row in read_table(split_file) if row["split"] == "train"]
    return [{**item, "modality": row.get("modality", "")} for item, row in zip(items, rows, strict=True)]


@one_line_exit
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="output folder of the training run")
    parser.add_argument("weights", type=Path, help="file to write, for example models/model.pt")
    parser.add_argument("--scale", type=int, required=True, help="scale of the network")
    parser.add_argument("--dataset_dir", type=Path, required=True, help="folder of the training volumes")
    parser.add_argument("--split_file", type=Path, help="CSV of the split, if the training had one")
    parser.add_argument("--network_name", choices=NETWORKS, default=DEFAULT_NETWORK)
    parser.add_argument(
        "--seed", type=int, default=0, help="seed of the training, which decides the split if there is no CSV"
    )
    parser.add_argument("--slice_axis", type=int, default=2, help="slice axis of the training")
    parser.add_argument("--command", required=True, help="the training command")
    parser.add_argument("--data", required=True, help="description of the training data")
    parser.add_argument("--machine", required=True, help="class of machine")
    parser.add_argument("--commit", required=True, help="commit of the code that trained")
    parser.add_argument("--note", default="", help="anything else that matters, such as initial weights")
    args = parser.parse_args()

    network = build_network(args.network_name, args.scale)
    digest = load_weights(network, str(args.run / "model.pt"))
    best = torch.load(args.run / "last.pt", map_location="cpu", weights_only=True)["best_model"]
    events = EventAccumulator(str(args.run), size_guidance={"scalars": 0})
    events.Reload()
    volumes = train_volumes(args.dataset_dir, args.split_file, args.seed)
    record = {
        "weights": args.weights.name,
        "sha256": digest,
        "parameters": parameters(network),
        "assumes": ASSUMES,
        "command": args.command,
        "data": args.data,
        "machine": args.machine,
        "hours": hours(args.run),
        "commit": args.commit,
        "note": args.note,
        "versions": {"python": platform.python_version(), "torch": torch.__version__, "monai": monai.__version__},
        "best_epoch": best["epoch"],
        "best_validation_psnr": round(best["value"], 4),
        "training_range": training_range(volumes, args.scale, args.slice_axis).as_dict(),
        "curves": curves(events),
    }

    with replacing(args.weights) as file:
        file.write((args.run / "model.pt").read_bytes())
    write_text(args.weights.parent / "training" / f"{args.weights.stem}.json", json.dumps(record, indent=1) + "\n")
    files = sorted(p for p in args.weights.parent.iterdir() if p.suffix == ".pt")
    sums = [f"{sha256_of(p)}  {p.name}" for p in files]
    write_text(args.weights.parent / "sha256sums.txt", "\n".join(sums) + "\n")


if __name__ == "__main__":
    try:
        main()
    except OSError as error:  # a file of the run is missing, or a file cannot be written
        sys.exit(str(error))
