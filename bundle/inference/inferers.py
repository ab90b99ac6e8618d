"""MONAI inferer for the shared volume path: whole volumes through a 2-D network."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from monai.data import MetaTensor
from monai.inferers import Inferer
from torch import Tensor

from bundle.data.meaning import modality_in_meta
from bundle.data.nifti.axes import stated_in_meta
from bundle.data.nifti.matrix import stated_matrix_in_meta
from bundle.data.sidecar import RECORD
from bundle.data.values import Values, survey
from bundle.inference.matrix import MatrixPlan, Wanted, plan_matrix
from bundle.inference.record import Origin, describe, sidecar_content
from bundle.inference.volume import SuperResolved, doubts, super_resolve
from bundle.inference.walker import SliceWalker, scale_of
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
        origin: network and weights: then inputs are compared with the training data, and MetaTensors that were read
            from files get the record of their result (JSON) under :data:`bundle.data.sidecar.RECORD`.
        matrix, voxel_size: as the options (:class:`bundle.options.InferenceOptions`); the factor is the network's.

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
        origin: Origin | None = None,
        matrix: str = "auto",
        voxel_size: str | float | None = None,
    ) -> None:
        super().__init__()
        self.matrix, self.voxel_size = matrix, voxel_size
        self.origin = origin
        self.slice_axis: SliceAxis = slice_axis if slice_axis == "auto" else check_slice_axis(slice_axis)
        self.walker = SliceWalker(slice_batch, data_consistency, progress, quality)

    def __call__(self, inputs: Tensor, network: Callable[..., Any], *args: Any, **kwargs: Any) -> Tensor:
        """Return the volumes with in-plane axes ``scale`` times longer; a MetaTensor also gets the fine affine."""
        affines = _affines(inputs)
        results = [
            self._item(inputs, number, item, affine, network, *args, **kwargs)
            for number, (item, affine) in enumerate(zip(torch.as_tensor(inputs), affines, strict=True))
        ]
        out = torch.stack([volume for volume, _, _ in results]).to(inputs.device)
        if not isinstance(inputs, MetaTensor):
            return out
        fine = torch.as_tensor(np.stack([affine for _, affine, _ in results]))
        fine = fine if inputs.affine.ndim == 3 else fine[0]
        records = {RECORD: [record for _, _, record in results]} if self.origin and inputs.is_batch else {}
        result = MetaTensor(out, meta={**inputs.meta, **records, "affine": fine})
        result.is_batch = inputs.is_batch
        return result

    def _axis(self, inputs: Tensor, item: Tensor, affine: np.ndarray, number: int) -> SliceChoice:
        """The slice axis of an item; nothing is doubtful about a plain tensor, whose last axis is taken."""
        if not isinstance(inputs, MetaTensor):
            return SliceChoice(resolve_slice_axis(self.slice_axis, item.shape[1:], affine))
        return decide_slice_axis(self.slice_axis, item.shape[1:], affine, stated_in_meta(inputs.meta, affine, number))

    def _item(
        self,
        inputs: Tensor,
        number: int,
        item: Tensor,
        affine: np.ndarray,
        network: Callable[..., Any],
        *args: Any,
        **kwargs: Any,
    ) -> tuple[Tensor, np.ndarray, str]:
        """(C, X, Y[, Z]) -> the same on the fine grid, its affine, and its record ("" without an origin)."""
        axis, uncertain = self._axis(inputs, item, affine, number)
        channels = item.cpu().float()
        values = survey(channel.numpy() for channel in channels)
        warnings = [*values.warnings, *uncertain]
        meta = inputs.meta if isinstance(inputs, MetaTensor) else {}
        modality = modality_in_meta(meta, number)
        stated = stated_matrix_in_meta(meta, affine, number, item.shape[1:])
        wanted = Wanted(self.matrix, self.voxel_size, modality, stated)
        plan = plan_matrix(channels[values.strongest].numpy(), affine, axis, scale_of(network), values, wanted)
        if self.origin is not None:
            warnings += doubts(channels[0].numpy(), affine, axis, values, plan, modality, self.origin.trained_on)
        results = [
            super_resolve(channel, affine, network, axis, self.walker, values, plan.grids, *args, **kwargs)
            for channel in channels
        ]
        warnings += (note for result in results for note in result.notes)
        for warning in dict.fromkeys(warnings):
            logger.warning(warning)
        record = self._record(inputs, number, plan, affine, results, values, warnings)
        return torch.from_numpy(np.stack([result.voxels for result in results])), results[0].affine, record

    def _record(
        self,
        inputs: Tensor,
        number: int,
        plan: MatrixPlan,
        affine: np.ndarray,
        results: Sequence[SuperResolved],
        values: Values,
        warnings: Sequence[str],
    ) -> str:
        """The record that the command would write beside the result of item `number`, as JSON."""
        meta = inputs.meta if isinstance(inputs, MetaTensor) else {}
        source = Path(str(_of_item(meta, "filename_or_obj", number)))
        if self.origin is None or not source.is_file():
            return ""
        said = str(_of_item(meta, "warnings", number) or "").splitlines()
        series = [len(results)] if np.ravel(_of_item(meta, "dim", number))[0] == 4 else []
        coarse, fine = [*inputs.shape[2:], *series], [*results[0].voxels.shape, *series]
        facts = describe(plan, affine, coarse, fine, results, values, dict.fromkeys([*said, *warnings]))
        walker = self.walker
        provenance = self.origin.provenance(
            source,
            scale=plan.grids.scale,
            slice_axis=self.slice_axis,
            matrix=self.matrix,
            voxel_size=self.voxel_size,
            data_consistency=walker.data_consistency,
            quality=walker.quality,
        )
        return json.dumps(sidecar_content(self.origin.network_name, facts, [str(source)], provenance))


def _of_item(meta: Mapping[str, Any], key: str, number: int) -> Any:
    """An entry of collated metadata, of one item."""
    value = meta.get(key)
    return value[number] if isinstance(value, (list, tuple, Tensor)) and len(value) > number else value


def _affines(inputs: Tensor) -> list[np.ndarray]:
    """One affine (4, 4) per item of a batch."""
    if not isinstance(inputs, MetaTensor):
        return [np.eye(4)] * len(inputs)
    affine = np.asarray(inputs.affine.cpu(), np.float64)
    return list(affine) if affine.ndim == 3 else [affine] * len(inputs)
