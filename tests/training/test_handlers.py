"""Checkpoints: never half there, and resumed runs that may be asked to go on for longer."""

from __future__ import annotations

import pytest
import torch
from ignite.engine import Engine
from monai.optimizers import WarmupCosineSchedule

from bundle.training.handlers import TrainingCheckpoint, save_atomically


def train(path, epochs: int, resume: bool, updates: int = 10) -> list[float]:
    """Learning rates of a run that does nothing but step its schedule."""
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
