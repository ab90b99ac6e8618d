"""Carry a label map to the grid of its image's result: stored numbers, type, scaling and intent stay."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from contextlib import suppress
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from bundle.cli.labels import Grid, LabelJob
from bundle.cli.table import Row
from bundle.data.atomic import replacing
from bundle.data.bids_sidecar import volume_stem
from bundle.data.errors import disk_errors, fail
from bundle.data.nifti.geometry import corner_distance
from bundle.data.nifti.header import clean_header
from bundle.data.nifti.storage import Storage
from bundle.data.nifti.stream import MAX_BYTES
from bundle.data.nifti.voxels import NonFinite, VoxelReader
from bundle.data.nifti.write import writing_volume
from bundle.data.paths import open_regular
from bundle.data.sidecar import content_digest, generated_by, write_json
from bundle.inference.shipped import tool_version

RULE = "nearest neighbour; halfway between two voxels, the one with the lower index"
_LARGEST_FACTOR = 64
_VOLUME_KEPT = 0.01
"""Change of the volume of a label, as a fraction, above which it is said."""


def provenance(job: LabelJob, image_result: Path) -> dict[str, Any]:
    """What the record of a label map must say: if its image's result has another grid, it is out of date.

    Raises:
        VolumeError: a file cannot be read.
    """
    grid = Grid.of(image_result)
    settings = {"Labels": RULE, "Matrix": list(grid.shape), "Affine": grid.affine.tolist()}
    return {
        "InputSha256": content_digest(job.files),
        "WeightsSha256": None,
        "Settings": settings,
        "Version": tool_version(),
    }


def carry(job: LabelJob, image_result: Path, made_from: dict[str, Any], source: str, nonfinite: NonFinite) -> Row:
    """Write a label map on the grid of its image's result, with its record; returns its row of the table.

    Args:
        image_result: the NIfTI file whose grid it gets.
        made_from: of :func:`provenance`.
        source: how the record names the label map.

    Raises:
        VolumeError: it cannot be read or written, holds numbers that are not whole, or the grids do not begin alike.
    """
    from bundle.physics.labels import carry_labels, volume_change  # with them comes PyTorch

    reader = VoxelReader(job.source, nonfinite, MAX_BYTES)
    layout, old, new = reader.layout, Grid.of(job.source), Grid.of(image_result)
    step = steps(job.source, old, new)
    axes = len(layout.frame_shape)
    shape = (*new.shape[:axes], *layout.shape[3:])
    storage, warnings = Storage(layout.dtype, layout.slope, layout.intercept), list(layout.warnings)
    content: dict[str, Any] = {}
    changed = 0.0

    def frames() -> Iterator[np.ndarray]:
        nonlocal changed
        for stored in reader.stored():
            labels = _whole(job.source, stored, nonfinite, warnings)
            changed = max(changed, volume_change(labels, step[:axes], shape[:axes]))
            yield carry_labels(labels, step[:axes], shape[:axes])

    def record(partial: Path) -> None:
        if changed > _VOLUME_KEPT:
            warnings.append(f"on this grid, the volume of a label changes by {100 * changed:.0f} % (nearest neighbour)")
        content.update(
            {
                "Description": f"Label map on the grid of {image_result.name}, by {RULE}",
                "Sources": [source],
                "Resolution": f"{' x '.join(f'{n:.4g}' for n in np.linalg.norm(new.affine[:3, :3], axis=0))} mm",
                "GeneratedBy": generated_by(tool_version()),
                "SuperResolution": {
                    "SourceShape": list(layout.shape),
                    "Shape": list(shape),
                    "Warnings": warnings,
                    "Provenance": {**made_from, "OutputSha256": content_digest([partial])},
                },
            }
        )
        with disk_errors(job.sidecar):
            write_json(job.sidecar, content)

    try:
        with writing_volume(
            *(job.target, shape, new.affine, clean_header(layout)),
            source=job.source,
            storage=storage,
            before=record,
            as_stored=True,
        ) as write:
            for frame in frames():
                write(frame)
        _copy_table(job)
    except BaseException:
        if content and not job.target.exists():
            with suppress(OSError):
                job.sidecar.unlink()
        raise
    return Row.of(job, "done", 0.0, content)


def steps(path: Path, old: Grid, new: Grid) -> tuple[float, ...]:
    """Distance of the voxels of a result in voxels of its source, for each axis.

    Affines are stored in float32: a whole factor, or the ratio of the matrices, is taken where the affine says so too.

    Raises:
        VolumeError: the result has another first voxel or other axes.
    """
    sizes = [np.linalg.norm(grid.affine[:3, :3], axis=0) for grid in (old, new)]
    found = []
    for ratio, before, after in zip(sizes[1] / sizes[0], old.shape, new.shape, strict=True):
        near = Fraction(float(ratio)).limit_denominator(_LARGEST_FACTOR), Fraction(before, after)
        found.append(float(next((value for value in near if value and abs(value / ratio - 1) < 1e-5), ratio)))
    expected = old.affine @ np.diag([*found, 1.0])
    if corner_distance(expected, new.affine, np.array(new.shape)) > 0.1 * sizes[1].min():
        fail(path, "the result of its image has another first voxel or other axes", "look at the affines of both")
    return tuple(found)


def _whole(path: Path, stored: np.ndarray, nonfinite: NonFinite, warnings: list[str]) -> np.ndarray:
    """The numbers of a label map; floating point ones must be whole."""
    if stored.dtype.kind != "f":
        return stored
    finite = np.isfinite(stored)
    if bad := int(stored.size - finite.sum()):
        if nonfinite == "error":
            fail(path, f"{bad} voxels of a label map are not finite", "set them to zero (--nonfinite zero)")
        warnings.append(f"{bad} voxels that are not finite set to zero")
        stored = np.where(finite, stored, 0).astype(stored.dtype)
    if mixed := int((stored != np.rint(stored)).sum()):
        wrong = f"{mixed} voxels of a label map are not whole numbers"
        fail(path, wrong, "give it as an image, or take it out of --labels")
    return stored


def _copy_table(job: LabelJob) -> None:
    """BIDS explains the numbers of `x_dseg.nii.gz` in `x_dseg.tsv`."""
    table = job.source.with_name(f"{volume_stem(job.source)}.tsv")
    if table.is_file():
        name = re.sub(r"\.nii(\.gz)?$", "", job.target.name, flags=re.IGNORECASE)
        with (
            disk_errors(job.target),
            open_regular(table) as stream,
            replacing(job.target.with_name(f"{name}.tsv")) as copy,
        ):
            shutil.copyfileobj(stream, copy)
