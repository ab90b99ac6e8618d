"""Checkpoints: never incomplete, and resumed runs may train for longer."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from ignite.engine import Engine, Events
from monai.engines import Evaluator
from monai.handlers import ValidationHandler
from monai.optimizers import WarmupCosineSchedule

from bundle.training.handlers import BestModel, TrainingCheckpoint, TrainingLog, save_atomically


def train(path, epochs: int, resume: bool, updates: int = 10) -> list[float]:
    """Learning rates of a run that only steps its schedule."""
    optimizer = torch.optim.Adam(torch.nn.Linear(1, 1).parameters(), lr=1.0)
    schedule = WarmupCosineSchedule(optimizer, warmup_steps=2, t_total=epochs * updates, end_lr=0.0)
    rates: list[float] = []

    def step(engine: Engine, batch: int) -> None:
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()

    engine = Engine(step)
    TrainingCheckpoint(str(path), {"optimizer": optimizer, "schedule": schedule}, resume).attach(engine)
    engine.run(range(updates), max_epochs=epochs)
    return rates


def test_a_resumed_run_goes_on_where_the_first_stopped(tmp_path):
    whole = train(tmp_path / "whole.pt", 4, resume=False)
    optimizer_rates = train(tmp_path / "last.pt", 4, resume=False)
    assert optimizer_rates == whole
    assert train(tmp_path / "last.pt", 4, resume=True) == []


def test_a_run_continued_for_longer_follows_the_longer_schedule_down_to_its_end(tmp_path):
    train(tmp_path / "last.pt", 2, resume=False)
    rates = train(tmp_path / "last.pt", 4, resume=True)
    longer = train(tmp_path / "other.pt", 4, resume=False)
    assert len(rates) == 20
    assert rates[1:] == pytest.approx(longer[21:])
    assert rates[-1] < 0.02


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    save_atomically({"a": torch.ones(1)}, tmp_path / "last.pt")
    with pytest.raises(AttributeError):
        save_atomically({"a": lambda: None}, tmp_path / "last.pt")
    assert torch.load(tmp_path / "last.pt", weights_only=True)["a"] == 1
    assert [p.name for p in tmp_path.iterdir()] == ["last.pt"]


class Run:
    """A training that trains nothing and is validated with given PSNRs; zero filling has 30 dB.

    Each epoch sets the only weight to its number.
    """

    def __init__(
        self, folder: Path, psnr: Sequence[float], epochs: int, resume: bool = False, start: bool = False
    ) -> None:
        figures = iter(psnr)
        self.network = torch.nn.Linear(1, 1, bias=False)
        self.validator = Evaluator("cpu", [0], epoch_length=1, iteration_update=lambda engine, batch: [])

        def measure(engine: Engine) -> None:
            value = next(figures)
            engine.state.metrics.update(val_psnr=value, val_gain=value - 30.0)

        self.validator.add_event_handler(Events.EPOCH_COMPLETED, measure)
        self.best = BestModel(str(folder / "model.pt"), self.network, "val_psnr")
        self.best.attach(self.validator)

        def update(engine: Engine, batch: float) -> list[dict[str, float]]:
            self.network.weight.data.fill_(engine.state.epoch)
            return [{"loss": batch}]

        self.trainer = Engine(update)
        TrainingCheckpoint(str(folder / "last.pt"), {"best_model": self.best, "network": self.network}, resume).attach(
            self.trainer
        )
        ValidationHandler(1, self.validator, exec_at_start=start).attach(self.trainer)
        TrainingLog(self.validator, self.best, every=2).attach(self.trainer)
        self.trainer.run([0.1, 0.3, 0.5, 0.7], max_epochs=epochs)


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.INFO, "iconet")
    return caplog


def test_training_says_its_loss_and_its_gain_over_zero_filling(tmp_path, said):
    Run(tmp_path, [30.5, 30.25], epochs=2)
    ahead = "dB over zero-filled Fourier"
    assert said.messages == [
        "epoch 1 of 2, update 2 of 4: loss 0.2000",
        f"epoch 1 of 2: loss 0.4000, validation PSNR 30.50 dB, +0.50 {ahead} (best so far)",
        "epoch 2 of 2, update 2 of 4: loss 0.2000",
        f"epoch 2 of 2: loss 0.4000, validation PSNR 30.25 dB, +0.25 {ahead} (best +0.50 after epoch 1)",
        f"best weights: {tmp_path / 'model.pt'} (epoch 1, 30.50 dB)",
    ]


@pytest.mark.parametrize("start", [False, True])
def test_a_resumed_run_does_not_take_what_is_worse_for_the_best(start, tmp_path, said):
    Run(tmp_path, [30.5], epochs=1)
    said.clear()
    run = Run(tmp_path, [30.5] * start + [30.25, 30.75], epochs=3, resume=True, start=start)
    figures = [line.partition("PSNR ")[2] for line in said.messages if "PSNR" in line]
    ahead = "dB over zero-filled Fourier"
    assert figures[-2:] == [
        f"30.25 dB, +0.25 {ahead} (best +0.50 after epoch 1)",
        f"30.75 dB, +0.75 {ahead} (best so far)",
    ]
    assert torch.load(tmp_path / "model.pt")["weight"] == 3
    assert (run.validator.state.best_metric, run.validator.state.best_metric_epoch) == (30.5, 1)


def test_a_validation_at_the_start_of_a_resumed_run_is_one_of_the_restored_weights(tmp_path, said):
    Run(tmp_path, [30.5], epochs=1)
    said.clear()
    run = Run(tmp_path, [30.5, 30.25], epochs=2, resume=True, start=True)
    resumed, before, *_ = said.messages
    assert resumed.startswith("resumed from")
    assert before.startswith("before epoch 2: validation PSNR 30.50 dB") and before.endswith("(best so far)")
    assert torch.load(tmp_path / "model.pt")["weight"] == 1 and run.best.epoch == 1
