"""Robustness: what a network gains over zero-filled Fourier interpolation when the acquisition is another one.

Every figure compares two results of the same degraded input: that of the network, made exactly as in inference, and
that of zero-filled Fourier interpolation.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from bundle.inference.volume import super_resolve
from bundle.inference.walker import SliceWalker
from bundle.physics import fourier_upsample, truncate
from comparison.acquisitions import ACQUISITIONS, Acquisition, seeded, tissue
from comparison.protocol import KnownVolume, Protocol
from comparison.records import Row, read_rows

CONSISTENCY: float | Literal["auto"] = "auto"
"""Weight of data consistency: that of inference."""
DIMMED = "dimmed"
"""Name of the check in which one slice of a volume is dimmed."""
NAMES = (*ACQUISITIONS, DIMMED)
BRIGHTNESS = (1.0, 0.5, 0.2, 0.1, 0.05, 0.02)
"""Of the dimmed slice, relative to the other slices of its volume."""
LIT, BELOW = 0.02, 0.05
"""A slice counts if its maximum is above this part of the volume's; it is below Fourier if it loses this many dB."""
NOISE_ROW = "rician_20"
"""The acquisition that is repeated with other noise, to measure what becomes of the noise in tissue."""
_EMPTY = dict.fromkeys(
    ("slices", "below", "worst_slice", "worst_slice_gain", "noise_ratio", "hot_spot", "fourier_hot_spot"), ""
)


def evaluate(
    protocol: Protocol,
    volumes: Sequence[KnownVolume],
    split: str,
    networks: Mapping[str, nn.Module],
    weights: Mapping[str, str],
    names: Sequence[str] = NAMES,
) -> list[Row]:
    """Every network on every volume and acquisition.

    Args:
        protocol: scale, slices and device; its own degradation is not used.
        volumes: with their subjects.
        split: what to write in the column of that name.
        networks: by their titles in the tables.
        weights: SHA-256 of the weights, by the same titles.
        names: of :data:`NAMES`.

    Returns:
        One row per volume, acquisition and network, with the same columns in each. ``noise_ratio`` is filled for
        :data:`NOISE_ROW`, ``hot_spot`` and ``fourier_hot_spot`` for PET, ``brightness`` for the dimmed slices.
    """
    rows: list[Row] = []
    for known in tqdm(volumes, desc=f"x{protocol.scale}", disable=None):
        slices = protocol.load(known.path).as_tensor()[0].movedim(2, 0)
        about = {"file": known.name, "subject": known.subject, "modality": known.modality, "contrast": known.contrast}
        for title, network in networks.items():
            made = {"method": title, "weights": weights[title], "data_consistency": str(CONSISTENCY)}
            tail = {"split": split, "every": protocol.every, **made}
            for name in names:
                found = (
                    dimmed(slices, network, protocol.scale)
                    if name == DIMMED
                    else [_one(known, slices, network, protocol, name)]
                )
                rows += [{**about, "degradation": name, "brightness": "", **tail, **_EMPTY, **row} for row in found]
    return rows


def _one(known: KnownVolume, slices: Tensor, network: nn.Module, protocol: Protocol, name: str) -> Row:
    """The figures of one volume (S, H, W), acquisition and network."""
    acquisition, generator = ACQUISITIONS[name], seeded(known.name, name)
    truth = acquisition.truth(slices)
    pred, fourier = _both(acquisition, truth, network, protocol.scale, generator)
    row = _figures(pred, fourier, truth, protocol.every)
    if known.modality == "PET":
        row |= _hot_spot(pred, fourier, truth)
    if name == NOISE_ROW:
        again = _both(acquisition, truth, network, protocol.scale, generator)
        row["noise_ratio"] = _noise_ratio((pred, again[0]), (fourier, again[1]), tissue(truth))
    return row


