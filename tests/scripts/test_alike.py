"""Matched training: the same patches for each, stopped at the right update, never trained twice."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from comparison.alike import COMPUTE, UPDATES, Budget, Trainings, budget_rows
from comparison.pages import page
from comparison.protocol import Protocol
from comparison.records import write_rows

from bundle.inference.shipped import weights_path
from bundle.inference.weights import load_weights
from bundle.networks import build_network
from bundle.training.inferers import StageInferer

BUDGET = Budget(updates=3, seconds=0.0, learning_rates=(1e-9, 1e-3), search_updates=4)


@pytest.fixture
def trainings(training_folder, tmp_path, bundle_root):
    options = {
        "dataset_dir": str(training_folder),
        "batch_size": 2,
        "patch_size": 16,
        "device": "cpu",
    }
    return lambda name: Trainings(2, tmp_path / name, options, "fourier", bundle_root)


@pytest.fixture
def seen(monkeypatch):
    """The inputs of every update."""
    batches: list[torch.Tensor] = []
    original = StageInferer.__call__

    def spy(self, inputs, network, *args, **kwargs):
        batches.append(torch.as_tensor(inputs).clone())
        return original(self, inputs, network, *args, **kwargs)

    monkeypatch.setattr(StageInferer, "__call__", spy)
    return batches


def test_every_network_and_every_trial_sees_the_same_patches(trainings, seen):
    both = trainings("a")
    both.train("fmisr", BUDGET)
    first = [seen[:4], seen[4:8], seen[8:11]]
    del seen[:]
    both.train("srcnn", BUDGET)
    second = [seen[:4], seen[4:8], seen[8:11]]
    assert len(seen) == 11
    for run in [*first[1:], *second]:
        assert all(torch.equal(a, b) for a, b in zip(first[0], run, strict=False))
    assert not torch.equal(first[0][0], first[0][1])


def test_weights_are_kept_at_both_budgets_and_load(trainings, tmp_path):
    record = trainings("a").train("fmisr", BUDGET)
    assert record["weights"][UPDATES]["updates"] == 3 and record["weights"][COMPUTE]["updates"] == 1
    states = []
    for kind in (UPDATES, COMPUTE):
        network = build_network("fmisr", 2, image_skip="fourier")
        load_weights(network, weights_path(tmp_path / "a" / kind, "fmisr", 2))
        states.append(network.state_dict())
    assert any(not torch.equal(states[0][key], states[1][key]) for key in states[0])


def test_the_learning_rate_with_the_smaller_loss_is_taken(trainings):
    record = trainings("a").train("srcnn", BUDGET)
    trials = record["trials"]
    assert record["learning_rate"] == min(trials, key=lambda rate: trials[rate])
    assert len(set(trials.values())) == 2 and all(np.isfinite(list(trials.values())))


def test_a_training_is_reproduced_and_not_repeated(trainings, seen):
    first = trainings("a").train("fmisr", BUDGET)
    again = trainings("b").train("fmisr", BUDGET)
    assert first["weights"][UPDATES]["sha256"] == again["weights"][UPDATES]["sha256"]
    del seen[:]
    assert trainings("a").train("fmisr", BUDGET)["loss"] == first["loss"] and not seen
    with pytest.raises(ValueError, match="another budget;"):
        trainings("a").train("fmisr", Budget(5, 0.0, (1e-3,), 4))


def test_a_training_on_other_volumes_or_from_another_start_is_not_taken_for_this_one(
    trainings, training_folder, monkeypatch
):
    trainings("a").train("fmisr", BUDGET)
    (training_folder / "sub-00_T1.nii.gz").rename(training_folder / "sub-77_T1.nii.gz")
    with pytest.raises(ValueError, match="another data;"):
        trainings("a").train("fmisr", BUDGET)
    (training_folder / "sub-77_T1.nii.gz").rename(training_folder / "sub-00_T1.nii.gz")
    monkeypatch.setattr(Trainings, "start", lambda self, name: "other")
    with pytest.raises(ValueError, match="another start;"):
        trainings("a").train("fmisr", BUDGET)


def test_the_start_is_that_of_the_network_and_its_seed(trainings, training_folder, tmp_path, bundle_root):
    starts = [trainings("a").start(name) for name in ("fmisr", "srcnn", "fmisr")]
    assert starts[0] == starts[2] != starts[1]
    other = Trainings(2, tmp_path, {"dataset_dir": str(training_folder), "seed": 1}, "fourier", bundle_root)
    assert other.start("fmisr") != starts[0]


def test_the_patches_stand_in_the_record_also_where_nothing_was_said_of_them(trainings, bundle_root, tmp_path):
    few = Trainings(4, tmp_path, {"dataset_dir": "."}, None, bundle_root)
    assert few._shown() == {"scale": 4, "batch_size": 8, "patch_size": 128}


def test_a_network_that_diverges_at_every_rate_is_an_error(trainings, monkeypatch):
    monkeypatch.setattr(Trainings, "_search", lambda *_: float("inf"))
    with pytest.raises(ValueError, match="diverges at every learning rate"):
        trainings("a").train("fmisr", BUDGET)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--patch_size", "15"], "--patch_size 15: must be a multiple of --scale, which is 2"),
        (["--degradation", "wide"], "--degradation: alike.yaml sets it; leave the option out"),
        (["--batchsize", "4"], "unknown option --batchsize: nothing in the configuration uses it; did you mean"),
        (["--epochs", "2"], "--epochs: alike.yaml sets it; leave the option out"),
        (["--alpha", "0.5"], "--alpha: every network has its own"),
        (["--learning_rate", "0.1"], "--learning_rate: every network has its own"),
        (["--image_skip", "none", "--networks", "fmisr", "vdsr"], "vdsr x2: "),
    ],
)
def test_what_cannot_be_trained_as_asked_is_one_line_before_the_first_training(
    options, said, refused, training_folder, tmp_path
):
    runs = tmp_path / "runs"
    given = ["--networks", "fmisr", "--scales", "2", "--runs_dir", runs, *options]
    assert said in refused("train_alike.py", training_folder, *given) and not runs.exists()


def test_t2net_is_trained_with_the_weight_of_its_paper(trainings):
    parser = trainings("a")._config("t2net")
    assert parser.get_parsed_content("loss").alpha == 0.8
    assert parser.get_parsed_content("network_def").image_skip == "fourier"
    assert trainings("a")._config("iconet_small").get_parsed_content("loss").alpha == 0.9


def test_the_page_tells_both_budgets(trainings, tmp_path):
    record = json.loads(json.dumps(trainings("a").train("fmisr", BUDGET)))
    assert budget_rows([record], UPDATES)[0][:5] == ["fmisr", "2x", "2 of 16x16", f"{record['learning_rate']:g}", "3"]
    for kind in (UPDATES, COMPUTE):
        folder = tmp_path / "results" / kind
        folder.mkdir(parents=True)
        (folder / "training_fmisr_x2.json").write_text(json.dumps(record))
        head = {"file": "f", "consistency": "", "subject": "s", "modality": "MR", "contrast": "T1"}
        figures = {"psnr": 30.0, "ssim": 0.9, "nmse": 0.1, "hfen": 0.1, "residual": 0.0}
        rows = [{**head, "degradation": "truncation", **figures, "method": "zero-filled Fourier"}]
        rows.append({**rows[0], "method": "ICONet small", "psnr": 31.0, "consistency": 0.0})
        rows.append({**rows[0], "method": "FMISR", "psnr": 30.5, "consistency": 0.0})
        write_rows(folder / "compare_x2.csv", rows)
    text = page(tmp_path / "results", "results")
    assert "equal updates" in text and "equal compute" in text
    assert text.count("| fmisr | 2x | 2 of 16x16 |") == 2 and text.count("| FMISR | -0.50 | -0.50 |") == 2


@pytest.mark.slow
def test_one_command_trains_and_another_makes_the_tables(training_folder, tmp_path, bundle_root):
    def run(script, *options):
        command = [sys.executable, "-W", "ignore", str(bundle_root / "scripts" / script), str(training_folder)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(bundle_root)}
        done = subprocess.run([*command, *options], env=environment, capture_output=True, text=True, timeout=900)
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]

    runs, out = tmp_path / "runs", tmp_path / "out" / UPDATES
    small = ["--updates", "2", "--seconds", "0", "--search_updates", "2", "--batch_size", "2", "--patch_size", "16"]
    run("train_alike.py", "--scales", "2", "--networks", "srcnn", "vdsr", "--runs_dir", str(runs), *small)
    kept = ["--models_dir", str(runs / UPDATES), "--image_skip", "fourier", "--records", str(runs)]
    run("compare.py", "--scales", "2", *kept, "--every", "2", "--device", "cpu", "--output_dir", str(out))
    text = page(tmp_path / "out", "out")
    assert "equal updates" in text and "| VDSR + DC |" in text and "| vdsr | 2x | 2 of 16x16 |" in text


def test_one_slice_in_so_many_is_the_same_slice_of_the_volume(training_folder):
    path = sorted(training_folder.glob("*.nii.gz"))[0]
    whole, sparse = Protocol(2).load(path), Protocol(2, every=3).load(path)
    assert torch.equal(sparse.as_tensor(), whole.as_tensor()[..., ::3])
    across = Protocol(2, slice_axis=0, every=2)
    assert torch.equal(across.load(path).as_tensor(), Protocol(2, slice_axis=0).load(path).as_tensor()[..., ::2])
    assert Protocol(2, every=3).description == "truncation, 1 of 3 slices"
    with pytest.raises(ValueError, match="every"):
        Protocol(2, every=0)
