"""The gain over zero-filled Fourier interpolation, and the table of an evaluation."""

from __future__ import annotations

import csv
import logging
from pathlib import Path

import pytest
import torch
from ignite.engine import Engine, Events
from monai.data import MetaTensor
from torch import Tensor

from bundle.physics import fourier_upsample
from bundle.training import baseline
from bundle.training.baseline import COLUMNS, ZERO_FILLED, FourierGain, MetricsTable, refined_slices, zero_filled
from bundle.training.metrics import nmse, psnr, ssim
from bundle.transforms import KSpaceTruncation

Item = dict[str, Tensor]


def items(count: int = 3) -> list[Item]:
    """Volumes with their low-resolution form and a prediction that is better than interpolation."""
    generator = torch.Generator().manual_seed(0)
    truths = [torch.rand(1, 16, 20, 3, generator=generator) for _ in range(count)]
    images = [MetaTensor(KSpaceTruncation(2)(t), meta={"filename_or_obj": f"{n}.nii"}) for n, t in enumerate(truths)]
    rows = zip(images, truths, strict=True)
    return [{"image": i, "label": t, "pred": (zero_filled(i.as_tensor(), t) + t) / 2} for i, t in rows]


def evaluator(data: list[Item]) -> Engine:
    """An engine that yields items one by one and knows their mean PSNR, like MONAI's evaluator."""
    engine = Engine(lambda engine, item: [item])
    figures: list[float] = []

    @engine.on(Events.ITERATION_COMPLETED)
    def measure(engine: Engine) -> None:
        item = engine.state.output[0]  # type: ignore[index]
        figures.append(float(psnr(item["pred"], item["label"])))

    @engine.on(Events.EPOCH_COMPLETED)
    def average(engine: Engine) -> None:
        engine.state.metrics["val_psnr"] = sum(figures[-len(data) :]) / len(data)

    return engine


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_zero_filling_works_within_the_slices_whichever_axis_they_lie_along(axis: int) -> None:
    truth = torch.rand(1, 8, 12, 3).movedim(3, axis + 1)
    image = KSpaceTruncation(2, slice_axis=axis)(truth)
    assert refined_slices(image, truth) == axis
    expected = fourier_upsample(image.movedim(axis + 1, 1), (8, 12)).movedim(1, axis + 1)
    torch.testing.assert_close(zero_filled(image, truth), expected)


def test_a_result_that_is_not_finer_within_slices_is_an_error() -> None:
    with pytest.raises(ValueError, match="not refined within slices"):
        refined_slices(torch.rand(1, 4, 4, 4), torch.rand(1, 8, 8, 8))


def test_the_gain_is_the_difference_of_the_means_and_zero_filling_is_measured_once(monkeypatch) -> None:
    data, measured = items(), []
    monkeypatch.setattr(baseline, "zero_filled", lambda *args: measured.append(1) or zero_filled(*args))
    engine = evaluator(data)
    FourierGain().attach(engine)
    for _ in range(2):
        engine.run(data, max_epochs=1)
        differences = [
            psnr(i["pred"], i["label"]) - psnr(zero_filled(i["image"].as_tensor(), i["label"]), i["label"])  # type: ignore[attr-defined]
            for i in data
        ]
        assert engine.state.metrics["val_gain"] == pytest.approx(float(sum(differences)) / 3)
        assert engine.state.metrics["val_gain"] > 1
    assert len(measured) == 3


def test_the_table_has_a_row_per_volume_and_method(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    data = items()
    engine = evaluator(data)
    MetricsTable(str(tmp_path / "new/metrics.csv"), "mine").attach(engine)
    for _ in range(2):  # a second evaluation replaces the first
        with caplog.at_level(logging.INFO, "iconet"):
            engine.run(data, max_epochs=1)
    with open(tmp_path / "new/metrics.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == list(COLUMNS)
    assert [(r["file"], r["method"]) for r in rows] == [
        (f"{n}.nii", m) for n in range(3) for m in (ZERO_FILLED, "mine")
    ]
    pred, truth = data[1]["pred"], data[1]["label"]
    assert float(rows[3]["psnr"]) == pytest.approx(float(psnr(pred, truth)), abs=1e-4)
    assert float(rows[3]["ssim"]) == pytest.approx(float(ssim(pred[0], truth[0])), abs=1e-6)
    assert float(rows[3]["nmse"]) == pytest.approx(float(nmse(pred, truth)), abs=1e-8)
    assert float(rows[2]["psnr_gain"]) == 0 < float(rows[3]["psnr_gain"])
    _, fourier, mine = caplog.messages[0].splitlines()[1:]
    assert fourier.startswith(ZERO_FILLED) and mine.split()[:2] == ["mine", "3"]
