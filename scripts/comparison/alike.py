"""Matched training: the same patches in the same order, stopped at equal updates and at equal compute."""

from __future__ import annotations

import hashlib
import json
import math
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean
from typing import Any

from ignite.engine import Engine, Events
from monai.bundle import ConfigParser
from monai.utils import set_determinism

from bundle.data import training_datalist
from bundle.data.paths import sha256_of
from bundle.inference.shipped import weights_path
from bundle.inference.weights import save_atomically
from bundle.networks import NETWORKS
from comparison.protocol import image_skip_option
from comparison.records import write_text

SETTLED = {"network_name", "learning_rate", "output_dir", "resume", "weights"}.union(
    *(entry.training for entry in NETWORKS.values())
)
"""Options that cannot be set: each network has its own."""
UPDATES, COMPUTE = "equal_updates", "equal_compute"
"""Folders for the weights."""


@dataclass(frozen=True)
class Budget:
    """The training budget of every network.

    Attributes:
        updates: for the weights in ``equal_updates``.
        seconds: for the weights in ``equal_compute``, including making patches: processor time summed over threads
            on a CPU, wall-clock time elsewhere.
        learning_rates: candidates.
        search_updates: updates per candidate. The rate with the smallest loss over the second half is used: every trial
            sees the same patches, each once.
    """

    updates: int
    seconds: float
    learning_rates: Sequence[float]
    search_updates: int


@dataclass
class _Course:
    """Log of one training: losses and processor time of every update, and the saved weights."""

    losses: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    kept: dict[str, dict[str, Any]] = field(default_factory=dict)


