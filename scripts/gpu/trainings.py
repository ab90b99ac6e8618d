"""The queue: ordinary trainings in processes of their own, stopped by the clock, continued by the next run."""

from __future__ import annotations

import csv
import json
import re
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from comparison.records import write_text

from bundle.inference.weights import save_atomically
from bundle.networks import build_network
from bundle.networks.fusion import SRRecFusion
from bundle.networks.ss2d import SS2D
from gpu.jobs import Ended, Job, python, run_jobs
from gpu.plan import NETWORK_OPTION, Entry, Plan

RECORD, WEIGHTS, CHECKPOINT, BEST = "entry.json", "ema.pt", "last.pt", "model.pt"
FINISHED, SHORTENED, WAITING, STOPPED, FAILED = "finished", "shortened", "waiting", "stopped", "failed"
HALF = 0.45
"""Share of its time after which a training that is to fit is made shorter, if need be."""
_VALIDATION = re.compile(r"epoch (\d+) of \d+: .*validation PSNR ([\d.]+) dB, ([+-][\d.]+) dB over")


@dataclass(frozen=True)
class Place:
    """Where a run trains.

    Attributes:
        root: of the bundle.
        folder: of all trainings.
        device: ``cuda`` or ``cpu``.
        data, split_file: for the trainings; ``None`` leaves the defaults of configs/train.json.
    """

    root: Path
    folder: Path
    device: str
    data: Path | None = None
    split_file: Path | None = None

    @property
    def options(self) -> dict[str, Any]:
        """The same as options of the configs."""
        every = {"device": self.device, "dataset_dir": self.data, "split_file": self.split_file}
        return {key: value for key, value in every.items() if value is not None}


class Training:
    """An entry of the queue with its folder and its record, ``entry.json``.

    Attributes:
        length: updates of the training in this run, less than planned once it was shortened.
    """

    def __init__(self, entry: Entry, place: Place) -> None:
        self.entry, self.place = entry, place
        self.folder = place.folder / entry.name
        self.length = self.planned
        path = self.folder / RECORD
        self.record: dict[str, Any] = {"settings": entry.settings, "state": WAITING, "updates": 0, "seconds": 0.0}
        there = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
        self.foreign = there is not None and there["settings"] != json.loads(json.dumps(entry.settings))
        if self.foreign:
            self.record |= {"state": FAILED, "why": f"{self.folder} holds a training with other options"}
        elif there is not None:
            self.record = there

    @property
    def planned(self) -> int:
        """Updates of the whole training."""
        return self.entry.epochs * self.entry.updates_per_epoch

    @property
    def finished(self) -> bool:
        """Whether there is nothing left to train."""
        return self.record["state"] == FINISHED and self.record["updates"] >= self.planned

    @cached_property
    def needs_kernels(self) -> bool:
        """Whether the network runs the scan or the patch search."""
        try:
            network = build_network(self.entry.network_name, self.entry.scale)
        except ValueError:  # unknown; its training says so
            return False
        return any(isinstance(module, (SS2D, SRRecFusion)) for module in network.modules())

    def note(self, **about: Any) -> None:
        """Add to the record and write it, unless the folder is another training's."""
        self.record |= about
        if not self.foreign:
            write_text(self.folder / RECORD, json.dumps(self.record, indent=1) + "\n")

    def job(self, seconds: float = float("inf"), fraction: float = 1.0) -> Job:
        """The command that starts the training or goes on with it."""
        files = [str(self.place.root / path) for path in ("configs/train.json", *self.entry.configs)]
        given = {
            "bundle_root": self.place.root,
            "network_name": self.entry.network_name,
            **({} if "scale" in self.entry.overlay(self.place.root) else {"scale": self.entry.scale}),
            "epochs": self.length // self.entry.updates_per_epoch,
            **self.entry.options,
            **self.place.options,
            "output_dir": self.folder,
            "resume": True,
        }
        command = _bundle("training", files[0] if len(files) == 1 else str(files), given)
        return Job(self.entry.name, command, self.folder / "training.log", seconds, fraction)

    def take_stock(self, ended: Ended | None = None) -> None:
        """Bring the record up to date with the checkpoint, and keep its averaged weights as a file of their own."""
        path = self.folder / CHECKPOINT
        if self.foreign or (ended is None and not path.is_file()):
            return
        updates, state = self.record["updates"], self.record["state"]
        if path.is_file():
            checkpoint = torch.load(path, map_location="cpu", weights_only=True)
            updates = int(checkpoint["trainer"]["iteration"])
            save_atomically(checkpoint["ema"], self.folder / WEIGHTS)
        if updates >= self.length:
            state = FINISHED if updates >= self.planned else SHORTENED
        elif ended is not None:
            state = STOPPED if ended.state == "stopped" else FAILED
        elif state == FINISHED:  # the plan is longer now
            state = STOPPED
        about: dict[str, Any] = {"updates": updates, "state": state, "device": self.place.device}
        about["why"] = (ended.why or "it ended before its last update") if ended and state == FAILED else ""
        if ended is not None:
            about["seconds"] = round(self.record["seconds"] + ended.seconds, 1)
            about["timed"] = self.record.get("timed", 0) + updates - self.record["updates"]
        if (last := self._last_validation()) is not None:
            about["validation"] = last
        self.note(**about)

    def fit(self, new: int, spent: float, left: float) -> None:
        """Shorten the training to what the time that is left allows.

        Args:
            new: updates of the job before, in ``spent`` seconds, start included.
            left: seconds.
        """
        epoch = self.entry.updates_per_epoch
        epochs = int(0.9 * left * new / spent) // epoch
        if new > 0:
            self.length = min(self.planned, self.record["updates"] + max(epochs, 1) * epoch)

    def _last_validation(self) -> dict[str, float] | None:
        """The last validation in the training's log."""
        log = self.folder / "training.log"
        found = _VALIDATION.findall(log.read_text(errors="replace")) if log.is_file() else []
        if not found:
            return None
        epoch, psnr, gain = found[-1]
        return {"updates": int(epoch) * self.entry.updates_per_epoch, "psnr": float(psnr), "gain": float(gain)}

    @property
    def to_evaluate(self) -> bool:
        """Whether there are weights that have not been validated as they are now."""
        last = self.record.get("validation") or {}
        there = not self.foreign and (self.folder / WEIGHTS).is_file()
        return there and last.get("updates") != self.record["updates"]

    def evaluation(self) -> Job:
        """The command that evaluates the averaged weights on the validation split."""
        options = {**self.entry.overlay(self.place.root), **self.entry.options}
        shared = ("slice_axis", "data_consistency", "slice_batch", "line_mask_acceleration")
        given = {
            "bundle_root": self.place.root,
            "network_name": self.entry.network_name,
            "scale": self.entry.scale,
            **{k: v for k, v in options.items() if k in shared or k.startswith(NETWORK_OPTION)},
            **self.place.options,
            "weights": self.folder / WEIGHTS,
            "output_dir": self.folder / "evaluation",
            "split": "val",
        }
        command = _bundle("evaluating", str(self.place.root / "configs/evaluate.json"), given)
        return Job(self.entry.name, command, self.folder / "evaluation.log")

    def take_figures(self, ended: Ended) -> None:
        """Put the means of the evaluation's table into the record."""
        path = self.folder / "evaluation" / "metrics.csv"
        if ended.state != "done" or not path.is_file():
            self.note(evaluation_failed=ended.why or ended.state)
            return
        with open(path, newline="", encoding="utf-8") as file:
            rows = [row for row in csv.DictReader(file) if row["method"] == self.entry.network_name]
        gains = [float(row["psnr_gain"]) for row in rows]
        psnr = round(mean(float(row["psnr"]) for row in rows), 3)
        figures = {"updates": self.record["updates"], "psnr": psnr, "gain": round(mean(gains), 3), "worst": min(gains)}
        self.note(validation=figures)


