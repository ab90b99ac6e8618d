"""Padding: voxels that a scanner or program filled in because nothing was measured there.

Padding often lies far below or above every measured value (-3024 around the round field of view of a CT). Its edge
would ring far into the image, so the network sees the continuation of the neighbourhood instead, and the result gets
the padding back.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, interpolate, pad

from bundle.physics.slices import slices_back, slices_last

_RINGS = 4
"""Rings of voxels by which the neighbourhood grows before the matrix is halved for what lies further away."""

_BATCH = 16


def fill_padding(image: Tensor, mask: Tensor, slice_axis: int) -> Tensor:
    """Replace masked voxels by a smooth continuation of the others in their slice.

    The neighbourhood grows ring by ring, each voxel the mean of its known neighbours, near the edge on the full matrix,
    then on halved ones. (Of nearest neighbours, mirroring and means over blocks, none has a smaller error there.)
    Slices that are masked altogether get the value 0.

    Args:
        image: (X, Y) or (X, Y, Z), floating point.
        mask: bool, the same shape.
        slice_axis: 0, 1 or 2; ignored for an image.

    Returns:
        A new tensor; voxels that are not masked keep their values.
    """
    planes, holes = (slices_last(x[None], slice_axis) for x in (image, mask))
    flat, hidden = (x.reshape(-1, *x.shape[-2:]) for x in (planes, holes))
    filled = flat.clone()
    for number in hidden.flatten(1).any(dim=1).nonzero().flatten().split(_BATCH):
        known = (~hidden[number]).to(flat.dtype)
        filled[number] = torch.where(hidden[number], _filled(flat[number], known), flat[number])
    return slices_back(filled.reshape(planes.shape), slice_axis)[0]


def fine_padding(mask: Tensor, steps: Sequence[float], shape: Sequence[int]) -> Tensor:
    """Which voxels of the result are padding: those of which all low-resolution voxels around them are.

    Fine voxel i lies between floor(i * step) and ceil(i * step) along each axis. Behind the last low-resolution voxel
    that one alone decides.

    Args:
        mask: bool, (X, Y) or (X, Y, Z).
        steps: distance of the voxels of the result along each axis, in voxels of the mask.
        shape: of the result.

    Returns:
        bool, of that shape.
    """
    for axis, (step, size) in enumerate(zip(steps, shape, strict=False)):
        place = torch.arange(size, dtype=torch.float64, device=mask.device) * step
        last = mask.shape[axis] - 1
        before, after = ((place + shift).to(torch.int64).clamp(max=last) for shift in (1e-6, 1 - 1e-6))
        mask = mask.index_select(axis, before) & mask.index_select(axis, after)
    return mask


def _filled(planes: Tensor, known: Tensor) -> Tensor:
    """(B, H, W) with a value wherever ``known`` is 0; planes without any known voxel become 0."""
    for _ in range(_RINGS):
        weight, total = _blurred(known), _blurred(planes * known)
        new = (known == 0) & (weight > 0)
        planes = torch.where(new, total / weight.clamp(min=1), planes)
        known = torch.where(new, 1.0, known)
    if bool((known.amax(dim=(1, 2)) == known.amin(dim=(1, 2))).all()):
        return planes * known
    even = (0, planes.shape[-1] % 2, 0, planes.shape[-2] % 2)
    total, weight = (avg_pool2d(pad(x[:, None], even), 2) for x in (planes * known, known))
    coarse = _filled((total / weight.clamp(min=0.25))[:, 0], (weight[:, 0] > 0).to(planes.dtype))
    up = interpolate(coarse[:, None], scale_factor=2, mode="bilinear")[:, 0, : planes.shape[-2], : planes.shape[-1]]
    return torch.where(known > 0, planes, up)


def _blurred(x: Tensor) -> Tensor:
    """(B, H, W): sums over 3 x 3 voxels weighted 1, 2, 1 in both directions; zeros outside."""
    rows = pad(x, (0, 0, 1, 1))
    x = rows[:, :-2] + 2 * rows[:, 1:-1] + rows[:, 2:]
    columns = pad(x, (1, 1))
    return columns[..., :-2] + 2 * columns[..., 1:-1] + columns[..., 2:]
