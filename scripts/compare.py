"""Compare networks with interpolation on volumes of known truth.

    python scripts/compare.py DATA [--split_file DATA/manifest.csv] [--split test] [--degradation lines]

Every volume is degraded slice by slice and brought back by each method: interpolation and every network of which
models/ has weights. Writes the figures of every volume and slice (compare_x2.csv, compare_x2_slices.csv ...) and of
costs (cost.csv) to docs/results, and makes compare.md and docs/results.md of all that lies there. Of a split file, the
columns subject, modality and contrast are used; without one every file is a subject.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import torch
from torch import nn

from bundle.compare.cost import multiply_adds, parameters, seconds_per_slice
from bundle.compare.pages import COSTS, comparison_file, write_pages
from bundle.compare.protocol import DEGRADATIONS, Protocol, consistency_weight, known_volumes
from bundle.compare.records import Row, joined, read_rows, write_rows, write_slices, write_text
from bundle.compare.tables import TITLES, Results, summary_table
from bundle.data.paths import sha256_of
from bundle.networks import NETWORKS, build_network, weights_path
from bundle.workflow import evaluation_data, one_line_exit, prepare_network

ROOT = Path(__file__).resolve().parent.parent
SIDE = 128
"""Rows and columns of the low-resolution slice whose cost is given."""


def weight_files(args: argparse.Namespace, scale: int) -> dict[str, Path]:
    """Network name -> weights: those of --models_dir that exist, and those named by --network."""
    shipped = {name: Path(weights_path(args.models_dir, name, scale)) for name in NETWORKS}
    files = {name: path for name, path in shipped.items() if path.is_file()}
    for given in args.network:
        name, _, path = given.partition("=")
        if name not in NETWORKS or not path:
            sys.exit(f"--network {given}: give NAME=PATH with a name of {', '.join(NETWORKS)}")
        files[name] = Path(path.format(scale=scale))
    if not files and args.only is None:
        sys.exit(f"no weights for x{scale} in {args.models_dir}: name them by --network, or give --only alone")
    wanted = args.only if args.only is not None else files
    if missing := [name for name in wanted if name not in files]:
        sys.exit(f"--only {missing[0]}: no weights for x{scale} in {args.models_dir}; name them by --network")
    return {name: path for name, path in files.items() if name in wanted}


def skip(name: str, args: argparse.Namespace) -> dict[str, str]:
    """Image skip of a peer, as --image_skip gives it."""
    return {"image_skip": args.image_skip} if args.image_skip and not name.startswith("iconet") else {}


def check_records(args: argparse.Namespace) -> list[Path]:
    """The records of --records; weights load into a peer with any image skip, so it must be that of the training."""
    files = sorted(args.records.glob("training_*.json")) if args.records is not None else []
    for file in files:
        record = json.loads(file.read_text(encoding="utf-8"))
        if record["image_skip"] != skip(record["network"], args).get("image_skip"):
            trained = f"--image_skip {record['image_skip']}" if record["image_skip"] else "no --image_skip"
            sys.exit(f"{file}: trained with {trained}; so also here")
    return files


def cost_row(title: str, scale: int, network: nn.Module, weights: Path, device: str) -> Row:
    with torch.no_grad():
        seconds = seconds_per_slice(network, SIDE)
    return {
        "method": title,
        "scale": scale,
        "parameters": parameters(network),
        **multiply_adds(network, (1, 1, SIDE, SIDE)),
        "seconds": seconds,
        "device": device,
        "threads": torch.get_num_threads(),
        "weights": sha256_of(weights),
    }


def write_costs(path: Path, rows: list[Row], keep: bool) -> None:
    """Put the rows of one scale in the place of those that are there; ``keep`` leaves those of other networks."""
    again, scale = {row["method"] for row in rows}, rows[0]["scale"]
    old = read_rows(path) if path.is_file() else []
    kept = [row for row in old if row["scale"] != scale or (keep and row["method"] not in again)]
    write_rows(path, [*kept, *rows])


@one_line_exit
def compare(scale: int, args: argparse.Namespace) -> None:
    """Evaluate one scale and write its files."""
    files = weight_files(args, scale)
    networks = {
        TITLES[name]: prepare_network(build_network(name, scale, **skip(name, args)), str(path), args.device).eval()
        for name, path in files.items()
    }
    protocol = Protocol(scale, args.slice_axis, args.degradation, args.acceleration, args.device, args.every)
    datalist = evaluation_data(str(args.data), args.split, args.split_file)
    volumes = known_volumes(args.data, datalist, args.split_file)
    rows, by_slice = protocol.evaluate(volumes, networks, args.data_consistency)
    target = comparison_file(args.output_dir, args.degradation, scale)
    keep = args.only is not None and target.is_file()
    if keep:
        try:
            rows = joined(read_rows(target), rows)
        except ValueError as error:
            sys.exit(f"{target}: {error}; give another --output_dir, or compare all without --only")
    write_rows(target, rows)
    write_slices(target.with_name(target.stem + "_slices.csv"), by_slice, keep)
    if networks and args.degradation == "truncation":
        pairs = zip(networks.items(), files.values(), strict=True)
        costs = [cost_row(title, scale, network, path, args.device) for (title, network), path in pairs]
        write_costs(args.output_dir / COSTS, costs, keep)
    print(f"x{scale}, {protocol.description}\n\n{summary_table(Results(rows))}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder of high-resolution NIfTI volumes")
    parser.add_argument("--split_file", type=Path, help="CSV with the columns file, subject, split")
    parser.add_argument("--split", default="test")
    parser.add_argument("--scales", type=int, nargs="+", default=[2, 4])
    parser.add_argument("--slice_axis", type=int, default=2)
    parser.add_argument("--degradation", choices=DEGRADATIONS, default="truncation")
    parser.add_argument("--acceleration", type=float, default=6.0, help="of the line mask: all lines / kept lines")
    parser.add_argument(
        "--models_dir", type=Path, help="folder of weights (default: models, or models/lines for lines)"
    )
    parser.add_argument(
        "--network", action="append", default=[], metavar="NAME=PATH", help="more weights; {scale} in PATH is filled in"
    )
    parser.add_argument("--only", nargs="*", metavar="NAME", help="run these networks, keep the rows of the others")
    parser.add_argument("--image_skip", choices=("none", "bicubic", "fourier"), help="that the peers were trained with")
    parser.add_argument("--records", type=Path, help="folder of scripts/train_alike.py: the page tells its budgets")
    parser.add_argument("--every", type=int, default=1, help="take one slice in so many of each volume")
    parser.add_argument(
        "--data_consistency", type=consistency_weight, nargs="+", default=[0.0, 1.0], help="weights to compare"
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--output_dir", type=Path, default=ROOT / "docs" / "results")
    parser.add_argument("--readme", type=Path, help="file whose block of results is replaced by the summary")
    args = parser.parse_args()
    if args.models_dir is None:
        args.models_dir = ROOT / ("models" if args.degradation == "truncation" else "models/lines")

    records = check_records(args)
    for scale in args.scales:
        compare(scale, args)
    for record in records:
        write_text(args.output_dir / record.name, record.read_text(encoding="utf-8"))
    own = args.output_dir.resolve() == ROOT / "docs" / "results"
    write_pages(args.output_dir, ROOT / "docs/results.md" if own else args.output_dir / "results.md", args.readme)


if __name__ == "__main__":
    main()
