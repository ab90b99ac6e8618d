"""Super-resolution from Python: an image in memory in, the same kind of image out."""

from __future__ import annotations

import functools
import logging
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
import torch
from nibabel.nifti1 import Nifti1Image, Nifti1Pair
from nibabel.nifti2 import Nifti2Header, Nifti2Image
from nibabel.spatialimages import SpatialImage

from bundle.data import VolumeError
from bundle.data.bids_sidecar import sidecar_metadata
from bundle.data.errors import fail
from bundle.data.meaning import Finding, by_bids, by_intent, judge, modality_by_bids, modality_in_meta
from bundle.data.nifti.axes import header_axes, stated_axes, stated_in_meta
from bundle.data.nifti.geometry import Header, read_geometry, store_geometry, usable
from bundle.data.nifti.header import drop_extensions
from bundle.data.nifti.matrix import stated_matrix, stated_matrix_in_meta
from bundle.data.nifti.write import output_header
from bundle.data.sidecar import RECORD
from bundle.data.values import survey
from bundle.inference.matrix import Wanted, plan_matrix
from bundle.inference.model import Model, load_model
from bundle.inference.record import describe
from bundle.inference.shipped import factor_for, shipped_scales
from bundle.inference.volume import doubts
from bundle.inference.volume import super_resolve as super_resolve_volume
from bundle.inference.walker import SliceWalker
from bundle.options import DEFAULT_NETWORK, pair_of
from bundle.physics.matrix import StatedMatrix
from bundle.physics.slices import SliceAxis, StatedAxes, decide_slice_axis, in_plane_axes

if TYPE_CHECKING:
    from monai.data import MetaTensor

logger = logging.getLogger("iconet")


class SuperResolvedArray(NamedTuple):
    """A super-resolved array.

    Attributes:
        voxels: float32, in the units of the input.
        affine: voxel index to world, float64 (4, 4).
        record: what it was made from, how, and with which warnings.
    """

    voxels: np.ndarray
    affine: np.ndarray
    record: dict[str, Any]


def super_resolve(
    image: SpatialImage | MetaTensor | np.ndarray,
    affine: np.ndarray | None = None,
    *,
    scale: int = 2,
    network_name: str = DEFAULT_NETWORK,
    weights: str | os.PathLike[str] | None = None,
    device: str | None = None,
    slice_axis: SliceAxis = "auto",
    matrix: str = "auto",
    voxel_size: str | float | tuple[float, float] | None = None,
    data_consistency: float | Literal["auto"] = "auto",
    quality: Literal["standard", "best"] = "standard",
    slice_batch: int = 4,
    nonfinite: Literal["error", "zero"] = "error",
    force: bool = False,
    modality: str | None = None,
) -> Any:
    """Super-resolve an image or volume in-plane.

    The network is loaded once and kept. Warnings about the input are logged to "iconet" and listed in the record::

        out = super_resolve(nib.load("scan.nii.gz"), scale=2)
        out.extra["super_resolution"]["Warnings"]

    Args:
        image: a nibabel image (X, Y), (X, Y, Z) or (X, Y, Z, T), a NumPy array of that shape, or a channel-first
            MetaTensor, (C, X, Y) or (C, X, Y, Z), each channel a volume of a series.
        affine: voxel index to world (4, 4), mm; only for arrays, which have none of their own.
        scale, network_name, weights, device, slice_axis, matrix, voxel_size, data_consistency, quality, slice_batch,
            nonfinite, force: as the options of the command (:class:`bundle.options.InferenceOptions`). A voxel size
            chooses the scale itself, unless weights are given.
        modality: "MR" or "PET", to compare the input with the training data of that modality.

    Returns:
        The same kind of image, float32 and in the units of the input, with its record: a nibabel image of the same
        class (NIfTI-2 instead of NIfTI-1 if the matrix needs it) with ``extra["super_resolution"]``, a MetaTensor with
        ``meta["super_resolution"]``, or for an array a :class:`SuperResolvedArray`.

    Raises:
        VolumeError: voxels that are not finite real numbers, a wrong number of axes, no usable affine, or an image that
            says it is none.
        ModelError: no such network, scale, weights or device.
        ValueError: a slice axis, matrix, voxel size, batch or data consistency outside its range.
    """
    given = _given(image, affine, nonfinite)
    warnings = judge(given.name, _findings(image), force)
    affine, first_frame = given.affine, given.frames[0]
    axis, uncertain = decide_slice_axis(slice_axis, first_frame.shape, affine, given.stated)
    if voxel_size is not None and weights is None:
        scale = _factor(network_name, scale, voxel_size, affine, first_frame.ndim, axis)
    model = _kept_model(network_name, scale, *_identity(weights), device)
    walker = SliceWalker(slice_batch, data_consistency, quality=quality)
    values = survey(given.frames)
    modality = modality or given.modality
    wanted = Wanted(matrix, voxel_size, modality, given.stated_matrix)
    plan = plan_matrix(given.frames[values.strongest], affine, axis, model.scale, values, wanted, given.name)
    results = [super_resolve_volume(f, affine, model.network, axis, walker, values, plan.grids) for f in given.frames]
    first, count = results[0], [] if given.single else [len(results)]
    doubtful = doubts(first_frame, affine, axis, values, plan, modality, model.trained_on)
    notes = [note for result in results for note in result.notes]
    warnings = list(dict.fromkeys([*warnings, *given.warnings, *values.warnings, *uncertain, *doubtful, *notes]))
    shape, fine_shape = ([*volume.shape, *count] for volume in (first_frame, first.voxels))
    record = {
        **describe(plan, affine, shape, fine_shape, results, values, warnings),
        "Network": network_name,
        "WeightsSha256": model.digest,
        "DataConsistency": data_consistency,
        "Quality": quality,
    }
    for warning in warnings:
        logger.warning("%s: %s", given.name, warning)
    return _like(image, given, [result.voxels for result in results], first.affine, record)


