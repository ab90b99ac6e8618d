"""Ablation experiments: overlays on configs/train.json, one per row of a table, trained one by one."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from monai.bundle import ConfigParser
from torch import nn

from bundle.data.paths import sha256_of
from comparison.records import write_text

LABELS = ("experiment_name", "run_name")
"""Keys of an overlay that name its table and row, as in MONAI's experiment tracking."""
MACHINE_OPTIONS = {"device"}
"""Options that may change when a training is resumed."""
OWN_CHOICE = {"network_name"}
"""Options of paper.yaml that the command line may set: a table can be made of another size of ICONet."""
BUDGET = ("network_name", "epochs", "updates_per_epoch", "batch_size", "patch_size", "learning_rate", "seed")


class ExperimentError(RuntimeError):
    """A row cannot be trained as requested; the message is one line."""


@dataclass(frozen=True)
class Experiment:
    """One row of an ablation table.

    Attributes:
        path: of the overlay.
        base: the configs that it overlays, in order.
    """

    path: Path
    base: tuple[Path, ...]

    @property
    def files(self) -> list[str]:
        """All configs of the row, as passed to ``--config_file``."""
        return [*map(str, self.base), str(self.path)]

    @property
    def overlay(self) -> dict[str, Any]:
        """The parsed overlay."""
        content: dict[str, Any] = ConfigParser.load_config_file(self.path)
        return content

    @property
    def title(self) -> str:
        """Name of the row."""
        return str(self.overlay["run_name"])

    @property
    def settings(self) -> dict[str, Any]:
        """What the row changes: the overlay without its names and without values that equal the base."""
        base = ConfigParser.load_config_files(self.base)
        return {k: v for k, v in self.overlay.items() if k not in LABELS and not (k in base and base[k] == v)}

    @property
    def run_name(self) -> str:
        """Folder of its training, named after the settings, so that equal rows of two tables are trained once."""
        parts = [f"{key.rpartition('#')[2].strip('_')}-{_short(value)}" for key, value in sorted(self.settings.items())]
        return "_".join(parts) or "default"

    def config(self, options: Mapping[str, str]) -> ConfigParser:
        """The config of the row with command-line options, merged as MONAI does."""
        parser = ConfigParser()
        parser.read_config(self.files)
        parser.update({key: literal(value) for key, value in options.items()})
        return parser

    def network(self, options: Mapping[str, str]) -> nn.Module:
        """The untrained network of the row."""
        network: nn.Module = self.config(options).get_parsed_content("network_def")
        return network


def table_experiments(table: int, root: Path) -> list[Experiment]:
    """The rows of a table in order; the last is the paper's choice.

    Raises:
        ExperimentError: no overlay in ``root/configs/experiments`` belongs to the table.
    """
    paths = sorted((root / "configs/experiments").glob(f"table{table}_*.yaml"))
    if not paths:
        raise ExperimentError(f"no configs/experiments/table{table}_*.yaml: there are experiments for tables 4 to 9")
    return [Experiment(path, base_configs(root)) for path in paths]


def table_name(table: int, seed: str) -> str:
    """File name of a table, without extension; it includes any seed other than the default 0."""
    return f"ablation_table{table}" if seed == "0" else f"ablation_table{table}_seed{seed}"


def base_configs(root: Path) -> tuple[Path, ...]:
    """The base of every row: the training config without the project's additions to the paper's training."""
    return root / "configs/train.json", root / "configs/experiments/paper.yaml"


def training_options(rest: Sequence[str]) -> dict[str, str]:
    """Command-line options for the training, ``--key value`` or ``--key=value``.

    Raises:
        ExperimentError: a word that is not an option, or an option without a value.
    """
    options: dict[str, str] = {}
    words = iter(rest)
    for word in words:
        key, separator, value = word.removeprefix("--").partition("=")
        value = value if separator else next(words, "")
        if not word.startswith("--") or not value:
            raise ExperimentError(f"{word}: give options of configs/train.json as --name value")
        options[key] = value
    return options


