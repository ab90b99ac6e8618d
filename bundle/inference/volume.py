"""The one path from a volume to its super-resolved result.

The command, the MONAI workflow, MONAI Label, evaluation and comparison all call :func:`super_resolve`. Nothing else
normalises an input, walks over its slices, puts its k-space back or restores its units.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from bundle.inference.walker import SliceWalker, scale_of
from bundle.physics import choose_slice_axis, consistency_residual, fine_grid
from bundle.physics.slices import check_slice_axis, slices_last
from bundle.transforms.intensity import intensity_window

SliceAxis = int | Literal["auto"]
"""Array axis that runs over the slices; "auto" takes the one of :func:`bundle.physics.choose_slice_axis`."""

_COPIES = 5
"""Float32 copies of the result that exist at the same time, about: what the walk over slices and its steps keep."""


@dataclass(frozen=True, eq=False)
class SuperResolved:
    """What the network made of an image or volume.

    Attributes:
        voxels: float32, in the units of the input, in-plane axes `scale` times longer.
        affine: voxel index to world of the result, float64 (4, 4).
        slice_axis: array axis over the slices, which was not super-resolved.
        offset, scale: the network saw (value - offset) / scale.
        residual: how far the result is from the input by its own truncation, relative, measured on what the network
            saw (:func:`bundle.physics.consistency_residual`).
        set_to_zero: share of the voxels that were negative and are zero now; None for an input with negative values,
            whose result keeps them.
        notes: what had to be done for lack of memory.
    """

    voxels: np.ndarray
    affine: np.ndarray
    slice_axis: int
    offset: float
    scale: float
    residual: float
    set_to_zero: float | None
    notes: tuple[str, ...]


def super_resolve(
    voxels: np.ndarray | Tensor,
    affine: np.ndarray | Tensor,
    network: Callable[..., Any],
    slice_axis: SliceAxis = "auto",
    walker: SliceWalker | None = None,
    signed: bool | None = None,
    *args: Any,
    **kwargs: Any,
) -> SuperResolved:
    """Super-resolve one image (X, Y) or volume (X, Y, Z).

    In this order: the slice axis is chosen; the values are brought to order 1 by
    :func:`bundle.transforms.intensity.intensity_window`; every slice goes through the network and gets the k-space of
    its input back; the units are restored; a non-negative input gives a non-negative result. That last step is a
    projection on what can be true, so it never moves a voxel away from a non-negative truth.

    Args:
        voxels: finite real numbers.
        affine: voxel index to world (4, 4), millimetres.
        network: takes slices (B, 1, h, w) of order 1 to (B, 1, scale * h, scale * w); has the attribute ``scale``.
        slice_axis: 0, 1, 2 or "auto".
        walker: batches and data consistency; keeps what it learned about the memory from volume to volume.
        signed: the volume belongs to a series with negative values (a series has one rule for all its volumes); by
            default this volume decides.
        args, kwargs: further arguments of the network.

    Raises:
        ValueError: a bad slice axis, or a network without ``scale``.
        MemoryError: one slice at a time, or the result itself, is too much.
    """
    walker = walker or SliceWalker()
    axis = resolve_slice_axis(slice_axis, voxels.shape, affine)
    shape, fine_affine = fine_grid(voxels.shape, np.asarray(affine, np.float64), scale_of(network), axis)
    _check_memory(math.prod(shape))
    image = torch.as_tensor(np.ascontiguousarray(voxels, np.float32))
    signed = bool(image.min() < 0) if signed is None else signed
    offset, scale = intensity_window(image)
    image = image.sub(offset).div(scale)
    pred, notes = walker(image, network, axis, signed, *args, **kwargs)
    share = None
    if not signed:  # the offset is 0 then
        share = float((pred < 0).float().mean())
        pred = pred.clamp_(min=0)
    residual = _residual(pred, image, axis)
    fine = pred.mul_(scale).add_(offset).numpy()
    return SuperResolved(fine, fine_affine, axis, offset, scale, residual, share, notes)


def resolve_slice_axis(slice_axis: SliceAxis, shape: tuple[int, ...], affine: np.ndarray | Tensor) -> int:
    """0, 1 or 2; "auto" is decided by matrix and voxel size. Raises ValueError for anything else."""
    if slice_axis == "auto":
        return choose_slice_axis(shape, np.asarray(affine))
    return check_slice_axis(slice_axis)


def _check_memory(voxels: int) -> None:
    """Refuse a result that this machine can never hold: it would be killed for it, and the whole run with it."""
    needed = _COPIES * 4 * voxels
    try:
        present = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # not a POSIX system
        return
    if needed > present:
        found = f"about {needed / 2**30:.0f} GiB of memory are needed, this machine has {present / 2**30:.0f} GiB"
        raise MemoryError(f"{found}; crop or split the volume")


def _residual(pred: Tensor, image: Tensor, slice_axis: int) -> float:
    """`consistency_residual` of a whole volume (X, Y[, Z]), gathered slice by slice to bound the memory."""
    fine, coarse = (slices_last(x[None], slice_axis).flatten(0, -3) for x in (pred, image))
    off = total = 0.0
    for sr, lr in zip(fine, coarse, strict=True):
        if norm := float(lr.double().norm()):
            off += (consistency_residual(sr, lr) * norm) ** 2
            total += norm**2
    return math.sqrt(off / total) if total else 0.0
