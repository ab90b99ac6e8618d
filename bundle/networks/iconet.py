"""ICONet: the iterative collaboration network of Kui et al., IEEE TCI 2025 (doi 10.1109/TCI.2025.3577340)."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from bundle.networks.config import NETWORK_SIZES, ICONetConfig
from bundle.networks.convolution import Conv3x3
from bundle.networks.fusion import SRRecFusion
from bundle.networks.heads import FullResolutionHead, ImageHead
from bundle.networks.rscfl import RSCFL
from bundle.networks.upsample import FourierUpsample


class ICONetOutput(NamedTuple):
    """All images that an :class:`ICONet` produces; stage ``i`` is at index ``i - 1``."""

    reconstructions: list[Tensor]
    """Rec_i, (B, C, 2^(i-1) h, 2^(i-1) w): the input of stage i with artefacts removed. Empty without that branch."""
    super_resolved: list[Tensor]
    """SR_i, (B, C, 2^i h, 2^i w); the last is the result of the network."""


class Branch(nn.Module):
    """Head convolution and N RSCFL modules: feature extractor of the reconstruction or super-resolution branch."""

    def __init__(self, config: ICONetConfig) -> None:
        super().__init__()
        self.head = Conv3x3(config.in_channels, config.features)
        blocks = [RSCFL(config.features, config.d_state, config.expand) for _ in range(config.num_blocks)]
        self.body = nn.Sequential(*blocks)

    def forward(self, image: Tensor) -> Tensor:
        """(B, in_channels, h, w) -> channels-last features (B, h, w, features)."""
        x = self.head(image).permute(0, 2, 3, 1).contiguous()
        for block in self.body:  # and not self.body(x), which would hold the first x until the last block is done
            x = block(x)
        return x


class ICONetStage(nn.Module):
    """One 2x step: reconstruction branch, super-resolution branch, their fusion (Fig. 2)."""

    def __init__(self, config: ICONetConfig) -> None:
        super().__init__()
        features, channels = config.features, config.in_channels
        self.serial = config.order == "serial"
        self.rec_branch = Branch(config) if config.reconstruction else None
        self.rec_head = ImageHead(features, channels, 1) if config.reconstruction else None
        self.sr_branch = Branch(config)
        fused = config.reconstruction and config.fusion
        matching = (config.match_features, config.match_stride, config.match_window)
        self.fusion = SRRecFusion(features, *matching) if fused else None
        self.upsample = FourierUpsample(2)
        self.sr_head = (
            ImageHead(features, channels, 2)
            if config.upsampler == "pixelshuffle"
            else FullResolutionHead(features, channels, config.head_features, config.head_layers)
        )

    def forward(self, image: Tensor) -> tuple[Tensor | None, Tensor]:
        """(B, C, h, w) -> Rec (B, C, h, w) or None, and SR (B, C, 2h, 2w)."""
        rec, f_rec = torch.jit.annotate(Tensor | None, None), torch.jit.annotate(Tensor | None, None)
        source = image
        if self.rec_branch is not None and self.rec_head is not None:
            f_rec = self.rec_branch(image)
            rec = self.rec_head(f_rec, image)
            source = rec if self.serial else image
        f_sr = self.sr_branch(source)
        if self.fusion is not None and f_rec is not None:
            fused = self.fusion(f_sr, f_rec)
            f_rec = None  # not held while the head runs
            f_sr = f_sr + fused
        return rec, self.sr_head(f_sr, self.upsample(source))


class ICONet(nn.Module):
    """Iterative collaboration network for 2-D super-resolution, 2x, 4x or 8x.

    ``x_1 = LR``; stage ``i`` makes ``Rec_i = x_i + residual`` and, from it, ``SR_i = upsample(Rec_i) + residual``;
    ``x_{i+1} = SR_i``. Upsampling is zero-filled Fourier interpolation, exact on the grid of k-space truncation.

    From the paper: 96 features, N = 7 RSCFL per branch, serial order, 2x per stage, fusion by hard attention. Chosen
    here because the paper does not say: one fusion per stage, added to the features of the super-resolution branch
    before its upsampler; the upsampler; the image skips; separate weights for each stage; and the choices named in the
    docstrings of the parts. docs/architecture.md has the full list.

    Args:
        config: the options; by default the paper's size.
        options: any of the options by name, overriding ``config``: ``ICONet(scale=4, features=32)``.

    Raises:
        ValueError, TypeError: see :class:`bundle.networks.ICONetConfig`.
    """

    slices_side_by_side = True
    """Inference on a CPU calls it from several threads at once, with one slice each."""

    def __init__(self, config: ICONetConfig | None = None, **options: Any) -> None:
        super().__init__()
        config = replace(config or ICONetConfig(), **options)
        self.scale = config.scale
        self.in_channels = config.in_channels
        num_stages = int(math.log2(config.scale))
        self.repeats = num_stages if config.share_stages else 1
        self.stages = nn.ModuleList(ICONetStage(config) for _ in range(1 if config.share_stages else num_stages))

    def _run_stages(self, image: Tensor) -> ICONetOutput:
        reconstructions: list[Tensor] = []
        super_resolved: list[Tensor] = []
        for stage in self.stages:
            for _ in range(self.repeats):
                rec, image = stage(image)
                if rec is not None:
                    reconstructions.append(rec)
                super_resolved.append(image)
        return ICONetOutput(reconstructions, super_resolved)

    def forward(self, image: Tensor, return_stages: bool = False) -> Tensor | ICONetOutput:
        """Super-resolve a batch of slices.

        Args:
            image: ``(B, in_channels, h, w)``, any ``h`` and ``w``, intensities of order 1.
            return_stages: return every Rec_i and SR_i instead of only the last SR.

        Returns:
            ``(B, in_channels, scale * h, scale * w)``, or an :class:`ICONetOutput`.
        """
        if image.ndim != 4 or image.shape[1] != self.in_channels:
            raise ValueError(f"expected slices (B, {self.in_channels}, h, w), got shape {list(image.shape)}")
        out = self._run_stages(image)
        if return_stages:
            return out
        return out.super_resolved[-1]


def iconet(size: str = "small", scale: int = 2, **options: Any) -> ICONet:
    """Build an :class:`ICONet` of a named size.

    Args:
        size: ``small`` or ``paper``.
        scale: 2, 4 or 8.
        options: of :class:`bundle.networks.ICONetConfig`, overriding those of the size.

    Raises:
        ValueError: unknown size, or an option out of range; TypeError: unknown option.
    """
    if size not in NETWORK_SIZES:
        raise ValueError(f"network size must be one of {tuple(NETWORK_SIZES)}, got {size!r}")
    return ICONet(NETWORK_SIZES[size], scale=scale, **options)