def _both(
    acquisition: Acquisition, truth: Tensor, network: nn.Module, scale: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Results (S, H, W) of the network and of Fourier interpolation for one simulated acquisition."""
    low, size = acquisition.low(truth, scale, generator), (truth.shape[-2], truth.shape[-1])
    pred = restored(low, network)
    # A matrix acquired with fewer columns: the result is brought to the grid of the truth, as inference does it.
    return (pred if pred.shape == truth.shape else fourier_upsample(pred, size)), fourier_upsample(low, size)


def restored(low: Tensor, network: nn.Module) -> Tensor:
    """Slices (S, h, w) through a network, exactly as in inference: (S, scale * h, scale * w)."""
    walker = SliceWalker(data_consistency=CONSISTENCY)
    return torch.from_numpy(super_resolve(low.movedim(0, 2), np.eye(4), network, 2, walker).voxels).movedim(2, 0)


def _squared_errors(pred: Tensor, truth: Tensor) -> Tensor:
    """Mean squared error of each slice (S,), never zero."""
    return (pred.double() - truth.double()).square().mean(dim=(1, 2)).clamp(min=torch.finfo(torch.float64).tiny)


def _figures(pred: Tensor, fourier: Tensor, truth: Tensor, every: int) -> Row:
    """PSNR of the volume for both results, and slices that are below Fourier; (S, H, W) each."""
    ours, theirs = _squared_errors(pred, truth), _squared_errors(fourier, truth)
    lit = truth.amax(dim=(1, 2)) > LIT * truth.max()
    gains = torch.where(lit, 10.0 * torch.log10(theirs / ours), torch.inf)
    worst = int(gains.argmin())
    return {
        **_psnr_row(ours.mean(), theirs.mean(), float(truth.max())),
        "slices": int(lit.sum()),
        "below": int((gains < -BELOW).sum()),
        "worst_slice": worst * every,
        "worst_slice_gain": float(gains[worst]),
    }


def _psnr_row(ours: Tensor, theirs: Tensor, peak: float) -> Row:
    """PSNR for two mean squared errors and their difference, in dB."""
    psnr, fourier = (float(10.0 * torch.log10(peak**2 / error)) for error in (ours, theirs))
    return {"psnr": psnr, "fourier_psnr": fourier, "gain": psnr - fourier}


def _hot_spot(pred: Tensor, fourier: Tensor, truth: Tensor) -> Row:
    """Values at the maximum of the truth, relative to it."""
    at, peak = truth.argmax(), float(truth.max())
    return {"hot_spot": float(pred.flatten()[at]) / peak, "fourier_hot_spot": float(fourier.flatten()[at]) / peak}


def _noise_ratio(preds: tuple[Tensor, Tensor], fouriers: tuple[Tensor, Tensor], mask: Tensor) -> float:
    """Noise of the network's result over that of Fourier's, from two results each that differ in their noise alone.

    The difference of two realisations has twice the variance of one: the factor cancels.
    """
    ours, theirs = ((first - second)[mask].double().std() for first, second in (preds, fouriers))
    return float(ours / theirs)


def dimmed(slices: Tensor, network: nn.Module, scale: int) -> list[Row]:
    """The brightest slice of a volume (S, H, W), dimmed before truncation: one row per :data:`BRIGHTNESS`.

    Only three slices are run: the one with the largest mean and the two that come next, which keep their brightness and
    set the intensity window. PSNR is that of the dimmed slice, with its own maximum as data range. No rows for fewer
    than three slices.
    """
    if len(slices) < 3:
        return []
    order = slices.mean(dim=(1, 2)).argsort(descending=True, stable=True)[:3].sort().values
    stack = slices[order]
    at, size = int(stack.mean(dim=(1, 2)).argmax()), (slices.shape[-2], slices.shape[-1])
    low = truncate(stack, (size[0] // scale, size[1] // scale))
    rows = []
    for brightness in BRIGHTNESS:
        factors = torch.ones(3, 1, 1)
        factors[at] = brightness
        truth, pred = (stack * factors)[at], restored(low * factors, network)[at]
        fourier = fourier_upsample((low * factors)[at], size)
        ours, theirs = (_squared_errors(image[None], truth[None]).mean() for image in (pred, fourier))
        rows.append({"brightness": brightness, **_psnr_row(ours, theirs, float(truth.max()))})
    return rows


def with_old(path: Path, rows: list[Row], keep: bool) -> list[Row]:
    """New rows, and old ones in the file that are still of use.

    Rows of other splits stay if they are of the same weights; those of the same split and network are replaced.
    ``keep`` also keeps the rows of networks that were not run.
    """
    if not path.is_file():
        return rows
    again = {(row["split"], row["method"]) for row in rows}
    weights = {row["method"]: row["weights"] for row in rows}

    def stays(row: Row) -> bool:
        if row["method"] not in weights:
            return keep
        return (row["split"], row["method"]) not in again and row["weights"] == weights[row["method"]]

    return [*filter(stays, read_rows(path)), *rows]
