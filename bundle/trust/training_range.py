"""The range of the training images of some weights, recorded as numbers beside the weights.

Every number describes a low-resolution image, the network's input: the training volumes are truncated first.
"""

from __future__ import annotations

import json
import os
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bundle.data import read_volume
from bundle.data.intensity import intensity_window
from bundle.data.paths import sha256_of
from bundle.physics import divisible_size, truncate

PathLike = str | os.PathLike[str]
Interval = tuple[float, float]

KEY = "training_range"
BACKGROUND = 0.05
"""Voxels below this fraction of the bright level (99.9th percentile) count as background."""


@dataclass(frozen=True)
class ImageFacts:
    """Numbers that describe one low-resolution volume.

    Attributes:
        pixel_mm: in-plane voxel size; the smaller and the larger one.
        slice_mm: slice spacing.
        background: fraction of voxels below ``BACKGROUND`` of the bright level.
        negative: fraction of voxels below minus ``BACKGROUND`` of the bright level.
        typical: median of the other voxels, relative to the bright level.
        peak: maximum, relative to the bright level.
    """

    pixel_mm: Interval
    slice_mm: float
    background: float
    negative: float
    typical: float
    peak: float


@dataclass(frozen=True)
class ModalityRange:
    """Smallest and largest value of each of the :class:`ImageFacts`, over the volumes of one modality."""

    volumes: int
    pixel_mm: Interval
    slice_mm: Interval
    background: Interval
    negative: Interval
    typical: Interval
    peak: Interval


@dataclass(frozen=True)
class TrainingRange:
    """What weights were trained on: a range for each modality ("MR", "PET", "CT", or "unknown")."""

    scale: int
    modalities: Mapping[str, ModalityRange]

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON; :func:`training_range_from` reads it."""
        return {"scale": self.scale, "modalities": {name: asdict(r) for name, r in self.modalities.items()}}


def image_facts(
    volume: np.ndarray, spacing: Iterable[float], slice_axis: int, padding: np.ndarray | None = None
) -> ImageFacts:
    """Facts about a low-resolution volume (X, Y, Z), real and finite, with voxels of ``spacing`` millimetres.

    ``padding`` (bool, the same shape) marks voxels that do not count.
    """
    volume = volume if padding is None else volume[~padding]
    sizes = [float(s) for s in spacing]
    pixel = sorted(s for axis, s in enumerate(sizes) if axis != slice_axis)
    offset, scale = intensity_window(torch.from_numpy(np.ascontiguousarray(volume, dtype=np.float32)))
    bright = offset + scale
    if bright <= 0:  # nothing positive, or nothing at all
        bright = float(np.abs(volume).max()) or 1.0
    tissue = volume[volume >= BACKGROUND * bright]
    return ImageFacts(
        pixel_mm=(pixel[0], pixel[1]),
        slice_mm=sizes[slice_axis],
        background=float(np.mean(np.abs(volume) < BACKGROUND * bright)),
        negative=float(np.mean(volume <= -BACKGROUND * bright)),
        typical=float(np.median(tissue)) / bright if tissue.size else 0.0,
        peak=float(volume.max()) / bright,
    )


def training_range(datalist: Iterable[Mapping[str, str]], scale: int, slice_axis: int = 2) -> TrainingRange:
    """Range of the low-resolution images that a network sees when trained on high-resolution volumes.

    Args:
        datalist: ``{"image": path}``, optionally with ``"modality"`` (else "unknown").
        scale: factor of the network.
        slice_axis: as in training.

    Raises:
        bundle.data.VolumeError: a volume cannot be read.
        ValueError: the list is empty, or a volume is not 3-D or smaller than ``scale``.
    """
    found: dict[str, list[ImageFacts]] = defaultdict(list)
    for item in datalist:
        volume = read_volume(item["image"])
        if volume.array.ndim != 3:
            raise ValueError(f"{item['image']}: {volume.array.ndim} dimensions; training takes 3-D volumes")
        slices = torch.from_numpy(volume.array).movedim(slice_axis, 0)
        height, width = divisible_size(slices.shape[1:], scale)
        low = truncate(slices[:, :height, :width], (height // scale, width // scale)).movedim(0, slice_axis).numpy()
        spacing = np.linalg.norm(volume.affine[:3, :3], axis=0) * scale
        spacing[slice_axis] /= scale
        found[item.get("modality") or "unknown"].append(image_facts(low, spacing, slice_axis))
    if not found:
        raise ValueError("a training range needs at least one volume")
    return TrainingRange(scale, {name: _range(facts) for name, facts in sorted(found.items())})


def _range(facts: list[ImageFacts]) -> ModalityRange:
    intervals = {}
    for field in fields(ImageFacts):
        values = np.concatenate([np.atleast_1d(getattr(f, field.name)) for f in facts])
        # Rounded outwards, so that the training volumes are inside.
        intervals[field.name] = (np.floor(values.min() * 1e4) / 1e4, np.ceil(values.max() * 1e4) / 1e4)
    return ModalityRange(len(facts), **intervals)


def load_training_range(weights: PathLike) -> TrainingRange | None:
    """The range recorded beside weights, in ``training/<name of the weights>.json``.

    ``None`` if there is no such record, or it belongs to another file of that name (by sha256).

    Raises:
        ValueError: the record cannot be used; the message names the file.
    """
    path = Path(weights)
    record_path = path.parent / "training" / f"{path.stem}.json"
    if not record_path.is_file():
        return None
    try:
        record = json.loads(record_path.read_text(encoding="utf-8"))
        if record.get(KEY) is None:
            return None
        if record.get("weights") == path.name and record.get("sha256") != sha256_of(path):
            return None
        return training_range_from(record[KEY])
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"{record_path}: no usable {KEY!r} ({type(error).__name__}: {error})") from error


def training_range_from(plain: Mapping[str, Any]) -> TrainingRange:
    """The inverse of :meth:`TrainingRange.as_dict`; ``KeyError``, ``TypeError`` or ``ValueError`` for other data."""
    names = [field.name for field in fields(ModalityRange) if field.name != "volumes"]
    modalities = {}
    for name, values in plain["modalities"].items():
        intervals = {key: (float(values[key][0]), float(values[key][1])) for key in names}
        modalities[str(name)] = ModalityRange(int(values["volumes"]), **intervals)
    if not modalities:
        raise ValueError("no modality")
    return TrainingRange(int(plain["scale"]), modalities)
