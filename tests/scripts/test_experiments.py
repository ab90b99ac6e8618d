"""The ablation experiments: every overlay builds what its name says, and they make a table."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from comparison.cost import parameters
from comparison.experiments import (
    Experiment,
    ExperimentError,
    base_configs,
    budget,
    literal,
    table_experiments,
    table_name,
    train,
)
from comparison.records import read_rows
from comparison.swin import SwinBlock, swin_iconet

from bundle.networks import NETWORK_SIZES, ICONet, iconet
from bundle.networks.vision_mamba import VisionMambaBlock
from bundle.workflow.options import unused_keys, wrong_values

ROWS = {
    4: {"table4_1_sr": {"network_def#reconstruction": False}, "table4_2_sr_rec": {"network_def#fusion": False}},
    5: {"table5_1_parallel": {"network_def#order": "parallel"}},
    6: {f"table6_{i}_alpha_0{4 + i}": {"alpha": (4 + i) / 10} for i in range(1, 5)},
    7: {f"table7_{i}_blocks_{2 + i}": {"network_def#num_blocks": 2 + i} for i in range(1, 6)},
    8: {"table8_1_single_stage": {"scale": 4, "return_stages": False}, "table8_2_multi_stage": {"scale": 4}},
    9: {
        "table9_1_swin": {
            "network_def#_target_": "comparison.swin.swin_iconet",
            "network_def#reconstruction": False,
        },
        "table9_2_vision_mamba": {"network_def#reconstruction": False},
    },
}
DEFAULTS = {4: "table4_3_iconet", 5: "table5_2_serial", 6: "table6_5_alpha_09"}
TABLES = {4: "Table IV", 5: "Table V", 6: "Table VI", 7: "Table VII", 8: "Table VIII", 9: "Table IX"}


@pytest.mark.parametrize("table", TABLES)
def test_the_rows_of_a_table_change_what_their_names_say_and_nothing_else(table, bundle_root):
    rows = table_experiments(table, bundle_root)
    expected = {**ROWS[table], **({DEFAULTS[table]: {}} if table in DEFAULTS else {})}
    assert {row.path.stem: row.settings for row in rows} == expected
    assert {row.overlay["experiment_name"] for row in rows} == {TABLES[table]}
    assert len({row.title for row in rows}) == len(rows) == len({row.run_name for row in rows})


def test_there_is_no_overlay_that_no_table_knows(bundle_root):
    known = {name for rows in ROWS.values() for name in rows} | set(DEFAULTS.values()) | {"paper", "alike"}
    assert {path.stem for path in (bundle_root / "configs/experiments").iterdir()} == known


def every_row():
    return [name for table in ROWS for name in [*ROWS[table], *([DEFAULTS[table]] if table in DEFAULTS else [])]]


@pytest.mark.parametrize("name", every_row())
def test_an_overlay_passes_the_guard_and_builds_its_network(name, bundle_root):
    row = Experiment(bundle_root / f"configs/experiments/{name}.yaml", base_configs(bundle_root))
    config = row.config({}).get()
    assert unused_keys(config) == [] and wrong_values(config) == []
    network = row.network({})
    assert isinstance(network, ICONet) and network.scale == row.settings.get("scale", 2)
    stage, kwargs = network.stages[0], {k.removeprefix("network_def#"): v for k, v in row.settings.items()}
    assert (stage.rec_branch is None) == (kwargs.get("reconstruction") is False)
    assert (stage.fusion is None) == (kwargs.get("fusion", kwargs.get("reconstruction")) is False)
    assert stage.serial == (kwargs.get("order") != "parallel")
    assert len(stage.sr_branch.body) == kwargs.get("num_blocks", NETWORK_SIZES["small"].num_blocks)
    assert isinstance(stage.sr_branch.body[0].vmb, SwinBlock if "_target_" in kwargs else VisionMambaBlock)
    config = row.config({})
    assert config.get_parsed_content("loss").alpha == kwargs.get("alpha", 0.9)
    inferer = config.get_parsed_content("train#inferer")
    assert inferer.return_stages == kwargs.get("return_stages", True) and not inferer.data_consistency
    assert config.get_parsed_content("validate#inferer").walker.data_consistency == 0.0


def test_tables_share_rows(bundle_root):
    def runs(table):
        return {row.run_name for row in table_experiments(table, bundle_root)}

    assert runs(4) & runs(5) & runs(6) == {"default"}
    assert runs(4) & runs(9) == {"reconstruction-False"}


def test_an_unknown_table_is_an_error(bundle_root):
    with pytest.raises(ExperimentError, match="tables 4 to 9"):
        table_experiments(3, bundle_root)


def test_the_budget_is_that_of_the_options(bundle_root):
    options = {"epochs": "3", "updates_per_epoch": "1000", "network_name": "iconet_paper", "batch_size": "4"}
    text = budget(table_experiments(8, bundle_root), options)
    assert "`iconet_paper`, 3,000 updates of 4 patches of 128x128" in text and "seed 0" in text


def test_values_of_the_command_line_are_read_as_monai_reads_them():
    assert [literal(t) for t in ("3", "1e-3", "False", "[1, 2]", "cpu", "a/b")] == [
        3,
        0.001,
        False,
        [1, 2],
        "cpu",
        "a/b",
    ]


# --------------------------------------------------------------------------------------------------- Swin blocks


@pytest.mark.parametrize("size", ["small", "paper"])
def test_swin_blocks_are_as_large_as_the_mamba_blocks_within_one_hidden_unit(size):
    ours, swin = iconet(size, 2, num_blocks=2), swin_iconet(f"iconet_{size}", 2, num_blocks=2)
    width = ours.stages[0].sr_branch.head.out_channels
    pairs = zip(ours.stages[0].sr_branch.body, swin.stages[0].sr_branch.body, strict=True)
    assert all(abs(parameters(a.vmb) - parameters(b.vmb)) <= width + 1 for a, b in pairs)
    assert abs(parameters(swin) / parameters(ours) - 1) < 0.005


@pytest.mark.parametrize("shape", [(16, 24), (9, 13), (5, 8)])
def test_a_swin_block_takes_any_size_and_every_parameter_learns(shape):
    torch.manual_seed(0)
    block = SwinBlock(32, 8704, shifted=True)
    x = torch.randn(2, *shape, 32)
    out = block(x)
    assert out.shape == x.shape
    out.square().mean().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in block.parameters())


def test_every_other_block_shifts_its_windows():
    network = swin_iconet("iconet_small", 2)
    shifts = [module.block.shift for module in network.modules() if isinstance(module, SwinBlock)]
    assert shifts == [(0, 0), (4, 4)] * 4


def test_what_cannot_hold_swin_blocks_is_an_error():
    with pytest.raises(ValueError, match="at least"):
        SwinBlock(32, 100, shifted=False)
    with pytest.raises(ValueError, match="multiple of 16"):
        SwinBlock(20, 8704, shifted=False)
    with pytest.raises(ValueError, match="no vision Mamba blocks"):
        swin_iconet("srcnn", 2)


# ------------------------------------------------------------------------------------------------------ training


@pytest.fixture
def trainings(monkeypatch):
    """Commands that would have been run; each appears to end as specified."""
    commands, codes = [], []

    def run(command, cwd):
        commands.append(command)
        code = codes.pop(0) if codes else 0
        if code == 0 and "never" not in command:
            Path(command[command.index("--output_dir") + 1], "model.pt").touch()
        return subprocess.CompletedProcess(command, code)

    monkeypatch.setattr("comparison.experiments.subprocess.run", run)
    return commands, codes


def test_a_finished_row_is_not_trained_again_and_an_interrupted_one_goes_on(trainings, tmp_path, bundle_root):
    commands, codes = trainings
    row = table_experiments(5, bundle_root)[0]
    codes.append(1)
    with pytest.raises(ExperimentError, match="same command again"):
        train(row, tmp_path, {"epochs": "2"}, bundle_root)
    for _ in range(2):
        weights = train(row, tmp_path, {"epochs": "2"}, bundle_root)
    assert weights == tmp_path / "order-parallel/model.pt"
    assert len(commands) == 2
    assert commands[1][-2:] == ["--resume", "True"] and "--epochs" in commands[1]
    names = ["train.json", "paper.yaml", "table5_1_parallel.yaml"]
    assert [Path(file).name for file in literal(commands[1][commands[1].index("--config_file") + 1])] == names


def test_a_row_that_two_tables_share_is_trained_once(trainings, tmp_path, bundle_root):
    rows = [table_experiments(table, bundle_root)[-1] for table in (4, 5, 6)]
    assert len({train(row, tmp_path, {"epochs": "2"}, bundle_root) for row in rows}) == 1
    assert len(trainings[0]) == 1


def test_a_run_by_other_configs_is_left_alone(trainings, tmp_path, bundle_root):
    row = table_experiments(5, bundle_root)[0]
    train(row, tmp_path / "runs", {}, bundle_root)
    other = tmp_path / "train.json"
    other.write_text(
        (bundle_root / "configs/train.json").read_text().replace('"warmup_updates": 200', '"warmup_updates": 100')
    )
    with pytest.raises(ExperimentError, match="or configs"):
        train(Experiment(row.path, (other, *row.base[1:])), tmp_path / "runs", {}, bundle_root)


def test_a_training_that_kept_no_weights_is_not_finished(trainings, tmp_path, bundle_root):
    for _ in range(2):
        with pytest.raises(ExperimentError, match="nothing was validated"):
            train(table_experiments(5, bundle_root)[0], tmp_path, {"val_interval": "never"}, bundle_root)
    assert len(trainings[0]) == 2


def test_another_split_is_another_training(trainings, tmp_path, bundle_root):
    split, row = tmp_path / "split.csv", table_experiments(5, bundle_root)[0]
    split.write_text("file,subject,split\na.nii,a,train\n")
    train(row, tmp_path / "runs", {"split_file": str(split)}, bundle_root)
    split.write_text("file,subject,split\na.nii,a,val\n")
    with pytest.raises(ExperimentError, match="or configs"):
        train(row, tmp_path / "runs", {"split_file": str(split)}, bundle_root)


def test_another_seed_needs_a_split_file(training_folder, bundle_root):
    command = [sys.executable, "-W", "ignore", str(bundle_root / "scripts/ablation.py"), "--table", "5", "--seed", "1"]
    environment = {**os.environ, "PYTHONPATH": str(bundle_root)}
    command += ["--dataset_dir", str(training_folder)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 1 and "--seed 1: would also change the validation subjects" in done.stderr


def test_options_that_every_row_sets_are_an_error(trainings, tmp_path, bundle_root):
    with pytest.raises(ExperimentError, match="--train_consistency: paper.yaml sets it"):
        train(table_experiments(5, bundle_root)[0], tmp_path, {"train_consistency": "True"}, bundle_root)


def test_a_run_with_other_options_is_left_alone(trainings, tmp_path, bundle_root):
    row = table_experiments(5, bundle_root)[0]
    train(row, tmp_path, {"epochs": "2", "device": "cuda"}, bundle_root)
    train(row, tmp_path, {"epochs": "2", "device": "cpu"}, bundle_root)
    with pytest.raises(ExperimentError, match="other options"):
        train(row, tmp_path, {"epochs": "3"}, bundle_root)
    (tmp_path / "reconstruction-False").mkdir()
    with pytest.raises(ExperimentError, match="not an ablation training"):
        train(table_experiments(4, bundle_root)[0], tmp_path, {}, bundle_root)
    assert len(trainings[0]) == 1


def test_an_option_that_a_row_sets_itself_is_an_error(trainings, tmp_path, bundle_root):
    with pytest.raises(ExperimentError, match="--alpha: table6_1_alpha_05.yaml sets it"):
        train(table_experiments(6, bundle_root)[0], tmp_path, {"alpha": "0.8"}, bundle_root)
    assert trainings[0] == []


def test_a_table_with_another_seed_does_not_replace_the_first():
    assert table_name(4, "0") == "ablation_table4"
    assert table_name(4, "1") == "ablation_table4_seed1"


@pytest.mark.slow
def test_one_command_makes_a_table(training_folder, tmp_path, bundle_root):
    command = [sys.executable, "-W", "ignore", str(bundle_root / "scripts/ablation.py"), "--table", "5"]
    command += ["--dataset_dir", str(training_folder), "--runs_dir", str(tmp_path / "runs")]
    command += ["--output_dir", str(tmp_path / "out"), "--epochs", "1", "--updates_per_epoch", "2", "--val_interval=1"]
    command += ["--batch_size", "2", "--patch_size", "32", "--device", "cpu"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(bundle_root)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    rows = read_rows(tmp_path / "out/ablation_table5.csv")
    assert [r["method"] for r in rows] == ["zero-filled Fourier", "parallel", "serial"]  # one subject for validation
    assert rows[1]["psnr"] != rows[2]["psnr"]
    assert rows[1]["parameters"] == rows[2]["parameters"] == parameters(iconet("small", 2))
    text = (tmp_path / "out/ablation_table5.md").read_text()
    assert text.startswith("### Table V, 2x, truncation, val split") and "2 updates of 2 patches of 32x32" in text
    assert text in (tmp_path / "out/results.md").read_text()
    assert json.loads((tmp_path / "runs/default/experiment.json").read_text())["finished"] is True
