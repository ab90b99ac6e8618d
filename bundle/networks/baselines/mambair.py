"""MambaIR: Guo et al., "MambaIR: A Simple Baseline for Image Restoration with State-Space Model", ECCV 2024."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from bundle.networks.baselines.residual_groups import ResidualGroupNetwork
from bundle.networks.vision_mamba import VisionMambaBlock


class ChannelAttention(nn.Module):
    """``x * sigmoid(conv(relu(conv(mean(x)))))`` with 1x1 convolutions, as in RCAN. (B, C, h, w), shape kept."""

    def __init__(self, features: int, reduction: int) -> None:
        super().__init__()
        hidden = max(features // reduction, 1)
        self.squeeze = nn.Conv2d(features, hidden, 1)
        self.excite = nn.Conv2d(hidden, features, 1)
        # with the usual bias, some of the few hidden units would be negative for every image and never learn
        nn.init.constant_(self.squeeze.get_parameter("bias"), 0.25)

    def forward(self, x: Tensor) -> Tensor:
        mean = x.mean(dim=(2, 3), keepdim=True)
        return x * torch.sigmoid(self.excite(torch.relu(self.squeeze(mean))))


class StateSpaceBlock(nn.Module):
    """``y = s1 * x + scan(LN(x))``, then ``s2 * y + convolutions(LN(y))``, with a learned scale per channel.

    The convolutions of the lightweight form are depthwise (the second with dilation 2), between 1x1 convolutions, and
    followed by a channel attention.
    """

    def __init__(self, features: int, d_state: int, expand: float, reduction: int = 30) -> None:
        super().__init__()
        self.vmb = VisionMambaBlock(features, d_state=d_state, expand=expand)
        nn.init.trunc_normal_(self.vmb.in_proj.weight, std=0.02)
        nn.init.trunc_normal_(self.vmb.out_proj.weight, std=0.02)
        self.scale1 = nn.Parameter(torch.ones(features))
        self.scale2 = nn.Parameter(torch.ones(features))
        self.norm = nn.LayerNorm(features)
        half = features // 2
        self.convolutions = nn.Sequential(
            nn.Conv2d(features, half, 1),
            nn.Conv2d(half, half, 3, padding=1, groups=half),
            nn.GELU(),
            nn.Conv2d(half, features, 1),
            nn.Conv2d(features, features, 3, padding=2, dilation=2, groups=features),
            ChannelAttention(features, reduction),
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, h, w, features) -> the same shape."""
        y = (self.scale1 - 1.0) * x + self.vmb(x)  # the Vision Mamba block adds x itself
        return self.scale2 * y + self.convolutions(self.norm(y).permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


class MambaIR(ResidualGroupNetwork):
    """SwinIR's architecture with state-space blocks that use this project's scan; lightweight form.

    As in its public code: 60 maps, four groups of six blocks, 10 states, 72 scanned channels, a direct pixel shuffle,
    no image skip. Different here: the initial bias of the channel attention, and there is no stochastic depth.
    899,608 parameters for one channel, 2x (published: 0.905 M for three channels); 12.5 G multiply-adds without the
    scan.

    Args:
        scale, in_channels, image_skip: see :class:`bundle.networks.single_step.SingleStepNetwork`.
        features: maps.
        depths: blocks per group.
        d_state, expand: of the scan, see :class:`bundle.networks.vision_mamba.VisionMambaBlock`.
    """

    def __init__(
        self,
        scale: int = 2,
        in_channels: int = 1,
        features: int = 60,
        depths: Sequence[int] = (6, 6, 6, 6),
        d_state: int = 10,
        expand: float = 1.2,
        image_skip: str = "none",
    ) -> None:
        groups = [[StateSpaceBlock(features, d_state, expand) for _ in range(depth)] for depth in depths]
        super().__init__(scale, in_channels, features, groups, image_skip)
