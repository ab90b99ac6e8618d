"""Undo a scanner's interpolation: the image at its acquired matrix, from its k-space."""

from __future__ import annotations

import torch
from torch import Tensor

from bundle.physics.kspace import fft2c, ifft2c, zero_fill

ITERATIONS = 10
"""Of the search for signs and phases."""
_MOMENTUM = 0.9
"""Part of the last step that is taken again: ten iterations then do the work of thirty."""


def cut_kspace(image: Tensor, size: tuple[int, int]) -> Tensor:
    """The band-limited image through an interpolated one, on fewer samples of the same field of view.

    The inverse of :func:`bundle.physics.fourier_upsample`: where that has split an unpaired Nyquist row evenly between
    its two positions, both are added here (:func:`bundle.physics.truncate_kspace`, the degradation, keeps only one).

    Args:
        image: ``(..., H, W)``, real or complex.
        size: ``(h, w)``, at most ``(H, W)``.

    Returns:
        ``(..., h, w)``, real for a real image, with the mean of the image.

    Raises:
        ValueError: ``size`` does not fit in the image.
    """
    if any(not 1 <= n <= full for n, full in zip(size, image.shape[-2:], strict=True)):
        raise ValueError(f"cannot cut an image of {image.shape[-2]}x{image.shape[-1]} samples to {size[0]}x{size[1]}")
    kspace = fft2c(image)
    for axis, n in zip((-2, -1), size, strict=True):
        full = kspace.shape[axis]
        if n == full:
            continue
        start = full // 2 - n // 2
        kept = kspace.narrow(axis, start, n).clone()
        if n % 2 == 0:
            kept.select(axis, 0).add_(kspace.select(axis, start + n))
        kspace = kept * (n / full)
    cut = ifft2c(kspace)
    return cut if image.is_complex() else cut.real


def cut_magnitude(image: Tensor, size: tuple[int, int], iterations: int = ITERATIONS) -> Tensor:
    """The magnitude image that a scanner would have stored without zero filling.

    The scanner zero-fills the complex image and then takes its magnitude, which loses the signs (ringing below zero)
    and phases and so spreads the spectrum beyond the acquired band. Cutting that off leaves the error inside. The
    complex image is found by alternating projections (Gerchberg and Saxton, Optik 35:237, 1972) between images whose
    magnitude is the stored one and images whose k-space is empty outside the acquired band.

    Args:
        image: real and non-negative, ``(..., H, W)``.
        size: the acquired matrix ``(h, w)``, at most ``(H, W)``.
        iterations: 0 cuts the magnitude image as it is.

    Returns:
        real and non-negative, ``(..., h, w)``.

    Raises:
        ValueError: ``size`` does not fit in the image.
    """
    cut = cut_kspace(image, size).to(torch.complex64 if image.dtype != torch.float64 else torch.complex128)
    before = cut
    for _ in range(iterations):
        ahead = zero_fill(cut + _MOMENTUM * (cut - before), (image.shape[-2], image.shape[-1]))
        before, cut = cut, cut_kspace(torch.polar(image, ahead.angle()), size)
    return cut.abs()
