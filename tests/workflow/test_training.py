"""The training and evaluation commands: resume after a kill, several processes, metrics written."""

from __future__ import annotations

import csv
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

TINY = {"updates_per_epoch": 4, "batch_size": 2, "patch_size": 32, "val_interval": 1, "warmup_updates": 2}


def checkpoint_epoch(path: Path) -> int:
    """Epochs that a checkpoint has seen; 0 while there is none."""
    if not path.is_file():
        return 0
    state = torch.load(path, weights_only=True)["trainer"]
    return int(state["epoch"] if "epoch" in state else state["iteration"] // state["epoch_length"])


def test_training_resumed_after_a_kill_gives_the_weights_of_training_in_one_go(
    training_folder, tmp_path, run_bundle, bundle_root
):
    options = {**TINY, "dataset_dir": training_folder, "epochs": 4, "device": "cpu"}
    whole = run_bundle("training", "train.json", output_dir=tmp_path / "whole", **options)
    assert whole.returncode == 0, whole.stdout + whole.stderr

    command = [sys.executable, "-m", "monai.bundle", "run", "training", "--config_file", "configs/train.json"]
    for key, value in {**options, "output_dir": tmp_path / "killed"}.items():
        command += [f"--{key}", str(value)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        command, cwd=bundle_root, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 300
    while checkpoint_epoch(tmp_path / "killed" / "last.pt") < 2 and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert 2 <= checkpoint_epoch(tmp_path / "killed" / "last.pt") < 4, "the run was not stopped in its middle"

    resumed = run_bundle("training", "train.json", output_dir=tmp_path / "killed", resume=True, **options)
    assert resumed.returncode == 0, resumed.stdout + resumed.stderr
    for name in ("last.pt", "model.pt"):
        one, two = (torch.load(tmp_path / run / name, weights_only=True) for run in ("whole", "killed"))
        if "network" in one:
            one, two = ({**s["network"], **{f"ema.{k}": v for k, v in s["ema"].items()}} for s in (one, two))
        assert all(torch.equal(one[key], two[key]) for key in one), name


@pytest.mark.parametrize("changes", [{"scale": 4}, {"slice_axis": 0, "patch_size": 16, "return_stages": False}])
def test_training_runs_with_other_options(changes, training_folder, tmp_path, run_bundle):
    if "slice_axis" in changes:
        for path in training_folder.iterdir():
            image = nib.load(path)
            turned = np.moveaxis(np.asarray(image.dataobj), 2, changes["slice_axis"])
            nib.save(nib.Nifti1Image(turned, image.affine), path)
    options = {**TINY, "dataset_dir": training_folder, "epochs": 1, "output_dir": tmp_path / "run", **changes}
    done = run_bundle("training", "train.json", **{**options, "line_mask_acceleration": 2, "noise_std": 0.01})
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "run" / "model.pt").is_file()


def write_splits(folder: Path, table: Path, splits: str) -> list[str]:
    """A split file for the five subjects of the folder; returns their file names."""
    names = sorted(p.name for p in folder.iterdir())
    rows = [f"{name},{name[:6]},{split}" for name, split in zip(names, splits.split(), strict=True)]
    table.write_text("\n".join(["file,subject,split", *rows]))
    return names


def test_a_split_file_decides_what_is_evaluated(training_folder, tmp_path, run_bundle):
    names = write_splits(training_folder, tmp_path / "splits.csv", "train train val test test")
    options = {"dataset_dir": training_folder, "split_file": tmp_path / "splits.csv", "device": "cpu"}
    done = run_bundle("evaluating", "evaluate.json", output_dir=tmp_path / "eval", **options)
    assert done.returncode == 0, done.stdout + done.stderr
    with open(tmp_path / "eval" / "val_psnr_raw.csv") as file:
        evaluated = [Path(row[0]).name for row in csv.reader(file)][1:]
    assert sorted(evaluated) == names[3:]
