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
from bundle.physics.place import Grids, grids, place
from comparison.protocol import KnownVolume, Protocol
from comparison.records import Row
from comparison.tables import markdown

RATIOS: tuple[tuple[float, float], ...] = ((1.2, 1.2), (1.5, 1.5), (1.54, 1.0), (2.0, 2.0))
"""Stored over acquired samples along the two in-plane axes."""
WINDOWS: dict[str, tuple[str, float | None] | None] = {"none": None, "Hamming": ("hamming", None)}
WHOLE = "none at all"
"""The name of the ratio 1: the image as it was acquired, which the others are measured by."""
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
                fourier = psnr(on_grid(stored, truth), truth)
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
                            "psnr": psnr(on_grid(pred, truth), truth),
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
    to = Grids((rows, cols), (rows, cols), (height, width), (rows / height, cols / width), 1)
    return place(image, to, 0)


def psnr(image: Tensor, truth: Tensor) -> float:
    """Peak signal-to-noise ratio of a volume, dB; the peak is the truth's."""
    error = (image.double() - truth.double()).square().mean()
    return float(10.0 * torch.log10(truth.double().max() ** 2 / error))


def _restored(stored: Tensor, network: nn.Module, scale: int, matrix: str) -> tuple[Tensor, str]:
    """Slices (S, h, w) as the command processes them, and the matrix that the network got."""
    voxels = stored.movedim(0, 2).numpy()
    values = survey([voxels])
    made = plan_matrix(voxels, np.eye(4), 2, scale, values, Wanted(matrix, modality="MR")).grids
    assert made == grids(made.stored, scale, made.network)
    result = super_resolve(voxels, np.eye(4), network, 2, None, values, made)
    return torch.from_numpy(result.voxels).movedim(2, 0), f"{made.network[0]}x{made.network[1]}"


def gain_table(rows: Sequence[Row]) -> str:
    """Mean gain over subjects, with the least and the greatest, for each filter, ratio and setting."""
    heads = ["scale", "filter", "interpolated by", "--matrix", "gain in dB", "of a subject", "found"]
    lines = []
    kinds = dict.fromkeys((r["scale"], r["filter"], r["interpolation"], r["matrix"]) for r in rows)
    for kind in kinds:
        chosen = [r for r in rows if (r["scale"], r["filter"], r["interpolation"], r["matrix"]) == kind]
        by_subject = {
            subject: np.mean([r["psnr"] - r["fourier_psnr"] for r in chosen if r["subject"] == subject])
            for subject in dict.fromkeys(r["subject"] for r in chosen)
        }
        figures = list(by_subject.values())
        scale, window, ratio, matrix = kind
        cut = sum(r["network_matrix"] != r["stored"] for r in chosen)
        found = "" if matrix == "keep" else f"{cut} of {len(chosen)}"
        spread = f"{min(figures):+.2f} to {max(figures):+.2f}"
        lines.append([f"{scale}x", window, ratio, matrix, f"{np.mean(figures):+.2f}", spread, found])
    return markdown(heads, lines)