def check_not_set(options: Iterable[str], settled: Iterable[str], why: str) -> None:
    """Refuse command-line options that are already fixed.

    Raises:
        ExperimentError: names the first such option and the reason.
    """
    if clash := sorted(set(options) & set(settled)):
        raise ExperimentError(f"--{clash[0]}: {why}; leave the option out")


def literal(text: str) -> Any:
    """A command-line value: number, list, True, None, or the text itself."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def _short(value: Any) -> str:
    return value.rpartition(".")[2] if isinstance(value, str) else str(value)


def train(experiment: Experiment, folder: Path, options: Mapping[str, str], root: Path) -> Path:
    """Train a row in its own process; resume an interrupted training, skip a finished one.

    Args:
        experiment: the row.
        folder: of all runs; the row uses ``folder / experiment.run_name``.
        options: of configs/train.json, by name.
        root: of the bundle.

    Returns:
        the best weights by validation.

    Raises:
        ExperimentError: an option is already set by the row or the shared overlay, the folder holds a training with
            other options or configs, or the training failed.
    """
    for file in (*experiment.base[1:], experiment.path):
        settled = set(ConfigParser.load_config_file(file)) - OWN_CHOICE
        check_not_set(options, settled, f"{file.name} sets it")
    run = folder / experiment.run_name
    record = run / "experiment.json"
    asked = {k: v for k, v in options.items() if k not in MACHINE_OPTIONS}
    configs = {file.name: sha256_of(file) for file in experiment.base}
    if split_file := options.get("split_file"):
        configs["split_file"] = sha256_of(Path(split_file))
    state = {"settings": experiment.settings, "options": asked, "configs": configs, "finished": False}
    if record.is_file():
        there = json.loads(record.read_text(encoding="utf-8"))
        if {**there, "finished": False} != state:
            raise ExperimentError(
                f"{run}: trained with other options ({there['options']}) or configs; choose another --runs_dir"
            )
        if there["finished"]:
            return run / "model.pt"
    elif run.exists():
        raise ExperimentError(f"{run}: exists and is not an ablation training; choose another --runs_dir")
    write_text(record, json.dumps(state, indent=1) + "\n")
    if subprocess.run(_command(experiment, run, options, root), cwd=root).returncode:
        raise ExperimentError(f"{run}: the training failed; run the same command again to resume")
    if not (run / "model.pt").is_file():
        raise ExperimentError(
            f"{run}: nothing was validated, so no weights were kept; set --val_interval to at most "
            "--epochs, and another --runs_dir"
        )
    write_text(record, json.dumps({**state, "finished": True}, indent=1) + "\n")
    return run / "model.pt"


def _command(experiment: Experiment, run: Path, options: Mapping[str, str], root: Path) -> list[str]:
    files = str(experiment.files)
    command = [sys.executable, "-W", "ignore", "-m", "monai.bundle", "run", "training", "--config_file", files]
    given = {**options, "bundle_root": str(root), "output_dir": str(run), "resume": "True"}
    return [*command, *(part for key, value in given.items() for part in (f"--{key}", value))]


def budget(experiments: Sequence[Experiment], options: Mapping[str, str]) -> str:
    """One sentence on the budget of every row, from the config of the last row."""
    config = experiments[-1].config(options)
    name, epochs, updates, batch, patch, rate, seed = (config.get_parsed_content(key) for key in BUDGET)
    shown = {*BUDGET, *MACHINE_OPTIONS, "dataset_dir", "split_file"}
    further = "".join(f", `--{key} {value}`" for key, value in options.items() if key not in shown)
    return (
        f"Budget of every row: `{name}`, {epochs * updates:,} updates of {batch} patches of {patch}x{patch}, Adam, "
        f"learning rate {rate:g}, seed {seed}{further}; the weights are the best by validation. No data consistency."
    )
