"""Several processes give the same results as one: the loss of every update, the weights, the metrics."""

from __future__ import annotations

import csv
import json
import os
import re
from collections.abc import Callable
from pathlib import Path

import ignite.distributed as idist
import pytest
import torch
from monai.bundle import ConfigExpression
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from bundle.training.degradation import RandomAcquisition
from bundle.training.patches import PatchBatches
from bundle.workflow import own_share

SMALL = {"updates_per_epoch": 4, "patch_size": 32, "val_interval": 1, "warmup_updates": 2, "device": "cpu"}
NETWORK = {"network_name": "residual_sr", "learning_rate": 2e-4, "train_consistency": False}
"""Data consistency takes the sign of each voxel from the network; where that is nearly zero, its gradient amplifies
rounding a hundredfold (measured: 5e-7 of the norm of the gradient without, up to 1e-4 with it)."""
SMOOTH_ADAM = {"optimizer#eps": 1e-3}
"""Adam's first step is lr * g / (|g| + eps): with the usual eps of 1e-8 it makes whole steps of rounding."""
LOSS_RTOL = 1e-5
"""Of a loss: sums in another order, in float32, amplified by eight updates of Adam. 2e-7 was seen; a learning rate that
is wrong by 1 % makes 2.7e-3."""
WEIGHT_ATOL = 2e-6
"""Of a weight, after eight updates of Adam, each of which moves it by up to 2e-4. 6e-8 was seen; a learning rate that
is wrong by 1 % makes 2.7e-5."""


def launcher(processes: int) -> tuple[str, ...]:
    return () if processes == 1 else ("-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}")


