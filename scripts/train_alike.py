"""Matched training of ICONet and the baselines, for a comparison at equal updates and at equal compute.

    python scripts/train_alike.py DATA --split_file DATA/manifest.csv --updates 600 --seconds 300 [--batch_size 4 ...]

Every network sees the same patches in the same order, with the learning rate of --learning_rates that has the smallest
loss in a short trial. Baselines get the Fourier image skip of ICONet (--image_skip paper keeps each paper's own):
without it, a short training does not reach interpolation. Weights and records go to RUNS/equal_updates and
RUNS/equal_compute; `scripts/compare.py DATA --split_file DATA/manifest.csv --models_dir RUNS/equal_updates --image_skip
fourier --output_dir ...` makes the tables. Options not listed below are passed on to the training (configs/train.json).
Seconds are processor time on a CPU, meaningful only with one thread (OMP_NUM_THREADS=1) and no other load. Finished
trainings are skipped.
"""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path

from comparison.alike import BUDGET_HEADER, COMPUTE, SETTLED, UPDATES, Budget, Trainings, budget_rows
from comparison.experiments import ExperimentError, check_not_set, literal, training_options
from comparison.tables import markdown
from monai.bundle import ConfigParser

from bundle.data.errors import root_cause
from bundle.networks import NETWORKS
from bundle.networks.single_step import IMAGE_SKIPS
from bundle.workflow.errors import one_line_exit
from bundle.workflow.options import wrong_options

ROOT = Path(__file__).resolve().parent.parent


def check(every: list[Trainings], networks: list[str]) -> None:
    """Stop before the first training if any of them cannot be done as requested."""
    for trainings in every:
        check_not_set(trainings.options, SETTLED, "every network has its own")
        check_not_set(trainings.options, ConfigParser.load_config_file(trainings.files[1]), "alike.yaml sets it")
        config = {**ConfigParser.load_config_files(trainings.files), **trainings.options}
        if wrong := wrong_options(config, given=trainings.options):
            sys.exit("\n".join(wrong))
        for name in networks:
            try:
                trainings.start(name)
            except RuntimeError as error:
                sys.exit(f"{name} x{trainings.scale}: {root_cause(error)}")


@one_line_exit
def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("data", type=Path, help="folder of high-resolution NIfTI volumes")
    parser.add_argument("--split_file", type=Path, help="CSV with the columns file, subject, split")
    parser.add_argument("--scales", type=int, nargs="+", default=[2, 4])
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=[n for n in NETWORKS if n != "iconet_paper"])
    parser.add_argument("--updates", type=int, default=600, help="updates per network")
    parser.add_argument("--seconds", type=float, default=300, help="seconds per network, processor time on a CPU")
    parser.add_argument("--learning_rates", type=float, nargs="+", default=[0.0003, 0.001])
    parser.add_argument("--search_updates", type=int, default=100, help="updates per learning rate in the search")
    parser.add_argument("--image_skip", choices=("paper", *IMAGE_SKIPS), default="fourier")
    parser.add_argument("--runs_dir", type=Path, default=ROOT / "runs" / "alike")
    args, rest = parser.parse_known_args()
    logging.getLogger("ignite").setLevel(logging.WARNING)
    try:
        options = {key: literal(value) for key, value in training_options(rest).items()}
    except ExperimentError as error:
        sys.exit(str(error))
    options["dataset_dir"] = str(args.data.resolve())
    if args.split_file is not None:
        options["split_file"] = str(args.split_file.resolve())
    budget = Budget(args.updates, args.seconds, tuple(args.learning_rates), args.search_updates)
    image_skip = None if args.image_skip == "paper" else args.image_skip

    every = [Trainings(scale, args.runs_dir.resolve(), options, image_skip, ROOT) for scale in args.scales]
    try:
        check(every, args.networks)
    except ExperimentError as error:
        sys.exit(str(error))
    records = []
    for trainings in every:
        for name in args.networks:
            try:
                records.append(trainings.train(name, budget))
            except ValueError as error:
                sys.exit(str(error))
            print(f"{name} x{trainings.scale}: {records[-1]['learning_rate']:g}, {records[-1]['weights']}", flush=True)
    for kind in (UPDATES, COMPUTE):
        print(f"{kind}\n\n{markdown(BUDGET_HEADER, budget_rows(records, kind))}")


if __name__ == "__main__":
    main()