class Trainings:
    """Trainings of several networks on the same patches, cut from one pool of slices.

    Args:
        scale: of all networks.
        folder: for the weights, ``folder/equal_updates`` and ``folder/equal_compute`` with the names of
            :func:`bundle.inference.shipped.weights_path`, and for the records.
        options: of configs/train.json, the same for all networks; none of :data:`SETTLED`.
        image_skip: of the baselines; ``None`` keeps the one of each paper.
        root: of the bundle.
    """

    def __init__(
        self, scale: int, folder: Path, options: Mapping[str, Any], image_skip: str | None, root: Path
    ) -> None:
        self.scale, self.folder, self.image_skip = scale, folder, image_skip
        self.options = {**options, "scale": scale, "bundle_root": str(root)}
        self.files = [str(root / "configs/train.json"), str(root / "configs/experiments/alike.yaml")]
        self._batches: Any = None

    def start(self, name: str) -> str:
        """SHA-256 of a network's initial weights.

        Raises:
            RuntimeError: the network cannot be built with the image skip; MONAI wraps the cause.
        """
        config = self._config(name)
        set_determinism(seed=config.get_parsed_content("seed"))
        digest = hashlib.sha256()
        for key, value in config.get_parsed_content("network_def").state_dict().items():
            digest.update(key.encode() + value.numpy().tobytes())
        return digest.hexdigest()

    def train(self, name: str, budget: Budget) -> dict[str, Any]:
        """Find the learning rate of a network, train it, and save its weights at both budgets.

        Returns:
            The record of the training, also saved as ``folder/training_<name>_x<scale>.json``. If that file is already
            the record of the same training, nothing is trained.

        Raises:
            ValueError: the record is of another training, or the network diverges at every learning rate.
        """
        path = self.folder / f"training_{name}_x{self.scale}.json"
        asked = {
            "budget": json.loads(json.dumps(vars(budget))),
            "options": self._shown(),
            "image_skip": self._skip(name),
            "configs": {Path(file).name: sha256_of(Path(file)) for file in self.files},
            "data": self._data(),
            "start": self.start(name),
        }
        if path.is_file():
            record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            if differ := ", ".join(key for key in asked if record.get(key) != asked[key]):
                raise ValueError(f"{path}: from a training with another {differ}; choose another --runs_dir")
            return record
        trials = {rate: self._search(name, rate, budget.search_updates) for rate in budget.learning_rates}
        if not any(map(math.isfinite, trials.values())):
            raise ValueError(f"{name} x{self.scale}: diverges at every learning rate of {budget.learning_rates}")
        rate = min(trials, key=lambda r: trials[r])
        course = self._run(name, rate, {UPDATES: budget.updates, COMPUTE: budget.seconds})
        record = {
            **{"network": name, "scale": self.scale, "learning_rate": rate, "trials": trials},
            **asked,
            "weights": course.kept,
            "loss": [round(mean(course.losses[i : i + 50]), 6) for i in range(0, len(course.losses), 50)],
        }
        write_text(path, json.dumps(record, indent=1) + "\n")
        return record

    def _shown(self) -> dict[str, Any]:
        """The options without folders, which differ between machines, and always with the patch settings."""
        config = self._config("iconet_small")  # they are the same for every network
        patches = {key: config.get_parsed_content(key) for key in ("batch_size", "patch_size")}
        given = {k: v for k, v in self.options.items() if k not in ("bundle_root", "dataset_dir", "split_file")}
        return {**given, **patches}

    def _data(self) -> str:
        """SHA-256 of the names of the training volumes, the same on every machine."""
        folder, table = Path(self.options["dataset_dir"]), self.options.get("split_file")
        items = training_datalist(folder, "train", table, seed=self.options.get("seed", 0))
        names = sorted(Path(os.path.relpath(item["image"], folder)).as_posix() for item in items)
        return hashlib.sha256("\n".join(names).encode()).hexdigest()

    def _skip(self, name: str) -> str | None:
        return image_skip_option(name, self.image_skip).get("image_skip")

    def _search(self, name: str, rate: float, updates: int) -> float:
        losses = self._run(name, rate, {"": updates}, keep=False).losses
        loss = mean(losses[len(losses) // 2 :])
        return round(loss, 7) if math.isfinite(loss) else math.inf

    def _config(self, name: str) -> ConfigParser:
        """The training config of a network."""
        config = ConfigParser()
        config.read_config(self.files)
        config.update({**self.options, "network_name": name, **NETWORKS[name].training})
        if (skip := self._skip(name)) is not None:
            config["network_def#image_skip"] = skip
        return config

    def _config_of_run(self, name: str, rate: float) -> ConfigParser:
        """The same with a learning rate and the batches, whose pool of slices is built once."""
        config = self._config(name)
        config["learning_rate"] = rate
        if self._batches is None:
            self._batches = config.get_parsed_content("train#batches")
        config.globals["shared_batches"] = self._batches
        config["train#batches"] = "$shared_batches"
        return config

    def _run(self, name: str, rate: float, limits: Mapping[str, float], keep: bool = True) -> _Course:
        """Train until every limit is reached: a number of updates, or for ``equal_compute`` seconds."""
        config = self._config_of_run(name, rate)
        set_determinism(seed=config.get_parsed_content("seed"))
        trainer, averaged = config.get_parsed_content("train#trainer"), config.get_parsed_content("ema").ema_model
        clock = time.process_time if trainer.state.device.type == "cpu" else time.perf_counter
        course, start = _Course(), clock()

        @trainer.on(Events.ITERATION_COMPLETED)
        def note(engine: Engine) -> None:
            output: Any = engine.state.output
            course.losses.append(float(output[0]["loss"]))
            course.seconds.append(clock() - start)
            for limit, value in limits.items():
                reached = course.seconds[-1] if limit == COMPUTE else len(course.losses)
                if limit not in course.kept and reached >= value:
                    course.kept[limit] = {"updates": len(course.losses), "seconds": round(course.seconds[-1], 1)}
                    if keep:
                        path = Path(weights_path(self.folder / limit, name, self.scale))
                        save_atomically(averaged.state_dict(), str(path))
                        course.kept[limit]["sha256"] = sha256_of(path)
            if len(course.kept) == len(limits):
                engine.terminate()

        trainer.run()
        return course


BUDGET_HEADER = ["network", "scale", "patches", "learning rate", "updates", "seconds"]


def budget_rows(records: Sequence[Mapping[str, Any]], budget: str) -> list[list[str]]:
    """One table row per record, with the columns of :data:`BUDGET_HEADER`.

    Args:
        records: from :meth:`Trainings.train`.
        budget: ``equal_updates`` or ``equal_compute``.
    """
    rows = []
    for record in sorted(records, key=lambda r: (r["scale"], r["weights"][budget]["updates"])):
        kept, options = record["weights"][budget], record["options"]
        patches = f"{options['batch_size']} of {options['patch_size']}x{options['patch_size']}"
        head = [record["network"], f"{record['scale']}x", patches, f"{record['learning_rate']:g}"]
        rows.append([*head, f"{kept['updates']:,}", f"{kept['seconds']:.0f}"])
    return rows
