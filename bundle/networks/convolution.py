"""The 3x3 convolution of the networks, which runs natively at inference on the CPU."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from bundle.ops import conv3x3, is_plain, own_convolution


class Conv3x3(nn.Conv2d):
    """``nn.Conv2d(before, after, 3, padding=1)``, with the sum and the ReLU that follow it in the same pass.

    Args:
        before, after: channels.
        bias: whether there is one.
    """

    def __init__(self, before: int, after: int, bias: bool = True) -> None:
        super().__init__(before, after, 3, padding=1, bias=bias)

    def forward(self, maps: Tensor, addend: Tensor | None = None, relu: bool = False, in_place: bool = False) -> Tensor:
        """``conv(maps) + addend``, then ReLU if asked for.

        Args:
            maps: (B, before, h, w).
            addend: (B, after, h, w).
            in_place: the caller needs the addend no more: its memory may take the result.

        Returns:
            (B, after, h, w).
        """
        if not torch.jit.is_scripting():
            return self._dispatch(maps, addend, relu, in_place)
        out = self._conv_forward(maps, self.weight, self.bias)
        if addend is not None:
            out = out + addend
        return out.relu() if relu else out

    @torch.jit.unused
    def _dispatch(self, maps: Tensor, addend: Tensor | None, relu: bool, in_place: bool) -> Tensor:
        return conv3x3(maps, self.weight, self.bias, addend, relu, in_place)


def convolve_in_bands(
    maps: Tensor,
    layers: Sequence[nn.Module],
    addend: Tensor | None = None,
    coarse: Tensor | None = None,
    to_fine: Tensor | None = None,
) -> Tensor | None:
    """Convolutions with a ReLU between them, walked in bands of rows; None where the layers must be called.

    At inference on the CPU alone, and for plain layers in this order: the maps between them are never held whole.

    Args:
        maps: (B, c, H, W).
        layers: :class:`Conv3x3`, ``nn.ReLU``, :class:`Conv3x3`, ..., :class:`Conv3x3`.
        addend: of the shape of the result, added to it.
        coarse, to_fine: (B, H / 2, W / 2, features) and the weight of a linear map to four times the channels of the
            first layer, whose pixel shuffle is added before the first ReLU.
    """
    convolutions = [layer for layer in layers[::2] if isinstance(layer, Conv3x3) and is_plain(layer, Conv3x3)]
    if 2 * len(convolutions) != len(layers) + 1 or not all(is_plain(layer, nn.ReLU) for layer in layers[1::2]):
        return None
    weights, biases = [layer.weight for layer in convolutions], [layer.bias for layer in convolutions]
    run = own_convolution(maps, (*weights, *biases, addend, coarse, to_fine))
    return None if run is None else run(maps, weights, biases, addend, False, coarse, to_fine)
