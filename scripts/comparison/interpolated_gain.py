"""What super-resolution gains on images that the scanner interpolated, with and without the cut to the acquired matrix.

The acquired image of a test volume, truncated in its own k-space, is zero-filled as a scanner does it (complex, then
magnitude, rounded). Every result is compared with the volume itself on its own grid, and with Fourier interpolation of
the stored image.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from bundle.data.values import survey
from bundle.inference.matrix import Wanted, plan_matrix
from bundle.inference.volume import super_resolve
from bundle.physics import fft2c, ifft2c
from bundle.physics.degradation import kspace_window
from bundle.physics.kspace import crop_kspace, pad_kspace
from bundle.physics.place import grids, place
from bundle.training.metrics import psnr
from comparison.protocol import KnownVolume, Protocol
from comparison.records import Row
from comparison.tables import markdown

RATIOS: tuple[tuple[float, float], ...] = ((1.2, 1.2), (1.5, 1.5), (1.54, 1.0), (2.0, 2.0))
"""Stored over acquired samples along the two in-plane axes."""
WINDOWS: dict[str, tuple[str, float | None] | None] = {"none": None, "Hamming": ("hamming", None)}
WHOLE = "1 (not)"
"""The name of the ratio 1: the image as it was acquired, which the others are measured by."""
SLICES_APART = 6
"""Of each volume every sixth slice is used: the result hardly changes, and the run takes a sixth of the time."""
_LEVELS = 1000.0  # of the brightest voxels, whole numbers as a scanner stores them


def gains(protocol: Protocol, volumes: Sequence[KnownVolume], network: nn.Module) -> list[Row]:
    """One row per volume, filter, ratio and setting of ``--matrix``, with the PSNR of both results in dB."""
    rows: list[Row] = []
    for known in tqdm(volumes, desc=f"x{protocol.scale}", disable=None):
        truth = protocol.load(known.path).as_tensor()[0].movedim(2, 0)
        about = {"file": known.name, "subject": known.subject, "contrast": known.contrast, "scale": protocol.scale}
        acquired = truth.shape[-2] // protocol.scale, truth.shape[-1] // protocol.scale
        for window in WINDOWS:
            for ratio in ((1.0, 1.0), *RATIOS):
                stored = scanned(truth, acquired, ratio, window)
                fourier = float(psnr(on_grid(stored, truth), truth))
                settings = ("keep",) if ratio == (1.0, 1.0) else ("keep", "auto") if window == "none" else ("auto",)
                for matrix in settings:
                    pred, found = _restored(stored, network, protocol.scale, matrix)
                    rows.append(
                        {
                            **about,
                            "filter": window,
                            "interpolation": WHOLE if ratio == (1.0, 1.0) else f"{ratio[0]:g} x {ratio[1]:g}",
                            "matrix": matrix,
                            "acquired": f"{acquired[0]}x{acquired[1]}",
                            "stored": f"{stored.shape[-2]}x{stored.shape[-1]}",
                            "network_matrix": found,
                            "fourier_psnr": fourier,
                            "psnr": float(psnr(on_grid(pred, truth), truth)),
                        }
                    )
    return rows


def scanned(truth: Tensor, acquired: tuple[int, int], ratio: tuple[float, float], window: str) -> Tensor:
    """Stored magnitude (S, h', w'), whole numbers in the units of the truth, of an acquisition of slices (S, H, W)."""
    kspace = crop_kspace(fft2c(truth), acquired)
    if (named := WINDOWS[window]) is not None:
        rows, cols = (kspace_window(named[0], n, named[1]) for n in acquired)
        kspace = kspace * (rows[:, None] * cols)
    size = round(acquired[0] * ratio[0]), round(acquired[1] * ratio[1])
    image = ifft2c(pad_kspace(kspace, size)).abs()
    step = float(truth.max()) / _LEVELS
    return torch.round(image / step) * step


def on_grid(image: Tensor, truth: Tensor) -> Tensor:
    """An image (S, h, w) of the same field of view on the grid of the truth (S, H, W), by Fourier interpolation."""
    height, width = truth.shape[-2:]
    rows, cols = image.shape[-2:]
    return place(image, grids((rows, cols), 1, step=(rows / height, cols / width)), 0)


def _restored(stored: Tensor, network: nn.Module, scale: int, matrix: str) -> tuple[Tensor, str]:
    """Slices (S, h, w) as the command processes them, and the matrix that the network got."""
    voxels = stored.movedim(0, 2).numpy()
    values = survey([voxels])
    made = plan_matrix(voxels, np.eye(4), 2, scale, values, Wanted(matrix, modality="MR")).grids
    assert made == grids(made.stored, scale, made.network)
    result = super_resolve(voxels, np.eye(4), network, 2, None, values, made)
    return torch.from_numpy(result.voxels).movedim(2, 0), f"{made.network[0]}x{made.network[1]}"


def about_gain(rows: Sequence[Row]) -> str:
    """The page of the results, in Markdown."""
    subjects = len({row["subject"] for row in rows})
    return "\n".join(
        [
            "# What is gained on interpolated images",
            "",
            "Made by `scripts/interpolated.py --part gain`; raw rows in [gain.csv](gain.csv). MR volumes of the test",
            f"split ({subjects} subjects, every sixth slice) are truncated in their own k-space, filtered,",
            "zero-filled, rounded to whole numbers, and super-resolved by the default network. The gain is PSNR over",
            'Fourier interpolation of the same stored image, mean over subjects, with the range over them. "From the',
            'acquired image" is PSNR beside that of the result from the acquired image itself, which nobody has.',
            '"Cut" counts volumes that were cut on at least one axis. At 4x the simulated images are small',
            f"({_sides(rows)} stored samples on a side), and many edges in k-space are not certain enough to cut.",
            "",
            gain_table(rows),
        ]
    )


def _sides(rows: Sequence[Row]) -> str:
    """The shortest and the longest side of the images at 4x."""
    sides = [int(n) for row in rows if int(row["scale"]) == 4 for n in row["stored"].split("x")]
    return f"{min(sides, default=0)} to {max(sides, default=0)}"


def gain_table(rows: Sequence[Row]) -> str:
    """Means over subjects for each filter, ratio and setting, with the least and the greatest gain.

    "From the acquired image" is the PSNR beside that of the result from the image that was never interpolated.
    """
    heads = [
        "scale",
        "filter",
        "interpolated by",
        "`--matrix`",
        "gain, dB",
        "range",
        "from the acquired image, dB",
        "cut",
    ]
    lines = []
    whole = {_case(r): r["psnr"] for r in rows if r["interpolation"] == WHOLE}
    for kind in dict.fromkeys(map(_kind, rows)):
        chosen = [r for r in rows if _kind(r) == kind]
        gained = _by_subject(chosen, [r["psnr"] - r["fourier_psnr"] for r in chosen])
        beside = _by_subject(chosen, [r["psnr"] - whole[_case(r)] for r in chosen])
        scale, window, ratio, matrix = kind
        cut = f"{sum(r['network_matrix'] != r['stored'] for r in chosen)} of {len(chosen)}"
        spread = f"{min(gained):+.2f} to {max(gained):+.2f}"
        figures = [f"{np.mean(gained):+.2f}", spread, "" if ratio == WHOLE else f"{np.mean(beside):+.2f}"]
        lines.append([f"{scale}x", window, ratio, matrix, *figures, "" if matrix == "keep" else cut])
    return markdown(heads, lines)


def _kind(row: Row) -> tuple[str, str, str, str]:
    return row["scale"], row["filter"], row["interpolation"], row["matrix"]


def _case(row: Row) -> tuple[str, str, str]:
    return row["file"], row["scale"], row["filter"]


def _by_subject(rows: Sequence[Row], values: Sequence[float]) -> list[float]:
    """The mean of the values of each subject."""
    found: dict[str, list[float]] = {}
    for row, value in zip(rows, values, strict=True):
        found.setdefault(row["subject"], []).append(value)
    return [float(np.mean(mine)) for mine in found.values()]
