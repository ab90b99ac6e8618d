"""What acquisition does to an image besides truncating its k-space: filters, phase, noise, partial echoes.

:func:`acquire` is one simulated acquisition; training draws its arguments at random
(:class:`bundle.training.degradation.RandomAcquisition`), the robustness table fixes them.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from bundle.physics.kspace import crop_kspace, fft2c, ifft2c

WINDOWS = ("hamming", "hann", "tukey", "fermi", "gaussian")
"""Filters that scanners and reconstruction programs apply to k-space."""


def kspace_window(kind: str, n: int, parameter: float | None = None) -> Tensor:
    """Weights (n,), float32, of an apodisation filter over `n` centred k-space samples; 1 at the centre.

    With f from 0 at the centre to 1 at the band edge `n / 2`:

    * ``hamming``: 0.54 + 0.46 cos(pi f); ``hann``: 0.5 + 0.5 cos(pi f), no parameter;
    * ``tukey``: 1 up to 1 - parameter, then a raised cosine to 0 (parameter in (0, 1], default 0.5);
    * ``fermi``: 1 / (1 + exp((f - parameter) / 0.05)), half way down at the parameter (default 0.8), scaled to 1 at 0;
    * ``gaussian``: exp(-f^2 / (2 parameter^2)) (default 0.5), as the point spread of PET or a smoothing filter.

    Raises:
        ValueError: unknown kind, or a parameter that is not positive.
    """
    f = (torch.arange(n, dtype=torch.float64) - n // 2).abs() / max(n / 2, 1.0)
    defaults = {"tukey": 0.5, "fermi": 0.8, "gaussian": 0.5}
    p = defaults.get(kind, 1.0) if parameter is None else parameter
    if not p > 0:
        raise ValueError(f"the parameter of a window must be positive, got {p}")
    if kind == "hamming":
        window = 0.54 + 0.46 * torch.cos(math.pi * f)
    elif kind == "hann":
        window = 0.5 + 0.5 * torch.cos(math.pi * f)
    elif kind == "tukey":
        window = 0.5 + 0.5 * torch.cos(math.pi * ((f - 1.0 + p) / p).clamp(0.0, 1.0))
    elif kind == "fermi":
        window = (1.0 + math.exp(-p / 0.05)) / (1.0 + torch.exp((f - p) / 0.05))
    elif kind == "gaussian":
        window = torch.exp(-0.5 * (f / p).square())
    else:
        raise ValueError(f"window must be one of {WINDOWS}, got {kind!r}")
    return window.float()


def smooth_phase(coefficients: Tensor, size: tuple[int, int]) -> Tensor:
    """Phase maps (..., H, W) in radians that vary slowly, as coils and field inhomogeneity cause them.

    Args:
        coefficients: (..., m, m), values of the phase on a coarse grid, interpolated by cubic splines.
        size: (H, W).
    """
    coarse = coefficients.flatten(0, -3)[:, None]
    fine = torch.nn.functional.interpolate(coarse, size, mode="bicubic", align_corners=True)
    return fine[:, 0].unflatten(0, coefficients.shape[:-2])


def with_phase(image: Tensor, phase: Tensor, sigma: Tensor | float, noise: Tensor) -> Tensor:
    """A complex image (..., H, W) with the magnitude `image`, as it was before the magnitude was taken.

    The phase is `phase` where there is signal and random where `image` is noise: a complex Gaussian of standard
    deviation `sigma` moves it, without a change of the magnitude.

    Args:
        image: (..., H, W), not negative.
        phase: radians, the shape of `image`.
        sigma: of the noise, in units of the image.
        noise: complex, standard normal, the shape of `image`.
    """
    turned = image + sigma * noise
    return torch.polar(image, phase + turned.angle())


def acquire(
    image: Tensor,
    size: tuple[int, int],
    window: Tensor | None = None,
    sigma: Tensor | float = 0.0,
    noise: Tensor | None = None,
) -> Tensor:
    """Truncate k-space, filter it, and take the magnitude: the low-resolution images of a scanner.

    ``y = |ifft2(window * crop(fft2(image))) + sigma * noise_1|`` and, with more than one noise map, the root of the sum
    of the squares of this and of the other maps (non-central chi noise of several coils). Without options, this is
    :func:`bundle.physics.truncate`.

    Args:
        image: (..., H, W), real or complex.
        size: (h, w), at most (H, W).
        window: weights of k-space, broadcast against (..., h, w).
        sigma: standard deviation of the noise per channel, in units of the image.
        noise: complex, standard normal per channel, (coils, ..., h, w).

    Returns:
        real, not negative, (..., h, w).
    """
    spectrum = crop_kspace(fft2c(image), size)
    kept = ifft2c(spectrum if window is None else spectrum * window)
    if noise is None:
        return kept.abs()
    power = (kept + sigma * noise[0]).abs().square()
    return (power + (sigma * noise[1:]).abs().square().sum(0)).sqrt()
