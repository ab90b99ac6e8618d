"""Residual spatial-channel feature learning (RSCFL): the block that both branches repeat N times."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from bundle.networks.ss2d import SS2D
from bundle.networks.vision_mamba import VisionMambaBlock
from bundle.ops import block_kernel

_KERNEL_NAMES = {
    "vmb.norm.weight": "norm_weight",
    "vmb.norm.bias": "norm_bias",
    "vmb.in_proj.weight": "in_proj",
    "vmb.dwconv.weight": "conv_weight",
    "vmb.dwconv.bias": "conv_bias",
    "vmb.ss2d.x_proj.weight": "x_proj",
    "vmb.ss2d.dt_weight": "dt_weight",
    "vmb.ss2d.dt_bias": "dt_bias",
    "vmb.ss2d.A_log": "a_log",
    "vmb.ss2d.D": "d",
    "vmb.out_norm.weight": "out_norm_weight",
    "vmb.out_norm.bias": "out_norm_bias",
    "vmb.out_proj.weight": "out_proj",
    "crb.squeeze.weight": "squeeze_weight",
    "crb.squeeze.bias": "squeeze_bias",
    "crb.excite.weight": "excite_weight",
    "crb.excite.bias": "excite_bias",
}
"""The parameters of an RSCFL block, and what its kernel calls them (`bundle.ops.native.rscfl.PARAMETERS`)."""

_CONVOLUTIONS = {"vmb.dwconv": ((3, 3), (1, 1)), "crb.squeeze": ((1, 1), (0, 0)), "crb.excite": ((1, 1), (0, 0))}
"""Kernel size and padding of the convolutions that the kernel knows."""


class ChannelRankingBlock(nn.Module):
    """CRB: channel attention, ``x * sigmoid(conv(relu(conv(GAP(x)))))`` with 1x1 convolutions.

    The paper gives neither kernels nor the reduction.

    Args:
        features: channels.
        reduction: ratio of ``features`` to the width between the two convolutions, which is at least 4.
    """

    def __init__(self, features: int, reduction: int = 16) -> None:
        super().__init__()
        hidden = max(features // reduction, 4)
        self.squeeze = nn.Conv2d(features, hidden, kernel_size=1)
        self.excite = nn.Conv2d(hidden, features, kernel_size=1)
        # with the usual bias, many of the few hidden units would be negative for every image and never learn
        nn.init.constant_(self.squeeze.get_parameter("bias"), 0.25)

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, features) -> the same shape."""
        mean = x.mean(dim=(1, 2), keepdim=True).permute(0, 3, 1, 2)
        weight = torch.sigmoid(self.excite(torch.relu(self.squeeze(mean))))
        return x * weight.permute(0, 2, 3, 1)


class RSCFL(nn.Module):
    """``x + CRB(VMB(x))``: the two blocks in cascade with one residual (Fig. 3).

    Args:
        features, d_state, expand: see :class:`bundle.networks.vision_mamba.VisionMambaBlock`.
    """

    def __init__(self, features: int, d_state: int = 16, expand: float = 2.0) -> None:
        super().__init__()
        self.vmb = VisionMambaBlock(features, d_state=d_state, expand=expand)
        self.crb = ChannelRankingBlock(features)

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, features) -> the same shape."""
        if torch.jit.is_scripting():
            return self._by_modules(x)
        return self._run(x)

    def _by_modules(self, x: Tensor) -> Tensor:
        return x + self.crb(self.vmb(x))

    @torch.jit.unused
    def _run(self, x: Tensor) -> Tensor:
        kernel = block_kernel(x, self)
        if kernel is None or not self._is_as_built():
            return self._by_modules(x)
        return kernel(x, {_KERNEL_NAMES[name]: parameter for name, parameter in self.named_parameters()})

    def _is_as_built(self) -> bool:
        """Whether no module has been replaced by one that the kernel does not know, or been given other settings."""
        modules = dict(self.named_modules())
        if any(type(modules.get(name)) is not kind for name, kind in _KERNEL_MODULES.items()):
            return False
        if any(norm.eps != 1e-5 or len(norm.normalized_shape) != 1 for norm in (self.vmb.norm, self.vmb.out_norm)):
            return False
        for name, (size, padding) in _CONVOLUTIONS.items():
            settings = vars(modules[name])
            if settings["kernel_size"] != size or settings["padding"] != padding or settings["padding_mode"] != "zeros":
                return False
            if settings["stride"] != (1, 1) or settings["dilation"] != (1, 1):
                return False
        return {name for name, _ in self.named_parameters()} == _KERNEL_NAMES.keys()  # others: a bias more or less


_KERNEL_MODULES = {
    "vmb": VisionMambaBlock,
    "vmb.norm": nn.LayerNorm,
    "vmb.in_proj": nn.Linear,
    "vmb.dwconv": nn.Conv2d,
    "vmb.ss2d": SS2D,
    "vmb.ss2d.x_proj": nn.Linear,
    "vmb.out_norm": nn.LayerNorm,
    "vmb.out_proj": nn.Linear,
    "crb": ChannelRankingBlock,
    "crb.squeeze": nn.Conv2d,
    "crb.excite": nn.Conv2d,
}
"""The modules inside an RSCFL block whose work its kernel does."""
