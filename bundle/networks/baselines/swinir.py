"""SwinIR: Liang et al., "SwinIR: Image Restoration Using Swin Transformer", ICCV workshops 2021."""

from __future__ import annotations

from collections.abc import Sequence

from monai.networks.nets.swin_unetr import SwinTransformerBlock, compute_mask, get_window_size
from torch import Tensor, nn
from torch.nn.functional import pad

from bundle.networks.baselines.residual_groups import ResidualGroupNetwork


class WindowBlock(nn.Module):
    """MONAI's Swin block on a map (B, h, w, features), sides divisible by the window, with its shift mask.

    Along an axis of a single window there is no shift: it would only mask pixels of that window from each other.
    """

    def __init__(self, features: int, num_heads: int, window_size: int, shift: int, mlp_ratio: float) -> None:
        super().__init__()
        self.window, self.shift = (window_size, window_size), (shift, shift)
        self.block = SwinTransformerBlock(features, num_heads, self.window, self.shift, mlp_ratio)
        # a constant, kept out of the weights, which are plain float32 tensors
        index = self.block.attn.get_buffer("relative_position_index")
        self.block.attn.register_buffer("relative_position_index", index, persistent=False)
        for layer in self.modules():
            if isinstance(layer, nn.Linear):
                nn.init.trunc_normal_(layer.weight, std=0.02)
                nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        size = x.shape[1:3]
        window, shift = get_window_size(size, self.window, self.shift)  # no shift along an axis of one window
        return self.block(x, compute_mask(size, window, shift, x.device) if any(shift) else None)


class SwinIR(ResidualGroupNetwork):
    """Groups of Swin transformer blocks with windows shifted in every other block; lightweight form.

    As in its public code: 60 maps, four groups of six blocks, 6 heads, windows of 8, an MLP of twice the width, one
    convolution per group, a direct pixel shuffle, no image skip. Different here: the image is padded to whole windows
    by replication (reflection there, which needs more samples than it pads); windows are not shifted along an axis of
    one window, so images of up to 8 pixels per side see no shift (the public code decides by the size of its training
    patches and shifts images of any size); and there is no stochastic depth.
    MONAI's block cannot be scripted, and a trace is valid for one image size only.
    904,744 parameters for one channel, 2x; 17.0 G multiply-adds.

    Args:
        scale, in_channels, image_skip: see :class:`bundle.networks.single_step.SingleStepNetwork`.
        features: maps, a multiple of ``num_heads``.
        depths: blocks per group.
        num_heads, window_size, mlp_ratio: of each block.
    """

    def __init__(
        self,
        scale: int = 2,
        in_channels: int = 1,
        features: int = 60,
        depths: Sequence[int] = (6, 6, 6, 6),
        num_heads: int = 6,
        window_size: int = 8,
        mlp_ratio: float = 2.0,
        image_skip: str = "none",
    ) -> None:
        if features % num_heads:
            raise ValueError(f"features must be a multiple of num_heads, got {features} and {num_heads}")
        shifts = (0, window_size // 2)
        groups = [
            [WindowBlock(features, num_heads, window_size, shifts[i % 2], mlp_ratio) for i in range(depth)]
            for depth in depths
        ]
        super().__init__(scale, in_channels, features, groups, image_skip)
        self.window_size = window_size

    def estimate(self, image: Tensor) -> tuple[list[Tensor], Tensor]:
        height, width = image.shape[-2], image.shape[-1]
        margins = (0, -width % self.window_size, 0, -height % self.window_size)
        none, out = super().estimate(pad(image, margins, mode="replicate"))
        return none, out[..., : self.scale * height, : self.scale * width]
