"""Evaluation protocol: a known volume is degraded, reconstructed, and compared with the original."""

from __future__ import annotations

import argparse
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms import Compose, EnsureChannelFirst, LoadImage
from torch import Tensor, nn
from tqdm import tqdm

from bundle.data import DatasetError, NiftiVolumeReader, VolumeError
from bundle.data.errors import error_line, fail, root_cause
from bundle.data.intensity import intensity_window
from bundle.data.splits import bids_subject, locate, read_table
from bundle.inference.volume import super_resolve
from bundle.inference.walker import SliceWalker, scale_of
from bundle.networks import NETWORKS
from bundle.networks.upsample import aligned_bicubic_upsample, fourier_image_upsample
from bundle.physics.slices import SliceAxis
from bundle.training.baseline import ZERO_FILLED
from bundle.training.metrics import WINDOW, hfen, nmse, psnr, ssim_slices
from bundle.transforms import CartesianLineMask, CropToMultiple, KSpaceTruncation, SlicesLast
from comparison.records import Row

BICUBIC = "aligned bicubic"
DEGRADATIONS = ("truncation", "lines")

Consistency = float | Literal["auto"]
Method = tuple[str, Consistency | None]
"""Name of a method and its data consistency weight (``None`` for interpolation, which has no such step)."""


def consistency_weight(text: str) -> Consistency:
    """A data consistency weight from the command line: from 0 to 1, or auto, as inference chooses it."""
    if text == "auto":
        return "auto"
    if not 0 <= float(text) <= 1:
        raise argparse.ArgumentTypeError(f"{text}: must be from 0 to 1")
    return float(text)


def image_skip_option(name: str, image_skip: str | None) -> dict[str, str]:
    """The image skip as an argument of the named network.

    ICONet has its own and takes none. Empty for ``None``, which keeps the one of a baseline's paper.
    """
    return {"image_skip": image_skip} if image_skip and NETWORKS[name].is_baseline else {}


class RunsOnce(nn.Module):
    """Runs a network once per slice of a volume and keeps the results for further passes over the same volume.

    The passes differ only in what follows the network, such as the data consistency weight.
    """

    slices_side_by_side = True

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network, self.scale = network, scale_of(network)
        self._known: dict[bytes, Tensor] = {}

    def forward(self, batch: Tensor) -> Tensor:
        key = batch.cpu().numpy().tobytes()
        if key not in self._known:
            self._known[key] = self.network(batch)
        return self._known[key]


@dataclass(frozen=True)
class KnownVolume:
    """A test volume and what the split file says about it."""

    path: Path
    name: str
    subject: str
    modality: str
    contrast: str


def known_volumes(data: Path, datalist: Sequence[Mapping[str, str]], split_file: Path | None) -> list[KnownVolume]:
    """What the split file says about the volumes of a list; without one, the modality is "all".

    Without a split file, the subject is the BIDS label "sub-..." in the path, or else each volume is its own subject.

    Args:
        data: the folder; volumes are named by their path below it, or else below the folder of the split file.
        datalist: from :mod:`bundle.data`, for the same folder and split file.
        split_file: CSV with the columns file and subject, and optionally modality and contrast.

    Raises:
        DatasetError: the split file cannot be read, or two volumes have the same name.
    """
    paths = [Path(item["image"]) for item in datalist]
    rows: dict[Path | None, dict[str, str]] = {path: {} for path in paths}
    if split_file is not None:
        rows = {locate(row["file"], split_file, data): row for _, row in read_table(split_file)}
    volumes = [_known(path, _name(path, data, split_file), rows[path]) for path in paths]
    for name, times in Counter(volume.name for volume in volumes).items():
        if times > 1:
            both = " and ".join(str(volume.path) for volume in volumes if volume.name == name)
            wrong = f"{both} would both be {name} in the results"
            raise DatasetError(error_line(split_file or data, wrong, "leave one of them out"))
    return volumes


