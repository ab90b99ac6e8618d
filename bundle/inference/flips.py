"""Average of a network over the flips and transpositions of its input."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

_FLIPS: tuple[tuple[int, ...], ...] = ((), (-2,), (-1,), (-2, -1))


def flip_average(network: Callable[..., Any], image: Tensor, scale: int, *args: Any, **kwargs: Any) -> Tensor:
    """Run a network on the eight flips and transpositions of each slice and average the results, turned back.

    On this project's grid, coarse sample j lies on fine sample scale * j. In a flipped slice the last coarse sample is
    the first one, so the fine image is flipped about it; plainly flipped results would be scale - 1 fine samples off.
    The last scale - 1 fine rows lie beyond the last coarse row. A flipped slice has none there (its own last rows lie
    before the first coarse row), so these rows are averaged over the orientations that are not flipped along them.

    Args:
        network: slices (B, C, h, w) in, (B, C, scale * h, scale * w) out.
        image: (B, C, h, w).
        scale: of the network.
        args, kwargs: further arguments of the network.

    Returns:
        (B, C, scale * h, scale * w).
    """
    batch, channels, height, width = image.shape
    total = image.new_zeros((batch, channels, scale * height, scale * width))
    count = image.new_zeros((scale * height, scale * width))
    for transposed in (False, True):
        for axes in _FLIPS:
            turned = image.flip(axes)
            out = network(turned.mT if transposed else turned, *args, **kwargs)
            out = out.mT if transposed else out
            last = [n - (scale - 1) * (axis in axes) for axis, n in ((-2, scale * height), (-1, scale * width))]
            known = (..., slice(last[0]), slice(last[1]))
            for axis in axes:
                out = torch.roll(out.flip(axis), 1 - scale, axis)
            total[known] += out[known]
            count[known] += 1
    return total / count
