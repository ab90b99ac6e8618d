"""Random acquisitions for training: from a batch of sharp patches to low-resolution inputs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from bundle.physics.degradation import WINDOWS, acquire, kspace_window, smooth_phase, with_phase
from bundle.physics.kspace import fft2c, ifft2c
from bundle.transforms.line_mask import CartesianLineMask


@dataclass(frozen=True)
class Shares:
    """Which share of the patches gets what, each drawn on its own; the rest is truncated and nothing else.

    Attributes:
        blurred: the target itself is smoothed (Gaussian of 0.3 to 1.5 voxels, rows and columns apart), as smooth scans
            and PET are.
        faded: borders fade to zero, as those of most slices do; the others fill the field of view.
        phase: the magnitude is given a phase before truncation.
        filtered: k-space of the input is filtered with one of :data:`bundle.physics.degradation.WINDOWS`; the target is
            not.
        partial: a quarter or less of one side of k-space is missing (asymmetric echo, partial Fourier).
        noisy: Rician or, in one case of four, non-central chi noise of four coils; the target has no added noise.
    """

    blurred: float = 0.5
    faded: float = 0.75
    phase: float = 0.2
    filtered: float = 0.15
    partial: float = 0.04
    noisy: float = 0.25


PLAIN = Shares(blurred=0.0, phase=0.0, filtered=0.0, partial=0.0, noisy=0.0)
"""Truncation alone, as in the paper."""
NOISE = (0.003, 0.06)
"""Range of the standard deviation of the noise, in units of the normalised volume; its logarithm is uniform."""
PHASE = math.pi
"""Standard deviation of the phase on the coarse grid, at most, in radians."""


class RandomAcquisition:
    """Low-resolution inputs and their targets from a batch of sharp patches, all in a few tensor operations.

    Random numbers come from a generator on the CPU, so that every device sees the same acquisitions.

    Args:
        scale: factor of the truncation.
        shares: of the degradations beside truncation, or ``wide`` (the defaults of :class:`Shares`) or ``plain``
            (truncation alone).
        line_acceleration: also drop phase-encoding lines, see :class:`bundle.transforms.CartesianLineMask`; 1 keeps
            all.

    Raises:
        ValueError: unknown name of shares.
    """

    def __init__(self, scale: int, shares: Shares | str = "wide", line_acceleration: float = 1) -> None:
        named = {"wide": Shares(), "plain": PLAIN}
        if isinstance(shares, str) and shares not in named:
            raise ValueError(f"shares must be one of {tuple(named)}, got {shares!r}")
        self.shares = named[shares] if isinstance(shares, str) else shares
        self.scale, self.line_acceleration = scale, line_acceleration

    def __call__(self, patches: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Degrade patches (B, 1, P, P), not negative, with P divisible by the scale.

        Returns:
            inputs (B, 1, P / scale, P / scale), targets (B, 1, P, P), and which inputs hold the measured k-space of
            their target as it is: bool (B,), false for filtered and partial ones.
        """
        batch, _, side, _ = patches.shape
        device, coarse = patches.device, side // self.scale

        def chosen(share: float) -> Tensor:
            return torch.rand(batch, generator=generator) < share

        targets = self._faded(self._blurred(patches, chosen(self.shares.blurred), generator), chosen(self.shares.faded))
        image = self._with_phase(targets, chosen(self.shares.phase), generator)
        filtered, partial = chosen(self.shares.filtered), chosen(self.shares.partial)
        window = torch.stack([_weights(coarse, f, p, generator) for f, p in zip(filtered, partial, strict=True)])
        noise, sigma = self._noise(batch, coarse, chosen(self.shares.noisy), generator)
        noise = None if noise is None else noise.to(device)
        inputs = acquire(image, (coarse, coarse), window[:, None].to(device), sigma.to(device), noise)
        return self._without_lines(inputs), targets, ~(filtered | partial)

    def _blurred(self, patches: Tensor, chosen: Tensor, generator: torch.Generator) -> Tensor:
        sigma = torch.empty(len(chosen), 2).uniform_(0.3, 1.5, generator=generator)
        if not chosen.any():
            return patches
        side = patches.shape[-1]
        f = (torch.arange(side) - side // 2) / side  # cycles per voxel
        gains = torch.exp(-2.0 * (math.pi * sigma[..., None] * f).square())  # (B, 2, side)
        window = gains[:, 0, :, None] * gains[:, 1, None, :]
        window = torch.where(chosen[:, None, None], window, 1.0).to(patches.device)
        return ifft2c(fft2c(patches) * window[:, None]).real.clamp(min=0.0)

    def _faded(self, patches: Tensor, chosen: Tensor) -> Tensor:
        """Raised cosines over an eighth of the side.

        A Fourier transform joins opposite borders. A patch from the middle of an object jumps there, unlike a whole
        slice, which is dark at its edges; the ringing would fill the patch and the network would learn to undo it.
        """
        side = patches.shape[-1]
        distance = torch.minimum(torch.arange(side), torch.arange(side).flip(0)) + 0.5
        rise = 0.5 - 0.5 * torch.cos(math.pi * (distance / max(1, side // 8)).clamp(max=1.0))
        window = torch.where(chosen[:, None, None], rise[:, None] * rise, 1.0)
        return patches * window[:, None].to(patches)

    def _with_phase(self, targets: Tensor, chosen: Tensor, generator: torch.Generator) -> Tensor:
        batch, _, side, _ = targets.shape
        amplitude = torch.rand(batch, 1, 1, 1, generator=generator) * PHASE
        coefficients = amplitude * torch.randn(batch, 1, 4, 4, generator=generator)
        sigma = _log_uniform((batch, 1, 1, 1), 0.1 * NOISE[0], 0.5 * NOISE[1], generator)
        if not chosen.any():
            return targets
        noise = _complex_normal(targets.shape, generator)
        phase = smooth_phase(coefficients, (side, side)).to(targets.device)
        image = with_phase(targets, phase, sigma.to(targets), noise.to(targets.device))
        return torch.where(chosen[:, None, None, None].to(targets.device), image, targets.to(image.dtype))

    def _noise(
        self, batch: int, coarse: int, chosen: Tensor, generator: torch.Generator
    ) -> tuple[Tensor | None, Tensor]:
        sigma = _log_uniform((batch, 1, 1, 1), *NOISE, generator) * chosen[:, None, None, None]
        coils = 4 if torch.rand((), generator=generator) < 0.25 else 1
        if not chosen.any():
            return None, sigma
        return _complex_normal((coils, batch, 1, coarse, coarse), generator), sigma

    def _without_lines(self, inputs: Tensor) -> Tensor:
        if self.line_acceleration == 1:
            return inputs
        return CartesianLineMask(self.line_acceleration)(inputs[:, 0])[:, None]


def _complex_normal(shape: Sequence[int], generator: torch.Generator) -> Tensor:
    """Real and imaginary parts of variance 1 each; those of torch's complex normal numbers have half of that."""
    return torch.view_as_complex(torch.randn(*shape, 2, generator=generator))


def _log_uniform(shape: tuple[int, ...], low: float, high: float, generator: torch.Generator) -> Tensor:
    return low * (high / low) ** torch.rand(shape, generator=generator)


def _weights(n: int, filtered: Tensor, partial: Tensor, generator: torch.Generator) -> Tensor:
    """Weights of k-space (n, n) of one input: a filter of rows and columns, and one side of an axis cut off."""
    kind = WINDOWS[int(torch.randint(len(WINDOWS), (), generator=generator))]
    low, high = {"tukey": (0.2, 0.9), "fermi": (0.7, 0.95), "gaussian": (0.35, 0.9)}.get(kind, (1.0, 1.0))
    parameter = low + (high - low) * float(torch.rand((), generator=generator))
    cut, side = float(torch.rand((), generator=generator)), int(torch.randint(4, (), generator=generator))
    weights = torch.ones(n, n)
    if filtered:
        line = kspace_window(kind, n, parameter)
        weights = line[:, None] * line
    if partial:
        lost = round(cut * n / 8)  # of n samples, half are on each side of the centre
        keep = torch.ones(n)
        keep[:lost] = 0.0
        keep = keep.flip(0) if side % 2 else keep
        weights = weights * (keep[:, None] if side < 2 else keep)
    return weights