@pytest.fixture
def train(training_folder: Path, tmp_path: Path, run_bundle: Callable) -> Callable[..., Path]:
    """Train with a total batch of 4 and return the folder of the run."""

    def run(processes: int, name: str, **options: object) -> Path:
        config = ["train.json", "multi_gpu_train.json"][: 1 if processes == 1 else 2]
        options |= {**SMALL, **NETWORK, **SMOOTH_ADAM, "dataset_dir": training_folder, "output_dir": tmp_path / name}
        done = run_bundle("training", config, launcher=launcher(processes), batch_size=4 // processes, **options)
        assert done.returncode == 0, done.stdout + done.stderr
        return tmp_path / name

    return run


def curve(run: Path, tag: str = "train_loss") -> list[float]:
    """Values of a curve in the TensorBoard files of a run, by step; one process alone may write them."""
    values: dict[int, float] = {}
    for file in sorted(run.glob("events*"), key=lambda path: path.stat().st_mtime):
        events = EventAccumulator(str(file)).Reload()
        tags = [name for name in events.Tags()["scalars"] if tag in name]
        new = {event.step: event.value for name in tags for event in events.Scalars(name)}
        assert not new.keys() & values.keys(), "two processes wrote the same curve"
        values |= new
    return [values[step] for step in sorted(values)]


def check_same_training(one: Path, other: Path) -> None:
    assert len(curve(one)) == 8
    assert curve(other) == pytest.approx(curve(one), rel=LOSS_RTOL)
    assert curve(other, "val_psnr") == pytest.approx(curve(one, "val_psnr"), abs=1e-3)
    states = [torch.load(run / "last.pt", weights_only=True) for run in (one, other)]
    for part in ("network", "ema"):
        assert states[0][part].keys() == states[1][part].keys()
        for key, value in states[0][part].items():
            torch.testing.assert_close(states[1][part][key], value, rtol=0, atol=WEIGHT_ATOL, msg=f"{part} {key}")


def test_two_processes_train_as_one_with_the_doubled_batch(train: Callable[..., Path]) -> None:
    check_same_training(train(1, "one", epochs=2), train(2, "two", epochs=2))


@pytest.mark.parametrize(
    ("rank", "count", "off"),
    [(None, None, False), ("1", None, False), ("1", "", False), ("1", "1", False), ("0", "2", False), ("1", "2", True)],
)
def test_curves_are_written_by_the_first_process_and_by_one_that_is_alone(rank, count, off, monkeypatch) -> None:
    for name, value in (("RANK", rank), ("WORLD_SIZE", count)):
        monkeypatch.delenv(name, raising=False)
        if value is not None:
            monkeypatch.setenv(name, value)
    config = json.loads((Path(__file__).parents[2] / "configs" / "train.json").read_bytes())
    handlers = [*config["train"]["handlers"], *config["validate"]["handlers"]]
    switches = [item["_disabled_"] for item in handlers if item["_target_"] == "TensorBoardStatsHandler"]
    assert len(switches) == 2
    for switch in switches:
        assert ConfigExpression(switch, globals={"os": os}).evaluate() is off


@pytest.mark.slow
def test_training_goes_on_with_another_number_of_processes(train: Callable[..., Path]) -> None:
    one, other = train(1, "one", epochs=1), train(2, "other", epochs=1)
    train(1, "one", epochs=2, resume=True)
    train(1, "other", epochs=2, resume=True)
    check_same_training(one, other)


def tables(folder: Path) -> dict[str, list[list[str]]]:
    """Cells of every table of metrics."""
    found = {}
    for path in folder.glob("*.csv"):
        with open(path, newline="") as file:
            found[path.name] = [[cell.strip() for cell in row] for row in csv.reader(file)]
    return found


def is_figure(cell: str) -> bool:
    return re.fullmatch(r"[-+.e0-9]+", cell) is not None


def test_figures_do_not_depend_on_the_number_of_processes(training_folder, tmp_path, run_bundle) -> None:
    for count in (1, 2, 3):
        config = ["evaluate.json", "multi_gpu_evaluate.json"][: 1 if count == 1 else 2]
        options = {"dataset_dir": training_folder, "output_dir": tmp_path / str(count), "device": "cpu"}
        done = run_bundle("evaluating", config, launcher=launcher(count), **options)
        assert done.returncode == 0, done.stdout + done.stderr
    expected = tables(tmp_path / "1")
    assert [name for name, rows in expected.items() if len(rows) == 1 + 2 * 5] == ["metrics.csv"]
    for count in (2, 3):
        found = tables(tmp_path / str(count))
        assert expected.keys() == found.keys()
        for name, rows in expected.items():
            for row, other in zip(rows, found[name], strict=True):
                same = [pytest.approx(float(cell), abs=1e-6) if is_figure(cell) else cell for cell in row]
                assert [float(cell) if is_figure(cell) else cell for cell in other] == same, name


@pytest.mark.parametrize(("count", "processes"), [(3, 2), (5, 2), (5, 3), (4, 4), (7, 1)])
def test_every_volume_is_evaluated_by_one_process_and_the_order_is_kept(count, processes, monkeypatch) -> None:
    monkeypatch.setattr(idist, "get_world_size", lambda: processes)
    shares = []
    for rank in range(processes):
        monkeypatch.setattr(idist, "get_rank", lambda rank=rank: rank)
        shares.append(own_share(range(count)))
    assert [volume for share in shares for volume in share] == list(range(count))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1 and all(shares)


def test_fewer_volumes_than_processes_are_refused_or_evaluated_by_all(monkeypatch) -> None:
    monkeypatch.setattr(idist, "get_world_size", lambda: 3)
    monkeypatch.setattr(idist, "get_rank", lambda: 2)
    with pytest.raises(SystemExit, match="2 volumes for 3 processes: start at most 2"):
        own_share(range(2))
    assert list(own_share(range(2), fewer="all")) == [0, 1]


def test_processes_draw_together_what_one_draws_and_each_epoch_something_else(monkeypatch) -> None:
    volumes = [{"image": torch.rand(1, 20, 24, 3, generator=torch.Generator().manual_seed(n))} for n in range(2)]

    def draw(processes: int, epoch: int) -> list[torch.Tensor]:
        monkeypatch.setattr(idist, "get_world_size", lambda: processes)
        shares = []
        for rank in range(processes):
            monkeypatch.setattr(idist, "get_rank", lambda rank=rank: rank)
            batches = PatchBatches(volumes, RandomAcquisition(2), 16, batch_size=6 // processes, updates=3, seed=5)
            batches.set_epoch(epoch)
            shares.append(list(batches))
            assert len(shares[-1]) == len(batches) == 3
        parts = [[share[update] for share in shares] for update in range(3)]
        keys = ("image", "label", "measured")
        return [torch.stack([p[key] for p in part], 1).flatten(0, 1) for part in parts for key in keys]

    one = draw(1, epoch=1)
    assert all(len(values) == 6 for values in one) and not torch.equal(one[0], one[3])
    for processes in (2, 3):
        assert all(torch.equal(a, b) for a, b in zip(draw(processes, epoch=1), one, strict=True))
    assert not torch.equal(draw(1, epoch=2)[0], one[0])
