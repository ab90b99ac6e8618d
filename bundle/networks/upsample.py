"""Image upsampling that keeps the grid: coarse sample ``j`` stays on fine sample ``scale * j``."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from bundle.physics import fourier_upsample


def fourier_image_upsample(image: Tensor, scale: int) -> Tensor:
    """Zero-filled Fourier interpolation of ``(..., h, w)`` to ``(..., scale * h, scale * w)``, dtype kept."""
    height, width = image.shape[-2], image.shape[-1]
    return fourier_upsample(image, (scale * height, scale * width)).to(image.dtype)


class FourierUpsample(nn.Module):
    """:func:`fourier_image_upsample` as a part of a network, which an exporter can exchange for another form.

    Args:
        scale: factor of both sides.
    """

    def __init__(self, scale: int) -> None:
        super().__init__()
        self.scale = scale

    def forward(self, image: Tensor) -> Tensor:
        """(..., h, w) -> (..., scale * h, scale * w)."""
        return fourier_image_upsample(image, self.scale)


def aligned_bicubic_upsample(image: Tensor, scale: int) -> Tensor:
    """Bicubic interpolation (Keys, a = -0.75, as in PyTorch) of ``(B, C, h, w)`` at the positions ``i / scale``.

    ``torch.nn.functional.interpolate`` centres voxels, which shifts the image by ``(scale - 1) / 2`` fine samples, so
    the sampling grid is given explicitly here. Borders are replicated.
    """
    height, width = image.shape[-2:]
    rows = torch.arange(scale * height, dtype=image.dtype, device=image.device) / scale
    cols = torch.arange(scale * width, dtype=image.dtype, device=image.device) / scale
    y = 2.0 * (rows + 0.5) / height - 1.0  # align_corners=False: -1 is the outer edge of the first voxel
    x = 2.0 * (cols + 0.5) / width - 1.0
    grid = torch.stack(torch.meshgrid(y, x, indexing="ij")[::-1], dim=-1).expand(image.shape[0], -1, -1, -1)
    return torch.nn.functional.grid_sample(image, grid, mode="bicubic", padding_mode="border", align_corners=False)
