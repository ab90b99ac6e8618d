"""Train the rows of one of the paper's ablation tables, evaluate them, write the table.

    python scripts/ablation.py --table 4 --dataset_dir DATA --split_file DATA/manifest.csv [--epochs 40 ...]

Options not listed below are passed on to the training of each row (configs/train.json), so a table can be made at any
budget. A row is an overlay in configs/experiments on configs/train.json and configs/experiments/paper.yaml, which
leaves out data consistency as the paper does. Interrupted trainings are resumed, finished ones are skipped, and rows
shared by two tables are trained once. Writes ablation_tableN.csv (every volume) and ablation_tableN.md to docs/results
and regenerates docs/results.md; with a --seed other than 0, ablation_tableN_seedS, which shows the effect of chance.
Evaluates on the val split, so that choices made here leave the test split unseen.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch
from comparison.cost import multiply_adds, parameters
from comparison.experiments import (
    Experiment,
    ExperimentError,
    budget,
    table_experiments,
    table_name,
    train,
    training_options,
)
from comparison.pages import write_pages
from comparison.protocol import ZERO_FILLED, Protocol, known_volumes
from comparison.records import Row, write_rows, write_text
from comparison.tables import Results, ablation_table

from bundle.workflow import prepare_network, training_data
from bundle.workflow.errors import one_line_exit

ROOT = Path(__file__).resolve().parent.parent
SIDE = 128


@one_line_exit
def evaluate(row: Experiment, weights: Path, args: argparse.Namespace, options: dict[str, str]) -> list[Row]:
    """Metrics of a trained row and of zero filling on every volume, with the cost of the row."""
    config = row.config(options)
    keys = ("scale", "slice_axis", "seed", "line_mask_acceleration")
    scale, axis, seed, acceleration = (config.get_parsed_content(key) for key in keys)
    network = prepare_network(row.network(options), str(weights), args.device).eval()
    cost = {"parameters": parameters(network), **multiply_adds(network, (1, 1, SIDE, SIDE))}
    datalist = training_data(str(args.dataset_dir), args.split, args.split_file, seed)
    volumes = known_volumes(args.dataset_dir, datalist, args.split_file)
    kind = "truncation" if acceleration == 1 else "lines"
    protocol = Protocol(scale, axis, kind, acceleration, args.device, args.every)
    rows, _ = protocol.evaluate(volumes, {row.title: network})
    costs = {row.title: cost, ZERO_FILLED: dict.fromkeys(cost, "")}
    return [{**r, "scale": scale, **costs[r["method"]]} for r in rows if r["method"] in costs]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", type=int, required=True, help="table of the paper, 4 to 9")
    parser.add_argument("--dataset_dir", type=Path, required=True, help="folder of high-resolution NIfTI volumes")
    parser.add_argument("--split_file", type=Path, help="CSV with the columns file, subject, split")
    parser.add_argument("--split", default="val", help="evaluated split")
    parser.add_argument("--every", type=int, default=1, help="evaluate only every n-th slice of each volume")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--runs_dir", type=Path, default=ROOT / "runs" / "ablation")
    parser.add_argument("--output_dir", type=Path, default=ROOT / "docs" / "results")
    args, rest = parser.parse_known_args()
    if args.every < 1:
        parser.error(f"--every must be at least 1, got {args.every}")
    try:
        options = {**training_options(rest), "dataset_dir": str(args.dataset_dir.resolve()), "device": args.device}
        if args.split_file is not None:
            options["split_file"] = str(args.split_file.resolve())
        elif "seed" in options:
            sys.exit(f"--seed {options['seed']}: would also change the validation subjects; give --split_file")
        experiments = table_experiments(args.table, ROOT)
        rows: list[Row] = []
        for experiment in experiments:
            print(f"{experiment.path.stem}: {experiment.title} ({experiment.run_name})", flush=True)
            weights = train(experiment, args.runs_dir.resolve(), options, ROOT)
            new = evaluate(experiment, weights, args, options)
            rows += [r for r in new if not rows or r["method"] == experiment.title]
    except ExperimentError as error:
        sys.exit(str(error))
    seed = options.get("seed", "0")
    target = args.output_dir / f"{table_name(args.table, seed)}.csv"
    write_rows(target, rows)
    title, note = experiments[-1].overlay["experiment_name"], budget(experiments, options)
    again = f", seed {seed}" if seed != "0" else ""
    about = f"### {title}, {rows[0]['scale']}x, {rows[0]['degradation']}, {args.split} split{again}\n\n{note}"
    write_text(target.with_suffix(".md"), f"{about}\n\n{ablation_table(Results(rows))}".rstrip() + "\n")
    own = args.output_dir.resolve() == ROOT / "docs" / "results"
    write_pages(args.output_dir, ROOT / "docs/results.md" if own else args.output_dir / "results.md")
    print(target.with_suffix(".md").read_text())


if __name__ == "__main__":
    main()