def _name(path: Path, data: Path, split_file: Path | None) -> str:
    """Path below the data folder or the split file's folder, links not followed; otherwise the whole path."""
    full = Path(os.path.abspath(path))
    folders = [data.parent if data.is_file() else data, *([split_file.parent] if split_file is not None else [])]
    for folder in map(os.path.abspath, folders):
        if full.is_relative_to(folder):
            return full.relative_to(folder).as_posix()
    return full.as_posix()


def _known(path: Path, name: str, row: Mapping[str, str]) -> KnownVolume:
    subject = row.get("subject") or bids_subject(name) or name
    return KnownVolume(path, name, subject, row.get("modality") or "all", row.get("contrast", ""))


class Protocol:
    """Degradation, methods and metrics of one comparison.

    ``truncation`` is the project's degradation; ``lines`` also drops phase-encoding lines, as papers on joint
    reconstruction do (:class:`bundle.transforms.CartesianLineMask`). The network sees the low-resolution volume scaled
    by its own percentile, as in inference: nothing about the truth reaches it.

    Args:
        scale: 2, 4 or 8.
        slice_axis: array axis (0, 1, 2) that runs over slices, or "auto"; volumes are loaded with it as the last axis.
        degradation: ``truncation`` or ``lines``.
        acceleration: of the line mask.
        device: where networks run.
        every: use only every n-th slice of a volume, starting with the first.
    """

    def __init__(
        self,
        scale: int,
        slice_axis: SliceAxis = "auto",
        degradation: str = "truncation",
        acceleration: float = 6.0,
        device: str = "cpu",
        every: int = 1,
    ) -> None:
        if degradation not in DEGRADATIONS:
            raise ValueError(f"degradation must be one of {DEGRADATIONS}, got {degradation!r}")
        if every < 1:
            raise ValueError(f"every must be at least 1, got {every}")
        self.scale, self.device, self.every = scale, device, every
        self.masked = degradation == "lines"
        across = f", slices along axis {slice_axis}" if slice_axis not in ("auto", 2) else ""
        sparse = f", 1 of {every} slices" if every > 1 else ""
        kind = f"truncation and 1 of {acceleration:g} lines" if self.masked else "truncation"
        self.description = kind + across + sparse
        lines = [CartesianLineMask(acceleration)] if self.masked else []
        self.degrade = Compose([KSpaceTruncation(scale), *lines])
        self._load = Compose(
            [
                LoadImage(reader=NiftiVolumeReader()),
                EnsureChannelFirst(),
                SlicesLast(slice_axis),
                CropToMultiple(scale),
            ]
        )

    def load(self, path: Path) -> MetaTensor:
        """A volume (1, X, Y, Z) in the units of its file, cropped so that the scale divides its slices.

        For a volume with negative values, the offset of :func:`bundle.data.intensity.intensity_window` is
        subtracted, as in training; otherwise the magnitude of the degraded image would be meaningless.

        Raises:
            VolumeError: it cannot be read, is smaller than the scale, or has no voxel above 0.
        """
        try:
            volume = self._load(str(path))
        except RuntimeError as error:  # MONAI wraps exceptions of transforms
            if isinstance(error.__cause__, VolumeError):
                raise VolumeError(root_cause(error)) from error
            if isinstance(error.__cause__, ValueError):
                fail(path, root_cause(error), "leave it out of the comparison", error)
            raise
        if float(volume.min()) < 0:
            volume = volume - intensity_window(volume)[0]
        if not float(volume.max()) > 0:
            fail(path, "no voxel is above 0", "leave it out of the comparison")
        return volume[..., :: self.every] if self.every > 1 else volume

    def predictions(
        self, low: Tensor, networks: Mapping[str, nn.Module], consistency: Sequence[Consistency] = (0.0,)
    ) -> Iterator[tuple[Method, Tensor]]:
        """Each method's volume (1, X, Y, Z) for a degraded one; a network runs once for all data consistency weights.

        With a line mask, data consistency cannot tell measured from missing lines, so only weight 0 is used.
        """
        slices = self._to_slices(low)
        yield (ZERO_FILLED, None), self._to_volume(fourier_image_upsample(slices, self.scale))
        yield (BICUBIC, None), self._to_volume(aligned_bicubic_upsample(slices, self.scale))
        for name, network in networks.items():
            once = RunsOnce(network)
            weights: Sequence[Consistency] = (0.0,) if self.masked else consistency
            for weight in weights:
                yield (name, weight), self.super_resolve(low, once, weight)

    def super_resolve(self, low: Tensor, network: RunsOnce, consistency: Consistency) -> Tensor:
        """A degraded volume (1, X, Y, Z) through a network, exactly as in inference."""
        walker = SliceWalker(data_consistency=consistency)
        return torch.from_numpy(super_resolve(low[0], np.eye(4), network, 2, walker).voxels)[None]

    def measure(self, pred: Tensor, truth: Tensor, low: Tensor) -> tuple[dict[str, float], Tensor, Tensor]:
        """Metrics of a volume by name, and PSNR and SSIM of each of its slices.

        ``residual`` is ``||degrade(pred) - low|| / ||low||``, the distance of the result from the measurement. PSNR of
        a slice uses the data range of the volume, as SSIM does.
        """
        image, true = (self._to_slices(t)[:, 0].double() for t in (pred, truth))
        similarity = ssim_slices(image, true, data_range=float(true.max()))
        noise = 10.0 * torch.log10(true.max() ** 2 / (image - true).square().mean(dim=(1, 2)))
        missed = (self.degrade(pred) - low).double().norm() / low.double().norm()
        metrics = {
            "psnr": psnr(image, true),
            "ssim": similarity.mean(),
            "nmse": nmse(image, true),
            "hfen": hfen(image, true, slice_axis=0),
            "residual": missed,
        }
        return {name: float(value) for name, value in metrics.items()}, noise, similarity

    def about(self, known: KnownVolume) -> Row:
        """What result rows must share to be comparable: the volume, its subject and contrast, the degradation."""
        of_subject = {"subject": known.subject, "modality": known.modality, "contrast": known.contrast}
        return {"file": known.name, **of_subject, "degradation": self.description}

    def evaluate(
        self,
        volumes: Sequence[KnownVolume],
        networks: Mapping[str, nn.Module],
        consistency: Sequence[Consistency] = (0.0,),
    ) -> tuple[list[Row], list[Row]]:
        """Every method on every volume.

        Raises:
            VolumeError: :meth:`load` refuses a volume, or its slices are smaller than the SSIM window.

        Returns:
            One row per volume and method, and one per slice and method, with the columns of the result files.
        """
        rows: list[Row] = []
        by_slice: list[Row] = []
        for known in tqdm(volumes, desc=f"x{self.scale}", disable=None):
            truth = self.load(known.path).as_tensor()
            height, width = self._to_slices(truth).shape[2:]
            if min(height, width) < WINDOW:
                wrong = f"slices of {height}x{width} voxels, SSIM needs {WINDOW}x{WINDOW}"
                fail(known.path, wrong, "leave it out of the comparison, or give its slice axis")
            low = self.degrade(truth)
            for (method, weight), pred in self.predictions(low, networks, consistency):
                metrics, noise, similarity = self.measure(pred, truth, low)
                head = {"file": known.name, "method": method, "consistency": "" if weight is None else weight}
                rows.append({**head, **self.about(known), **metrics})
                for number, figures in enumerate(zip(noise.tolist(), similarity.tolist(), strict=True)):
                    by_slice.append({**head, "slice": number * self.every, "psnr": figures[0], "ssim": figures[1]})
        return rows, by_slice

    def _to_slices(self, volume: Tensor) -> Tensor:
        """(1, X, Y, Z) -> (slices, 1, rows, columns)."""
        return volume.movedim(3, 0)

    def _to_volume(self, slices: Tensor) -> Tensor:
        return slices.movedim(0, 3)
