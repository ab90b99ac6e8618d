"""ICONet: the iterative collaboration network of Kui et al., IEEE TCI 2025 (doi 10.1109/TCI.2025.3577340)."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from bundle.networks.fusion import SRRecFusion
from bundle.networks.heads import FullResolutionHead, ImageHead
from bundle.networks.rscfl import RSCFL
from bundle.networks.upsample import FourierUpsample

ORDERS = ("serial", "parallel")
UPSAMPLERS = ("pixelshuffle", "full_resolution")


class ICONetOutput(NamedTuple):
    """All images that an :class:`ICONet` makes on its way; stage ``i`` is at index ``i - 1``."""

    reconstructions: list[Tensor]
    """Rec_i, (B, C, 2^(i-1) h, 2^(i-1) w): the input of stage i without artefacts. Empty without that branch."""
    super_resolved: list[Tensor]
    """SR_i, (B, C, 2^i h, 2^i w); the last is the result of the network."""


class Branch(nn.Module):
    """Head convolution and N RSCFL modules: the features of the reconstruction or the super-resolution branch."""

    def __init__(self, in_channels: int, features: int, num_blocks: int, d_state: int, expand: float) -> None:
        super().__init__()
        self.head = nn.Conv2d(in_channels, features, kernel_size=3, padding=1)
        self.body = nn.Sequential(*(RSCFL(features, d_state, expand) for _ in range(num_blocks)))

    def forward(self, image: Tensor) -> Tensor:
        """(B, in_channels, h, w) -> channels-last features (B, h, w, features)."""
        return self.body(self.head(image).permute(0, 2, 3, 1).contiguous())


class ICONetStage(nn.Module):
    """One x2 step: reconstruction branch, super-resolution branch, their fusion (Fig. 2)."""

    def __init__(
        self,
        *,
        channels: int,
        features: int,
        num_blocks: int,
        d_state: int,
        expand: float,
        match_features: int | None,
        match_stride: int,
        upsampler: str,
        head_features: int,
        head_layers: int,
        reconstruction: bool,
        fusion: bool,
        order: str,
    ) -> None:
        super().__init__()
        self.serial = order == "serial"
        self.rec_branch = Branch(channels, features, num_blocks, d_state, expand) if reconstruction else None
        self.rec_head = ImageHead(features, channels, 1) if reconstruction else None
        self.sr_branch = Branch(channels, features, num_blocks, d_state, expand)
        self.fusion = SRRecFusion(features, match_features, match_stride) if reconstruction and fusion else None
        self.upsample = FourierUpsample(2)
        self.sr_head = (
            ImageHead(features, channels, 2)
            if upsampler == "pixelshuffle"
            else FullResolutionHead(features, channels, head_features, head_layers)
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
            f_sr = f_sr + self.fusion(f_sr, f_rec)
        return rec, self.sr_head(f_sr, self.upsample(source))


class ICONet(nn.Module):
    """Iterative collaboration network for 2-D super-resolution by 2, 4 or 8.

    ``x_1 = LR``; stage ``i`` makes ``Rec_i = x_i + residual`` and, from it, ``SR_i = upsample(Rec_i) + residual``;
    ``x_{i+1} = SR_i``. Upsampling is zero-filled Fourier interpolation, exact on the grid of k-space truncation.

    Fixed by the paper: 96 features, N = 7 RSCFL per branch, serial order, x2 per stage, fusion by hard attention.
    Chosen here, where it is silent: one fusion per stage, added to the features of the super-resolution branch before
    its upsampler; the image skips; separate weights for each stage; and what the parts' docstrings name.

    Args:
        scale: 2, 4 or 8: ``log2(scale)`` stages.
        in_channels: channels of the image (the output has as many).
        features: feature maps.
        num_blocks: RSCFL modules per branch (the paper's N).
        d_state, expand: of the selective scan, see :class:`bundle.networks.vision_mamba.VisionMambaBlock`.
        match_features, match_stride: of the fusion, see :class:`bundle.networks.fusion.SRRecFusion`.
        upsampler: ``pixelshuffle`` (the paper's, :class:`ImageHead`) or ``full_resolution``
            (:class:`FullResolutionHead`).
        head_features, head_layers: width and convolutions of the latter.
        reconstruction: ``False`` removes the reconstruction branch and with it the fusion (Table IV).
        fusion: ``False`` removes the fusion (Table IV).
        order: ``serial`` (the paper) or ``parallel``: both branches read the input of the stage (Table V).
        share_stages: one set of weights for all stages.

    Raises:
        ValueError: an argument outside these.
    """

    def __init__(
        self,
        scale: int = 2,
        in_channels: int = 1,
        features: int = 96,
        num_blocks: int = 7,
        d_state: int = 16,
        expand: float = 2.0,
        match_features: int | None = None,
        match_stride: int = 1,
        upsampler: str = "pixelshuffle",
        head_features: int = 48,
        head_layers: int = 12,
        reconstruction: bool = True,
        fusion: bool = True,
        order: str = "serial",
        share_stages: bool = False,
    ) -> None:
        super().__init__()
        if scale not in (2, 4, 8):
            raise ValueError(f"scale must be 2, 4 or 8, got {scale}")
        if order not in ORDERS:
            raise ValueError(f"order must be one of {ORDERS}, got {order!r}")
        if upsampler not in UPSAMPLERS:
            raise ValueError(f"upsampler must be one of {UPSAMPLERS}, got {upsampler!r}")
        if num_blocks < 1 or features < 1:
            raise ValueError(f"num_blocks and features must be positive, got {num_blocks} and {features}")
        if head_features < 1 or head_layers < 2:
            raise ValueError(
                f"head_features must be positive, head_layers at least 2, got {head_features} and {head_layers}"
            )
        self.scale = scale
        self.in_channels = in_channels
        num_stages = int(math.log2(scale))
        self.repeats = num_stages if share_stages else 1
        self.stages = nn.ModuleList(
            ICONetStage(
                channels=in_channels,
                features=features,
                num_blocks=num_blocks,
                d_state=d_state,
                expand=expand,
                match_features=match_features,
                match_stride=match_stride,
                upsampler=upsampler,
                head_features=head_features,
                head_layers=head_layers,
                reconstruction=reconstruction,
                fusion=fusion,
                order=order,
            )
            for _ in range(1 if share_stages else num_stages)
        )

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
            return_stages: return every Rec_i and SR_i instead of the last SR alone.

        Returns:
            ``(B, in_channels, scale * h, scale * w)``, or an :class:`ICONetOutput`.
        """
        if image.ndim != 4 or image.shape[1] != self.in_channels:
            raise ValueError(f"expected slices (B, {self.in_channels}, h, w), got shape {list(image.shape)}")
        out = self._run_stages(image)
        if return_stages:
            return out
        return out.super_resolved[-1]


NETWORK_SIZES: dict[str, dict[str, Any]] = {
    "paper": {},
    "small": {
        "features": 32,
        "num_blocks": 4,
        "d_state": 4,
        "expand": 1.5,
        "match_features": 8,
        "match_stride": 2,
        "upsampler": "full_resolution",
        "head_features": 48,
        "head_layers": 12,
    },
}
"""Constructor arguments of the named sizes: the paper's, and one for machines without a GPU."""


def iconet(size: str = "small", scale: int = 2, **kwargs: Any) -> ICONet:
    """Build an :class:`ICONet` of a named size.

    Args:
        size: ``small`` or ``paper``.
        scale: 2, 4 or 8.
        kwargs: further arguments of :class:`ICONet`, which override those of the size.

    Raises:
        ValueError: unknown size.
    """
    if size not in NETWORK_SIZES:
        raise ValueError(f"network size must be one of {tuple(NETWORK_SIZES)}, got {size!r}")
    return ICONet(scale=scale, **{**NETWORK_SIZES[size], **kwargs})
