"""The plan of a run: how its time is shared out, and the queue of trainings with their options."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from comparison.experiments import LABELS, ExperimentError, base_configs, table_experiments
from monai.bundle import ConfigParser

PARTS = ("kernels", "speed", "trainings", "evaluation")
"""What a run does, in this order; then it writes its table and packs the results."""
MAY_DIFFER = {"bf16", "val_interval", "slice_batch"}
"""Options that may change when a training goes on; the device may, too."""
NETWORK_OPTION = "network_def#"


class PlanError(ValueError):
    """A plan that cannot be used; the message is one line."""


@dataclass(frozen=True)
class Entry:
    """One training of the queue.

    Attributes:
        name: of its folder, unique in the plan.
        network_name, scale: as in configs/train.json.
        updates: length of the training; rounded up to whole epochs.
        share: most of a run's training time that it may take before the next one's turn; it goes on if time is left.
        fit: shorten the training at half of its time if it would not end in this run, so that its learning rate comes
            down before the clock stops it. Not for trainings that are compared at equal updates.
        configs: paths of the configs that are laid over configs/train.json, from the bundle's root.
        options: further options of configs/train.json, by name.
    """

    name: str
    network_name: str
    scale: int
    updates: int
    share: float = 1.0
    fit: bool = False
    configs: tuple[str, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def updates_per_epoch(self) -> int:
        """Updates between two checkpoints."""
        return int(self.options["updates_per_epoch"])

    @property
    def epochs(self) -> int:
        """Epochs of the whole training."""
        return -(-self.updates // self.updates_per_epoch)

    @property
    def settings(self) -> dict[str, Any]:
        """What must be the same for a training to go on."""
        options = {key: value for key, value in sorted(self.options.items()) if key not in MAY_DIFFER}
        return {"network_name": self.network_name, "scale": self.scale, "configs": list(self.configs), **options}

    def overlay(self, root: Path) -> dict[str, Any]:
        """What its configs change in configs/train.json."""
        content: dict[str, Any] = {}
        for path in self.configs:  # by hand: MONAI's merging would look for the keys before each "#"
            content |= ConfigParser.load_config_file(str(root / path))
        return {key: value for key, value in content.items() if key not in LABELS}

    def network_options(self, root: Path) -> dict[str, Any]:
        """What its options and configs change in ``network_def``: key -> value."""
        every = {**self.overlay(root), **self.options}
        return {k.removeprefix(NETWORK_OPTION): v for k, v in every.items() if k.startswith(NETWORK_OPTION)}


@dataclass(frozen=True)
class Plan:
    """A plan for one kind of device.

    Attributes:
        queue: the trainings, in order.
        at_once: how many run at the same time.
        shares: part of the run -> its share of the time. A part that ends early leaves its time to the next one.
    """

    queue: tuple[Entry, ...]
    at_once: int
    shares: Mapping[str, float]


def read_plan(path: Path, root: Path, device: str) -> Plan:
    """Read a plan.

    Args:
        path: YAML with ``shares``, ``options`` (of every training), ``gpu`` and ``cpu`` (each with ``at_once`` and
            further ``options``) and ``queue``. An entry of the queue has ``network_name``, ``scale``, ``updates``, a
            ``name`` if it needs one, ``share``, ``fit``, and options of configs/train.json. An entry with ``table: 4``
            stands for the rows of that table of the paper; rows that two tables share come once.
        root: of the bundle.
        device: ``cuda`` or ``cpu``.

    Raises:
        PlanError: the file cannot be read, an entry lacks something, or a name comes twice.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        of_device = content.get("cpu" if device == "cpu" else "gpu", {})
        common = {"updates_per_epoch": 100, **content.get("options", {}), **of_device.get("options", {})}
        queue: dict[str, Entry] = {}
        for row in content["queue"]:
            for entry in _rows(row, common, root) if "table" in row else [_entry(row, common)]:
                if entry.name in queue and "table" not in row:
                    raise PlanError(f"{path}: two entries are called {entry.name}; give one of them a name")
                queue.setdefault(entry.name, entry)
        shares = {part: float(content.get("shares", {}).get(part, 0.25)) for part in PARTS}
        return Plan(tuple(queue.values()), int(of_device.get("at_once", 1)), shares)
    except PlanError:
        raise
    except (OSError, yaml.YAMLError, ExperimentError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise PlanError(f"{path}: no plan that can be used ({type(error).__name__}: {error})") from error


def _entry(row: Mapping[str, Any], common: Mapping[str, Any]) -> Entry:
    known = ("name", "network_name", "scale", "updates", "share", "fit")
    network, scale = str(row["network_name"]), int(row["scale"])
    name, options = row.get("name", f"{network}_x{scale}"), {k: v for k, v in row.items() if k not in known}
    share, fit = float(row.get("share", 1)), bool(row.get("fit", False))
    return Entry(name, network, scale, int(row["updates"]), share, fit, (), {**common, **options})


def _rows(row: Mapping[str, Any], common: Mapping[str, Any], root: Path) -> list[Entry]:
    """The rows of one of the paper's ablation tables."""
    known = ("table", "network_name", "updates", "share")
    options = {**common, **{key: value for key, value in row.items() if key not in known}}
    entries = []
    for experiment in table_experiments(int(row["table"]), root):
        paths = tuple(str(path.relative_to(root)) for path in (*base_configs(root)[1:], experiment.path))
        scale, share = int(experiment.settings.get("scale", 2)), float(row.get("share", 1))
        own = {key: value for key, value in options.items() if key not in experiment.overlay}
        name = f"ablation_{experiment.run_name}"
        entries.append(Entry(name, str(row["network_name"]), scale, int(row["updates"]), share, False, paths, own))
    return entries
