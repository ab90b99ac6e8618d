"""The acquisitions of the robustness table: what a scanner may do beside truncating k-space, each fixed by a seed."""

from __future__ import annotations

import math
import zlib
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, pad

from bundle.data.intensity import intensity_window
from bundle.physics.degradation import acquire, kspace_window, smooth_phase, with_phase

TISSUE = 0.1
"""Voxels of the truth above this part of its intensity window (the 99.9th percentile of its voxels) are tissue."""
PHASE = math.pi / 2
"""Standard deviation, in radians, of the phase at 4x4 points, between which it is interpolated."""
PHASE_SNR = 50.0
"""Mean of the tissue over the noise that turns the phase of the complex truth at random where there is no signal."""


@dataclass(frozen=True)
class Acquisition:
    """One way to acquire a low-resolution volume; the defaults are truncation alone.

    Attributes:
        title: its name in the table.
        window: filter of rows and columns of the acquired k-space and its parameter, see
            :func:`bundle.physics.degradation.kspace_window`.
        phase: truncate a complex image: the truth is given a smooth phase, random where it is noise.
        snr: mean of the tissue over the standard deviation of the noise, which is that of the real and of the imaginary
            part of a low-resolution voxel; ``None`` adds no noise.
        coils: whose magnitudes are combined by the root of the sum of squares: one makes Rician noise.
        rows: part of the rows of k-space that an asymmetric echo leaves; the first are missing.
        columns: part of the columns of the low-resolution matrix that is acquired at all; the matrix is smaller.
        average: side of the square over which the truth itself is averaged.
    """

    title: str
    window: tuple[str, float | None] | None = None
    phase: bool = False
    snr: float | None = None
    coils: int = 1
    rows: float = 1.0
    columns: float = 1.0
    average: int = 1

    def truth(self, slices: Tensor) -> Tensor:
        """The image (S, H, W) that is acquired and that the result is compared with."""
        if self.average == 1:
            return slices
        before = self.average // 2
        after = self.average - 1 - before
        return avg_pool2d(pad(slices[:, None], [before, after] * 2, mode="replicate"), self.average, stride=1)[:, 0]

    def low(self, truth: Tensor, scale: int, generator: torch.Generator) -> Tensor:
        """Low-resolution slices (S, H / scale, columns * W / scale) of :meth:`truth` (S, H, W), not negative."""
        height, width = truth.shape[-2] // scale, max(1, int(self.columns * (truth.shape[-1] // scale)))
        level = float(truth[tissue(truth)].mean())
        image = self._complex(truth, level / PHASE_SNR, generator) if self.phase else truth
        if self.snr is None:
            return acquire(image, (height, width), self._weights(height, width))
        noise = _complex_noise((self.coils, truth.shape[0], height, width), generator)
        return acquire(image, (height, width), self._weights(height, width), level / self.snr, noise)

    def _complex(self, truth: Tensor, sigma: float, generator: torch.Generator) -> Tensor:
        coefficients = PHASE * torch.randn(truth.shape[0], 4, 4, generator=generator)
        phase = smooth_phase(coefficients, (truth.shape[-2], truth.shape[-1]))
        return with_phase(truth, phase, sigma, _complex_noise(truth.shape, generator))

    def _weights(self, height: int, width: int) -> Tensor | None:
        """Weights (height, width) of k-space."""
        if self.window is None and self.rows == 1.0:
            return None
        kind, parameter = self.window or ("", None)
        weights = torch.ones(height, width)
        if kind:
            weights = kspace_window(kind, height, parameter)[:, None] * kspace_window(kind, width, parameter)
        weights[: height - round(self.rows * height)] = 0.0
        return weights


ACQUISITIONS = {
    "truncation": Acquisition("truncation"),
    "hamming": Acquisition("Hamming filter", window=("hamming", None)),
    "hann": Acquisition("Hann filter", window=("hann", None)),
    "tukey": Acquisition("Tukey filter, 0.5", window=("tukey", 0.5)),
    "fermi": Acquisition("Fermi filter, 0.8", window=("fermi", 0.8)),
    "gaussian": Acquisition("Gaussian filter, 0.5", window=("gaussian", 0.5)),
    "phase": Acquisition("complex image", phase=True),
    "rician_20": Acquisition("Rician noise, SNR 20", snr=20.0),
    "rician_10": Acquisition("Rician noise, SNR 10", snr=10.0),
    "chi_20": Acquisition("noise of 4 coils, SNR 20", snr=20.0, coils=4),
    "partial_echo": Acquisition("three quarters of the echo", rows=0.75),
    "rectangular": Acquisition("three quarters of the columns", columns=0.75),
    "smooth": Acquisition("smooth scan", average=3),
}
"""The rows of the table by the names that the command takes."""


def tissue(truth: Tensor) -> Tensor:
    """Mask of the voxels above :data:`TISSUE`."""
    return truth > TISSUE * intensity_window(truth)[1]


def seeded(*names: str) -> torch.Generator:
    """A generator on the CPU whose numbers depend on nothing but the names, such as a file and an acquisition."""
    return torch.Generator().manual_seed(zlib.crc32("/".join(names).encode()))


def _complex_noise(shape: tuple[int, ...] | torch.Size, generator: torch.Generator) -> Tensor:
    """Real and imaginary part of standard deviation 1 each, as the SNR of magnitude images is defined."""
    return torch.complex(torch.randn(shape, generator=generator), torch.randn(shape, generator=generator))
