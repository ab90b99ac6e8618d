"""The single path from a volume to its super-resolved result.

The command, the MONAI workflow, MONAI Label, evaluation and comparison all call :func:`super_resolve`. No other code
normalises an input, loops over its slices, applies data consistency or restores its units.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bundle.data.intensity import intensity_window, prepared
from bundle.data.values import Values, put_padding, survey
from bundle.inference.matrix import MatrixPlan, cut, cut_affine
from bundle.inference.memory import batch_that_fits, batch_worth_taking
from bundle.inference.walker import SliceWalker, scale_of
from bundle.physics import consistency_residual, fine_padding, truncate
from bundle.physics.place import Grids, grids, place
from bundle.physics.slices import SliceAxis, in_plane_axes, resolve_slice_axis, slices_last
from bundle.trust import check_volume
from bundle.trust.training_range import TrainingRange


@dataclass(frozen=True, eq=False)
class SuperResolved:
    """What the network made of an image or volume.

    Attributes:
        voxels: float32, in the units of the input, on the grid of the plan.
        affine: voxel index to world of the result, float64 (4, 4).
        slice_axis: array axis over the slices, which was not super-resolved.
        offset, scale: the network saw (value - offset) / scale.
        residual: relative distance between the truncated result and the input as stored, measured on normalised values
            (:func:`bundle.physics.consistency_residual`).
        set_to_zero: fraction of the voxels that were negative and were set to zero; None for an input with negative
            values, whose result keeps them.
        consistency: mean weight of data consistency over the slices that are not constant; 0 without that step.
        notes: what was done because memory was short, and slices that were taken for filtered.
    """

    voxels: np.ndarray
    affine: np.ndarray
    slice_axis: int
    offset: float
    scale: float
    residual: float
    set_to_zero: float | None
    consistency: float
    notes: tuple[str, ...]


def super_resolve(
    voxels: np.ndarray | Tensor,
    affine: np.ndarray | Tensor,
    network: Callable[..., Any],
    slice_axis: SliceAxis = "auto",
    walker: SliceWalker | None = None,
    values: Values | None = None,
    made: Grids | None = None,
    *args: Any,
    **kwargs: Any,
) -> SuperResolved:
    """Super-resolve one image (X, Y) or volume (X, Y, Z).

    The steps: choose the slice axis; fill padding from its neighbourhood and set stray negative voxels to zero
    (:func:`bundle.data.intensity.prepared`); scale values to order 1
    (:func:`bundle.data.intensity.intensity_window`); cut to the acquired matrix, if the grids say so
    (:func:`bundle.inference.matrix.cut`); run every slice through the network, with data consistency;
    place the result on its grid (:func:`bundle.physics.place.place`); restore the units; set negative voxels to zero if
    the input has none; put the padding back. Setting to zero is a projection, so it never moves a voxel away from a
    non-negative truth.

    Args:
        voxels: finite real numbers.
        affine: voxel index to world (4, 4), millimetres.
        network: takes slices (B, 1, h, w) of order 1 to (B, 1, scale * h, scale * w); has the attribute ``scale``.
        slice_axis: 0, 1, 2 or "auto".
        walker: batches and data consistency; remembers the batch size that fits from volume to volume.
        values: what the values of the series mean to which the volume belongs (:func:`bundle.data.values.survey`: one
            rule holds for all its volumes); by default this volume decides.
        made: matrices of the way to the result (:func:`bundle.inference.matrix.plan_matrix`); by default the network
            gets the image as it is stored, and the result has ``scale`` times its in-plane samples.
        args, kwargs: further arguments of the network.

    Raises:
        ValueError: invalid slice axis, or a network without ``scale``.
        MemoryError: even a single slice, or the result itself, does not fit.
    """
    walker = walker or SliceWalker()
    axis = resolve_slice_axis(slice_axis, voxels.shape, affine)
    plane = in_plane_axes(len(voxels.shape), axis)
    made = made or grids((voxels.shape[plane[0]], voxels.shape[plane[1]]), scale_of(network))
    shape = made.shape(voxels.shape, axis)
    slices = voxels.shape[axis] if len(voxels.shape) > 2 else 1
    pixels = math.prod(made.network)
    usual = batch_worth_taking(pixels, walker.slice_batch)
    batch = batch_that_fits(math.prod(shape), pixels, slices, usual, network)
    voxels = np.asarray(voxels)
    values = survey([voxels]) if values is None else values
    image, mask = prepared(voxels, axis, values)
    offset, scale = intensity_window(image if mask is None or mask.all() else image[~mask])
    image = image.sub(offset).div(scale)
    with walker.taking(usual), walker.taking(batch) as fewer:  # a note on the second alone, which is about memory
        walked = walker(cut(image, made, axis, values.signed), network, axis, values.signed, *args, **kwargs)
    pred = walked.volume
    share = None
    if not values.signed:  # the offset is 0 in this case
        share = int(torch.count_nonzero(pred < 0)) / pred.numel()
        pred = pred.clamp_(min=0)
    residual = _residual(pred, image, axis)
    pred = place(pred, made, axis)
    if not values.signed:
        pred = pred.clamp_(min=0)
    fine = pred.mul_(scale).add_(offset).numpy()
    if mask is not None and values.padding is not None:
        put_padding(fine, fine_padding(mask, made.steps(mask.ndim, axis), shape).numpy(), values.padding)
    fine_affine = made.affine(np.asarray(affine), voxels.ndim, axis)
    weights = walked.weights
    consistency = sum(weights) / len(weights) if weights else 0.0
    notes = (*fewer, *walked.notes, *_filtered(weights, walker))
    return SuperResolved(fine, fine_affine, axis, offset, scale, residual, share, consistency, notes)


def doubts(
    voxels: np.ndarray,
    affine: np.ndarray,
    slice_axis: int,
    values: Values,
    plan: MatrixPlan,
    modality: str | None = None,
    trained_on: TrainingRange | None = None,
) -> list[str]:
    """The warnings of :func:`bundle.trust.check_volume` about what the network gets, and those of the plan.

    Padding has no part in them.
    """
    image, mask = prepared(voxels, slice_axis, values)
    made, padding = plan.grids, None if mask is None else mask.numpy()
    if made.cut:  # the facts do not depend on signs and phases; padding has been filled in smoothly
        image, padding = cut(image, made, slice_axis, values.signed, iterations=0), None
    affine = cut_affine(affine, made, voxels.ndim, slice_axis)
    spacing = np.linalg.norm(affine[:3, :3], axis=0).tolist()
    return [*plan.warnings, *check_volume(image.numpy(), spacing, slice_axis, modality, trained_on, padding)]


def _filtered(weights: Sequence[float], walker: SliceWalker) -> list[str]:
    """A note if the network took many slices for filtered."""
    fewer = sum(weight < 0.5 for weight in weights)
    if walker.data_consistency != "auto" or fewer <= 0.1 * len(weights):
        return []
    return [
        f"{fewer} of {len(weights)} slices look as if k-space was filtered, or show a very smooth object: the network "
        "sharpens them, and the measured samples are not put back there; --data_consistency 1 puts them back"
    ]


def _residual(pred: Tensor, image: Tensor, slice_axis: int) -> float:
    """`consistency_residual` of a whole volume (X, Y[, Z]), computed slice by slice to bound memory.

    Where the stored image is finer than the result, as after a cut, both are compared on the coarser matrix.
    """
    fine, coarse = (slices_last(x[None], slice_axis).flatten(0, -3) for x in (pred, image))
    common = tuple(min(pair) for pair in zip(fine.shape[-2:], coarse.shape[-2:], strict=True))
    off = total = 0.0
    for sr, lr in zip(fine, coarse, strict=True):
        if common != lr.shape:
            lr = truncate(lr, (common[0], common[1]))
        if norm := float(lr.double().norm()):
            off += (consistency_residual(sr, lr) * norm) ** 2
            total += norm**2
    return math.sqrt(off / total) if total else 0.0
