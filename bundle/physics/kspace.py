"""k-space truncation and its counterpart, zero filling.

Both work on the last two axes of a tensor, over any batch axes. Conventions, followed throughout the project:

* only k-space is shifted, never the image, so sample 0 of the small matrix lies on sample 0 of the large one and
  sample ``j`` on sample ``j * N / n`` (:mod:`bundle.physics.grid`);
* of ``N`` samples the rows ``N // 2 - n // 2`` to ``N // 2 - n // 2 + n`` are kept: DC stays on DC for every parity;
* the gain ``(n / N)`` per axis of an unnormalised transform pair is divided out: the mean of the image is kept.

For an even ``n`` the row of index ``-n / 2`` (Nyquist) is kept without its partner ``+n / 2``; truncated real images
are therefore slightly complex, and a magnitude image is their absolute value.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def fftc(image: Tensor, dim: list[int]) -> Tensor:
    """Spectrum of an image along some of its axes, with DC at index ``N // 2`` of each.

    Unnormalised: DC is the sum of the samples. Only the spectrum is shifted; the origin of the image is sample 0, the
    first voxel, not the middle (fastMRI's ``fft2c`` also shifts the image and normalises).

    Args:
        image: real or complex, any shape. Half precision and integers are cast to single, which FFTs need.
        dim: axes to transform.

    Returns:
        complex, same shape.
    """
    if image.dtype in (torch.float16, torch.bfloat16) or not (image.is_floating_point() or image.is_complex()):
        image = image.float()
    return torch.fft.fftshift(torch.fft.fftn(image, dim=dim), dim=dim)


def fft2c(image: Tensor) -> Tensor:
    """k-space of the slices of an image (..., H, W), with DC at ``(H // 2, W // 2)``; see :func:`fftc`."""
    return fftc(image, [-2, -1])


def ifft2c(kspace: Tensor) -> Tensor:
    """Complex image of k-space (..., H, W) with DC at ``(H // 2, W // 2)``: the inverse of :func:`fft2c`."""
    return torch.fft.ifft2(torch.fft.ifftshift(kspace, dim=(-2, -1)))


def crop_kspace(kspace: Tensor, size: tuple[int, int]) -> Tensor:
    """Centre (..., h, w) of k-space (..., H, W), scaled so that the image keeps its mean.

    Raises:
        ValueError: ``size`` does not fit in the k-space.
    """
    rows, cols = kspace.shape[-2], kspace.shape[-1]
    h, w = size
    if not (1 <= h <= rows and 1 <= w <= cols):
        raise ValueError(f"cannot keep {h}x{w} samples of a {rows}x{cols} k-space")
    top, left = rows // 2 - h // 2, cols // 2 - w // 2
    return kspace[..., top : top + h, left : left + w] * (h * w / (rows * cols))


def pad_kspace(kspace: Tensor, size: tuple[int, int]) -> Tensor:
    """k-space (..., h, w) padded with zeros to (..., H, W), scaled so that the image keeps its mean.

    Raises:
        ValueError: ``size`` is smaller than the k-space.
    """
    h, w = kspace.shape[-2], kspace.shape[-1]
    rows, cols = size
    if rows < h or cols < w:
        raise ValueError(f"cannot zero-fill a {h}x{w} k-space to {rows}x{cols}")
    top, left = rows // 2 - h // 2, cols // 2 - w // 2
    margins = (left, cols - w - left, top, rows - h - top)
    return torch.nn.functional.pad(kspace, margins) * (rows * cols / (h * w))


def _check_image(image: Tensor) -> None:
    if image.ndim < 2:
        raise ValueError(f"an image needs at least two axes (..., rows, columns), got shape {list(image.shape)}")


def truncate_kspace(image: Tensor, size: tuple[int, int]) -> Tensor:
    """Keep the central ``size`` samples of k-space.

    Args:
        image: real or complex, shape ``(..., H, W)``.
        size: ``(h, w)`` with ``1 <= h <= H`` and ``1 <= w <= W``; the factor ``H / h`` need not be an integer.

    Returns:
        complex image of shape ``(..., h, w)`` with the mean of the input.

    Raises:
        ValueError: if ``size`` does not fit in the image.
    """
    _check_image(image)
    return ifft2c(crop_kspace(fft2c(image), size))


def zero_fill(image: Tensor, size: tuple[int, int]) -> Tensor:
    """Pad k-space with zeros to a larger matrix: the right inverse of :func:`truncate_kspace`.

    ``truncate_kspace(zero_fill(x, big), small) == x`` for every complex ``x``, and zero filling is the adjoint of
    truncation up to the gain: ``<truncate_kspace(x), y> * H * W == <x, zero_fill(y)> * h * w``.

    Args:
        image: real or complex, shape ``(..., h, w)``.
        size: ``(H, W)``, not smaller than the image.

    Returns:
        complex image of shape ``(..., H, W)`` with the mean of the input.
    """
    _check_image(image)
    return ifft2c(pad_kspace(fft2c(image), size))


def truncate(image: Tensor, size: tuple[int, int]) -> Tensor:
    """The project's degradation: truncate k-space to ``size`` and take the magnitude of the image.

    Args and errors as for :func:`truncate_kspace`. Returns a real, non-negative image of shape ``(..., h, w)``.
    """
    return truncate_kspace(image, size).abs()


def fourier_upsample(image: Tensor, size: tuple[int, int]) -> Tensor:
    """Zero-filled Fourier interpolation: the band-limited image through the samples of ``image``.

    For a real image this is the real part of :func:`zero_fill`, which splits an unpaired Nyquist row evenly between
    its two positions. Exact for images whose k-space is empty from ``n / 2`` on.

    Args:
        image: shape ``(..., h, w)``.
        size: ``(H, W)``, not smaller than the image.

    Returns:
        shape ``(..., H, W)``; real for real input, complex for complex input.
    """
    filled = zero_fill(image, size)
    return filled if image.is_complex() else filled.real


def cosine_taper(n: int, fraction: float, *, device: torch.device | None = None) -> Tensor:
    """Window over ``n`` centred k-space samples: 1 inside, falling to 0 at Nyquist over ``fraction`` of the half band.

    ``w(f) = 1`` for ``|f| <= 1 - fraction``, else ``(1 + cos(pi (|f| - 1 + fraction) / fraction)) / 2``, with ``f`` in
    units of the Nyquist frequency ``n / 2``. Shape ``(n,)``, float64.
    """
    if not 0.0 < fraction <= 1.0:
        raise ValueError(f"the tapered fraction must be in (0, 1], got {fraction}")
    f = (torch.arange(n, dtype=torch.float64, device=device) - n // 2).abs() / max(n / 2, 1.0)
    rise = ((f - 1.0 + fraction) / fraction).clamp(0.0, 1.0)
    return 0.5 * (1.0 + torch.cos(math.pi * rise))


def smooth_truncate(image: Tensor, size: tuple[int, int], fraction: float = 0.25) -> Tensor:
    """The image on the grid of :func:`truncate`, with less ringing than a sharp cut in k-space leaves.

    k-space is multiplied by :func:`cosine_taper` (zero at the new Nyquist frequency) before it is truncated, so a real
    image stays real. This is the target of the reconstruction branch. The taper is a compromise: a wide one removes all
    ringing but blurs (a taper over the whole half band costs 4 to 6 dB on the way back up); a narrow one keeps the
    resolution and the first overshoot at an edge, and removes the ringing far from it.

    Args:
        image: real, shape ``(..., H, W)``.
        size: ``(h, w)``, at most ``(H, W)``. An axis that keeps its size is not tapered.
        fraction: part of the half band over which the window falls, in (0, 1].

    Returns:
        real image of shape ``(..., h, w)`` with the mean of the input.
    """
    _check_image(image)
    spectrum = crop_kspace(fft2c(image), size)
    for axis, n in ((-2, size[0]), (-1, size[1])):
        if n == image.shape[axis]:
            continue
        window = cosine_taper(n, fraction, device=image.device).to(spectrum.real.dtype)
        spectrum = spectrum * (window[:, None] if axis == -2 else window)
    return ifft2c(spectrum).real