@dataclass(frozen=True, eq=False)
class _Given:
    """The input: float32 frames (X, Y) or (X, Y, Z), `single` unless they are a series, and warnings."""

    name: str
    frames: list[np.ndarray]
    single: bool
    affine: np.ndarray
    header: Header | None = None
    warnings: tuple[str, ...] = ()
    stated: StatedAxes | None = None
    stated_matrix: StatedMatrix | None = None
    modality: str | None = None


def _given(image: Any, affine: np.ndarray | None, nonfinite: str) -> _Given:
    if affine is not None and (_is_meta_tensor(image) or isinstance(image, SpatialImage)):
        raise VolumeError("the image has an affine of its own; affine= is for arrays")
    if _is_meta_tensor(image):
        name = str(image.meta.get("filename_or_obj", "MetaTensor"))
        channels = list(_checked(name, torch.as_tensor(image.detach().cpu()).numpy(), (3, 4), nonfinite))
        place = _usable(name, image.affine.cpu().numpy())
        stated = stated_in_meta(image.meta, place)
        matrix = stated_matrix_in_meta(image.meta, place, shape=channels[0].shape)
        known = modality_in_meta(image.meta)
        return _Given(name, channels, len(channels) == 1, place, stated=stated, stated_matrix=matrix, modality=known)
    if isinstance(image, SpatialImage):
        name = image.get_filename() or type(image).__name__
        voxels = _checked(name, np.asanyarray(image.dataobj), (2, 3, 4), nonfinite)
        if isinstance(image, Nifti1Pair):
            header, warnings = image.header.as_byteswapped("<"), list[str]()
            header.extensions[:] = list(image.header.extensions)
            drop_extensions(header, warnings)
            geometry = read_geometry(name, header, warnings)  # in mm, whatever the unit of the header
            store_geometry(header, geometry, int(header["xyzt_units"]) & 0x38)
            file = image.get_filename()  # nibabel forgets it when voxels or axes change
            sidecar = sidecar_metadata(Path(file)) if file else {}
            return _Given(
                *(name, _frames(voxels), voxels.ndim < 4, geometry.affine, header, tuple(warnings)),
                stated_axes(Path(file), header, sidecar) if file else header_axes(header),
                stated_matrix(Path(file), header, sidecar) if file else None,
                modality_by_bids(Path(file), sidecar) if file else None,
            )
        return _Given(name, _frames(voxels), voxels.ndim < 4, _usable(name, image.affine))
    if isinstance(image, (str, os.PathLike)):
        raise VolumeError(f"{image}: give a loaded image, such as nibabel.load({os.fspath(image)!r})")
    if affine is None:
        raise VolumeError("an array has no affine of its own; give affine=, voxel index to world (4, 4) in mm")
    voxels = _checked("array", np.asarray(image), (2, 3, 4), nonfinite)
    return _Given("array", _frames(voxels), voxels.ndim < 4, _usable("array", affine))


