"""Average of a network over the flips and transpositions of its input."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

_FLIPS: tuple[tuple[int, ...], ...] = ((), (-2,), (-1,), (-2, -1))


def flip_average(network: Callable[..., Any], image: Tensor, scale: int, *args: Any, **kwargs: Any) -> Tensor:
    """Run a network on the eight flips and transpositions of each slice and average the results, turned back.

    A flip is exact on this project's grid, where coarse sample j lies on fine sample scale * j: the last coarse sample
    becomes the first one, so the fine image is flipped about it. Plainly flipped results would be scale - 1 fine
    samples off. The last scale - 1 fine rows lie between the last and, periodically, the first coarse row; they wrap
    round as Fourier interpolation does.

    Args:
        network: slices (B, C, h, w) in, (B, C, scale * h, scale * w) out.
        image: (B, C, h, w).
        scale: of the network.
        args, kwargs: further arguments of the network.

    Returns:
        (B, C, scale * h, scale * w).
    """
    total: Tensor | None = None
    for transposed in (False, True):
        for axes in _FLIPS:
            turned = image.flip(axes)
            out = network(turned.mT if transposed else turned, *args, **kwargs)
            out = out.mT if transposed else out
            for axis in axes:
                out = torch.roll(out.flip(axis), 1 - scale, axis)
            total = out if total is None else total + out
    assert total is not None
    return total / 8.0
