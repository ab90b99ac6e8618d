"""The common base of the single-step networks: ICONet's interface for them."""

from __future__ import annotations

from torch import Tensor, nn

from bundle.networks.config import SCALES
from bundle.networks.iconet import ICONetOutput
from bundle.networks.initial import start_small
from bundle.networks.upsample import FourierUpsample, aligned_bicubic_upsample, fourier_image_upsample

INTERPOLATIONS = ("bicubic", "fourier")
IMAGE_SKIPS = ("none", *INTERPOLATIONS)


def interpolate(image: Tensor, scale: int, method: str) -> Tensor:
    """Grid-aligned interpolation (B, C, h, w) -> (B, C, scale * h, scale * w); ``bicubic`` or ``fourier``."""
    if method == "bicubic":
        return aligned_bicubic_upsample(image, scale)
    return fourier_image_upsample(image, scale)


class SingleStepNetwork(nn.Module):
    """Base class of the single-step networks: a subclass implements :meth:`estimate`; the image skip is added here.

    Args:
        scale: 2, 4 or 8.
        in_channels: channels of the image; the output has as many.
        image_skip: ``none``, or the interpolation of the input that is added to the output: ``bicubic`` or
            ``fourier``. The default of a baseline follows its paper; other values show what the skip alone contributes.

    Raises:
        ValueError: an argument is not one of these.
    """

    slices_side_by_side = True
    """Inference on a CPU calls it from several threads at once, with one slice each."""

    def __init__(self, scale: int, in_channels: int, image_skip: str = "none") -> None:
        super().__init__()
        if scale not in SCALES:
            raise ValueError(f"scale must be one of {SCALES}, got {scale}")
        if in_channels < 1:
            raise ValueError(f"in_channels must be positive, got {in_channels}")
        check_interpolation(image_skip, IMAGE_SKIPS)
        self.scale = scale
        self.in_channels = in_channels
        self.image_skip = image_skip
        self.fourier = FourierUpsample(scale) if image_skip == "fourier" else None  # a module, which exporters exchange

    def forward(self, image: Tensor, return_stages: bool = False) -> Tensor | ICONetOutput:
        """Super-resolve a batch of slices.

        Args:
            image: ``(B, in_channels, h, w)``, any ``h`` and ``w``, intensities of order 1.
            return_stages: return an :class:`bundle.networks.ICONetOutput` for the multi-stage loss: one super-resolved
                image, and no reconstruction if the network makes none.

        Returns:
            ``(B, in_channels, scale * h, scale * w)``, or an :class:`bundle.networks.ICONetOutput`.
        """
        if image.ndim != 4 or image.shape[1] != self.in_channels:
            raise ValueError(f"expected slices (B, {self.in_channels}, h, w), got shape {list(image.shape)}")
        reconstructions, super_resolved = self.estimate(image)
        if self.fourier is not None:
            super_resolved = super_resolved + self.fourier(image)
        elif self.image_skip != "none":
            super_resolved = super_resolved + interpolate(image, self.scale, self.image_skip)
        if return_stages:
            return ICONetOutput(reconstructions, [super_resolved])
        return super_resolved

    def estimate(self, image: Tensor) -> tuple[list[Tensor], Tensor]:
        """(B, C, h, w) -> reconstructions and the result without its image skip (B, C, scale * h, scale * w)."""
        raise NotImplementedError

    def start_near_skip(self, last: nn.Conv2d) -> None:
        """With an image skip, start close to it, as ICONet does (:func:`bundle.networks.initial.start_small`)."""
        if self.image_skip != "none":
            start_small(last)


def check_interpolation(image_skip: str, choices: tuple[str, ...] = INTERPOLATIONS) -> None:
    """Raise a ValueError that names the choices."""
    if image_skip not in choices:
        raise ValueError(f"image_skip must be one of {choices}, got {image_skip!r}")
