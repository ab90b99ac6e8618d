"""Data consistency: put the measured k-space of a low-resolution image back into its super-resolved one."""

from __future__ import annotations

import torch
from torch import Tensor

from bundle.physics.kspace import crop_kspace, fft2c, ifft2c, pad_kspace, truncate


def restore_measured(image: Tensor, measured: Tensor, weight: float = 1.0) -> Tensor:
    """Put measured k-space samples back into an image.

    With ``weight`` 1 the result is the real image nearest to ``image`` whose truncation is ``measured``:
    ``truncate_kspace(restore_measured(x, m), size) == m``. For an even size the Nyquist row is measured without its
    partner; the partner is set to its conjugate, otherwise the real part would hold only half of the measured row.

    Args:
        image: real, ``(..., H, W)``.
        measured: ``(..., h, w)``, at most ``(H, W)``; real, or complex as returned by
            :func:`bundle.physics.truncate_kspace` (then only the part that a real image can hold is restored).
        weight: weight of the measured samples, in [0, 1]; 1 replaces the image's own.

    Returns:
        real image ``(..., H, W)``.
    """
    return image + _correction(fft2c(image), measured, weight).to(image.dtype)


def restore_magnitude(image: Tensor, magnitude: Tensor, weight: float = 1.0) -> Tensor:
    """Data consistency with a magnitude image, as the project's degradation makes it.

    The magnitude has lost its sign (negative where truncation rings below zero) and the phase of an unpaired Nyquist
    row. Both are taken from ``image``, truncated in the same way; the rest is :func:`restore_measured`. Treating the
    magnitude itself as measured would put its rectified ringing into the result.

    Args:
        image: real, ``(..., H, W)``.
        magnitude: real and non-negative, ``(..., h, w)``.
        weight: weight of the measured samples, in [0, 1]; 1 replaces the image's own.

    Returns:
        real image ``(..., H, W)``; its :func:`bundle.physics.truncate` is ``magnitude`` to about 1 %.
    """
    spectrum = fft2c(image)
    own = ifft2c(crop_kspace(spectrum, (magnitude.shape[-2], magnitude.shape[-1])))
    size = own.abs()
    phase = torch.where(size > 0, own / size.clamp(min=torch.finfo(size.dtype).tiny), 1.0)
    return image + _correction(spectrum, magnitude * phase, weight).to(image.dtype)


def _correction(spectrum: Tensor, measured: Tensor, weight: float) -> Tensor:
    """The correction (..., H, W) to add to the image of a centred spectrum, see :func:`restore_measured`."""
    height, width = spectrum.shape[-2], spectrum.shape[-1]
    h, w = measured.shape[-2], measured.shape[-1]
    missing = fft2c(measured) - crop_kspace(spectrum, (h, w))
    unpaired = torch.zeros(h, w, dtype=torch.bool, device=spectrum.device)
    unpaired[0] |= h % 2 == 0 and h < height
    unpaired[:, 0] |= w % 2 == 0 and w < width
    missing = weight * torch.where(unpaired, 2.0 * missing, missing)
    return ifft2c(pad_kspace(missing, (height, width))).real


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
