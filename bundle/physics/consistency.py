"""Data consistency: put the measured k-space of a low-resolution image back into its super-resolved one."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from bundle.physics.kspace import crop_kspace, fft2c, ifft2c, pad_kspace, truncate

EDGE = 0.6
"""The edge of the measured band starts at this fraction of its half width, for :func:`band_edge_gain`."""
TRUSTED, FILTERED = 1.4, 2.2
"""Gains at the band edge up to which the measured samples are put back in full, and from which on not at all."""
EMPTY = 3e-5
"""Share of the energy, without the mean, below which the edge holds nothing measured, as in interpolated images."""
FEWEST = 16
"""Rows and columns from which on the band edge can tell something."""


def restore_measured(image: Tensor, measured: Tensor, weight: float | Tensor = 1.0) -> Tensor:
    """Put measured k-space samples back into an image.

    With ``weight`` 1 the result is the real image nearest to ``image`` whose truncation is ``measured``:
    ``truncate_kspace(restore_measured(x, m), size) == m``. For an even size the Nyquist row is measured without its
    partner; the partner is set to its conjugate, otherwise the real part would hold only half of the measured row.

    Args:
        image: real, ``(..., H, W)``.
        measured: ``(..., h, w)``, at most ``(H, W)``; real, or complex as returned by
            :func:`bundle.physics.truncate_kspace` (then only the part that a real image can hold is restored).
        weight: weight of the measured samples, in [0, 1]; 1 replaces the image's own. A tensor (..., 1, 1) has one
            weight per image.

    Returns:
        real image ``(..., H, W)``.
    """
    return _restored(image, _band(image, measured), measured, weight)


def restore_magnitude(image: Tensor, magnitude: Tensor, weight: float | Tensor = 1.0) -> Tensor:
    """Data consistency with a magnitude image, as the project's degradation makes it.

    The magnitude has lost its sign (negative where truncation rings below zero) and the phase of an unpaired Nyquist
    row. Both are taken from ``image``, truncated in the same way; the rest is :func:`restore_measured`. Treating the
    magnitude itself as measured would put its rectified ringing into the result.

    Args:
        image: real, ``(..., H, W)``.
        magnitude: real and non-negative, ``(..., h, w)``.
        weight: weight of the measured samples, in [0, 1]; 1 replaces the image's own. A tensor (..., 1, 1) has one
            weight per image.

    Returns:
        real image ``(..., H, W)``; its :func:`bundle.physics.truncate` is ``magnitude`` to about 1 %.
    """
    band = _band(image, magnitude)
    return _restored(image, band, _with_phase_of(ifft2c(band), magnitude), weight)


def restore_agreed(
    image: Tensor, measured: Tensor, weight: float | Literal["auto"], signed: bool
) -> tuple[Tensor, Tensor]:
    """Data consistency of the slices of a batch, and the weight that each got.

    The same as :func:`agreed_weight` ("auto"), then :func:`restore_measured` (`signed`) or :func:`restore_magnitude`;
    the large transforms are made once.

    Args:
        image: real, ``(..., H, W)``.
        measured: real, ``(..., h, w)``.
        weight: "auto", or of the measured samples, in [0, 1].
        signed: the input may hold negative values and counts as measured; otherwise it is a magnitude image.

    Returns:
        real image ``(..., H, W)``, and weights ``(..., 1, 1)``.
    """
    band = _band(image, measured)
    own = ifft2c(band)
    weights = _agreed(own, measured) if isinstance(weight, str) else image.new_full((*image.shape[:-2], 1, 1), weight)
    return _restored(image, band, measured if signed else _with_phase_of(own, measured), weights), weights


def measured_as(image: Tensor, magnitude: Tensor) -> Tensor:
    """What a magnitude image was before its magnitude was taken, if `image` is right: complex, ``(..., h, w)``.

    ``restore_measured(image, measured_as(image, magnitude))`` is ``restore_magnitude(image, magnitude)``. Training
    detaches this: signs have no gradient, and that of the phase explodes where the image is nearly zero.
    """
    return _with_phase_of(ifft2c(_band(image, magnitude)), magnitude)


def _band(image: Tensor, measured: Tensor) -> Tensor:
    """The k-space samples (..., h, w) of an image that were measured."""
    return crop_kspace(fft2c(image), (measured.shape[-2], measured.shape[-1]))


def _with_phase_of(own: Tensor, magnitude: Tensor) -> Tensor:
    size = own.abs()
    return magnitude * torch.where(size > 0, own / size.clamp(min=torch.finfo(size.dtype).tiny), 1.0)


def band_edge_gain(image: Tensor, measured: Tensor) -> Tensor:
    """How much larger than the measurement an image is at the edge of the measured band: ``(...)``, 1 if equal.

    ``||E truncate(image)|| / ||E measured||``, where E keeps the k-space samples whose row or column is beyond
    :data:`EDGE` of the half width. A network that takes an input for filtered in k-space raises its edge; one that
    takes it for truncated leaves it as it is.

    Args:
        image: real, ``(..., H, W)``.
        measured: real, ``(..., h, w)``.
    """
    return _edge_gain(ifft2c(_band(image, measured)), measured)


def _edge_gain(own: Tensor, measured: Tensor) -> Tensor:
    """:func:`band_edge_gain` of an image whose truncation is `own`, complex (..., h, w)."""
    edge = _edge(measured)
    own, given = fft2c(own.abs()).abs(), fft2c(measured.abs()).abs()
    norm = (given * edge).square().sum((-2, -1)).sqrt()
    gain = (own * edge).square().sum((-2, -1)).sqrt() / norm.clamp(min=torch.finfo(norm.dtype).tiny)
    return torch.where(norm > 0, gain, 1.0)


def _edge(measured: Tensor) -> Tensor:
    """Mask (h, w) of the edge of the measured band."""
    sizes = (measured.shape[-2], measured.shape[-1])
    rows, cols = ((torch.arange(n, device=measured.device) - n // 2).abs() > EDGE * n / 2 for n in sizes)
    return rows[:, None] | cols


def _edge_share(measured: Tensor) -> Tensor:
    """Share of the energy of images (..., h, w), without their mean, at the edge of the band: (...)."""
    power = fft2c(measured - measured.mean((-2, -1), keepdim=True)).abs().square()
    whole = power.sum((-2, -1))
    return (power * _edge(measured)).sum((-2, -1)) / whole.clamp(min=torch.finfo(whole.dtype).tiny)


def agreed_weight(image: Tensor, measured: Tensor) -> Tensor:
    """Weight of data consistency by :func:`band_edge_gain`, ``(..., 1, 1)``: 1 up to :data:`TRUSTED`, then falling.

    Data consistency is right for truncated k-space. If the scanner has also filtered it, the measured samples are too
    small, most of all at the edge of the band, and putting them back would undo what the network has restored. The
    weight falls to 0 at :data:`FILTERED`, with the logarithm of the gain. It stays 1 for images with fewer than
    :data:`FEWEST` rows or columns, and if the edge holds less than :data:`EMPTY` of the energy.

    A filter and a smooth object look alike in k-space. The gains are chosen on validation volumes: a Hamming filter
    raises most of them above 2.5, an object blurred by one fine voxel few above 1.4.
    """
    return _agreed(ifft2c(_band(image, measured)), measured)


def _agreed(own: Tensor, measured: Tensor) -> Tensor:
    """:func:`agreed_weight` of an image whose truncation is `own`, complex (..., h, w)."""
    if min(measured.shape[-2:]) < FEWEST:
        return torch.ones((*own.shape[:-2], 1, 1), dtype=own.real.dtype, device=own.device)
    gain = _edge_gain(own, measured).clamp(min=1e-6)
    weight = (1.0 - torch.log(gain / TRUSTED) / math.log(FILTERED / TRUSTED)).clamp(0.0, 1.0)
    return torch.where(_edge_share(measured) < EMPTY, 1.0, weight)[..., None, None]


def _restored(image: Tensor, band: Tensor, measured: Tensor, weight: float | Tensor) -> Tensor:
    """The image whose k-space in the measured band was `band`, see :func:`restore_measured`."""
    height, width = image.shape[-2], image.shape[-1]
    h, w = measured.shape[-2], measured.shape[-1]
    missing = fft2c(measured) - band
    unpaired = torch.zeros(h, w, dtype=torch.bool, device=image.device)
    unpaired[0] |= h % 2 == 0 and h < height
    unpaired[:, 0] |= w % 2 == 0 and w < width
    missing = weight * torch.where(unpaired, 2.0 * missing, missing)
    return image + ifft2c(pad_kspace(missing, (height, width))).real.to(image.dtype)


def consistency_residual(image: Tensor, measured: Tensor) -> float:
    """Relative distance of an image from the measurement: ``||truncate(image) - |measured||| / ||measured||``.

    Args:
        image: real, ``(..., H, W)``.
        measured: real, ``(..., h, w)``: a magnitude or a signed image.

    Returns:
        relative error over all slices; 0 where ``measured`` is zero everywhere and ``image`` agrees.
    """
    own = truncate(image, (measured.shape[-2], measured.shape[-1])).double()
    measured = measured.double().abs()
    return float((own - measured).norm() / measured.norm().clamp(min=torch.finfo(torch.float64).tiny))