def _is_meta_tensor(image: Any) -> bool:
    """Whoever has a MetaTensor has imported MONAI; for others its import would take seconds."""
    return "monai.data" in sys.modules and isinstance(image, sys.modules["monai.data"].MetaTensor)


def _findings(image: Any) -> list[Finding]:
    """What header, name and sidecar of an image say its voxels are; nothing is known about an array."""
    if _is_meta_tensor(image):
        code, file, components = image.meta.get("intent_code", 0), image.meta.get("filename_or_obj"), len(image)
    elif isinstance(image, Nifti1Pair):
        code, file = image.header["intent_code"], image.get_filename()
        components = image.shape[3] if image.ndim > 3 else 1
    else:
        return []
    return [*by_intent(int(np.ravel(code)[0]), components), *(by_bids(Path(str(file))) if file else ())]


def _factor(name: str, scale: int, voxel_size: Any, affine: np.ndarray, ndim: int, slice_axis: int) -> int:
    """The next higher factor of the network for a voxel size."""
    if (size := pair_of(voxel_size)) is None:
        raise ValueError(f"voxel_size must be one or two sizes in mm, such as 0.5 or (0.5, 0.6), got {voxel_size!r}")
    spacing = [float(np.linalg.norm(affine[:3, axis])) for axis in in_plane_axes(ndim, slice_axis)]
    return factor_for(size, spacing, shipped_scales(name) or [scale])


def _frames(voxels: np.ndarray) -> list[np.ndarray]:
    return [voxels] if voxels.ndim < 4 else list(np.moveaxis(voxels, 3, 0))


def _checked(name: str, voxels: np.ndarray, axes: Sequence[int], nonfinite: str) -> np.ndarray:
    """The voxels as float32, checked."""
    if voxels.ndim not in axes or voxels.size == 0:
        fail(name, f"voxels of shape {voxels.shape}", f"give {axes[0]} to {axes[-1]} axes, none of them empty")
    if voxels.dtype.kind not in "biuf":
        fail(name, f"voxels of type {voxels.dtype}", "give real numbers")
    with np.errstate(over="ignore"):
        voxels = voxels.astype(np.float32)
    if bad := int(voxels.size - np.isfinite(voxels).sum()):
        if nonfinite == "error" or bad == voxels.size:
            wrong = f"{bad} of {voxels.size} voxels are NaN, infinite or beyond float32"
            fail(name, wrong, 'repair the image or set them to zero (nonfinite="zero")')
        voxels = np.where(np.isfinite(voxels), voxels, np.float32(0))
    return voxels


def _usable(name: str, affine: Any) -> np.ndarray:
    place = np.asarray(affine, np.float64)
    if place.shape != (4, 4) or usable(np.eye(4), place) is None:
        fail(name, "the affine is not a finite, invertible 4x4 matrix of plausible voxel size", "correct the geometry")
    return place


def _like(image: Any, given: _Given, frames: list[np.ndarray], affine: np.ndarray, record: dict[str, Any]) -> Any:
    """The fine frames as the same kind of image as the input."""
    if _is_meta_tensor(image):
        meta = {**image.meta, "affine": torch.from_numpy(affine), RECORD: record}
        return type(image)(torch.from_numpy(np.stack(frames)).to(image.device), meta=meta)
    fine = frames[0] if given.single else np.stack(frames, -1)
    if not isinstance(image, SpatialImage):
        return SuperResolvedArray(fine, affine, record)
    if given.header is None:
        header = image.header.copy()
        header.set_data_dtype(np.float32)
        out = image.__class__(fine, affine, header)
    else:  # with the form codes, units and timing of the source, as in a written file
        header = output_header(Path("image.nii"), fine.shape, affine, given.header)
        out = (Nifti2Image if isinstance(header, Nifti2Header) else Nifti1Image)(fine, header.get_best_affine(), header)
    out.extra = {**image.extra, RECORD: record}
    return out


def _identity(weights: str | os.PathLike[str] | None) -> Sequence[Any]:
    """Path of a weights file, and what changes when it is rewritten."""
    if weights is None or not Path(weights).is_file():
        return (weights, 0, 0)
    status = Path(weights).stat()
    return (os.fspath(weights), status.st_mtime_ns, status.st_size)


@functools.lru_cache(maxsize=4)
def _kept_model(name: str, scale: int, weights: str | None, changed: int, size: int, device: str | None) -> Model:
    return load_model(name, scale, weights, device)
