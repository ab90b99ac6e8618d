"""The reader for MONAI's LoadImage; apart from the reading itself, which is used where MONAI is not loaded."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from monai.data import ImageReader
from monai.utils import MetaKeys, SpaceKeys

from bundle.data.errors import fail
from bundle.data.find import is_volume_name
from bundle.data.meaning import MODALITY_KEY, check_nifti
from bundle.data.nifti.axes import META_KEY
from bundle.data.nifti.matrix import META_KEY as MATRIX_KEY
from bundle.data.nifti.matrix import matrix_for_meta
from bundle.data.nifti.read import read_volume
from bundle.data.nifti.voxels import NonFinite
from bundle.data.paths import PathLike

_log = logging.getLogger("iconet")
_already_logged: set[tuple[str, str]] = set()


class NiftiVolumeReader(ImageReader):
    """`read_volume` as a reader for `monai.transforms.LoadImage(d)`.

    The metadata has the keys of MONAI's NibabelReader: the header fields, `affine`, `original_affine`,
    `spatial_shape`, `original_channel_dim` (NaN, "no channel", for 2-D and 3-D; -1 for 4-D, so that
    EnsureChannelFirst moves T to the channels), `stated_slice_axes` (:func:`bundle.data.nifti.axes.stated_in_meta`),
    `stated_matrix` (:func:`bundle.data.nifti.matrix.stated_matrix_in_meta`), `stated_modality`
    (:func:`bundle.data.meaning.modality_in_meta`) and `warnings` (one per line, empty if none). Each warning is logged
    once per process, to the logger "iconet".

    Args:
        nonfinite: as in `read_volume`.
        force: read files that say they are no image (:func:`bundle.data.meaning.check_nifti`), with a warning.
    """

    def __init__(self, nonfinite: NonFinite = "error", force: bool = False) -> None:
        super().__init__()
        self.nonfinite, self.force = nonfinite, force

    def verify_suffix(self, filename: Sequence[PathLike] | PathLike) -> bool:
        """Whether every name has the extension of a volume that can be read."""
        return all(is_volume_name(name) or str(name).lower().endswith(".img") for name in _as_paths(filename))

    def read(self, data: Sequence[PathLike] | PathLike, **kwargs: Any) -> tuple[Path, ...]:
        """Only keep the path; `get_data` reads the file.

        If this raised an exception, LoadImage would try its other readers, one of which would accept the bad file. An
        exception raised in `get_data` reaches the caller.
        """
        return _as_paths(data)

    def get_data(self, img: Sequence[Path]) -> tuple[np.ndarray, dict]:
        """Read the one file of `img`: the float32 array (X, Y[, Z[, T]]) and its metadata.

        Raises:
            VolumeError: as for `read_volume`, or more than one file was given, or the file says it is no image.
        """
        if len(img) != 1:
            fail(img[0] if img else "?", f"{len(img)} files were given as one image", "give one file per item")
        volume = read_volume(img[0], self.nonfinite)
        doubts = check_nifti(volume.path, volume.header, self.force)
        warnings = (*doubts, *volume.warnings)
        for warning in warnings:
            log_once(str(volume.path), warning)
        # Text fields of the header cannot be collated into a batch; NibabelReader drops them too.
        meta: dict = {k: v for k, v in dict(volume.header).items() if v.dtype.kind not in "SUO"}
        meta[MetaKeys.ORIGINAL_PIXDIM] = np.array(meta[MetaKeys.PIXDIM])
        meta[MetaKeys.AFFINE] = volume.affine.copy()
        meta[MetaKeys.ORIGINAL_AFFINE] = volume.affine.copy()
        meta["as_closest_canonical"] = False
        meta[MetaKeys.SPATIAL_SHAPE] = np.asarray(volume.array.shape[:3])
        meta[MetaKeys.SPACE] = SpaceKeys.RAS
        meta[MetaKeys.ORIGINAL_CHANNEL_DIM] = -1 if volume.array.ndim == 4 else float("nan")
        assert volume.stated is not None
        stated = volume.stated.header, volume.stated.sidecar
        meta[META_KEY] = np.array([-1 if axis is None else axis for axis in stated])
        meta[MATRIX_KEY] = matrix_for_meta(volume.stated_matrix)
        meta[MODALITY_KEY] = volume.modality or ""
        meta["warnings"] = "\n".join(warnings)
        return volume.array, meta


def log_once(name: str, warning: str) -> None:
    """Log a warning about a volume once per process."""
    if (key := (name, warning)) not in _already_logged:
        _already_logged.add(key)
        _log.warning("%s: %s", *key)


def _as_paths(names: Sequence[PathLike] | PathLike) -> tuple[Path, ...]:
    return (Path(names),) if isinstance(names, (str, os.PathLike)) else tuple(Path(name) for name in names)
