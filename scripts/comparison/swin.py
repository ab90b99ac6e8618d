"""ICONet with Swin blocks instead of vision Mamba blocks, for the comparison of Table IX."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn.functional import pad

from bundle.networks import build_network
from bundle.networks.baselines.swinir import WindowBlock
from bundle.networks.rscfl import RSCFL
from comparison.cost import parameters

FEATURES_PER_HEAD = 16


class SwinBlock(nn.Module):
    """A Swin block that replaces a :class:`bundle.networks.vision_mamba.VisionMambaBlock`.

    Windows of 8x8 with 16 features per head. The width of its MLP is chosen to match the size of the replaced block.

    Args:
        features: channels, a multiple of 16.
        size: number of parameters to match as closely as possible.
        shifted: shift the windows by half their side, as every other block does.

    Raises:
        ValueError: features not divisible by 16, or a size that the attention alone exceeds.
    """

    def __init__(self, features: int, size: int, shifted: bool, window: int = 8) -> None:
        super().__init__()
        if features % FEATURES_PER_HEAD:
            raise ValueError(f"features must be a multiple of {FEATURES_PER_HEAD}, got {features}")
        heads, shift = features // FEATURES_PER_HEAD, window // 2 if shifted else 0
        smallest = parameters(WindowBlock(features, heads, window, shift, 1.5 / features))  # an MLP one unit wide
        hidden = 1 + round((size - smallest) / (2 * features + 1))
        if hidden < 1:
            raise ValueError(f"a Swin block of {features} features has at least {smallest} parameters, got {size}")
        self.window = window
        self.block = WindowBlock(features, heads, window, shift, (hidden + 0.5) / features)

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, features) -> the same shape; rows and columns are replicated to whole windows."""
        height, width = x.shape[1:3]
        margins = (0, -width % self.window, 0, -height % self.window)
        whole = pad(x.permute(0, 3, 1, 2), margins, mode="replicate").permute(0, 2, 3, 1).contiguous()
        return self.block(whole)[:, :height, :width]


def swin_iconet(name: str = "iconet_small", scale: int = 2, **kwargs: Any) -> nn.Module:
    """An ICONet with a :class:`SwinBlock` of the same size in place of each vision Mamba block.

    Args:
        name, scale, kwargs: see :func:`bundle.networks.build_network`; ``name`` is one of the ICONets.
    """
    network = build_network(name, scale, **kwargs)
    modules = [module for module in network.modules() if isinstance(module, RSCFL)]
    if not modules:
        raise ValueError(f"{name} has no vision Mamba blocks to replace")
    for number, module in enumerate(modules):
        features = module.vmb.norm.normalized_shape[0]
        module.vmb = SwinBlock(features, parameters(module.vmb), shifted=number % 2 == 1)  # type: ignore[assignment]
    return network
