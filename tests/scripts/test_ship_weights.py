"""scripts/ship_weights.py: the record of a training, and nothing is written for an incomplete run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.utils.tensorboard import SummaryWriter

from bundle.data.paths import sha256_of
from bundle.inference.weights import load_weights
from bundle.networks import build_network


@pytest.fixture
def run(tmp_path):
    """The output folder of a training, with 2x weights."""
    folder = tmp_path / "run"
    with SummaryWriter(str(folder)) as writer:
        for epoch in (1, 2):
            writer.add_scalar("val_psnr", 30.0 + epoch, epoch)
    torch.save(build_network(scale=2).state_dict(), folder / "model.pt")
    torch.save({"best_model": {"epoch": 2, "value": 32.0}}, folder / "last.pt")
    return folder


@pytest.fixture
def ship(run, training_folder, tmp_path, bundle_root):
    (training_folder / "split.csv").write_text(
        "file,subject,modality,split\nsub-00_T1.nii.gz,a,MR,train\nsub-01_T1.nii.gz,b,PET,train\nsub-02_T1.nii.gz,c,MR,val\n"
    )

    def shipped(**options: str) -> tuple[subprocess.CompletedProcess[str], Path]:
        weights = tmp_path / "models" / "model.pt"
        weights.parent.mkdir(exist_ok=True)
        given = {"scale": "2", "dataset_dir": str(training_folder), "split_file": str(training_folder / "split.csv")}
        given |= {"command": "train", "data": "ellipses", "machine": "any", "commit": "abc", **options}
        command = [sys.executable, "-W", "ignore", str(bundle_root / "scripts/ship_weights.py"), str(run), str(weights)]
        command += [word for key, value in given.items() for word in (f"--{key}", value)]
        environment = {**os.environ, "PYTHONPATH": str(bundle_root)}
        return subprocess.run(command, env=environment, capture_output=True, text=True), weights

    return shipped


def test_weights_are_shipped_with_checksums_and_the_record_of_their_training(ship, run):
    done, weights = ship()
    assert done.returncode == 0, done.stderr
    record = json.loads((weights.parent / "training/model.json").read_text())
    assert record["sha256"] == sha256_of(weights) == sha256_of(run / "model.pt")
    assert (record["best_epoch"], record["best_validation_psnr"], record["commit"]) == (2, 32.0, "abc")
    assert record["curves"]["val_psnr"] == [[1, 31.0], [2, 32.0]]
    ranges = record["training_range"]["modalities"]
    assert {name: r["volumes"] for name, r in ranges.items()} == {"MR": 1, "PET": 1}
    sums = dict(line.split("  ")[::-1] for line in (weights.parent / "sha256sums.txt").read_text().splitlines())
    assert sums == {p.name: sha256_of(p) for p in weights.parent.glob("model.*")} and len(sums) == 1
    load_weights(build_network(scale=2), weights)


@pytest.mark.parametrize(
    ("missing", "options", "said"),
    [
        ("last.pt", {}, "last.pt"),
        ("model.pt", {}, "model.pt: no such weights"),
        ("", {"scale": "4"}, "not the weights of this network"),
    ],
)
def test_of_a_run_that_is_not_whole_or_of_another_scale_nothing_is_written(missing, options, said, ship, run):
    if missing:
        (run / missing).unlink()
    done, weights = ship(**options)
    assert done.returncode == 1
    assert said in done.stderr and done.stderr.count("\n") == 1
    assert not list(weights.parent.iterdir())


def test_hours_are_those_of_every_start_without_the_pauses_between(run, ship, monkeypatch):
    for file in run.glob("events*"):
        file.unlink()
    for start in (1_000_000, 2_000_000):
        monkeypatch.setattr("tensorboard.summary.writer.event_file_writer.time.time", lambda start=start: start)
        for suffix in (".0", ".1"):
            with SummaryWriter(str(run), filename_suffix=suffix) as writer:
                for minutes in (0, 30, 90):
                    writer.add_scalar("val_psnr", 30.0, start + minutes, walltime=start + 60.0 * minutes)
    assert len(list(run.glob("events*"))) == 4
    done, weights = ship()
    assert done.returncode == 0, done.stderr
    assert json.loads((weights.parent / "training/model.json").read_text())["hours"] == 3.0
