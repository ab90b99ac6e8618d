"""Warnings about inputs on which the network cannot be trusted, each one line: what was found and what to do."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from bundle.trust.training_range import ImageFacts, Interval, ModalityRange, TrainingRange, image_facts

_SIZE_MARGIN = 1.25  # voxel sizes may exceed the range by this factor: training volumes are few, sizes discrete
_FRACTION_MARGIN = 0.1
_PEAK_MARGIN = 2.0
_LABEL_PAIRS = 0.7

_MODALITIES = {"PT": "PET", "MRI": "MR", "NM": "SPECT"}


def check_volume(
    lr_voxels: np.ndarray,
    spacing: Sequence[float],
    slice_axis: int,
    modality: str | None = None,
    trained_on: TrainingRange | None = None,
    padding: np.ndarray | None = None,
) -> list[str]:
    """Warnings about a low-resolution volume; none if it resembles the training data of the weights.

    Args:
        lr_voxels: the network's input before normalisation, real and finite, shape (X, Y, Z) or (X, Y), any unit.
        spacing: voxel size along the three array axes, millimetres.
        slice_axis: 0, 1 or 2; 2 for a single image (X, Y).
        modality: such as "MR", "PET", or DICOM's "PT"; if ``None`` (unknown), each number is compared with the range
            over all training modalities.
        trained_on: from :func:`load_training_range`; ``None`` gives one line that says it is missing.
        padding: bool, the shape of the volume: voxels that were filled in, which say nothing about it.

    Raises:
        ValueError: wrong number of dimensions or voxel sizes, or voxels that are not real numbers.
    """
    volume = np.asarray(lr_voxels)
    if volume.ndim == 2:
        volume, slice_axis = volume[..., None], 2
        padding = None if padding is None else padding[..., None]
    if volume.ndim != 3 or volume.size == 0 or volume.dtype.kind not in "biuf":
        raise ValueError(f"expected real voxels of shape (X, Y, Z), got {volume.dtype} of shape {volume.shape}")
    if len(spacing) != 3 or slice_axis not in (0, 1, 2):
        raise ValueError(f"expected three voxel sizes and a slice axis of 0, 1 or 2, got {spacing}, {slice_axis!r}")
    volume = volume.astype(np.float32, copy=False)
    if volume.min() == volume.max():
        return ["the volume is constant: nothing to super-resolve"]
    if (labels := _label_warning(volume if padding is None else np.where(padding, 0, volume))) is not None:
        return [labels]
    if trained_on is None:
        return [
            "no training range is recorded beside the weights: voxel size, intensities and modality were not checked",
        ]
    return _range_warnings(image_facts(volume, spacing, slice_axis, padding), modality, trained_on)


def _label_warning(volume: np.ndarray) -> str | None:
    """Whether it is a label map: whole numbers, mostly equal to their neighbours outside the zero background."""
    if not np.array_equal(volume, np.rint(volume)):
        return None
    left, right = volume[:-1], volume[1:]
    inside = (left != 0) & (right != 0)
    if not inside.any() or float(np.mean(left[inside] == right[inside])) < _LABEL_PAIRS:
        return None
    return (
        "whole numbers in areas of constant value: this looks like a mask or label map, not an image; "
        "super-resolution invents values between labels, so resample it with nearest neighbour instead"
    )


# -------------------------------------------------------------------------------------------------- training range


def _range_warnings(facts: ImageFacts, modality: str | None, trained_on: TrainingRange) -> list[str]:
    trained = dict(trained_on.modalities)
    name = _MODALITIES.get(modality.strip().upper(), modality.strip().upper()) if modality else None
    warnings = []
    if name is not None and name not in trained and "unknown" not in trained:
        warnings.append(f"modality {name}: the weights were trained on {' and '.join(trained)} only")
    ranges = [trained[name]] if name in trained else list(trained.values())
    return warnings + _size_warnings(facts, ranges) + _intensity_warnings(facts, ranges)


def _size_warnings(facts: ImageFacts, ranges: list[ModalityRange]) -> list[str]:
    warnings = []
    for what, values, low_high in (
        ("pixels", facts.pixel_mm, _union([r.pixel_mm for r in ranges])),
        ("a slice spacing", (facts.slice_mm,), _union([r.slice_mm for r in ranges])),
    ):
        low, high = low_high
        if min(values) < low / _SIZE_MARGIN or max(values) > high * _SIZE_MARGIN:
            size = " x ".join(f"{v:.3g}" for v in dict.fromkeys(values))
            warnings.append(f"{what} of {size} mm: the weights were trained on inputs of {low:.3g} to {high:.3g} mm")
    return warnings


def _intensity_warnings(facts: ImageFacts, ranges: list[ModalityRange]) -> list[str]:
    warnings = []
    low, high = _union([r.negative for r in ranges])
    if facts.negative > high + _FRACTION_MARGIN / 10:
        warnings.append(
            f"{facts.negative:.0%} of the voxels are negative: the weights were trained on magnitudes (shift "
            "Hounsfield units to start at 0, do not standardise)"
        )
    low, high = _union([r.background for r in ranges])
    if not low - _FRACTION_MARGIN <= facts.background <= high + _FRACTION_MARGIN:
        warnings.append(f"{facts.background:.0%} of the voxels are background: in training {low:.0%} to {high:.0%}")
    low, high = _union([r.typical for r in ranges])
    if not low - _FRACTION_MARGIN <= facts.typical <= high + _FRACTION_MARGIN:
        warnings.append(
            f"a typical voxel has {facts.typical:.0%} of the bright level (99.9th percentile): in training {low:.0%} "
            f"to {high:.0%}"
        )
    low, high = _union([r.peak for r in ranges])
    if facts.peak > high * _PEAK_MARGIN:
        warnings.append(
            f"the brightest voxel has {facts.peak:.3g} times the bright level (99.9th percentile), in training at most "
            f"{high:.3g}: look for corrupt voxels"
        )
    return warnings


def _union(intervals: list[Interval]) -> Interval:
    return min(i[0] for i in intervals), max(i[1] for i in intervals)
