"""Save results: mirrored folder tree, grid rule, the source's header."""

from __future__ import annotations

import json
import os
from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import SaveImaged
from monai.utils import convert_to_numpy

from bundle.data import find_volumes, output_paths, read_header, write_volume
from bundle.data.sidecar import RECORD, content_digest, mark_result, sidecar_path, write_json


class SaveVolumed(SaveImaged):
    """Save channel-first volumes as float32 NIfTI with the qform and sform codes, units and TR of their source.

    The record that the inferer made (:class:`bundle.inference.inferers.VolumeInferer`) goes beside each result.

    A subclass of MONAI's SaveImaged so that applications that remove it from a post-processing chain (as MONAI Label
    does, to write results itself) remove this one too. MONAI's writer is not used because it loses these fields.

    Args:
        keys: results, MetaTensors whose metadata holds ``filename_or_obj`` of the source and the affine to write.
        output_dir: mirrors the folder tree below ``dataset_dir``.
        dataset_dir: folder (or single file) that was read.
        suffix: appended to the name, ``x.nii.gz`` -> ``x_<suffix>.nii.gz``.
    """

    def __init__(
        self,
        keys: KeysCollection,
        output_dir: str,
        dataset_dir: str,
        suffix: str,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, output_dir=output_dir, allow_missing_keys=allow_missing_keys)
        self.output_dir, self.dataset_dir, self.suffix = output_dir, dataset_dir, suffix
        self._targets: dict[Path, Path] | None = None

    def target(self, source: str) -> Path:
        """Where the result of ``source`` is written."""
        if self._targets is None:
            sources = find_volumes(self.dataset_dir, exclude=self.output_dir)
            targets = output_paths(sources, self.dataset_dir, self.output_dir, self.suffix)
            self._targets = dict(zip(sources, targets, strict=True))
        return self._targets[Path(source)]

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        out = dict(data)
        for key in self.key_iterator(out):
            self._save(out[key])
        return out

    def _save(self, image: MetaTensor) -> None:
        source = str(image.meta["filename_or_obj"])
        volume = convert_to_numpy(image).astype(np.float32, copy=False)
        header = read_header(source)
        volume = _file_axes(volume, len(header.get_data_shape()))
        target, affine = self.target(source), image.affine.numpy()
        record, sidecar = self._record(image, source), sidecar_path(target)
        written = False

        def before(partial: Path) -> None:
            """The record is put in place just before the result, as by the command, or else a mark of results."""
            nonlocal written
            if not record:
                written = mark_result(target, Path(source).name)
                return
            record["SuperResolution"]["Provenance"]["OutputSha256"] = content_digest([partial])
            write_json(sidecar, record)
            written = True

        try:
            write_volume(target, volume, affine, like=header, source=source, before=before)
        except BaseException:
            if written and not target.exists():
                sidecar.unlink(missing_ok=True)
            raise

    def _record(self, image: MetaTensor, source: str) -> dict[str, Any]:
        """The record that the inferer made, with the name of the source in its folder; empty if it made none."""
        text = image.meta.get(RECORD)
        record: dict[str, Any] = json.loads(text) if isinstance(text, str) and text else {}
        root = Path(self.dataset_dir)
        if record:
            record["Sources"] = [Path(os.path.relpath(source, root.parent if root.is_file() else root)).as_posix()]
        return record


def _file_axes(volume: np.ndarray, ndim: int) -> np.ndarray:
    """Channel-first array with the axes of its file: channels become the fourth axis of a series, else drop out."""
    moved = np.moveaxis(volume, 0, -1)
    return moved if ndim >= 4 else moved[..., 0]