def _bundle(run_id: str, config: str, given: dict[str, Any]) -> list[str]:
    options = [word for key, value in given.items() for word in (f"--{key}", value)]
    return python("-m", "monai.bundle", "run", run_id, "--config_file", config, *options)


def train_queue(trainings: Sequence[Training], plan: Plan, deadline: float) -> None:
    """Train what is not finished, in order; one that used up its share of the time goes on after the others.

    Args:
        trainings: in the order of the plan; foreign and finished ones are skipped.
        plan: for the number at once.
        deadline: on the clock of `time.monotonic`.
    """
    by_name = {training.entry.name: training for training in trainings}
    total = deadline - time.monotonic()
    waiting: deque[Job] = deque()
    for training in trainings:
        training.take_stock()  # a run that was killed left its record behind its checkpoint
        if not training.foreign and not training.finished:
            part = HALF if training.entry.fit else 1.0
            waiting.append(training.job(part * training.entry.share * total, part))
    for ended in run_jobs(waiting, plan.at_once, deadline, trainings[0].place.root if trainings else Path()):
        training = by_name[ended.job.name]
        before = training.record["updates"]
        training.take_stock(ended)
        print(f"{training.entry.name}: {training.record['state']}, {training.record['updates']} updates", flush=True)
        if training.record["state"] != STOPPED or (left := deadline - time.monotonic()) <= 0:
            continue
        if ended.job.fraction < 1:
            left = min(left, training.entry.share * total - ended.seconds)
            training.fit(training.record["updates"] - before, ended.seconds, left)
            waiting.appendleft(training.job(left))
        else:
            waiting.append(training.job())


def evaluate_queue(trainings: Sequence[Training], plan: Plan, deadline: float) -> None:
    """Evaluate the weights that the trainings did not validate themselves, in order, as far as the time goes."""
    by_name = {training.entry.name: training for training in trainings}
    waiting = deque(training.evaluation() for training in trainings if training.to_evaluate)
    for ended in run_jobs(waiting, plan.at_once, deadline, trainings[0].place.root if trainings else Path()):
        if ended.state != "stopped":
            by_name[ended.job.name].take_figures(ended)
