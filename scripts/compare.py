"""Compare networks with interpolation on volumes with known truth.

    python scripts/compare.py DATA [--split_file DATA/manifest.csv [--split test]] [--degradation lines | --robustness]

Every volume is degraded slice by slice and reconstructed with each method: interpolation and every network with weights
in models/. Writes the metrics of every volume and slice (compare_x2.csv, compare_x2_slices.csv ...) and the costs
(cost.csv) to docs/results, and generates compare.md and docs/results.md from everything there. The columns subject,
modality and contrast of a split file are used; without one, every volume of DATA is compared, and its subject is the
BIDS label sub-... in its path, or else the file itself.

--robustness measures instead what the networks gain with other acquisitions (filters, noise, phase ...), with data
consistency as in inference, and writes robustness_x2.csv and robustness_x4.csv. Rows of the other split are kept.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from comparison.cost import multiply_adds, parameters, seconds_per_slice
from comparison.pages import COSTS, comparison_file, write_pages
from comparison.protocol import (
    BICUBIC,
    DEGRADATIONS,
    ZERO_FILLED,
    KnownVolume,
    Protocol,
    consistency_weight,
    image_skip_option,
    known_volumes,
)
from comparison.records import Row, joined, read_rows, write_rows, write_slices, write_text
from comparison.robustness import NAMES, evaluate, with_old
from comparison.robustness_tables import about, robustness_file, robustness_tables
from comparison.tables import Results, summary_table
from torch import nn

from bundle.data.paths import sha256_of
from bundle.data.splits import SPLITS
from bundle.inference.shipped import weights_path
from bundle.networks import NETWORKS, build_network
from bundle.networks.single_step import IMAGE_SKIPS
from bundle.workflow import evaluation_data, prepare_network
from bundle.workflow.errors import one_line_exit

ROOT = Path(__file__).resolve().parent.parent
SIDE = 128
"""Rows and columns of the low-resolution slice for which costs are given."""


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
        sys.exit(f"no weights for {scale}x in {args.models_dir}: name them with --network, or give a bare --only")
    wanted = args.only if args.only is not None else files
    if missing := [name for name in wanted if name not in files]:
        sys.exit(f"--only {missing[0]}: no weights for {scale}x in {args.models_dir}; name them with --network")
    return {name: path for name, path in files.items() if name in wanted}


def check_records(args: argparse.Namespace) -> list[Path]:
    """The records of --records, checked: weights load with any image skip, so it must match the training."""
    if args.records is None:
        return []
    files = sorted(args.records.glob("training_*.json"))
    if not files:
        sys.exit(f"{args.records}: no training_*.json in this folder; give the --runs_dir of scripts/train_alike.py")
    for file in files:
        record = json.loads(file.read_text(encoding="utf-8"))
        if record["network"] not in NETWORKS:
            sys.exit(f"{file}: unknown network {record['network']!r}; remove the record")
        if record["image_skip"] != image_skip_option(record["network"], args.image_skip).get("image_skip"):
            trained = f"--image_skip {record['image_skip']}" if record["image_skip"] else "no --image_skip"
            sys.exit(f"{file}: trained with {trained}; give the same here")
    return files


def check_weights(weights: Path, record: Path) -> None:
    """Check that the record is of the training that made the weights, at either of its budgets."""
    if not record.is_file():
        sys.exit(f"{record}: no such record, but {weights} needs it; give the --records of its training")
    kept = json.loads(record.read_text(encoding="utf-8"))["weights"].values()
    if sha256_of(weights) not in [budget["sha256"] for budget in kept]:
        sys.exit(f"{weights}: not the weights of the training in {record}; give the --records of their training")


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
    """Replace the rows of one scale; ``keep`` leaves those of other networks."""
    again, scale = {row["method"] for row in rows}, rows[0]["scale"]
    old = read_rows(path) if path.is_file() else []
    kept = [row for row in old if row["scale"] != scale or (keep and row["method"] not in again)]
    write_rows(path, [*kept, *rows])


@dataclass(frozen=True)
class Comparison:
    """One scale and everything it needs, checked before the first volume is degraded.

    Attributes:
        scale: of the networks.
        protocol: of the comparison.
        networks: by their titles in the tables.
        weights: their files, in the same order.
        target: the result file.
        keep: whether rows of other networks stay in it.
    """

    scale: int
    protocol: Protocol
    networks: dict[str, nn.Module]
    weights: list[Path]
    target: Path
    keep: bool


def prepare(scale: int, volumes: list[KnownVolume], args: argparse.Namespace) -> Comparison:
    """Networks and protocol of one scale; checks that its rows are compatible with those that --only keeps."""
    try:
        protocol = Protocol(scale, args.slice_axis, args.degradation, args.acceleration, args.device, args.every)
        files = weight_files(args, scale)
        built = {name: build_network(name, scale, **image_skip_option(name, args.image_skip)) for name in files}
    except ValueError as error:
        sys.exit(f"x{scale}: {error}")
    networks = {
        NETWORKS[name].title: prepare_network(network, str(files[name]), args.device).eval()
        for name, network in built.items()
    }
    if args.records is not None:
        for name, path in files.items():
            check_weights(path, args.records / f"training_{name}_x{scale}.json")
    robust = args.robustness is not None
    find = robustness_file if robust else partial(comparison_file, degradation=args.degradation)
    target = find(args.output_dir, scale=scale)
    keep = args.only is not None and target.is_file()
    if keep and not robust:
        methods = [ZERO_FILLED, BICUBIC, *networks]
        rows_with_old(target, [{**protocol.about(v), "method": method} for v in volumes for method in methods])
    return Comparison(scale, protocol, networks, list(files.values()), target, keep)


def rows_with_old(target: Path, rows: list[Row]) -> list[Row]:
    """The rows, and those of other methods already in the file."""
    try:
        return joined(read_rows(target), rows)
    except ValueError as error:
        sys.exit(f"{target}: {error}; give another --output_dir, or compare all without --only")


def robustness(this: Comparison, volumes: list[KnownVolume], args: argparse.Namespace) -> None:
    """Measure the gains of one scale with other acquisitions, and write its file."""
    weights = {title: sha256_of(path) for title, path in zip(this.networks, this.weights, strict=True)}
    split = "" if args.split_file is None else args.split or "test"
    rows = evaluate(this.protocol, volumes, split, this.networks, weights, args.robustness or NAMES)
    if not rows:
        sys.exit(f"x{this.scale}: no rows; a slice is dimmed only in volumes of at least three slices")
    write_rows(this.target, with_old(this.target, rows, this.keep))
    for title in this.networks:
        mine = [row for row in rows if row["method"] == title]
        print(f"x{this.scale}, {title}. {about(mine)}\n\n{robustness_tables(mine)}")


def compare(this: Comparison, volumes: list[KnownVolume], args: argparse.Namespace) -> None:
    """Evaluate one scale and write its files."""
    rows, by_slice = this.protocol.evaluate(volumes, this.networks, args.data_consistency)
    rows = rows_with_old(this.target, rows) if this.keep else rows
    write_rows(this.target, rows)
    write_slices(this.target.with_name(this.target.stem + "_slices.csv"), by_slice, this.keep)
    if this.networks and args.degradation == "truncation":
        pairs = zip(this.networks.items(), this.weights, strict=True)
        costs = [cost_row(title, this.scale, network, path, args.device) for (title, network), path in pairs]
        write_costs(args.output_dir / COSTS, costs, this.keep)
    print(f"x{this.scale}, {this.protocol.description}\n\n{summary_table(Results(rows))}")


@one_line_exit
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder of high-resolution NIfTI volumes")
    parser.add_argument("--split_file", type=Path, help="CSV with the columns file, subject, split")
    parser.add_argument(
        "--split",
        choices=SPLITS,
        help="split to compare (default: test); without a split file, every volume is compared",
    )
    parser.add_argument("--scales", type=int, nargs="+", choices=(2, 4, 8), default=[2, 4])
    parser.add_argument(
        "--slice_axis",
        type=lambda text: text if text == "auto" else int(text),
        choices=("auto", 0, 1, 2),
        default="auto",
        help="array axis across the slices; auto: the axis with the largest voxel spacing",
    )
    parser.add_argument("--degradation", choices=DEGRADATIONS, default="truncation")
    parser.add_argument(
        "--robustness",
        nargs="*",
        choices=NAMES,
        metavar="NAME",
        help=f"measure robustness to other acquisitions: to all, or to those named ({', '.join(NAMES)})",
    )
    parser.add_argument(
        "--acceleration", type=float, default=6.0, help="acceleration of the line mask: all lines / kept lines"
    )
    parser.add_argument(
        "--models_dir", type=Path, help="folder of weights (default: models, or models/lines for lines)"
    )
    parser.add_argument(
        "--network",
        action="append",
        default=[],
        metavar="NAME=PATH",
        help="further weights; {scale} in PATH is filled in",
    )
    parser.add_argument("--only", nargs="*", metavar="NAME", help="run these networks, keep the rows of the others")
    parser.add_argument("--image_skip", choices=IMAGE_SKIPS, help="image skip that the baselines were trained with")
    parser.add_argument(
        "--records",
        type=Path,
        help="output folder of scripts/train_alike.py: its records must match the weights, and are copied",
    )
    parser.add_argument("--every", type=int, default=1, help="use only every n-th slice of each volume")
    parser.add_argument(
        "--data_consistency", type=consistency_weight, nargs="+", default=[0.0, "auto"], help="weights to compare"
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--output_dir", type=Path, default=ROOT / "docs" / "results")
    parser.add_argument("--readme", type=Path, help="file whose results block is replaced by the summary")
    args = parser.parse_args()
    if args.split is not None and args.split_file is None:
        sys.exit(f"--split {args.split}: needs a split file; give --split_file, or leave out --split")
    if args.robustness is not None and args.degradation != "truncation":
        sys.exit(f"--robustness and --degradation {args.degradation} are two measurements; give one of them")
    if args.robustness is not None and args.only == []:
        sys.exit("--robustness measures networks: name one after --only, or leave out --only")
    if {1.0, "auto"} <= set(args.data_consistency):
        sys.exit("--data_consistency: give 1 or auto, not both: the tables call both + DC")
    if args.models_dir is None:
        args.models_dir = ROOT / ("models" if args.degradation == "truncation" else "models/lines")

    records = check_records(args)
    datalist = evaluation_data(str(args.data), args.split or "test", args.split_file)
    volumes = known_volumes(args.data, datalist, args.split_file)
    for comparison in [prepare(scale, volumes, args) for scale in args.scales]:
        (compare if args.robustness is None else robustness)(comparison, volumes, args)
    for record in records:
        write_text(args.output_dir / record.name, record.read_text(encoding="utf-8"))
    own = args.output_dir.resolve() == ROOT / "docs" / "results"
    write_pages(args.output_dir, ROOT / "docs/results.md" if own else args.output_dir / "results.md", args.readme)


if __name__ == "__main__":
    main()
