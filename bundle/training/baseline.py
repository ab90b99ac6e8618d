"""The gain over zero-filled Fourier interpolation: in the log of each validation, and in a table per volume.

Scanners do zero-filled Fourier interpolation by default; a network that gains nothing over it has learned nothing.
"""

from __future__ import annotations

import csv
import io
import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

import ignite.distributed as idist
import torch
from ignite.engine import Engine, Events
from monai.data import MetaTensor
from torch import Tensor

from bundle.data.atomic import replacing
from bundle.physics import fourier_upsample, in_plane_axes
from bundle.physics.slices import slices_back, slices_last
from bundle.training.metrics import nmse, psnr, ssim

logger = logging.getLogger("iconet")

ZERO_FILLED = "zero-filled Fourier"
COLUMNS = ("file", "method", "psnr", "ssim", "nmse", "psnr_gain")
DIGITS = {"psnr": 4, "ssim": 6, "nmse": 8, "psnr_gain": 4}

Row = dict[str, Any]


def zero_filled(image: Tensor, truth: Tensor) -> Tensor:
    """Zero-filled Fourier interpolation of the slices of ``image`` (C, X, Y, Z) to the matrix of ``truth``."""
    axis = refined_slices(image, truth)
    first, second = in_plane_axes(3, axis)
    size = (truth.shape[first + 1], truth.shape[second + 1])
    return slices_back(fourier_upsample(slices_last(image, axis), size), axis)


def refined_slices(image: Tensor, truth: Tensor) -> int:
    """The slice axis of a volume and its finer truth (C, X, Y, Z): the axis along which their sizes are equal."""
    same = [axis for axis in range(3) if image.shape[axis + 1] == truth.shape[axis + 1]]
    if len(same) != 1:
        raise ValueError(f"{tuple(image.shape[1:])} voxels and {tuple(truth.shape[1:])}: not refined within slices")
    return same[0]


class FourierGain:
    """Add ``val_gain`` to the metrics of an evaluator: its mean PSNR minus that of zero-filled Fourier interpolation.

    The latter is measured in the first validation and kept, so the volumes must be the same each time. Attach it before
    the handlers that show the metrics.

    Args:
        metric: name of the mean PSNR, in dB, in the evaluator's state.
    """

    def __init__(self, metric: str = "val_psnr") -> None:
        self.metric = metric
        self.baseline: float | None = None
        self.figures: list[float] = []

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.ITERATION_COMPLETED, self.measure)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self)

    def measure(self, engine: Engine) -> None:
        if self.baseline is None:
            self.figures += [float(psnr(zero_filled(image, truth), truth)) for image, truth, _ in _volumes(engine)]

    def __call__(self, engine: Engine) -> None:
        if self.baseline is None:
            figures = _of_all_processes(self.figures)
            if not figures:
                return
            self.baseline = mean(figures)
        engine.state.metrics["val_gain"] = engine.state.metrics[self.metric] - self.baseline


class MetricsTable:
    """Write PSNR, SSIM and NMSE of every volume, for the network and zero-filled Fourier interpolation, to one CSV.

    One row per volume and method, with the PSNR gain over zero filling; the means are logged as a table. An evaluation
    in several processes gathers all rows, in the order of the volumes.

    Args:
        path: of the CSV.
        method: name of the network in it.
    """

    def __init__(self, path: str, method: str) -> None:
        self.path, self.method = Path(path), method
        self.rows: list[Row] = []

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.EPOCH_STARTED, self.start)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self.measure)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self)

    def start(self, engine: Engine) -> None:
        self.rows = []

    def measure(self, engine: Engine) -> None:
        for (image, truth, pred), item in zip(_volumes(engine), _items(engine), strict=True):
            axis, interpolated = refined_slices(image, truth), zero_filled(image, truth)
            baseline = float(psnr(interpolated, truth))
            for method, result in ((ZERO_FILLED, interpolated), (self.method, pred)):
                row: Row = {"file": str(item["image"].meta["filename_or_obj"]), "method": method}
                row["psnr"] = float(psnr(result, truth))
                row["ssim"], row["nmse"] = float(ssim(result[0], truth[0], axis)), float(nmse(result, truth))
                self.rows.append({**row, "psnr_gain": row["psnr"] - baseline})

    def __call__(self, engine: Engine) -> None:
        rows = _of_all_processes(self.rows)
        if idist.get_rank() == 0 and rows:
            self._write(rows)
            logger.info("means over the volumes, PSNR and gain in dB:\n%s", summary(rows))
            logger.info("every volume: %s", self.path)

    def _write(self, rows: Sequence[Row]) -> None:
        text = io.StringIO()
        writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(
            {**row, **{name: f"{row[name]:.{digits}f}" for name, digits in DIGITS.items()}} for row in rows
        )
        with replacing(self.path) as file:
            file.write(text.getvalue().encode())


def summary(rows: Sequence[Mapping[str, Any]]) -> str:
    """Means over the volumes, one aligned line per method, in order of appearance."""
    methods = list(dict.fromkeys(str(row["method"]) for row in rows))
    width = max(map(len, methods))
    lines = [f"{'method':{width}}  volumes   PSNR    SSIM    NMSE    gain"]
    for method in methods:
        own = [row for row in rows if row["method"] == method]
        means = {name: mean(row[name] for row in own) for name in DIGITS}
        figures = f"{means['psnr']:5.2f}  {means['ssim']:.4f}  {means['nmse']:.4f}  {means['psnr_gain']:+6.2f}"
        lines.append(f"{method:{width}}  {len(own):7d}  {figures}")
    return "\n".join(lines)


def _items(engine: Engine) -> list[Mapping[str, Any]]:
    items: Any = engine.state.output  # decollated
    return list(items)


def _volumes(engine: Engine) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """(input, truth, result) of each volume of the batch."""
    for item in _items(engine):
        yield _plain(item["image"]), _plain(item["label"]), _plain(item["pred"])


def _plain(tensor: Tensor) -> Tensor:
    return tensor.as_tensor() if isinstance(tensor, MetaTensor) else tensor


def _of_all_processes(own: list[Any]) -> list[Any]:
    """The entries of all processes, in rank order; all processes must call this together."""
    if idist.get_world_size() == 1:
        return own
    parts: list[Any] = [None] * idist.get_world_size()
    torch.distributed.all_gather_object(parts, own)
    return [entry for part in parts for entry in part]
