"""MONAI inferer for the shared volume path: whole volumes through a 2-D network."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import torch
from monai.data import MetaTensor
from monai.inferers import Inferer
from torch import Tensor

from bundle.data.nifti.axes import stated_in_meta
from bundle.data.values import survey
from bundle.inference.volume import super_resolve
from bundle.inference.walker import SliceWalker
from bundle.physics.slices import SliceAxis, SliceChoice, check_slice_axis, decide_slice_axis, resolve_slice_axis

logger = logging.getLogger("iconet")


class VolumeInferer(Inferer):
    """Super-resolve volumes ``(B, C, X, Y, Z)`` and images ``(B, C, X, Y)`` in the units of their files.

    Each channel (a volume of a series) goes through :func:`bundle.inference.volume.super_resolve` by itself; all
    channels of an item share the rules for padding and negative values.

    Args:
        slice_axis: array axis (0, 1, 2) over the slices, or "auto": what the metadata of a MetaTensor say
            (:func:`bundle.physics.slices.decide_slice_axis`), the last axis of a plain tensor.
        slice_batch: slices per call of the network, halved when memory is short.
        data_consistency: see :class:`bundle.inference.walker.SliceWalker`.
        progress: show a progress bar over the batches of slices.
        quality: see :class:`bundle.inference.walker.SliceWalker`.

    Raises:
        ValueError: an argument is out of range.
    """

    def __init__(
        self,
        slice_axis: SliceAxis = "auto",
        slice_batch: int = 4,
        data_consistency: float | Literal["auto"] = "auto",
        progress: bool = False,
        quality: Literal["standard", "best"] = "standard",
    ) -> None:
        super().__init__()
        self.slice_axis: SliceAxis = slice_axis if slice_axis == "auto" else check_slice_axis(slice_axis)
        self.walker = SliceWalker(slice_batch, data_consistency, progress, quality)

    def __call__(self, inputs: Tensor, network: Callable[..., Any], *args: Any, **kwargs: Any) -> Tensor:
        """Return the volumes with in-plane axes ``scale`` times longer; a MetaTensor also gets the fine affine."""
        affines = _affines(inputs)
        results = [
            self._item(item, affine, self._axis(inputs, item, affine, number), network, *args, **kwargs)
            for number, (item, affine) in enumerate(zip(torch.as_tensor(inputs), affines, strict=True))
        ]
        out = torch.stack([volume for volume, _ in results]).to(inputs.device)
        if not isinstance(inputs, MetaTensor):
            return out
        fine = torch.as_tensor(np.stack([affine for _, affine in results]))
        fine = fine if inputs.affine.ndim == 3 else fine[0]
        result = MetaTensor(out, meta={**inputs.meta, "affine": fine})
        result.is_batch = inputs.is_batch
        return result

    def _axis(self, inputs: Tensor, item: Tensor, affine: np.ndarray, number: int) -> SliceChoice:
        """The slice axis of an item; nothing is doubtful about a plain tensor, whose last axis is taken."""
        if not isinstance(inputs, MetaTensor):
            return SliceChoice(resolve_slice_axis(self.slice_axis, item.shape[1:], affine))
        return decide_slice_axis(self.slice_axis, item.shape[1:], affine, stated_in_meta(inputs.meta, affine, number))

    def _item(
        self,
        item: Tensor,
        affine: np.ndarray,
        choice: SliceChoice,
        network: Callable[..., Any],
        *args: Any,
        **kwargs: Any,
    ) -> tuple[Tensor, np.ndarray]:
        """(C, X, Y[, Z]) -> the same on the fine grid, and its affine."""
        channels = item.cpu().float()
        axis, uncertain = choice
        values = survey(channel.numpy() for channel in channels)
        results = [
            super_resolve(channel, affine, network, axis, self.walker, values, *args, **kwargs) for channel in channels
        ]
        notes = (note for result in results for note in result.notes)
        for note in dict.fromkeys([*values.warnings, *uncertain, *notes]):
            logger.warning(note)
        return torch.from_numpy(np.stack([result.voxels for result in results])), results[0].affine


def _affines(inputs: Tensor) -> list[np.ndarray]:
    """One affine (4, 4) per item of a batch."""
    if not isinstance(inputs, MetaTensor):
        return [np.eye(4)] * len(inputs)
    affine = np.asarray(inputs.affine.cpu(), np.float64)
    return list(affine) if affine.ndim == 3 else [affine] * len(inputs)
