"""How a method is compared: a known volume is degraded, brought back, and measured against itself."""

from __future__ import annotations

import argparse
import csv
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from monai.data import MetaTensor
from monai.transforms import Compose, EnsureChannelFirst, LoadImage
from torch import Tensor, nn
from tqdm import tqdm

from bundle.compare.records import Row
from bundle.data import NiftiVolumeReader
from bundle.data.errors import fail
from bundle.inferers import VolumeInferer
from bundle.metrics import hfen, nmse, psnr, ssim_slices
from bundle.networks.upsample import aligned_bicubic_upsample, fourier_image_upsample
from bundle.physics import restore_magnitude
from bundle.transforms import CartesianLineMask, CropToMultiple, KSpaceTruncation, NormalizeVolume
from bundle.transforms._axes import check_slice_axis
from bundle.transforms.intensity import OFFSET, SCALE, intensity_window

ZERO_FILLED, BICUBIC = "zero-filled Fourier", "aligned bicubic"
DEGRADATIONS = ("truncation", "lines")

Method = tuple[str, float | None]
"""Name of a method, and the weight of its data consistency (``None`` for interpolation, which has no such step)."""


def consistency_weight(text: str) -> float:
    """A weight of the data consistency as the scripts' command lines take it, from 0 to 1."""
    if not 0 <= float(text) <= 1:
        raise argparse.ArgumentTypeError(f"{text}: must be from 0 to 1")
    return float(text)


@dataclass(frozen=True)
class KnownVolume:
    """A file of the test data and what the split file says of it."""

    path: Path
    name: str
    subject: str
    modality: str
    contrast: str


def known_volumes(data: Path, datalist: Sequence[Mapping[str, str]], split_file: Path | None) -> list[KnownVolume]:
    """What the split file says of the volumes of a list; without one each is its own subject, of modality "all".

    Args:
        data: the folder; volumes are named by their place below it.
        datalist: of :mod:`bundle.data`.
        split_file: CSV with the columns file and subject, and where it has them modality and contrast.
    """
    rows: dict[Path, dict[str, str]] = {}
    if split_file is not None:
        with open(split_file, newline="", encoding="utf-8-sig") as file:
            for row in csv.DictReader(file, skipinitialspace=True):
                rows |= {(base / row["file"].strip()).resolve(): row for base in (data, split_file.parent)}
    paths = [Path(item["image"]) for item in datalist]
    return [_known(path, data, rows.get(path.resolve(), {})) for path in paths]


def _known(path: Path, data: Path, row: Mapping[str, str]) -> KnownVolume:
    inside = path.resolve().is_relative_to(data.resolve())
    name = path.resolve().relative_to(data.resolve()).as_posix() if inside and data.is_dir() else path.name
    subject = (row.get("subject") or name).strip()
    return KnownVolume(path, name, subject, (row.get("modality") or "all").strip(), (row.get("contrast") or "").strip())


class Protocol:
    """Degradation, methods and metrics of one comparison.

    ``truncation`` is the degradation of the project; ``lines`` drops phase-encoding lines of what it leaves, as the
    papers on joint reconstruction do (:class:`bundle.transforms.CartesianLineMask`). The network sees the
    low-resolution volume scaled by its own percentile, as in inference: nothing of the truth reaches it.

    Args:
        scale: 2, 4 or 8.
        slice_axis: array axis that runs over slices.
        degradation: ``truncation`` or ``lines``.
        acceleration: of the line mask.
        device: where networks run.
        every: of the slices of a volume, take one in so many (the first, ...): a volume of these alone is compared.
    """

    def __init__(
        self,
        scale: int,
        slice_axis: int = 2,
        degradation: str = "truncation",
        acceleration: float = 6.0,
        device: str = "cpu",
        every: int = 1,
    ) -> None:
        if degradation not in DEGRADATIONS:
            raise ValueError(f"degradation must be one of {DEGRADATIONS}, got {degradation!r}")
        if every < 1:
            raise ValueError(f"every must be at least 1, got {every}")
        self.scale, self.slice_axis, self.device, self.every = scale, check_slice_axis(slice_axis), device, every
        self.masked = degradation == "lines"
        sparse = f", 1 of {every} slices" if every > 1 else ""
        self.description = (f"truncation and 1 of {acceleration:g} lines" if self.masked else "truncation") + sparse
        lines = [CartesianLineMask(acceleration, slice_axis=slice_axis)] if self.masked else []
        self.degrade = Compose([KSpaceTruncation(scale, slice_axis), *lines])
        self._load = Compose(
            [LoadImage(reader=NiftiVolumeReader()), EnsureChannelFirst(), CropToMultiple(scale, slice_axis)]
        )
        self._inferer = VolumeInferer(slice_axis, data_consistency=0.0)

    def load(self, path: Path) -> MetaTensor:
        """A volume (1, X, Y, Z) in the units of its file, cut so that the scale divides its slices.

        Of a volume with negative values the offset of :func:`bundle.transforms.intensity.intensity_window` is
        subtracted, as in training: magnitudes of a degraded image mean nothing otherwise.

        Raises:
            VolumeError: no voxel is above 0, so that there is nothing to compare.
        """
        volume = self._load(str(path))
        if float(volume.min()) < 0:
            volume = volume - intensity_window(volume)[0]
        if not float(volume.max()) > 0:
            fail(path, "no voxel is above 0", "leave it out of the comparison")
        kept = [slice(None, None, self.every if axis == self.slice_axis + 1 else 1) for axis in range(4)]
        return volume[tuple(kept)] if self.every > 1 else volume

    def predictions(
        self, low: Tensor, networks: Mapping[str, nn.Module], consistency: Sequence[float] = (0.0,)
    ) -> Iterator[tuple[Method, Tensor]]:
        """Each method's volume (1, X, Y, Z) for a degraded one; a network runs once, whatever weights are asked for.

        A line mask leaves measured and missing lines in one image, which data consistency as built cannot tell apart:
        only weight 0 is given then.
        """
        slices = self._to_slices(low)
        yield (ZERO_FILLED, None), self._to_volume(fourier_image_upsample(slices, self.scale))
        yield (BICUBIC, None), self._to_volume(aligned_bicubic_upsample(slices, self.scale))
        for name, network in networks.items():
            out = self.super_resolve(low, network)
            for weight in (0.0,) if self.masked else consistency:
                restored = restore_magnitude(self._to_slices(out), slices, weight) if weight else None
                yield (name, weight), out if restored is None else self._to_volume(restored)

    def super_resolve(self, low: Tensor, network: nn.Module) -> Tensor:
        """A degraded volume through a network, normalised and restored as in inference, without data consistency."""
        scaled = NormalizeVolume()(low)
        with torch.no_grad():
            out = self._inferer(scaled.as_tensor()[None].to(self.device), network)[0].cpu()
        return out * float(scaled.meta[SCALE]) + float(scaled.meta[OFFSET])

    def measure(self, pred: Tensor, truth: Tensor, low: Tensor) -> tuple[dict[str, float], Tensor, Tensor]:
        """Metrics of a volume by name, and PSNR and SSIM of each of its slices.

        ``residual`` is ``||degrade(pred) - low|| / ||low||``: how far the result is from what was measured. PSNR of a
        slice takes the range of the volume, as SSIM does.
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

    def evaluate(
        self,
        volumes: Sequence[KnownVolume],
        networks: Mapping[str, nn.Module],
        consistency: Sequence[float] = (0.0,),
    ) -> tuple[list[Row], list[Row]]:
        """Every method on every volume.

        Returns:
            One row per volume and method, and one per slice and method, in the columns of the result files.
        """
        rows: list[Row] = []
        by_slice: list[Row] = []
        for known in tqdm(volumes, desc=f"x{self.scale}", disable=None):
            truth = self.load(known.path).as_tensor()
            low = self.degrade(truth)
            for (method, weight), pred in self.predictions(low, networks, consistency):
                metrics, noise, similarity = self.measure(pred, truth, low)
                head = {"file": known.name, "method": method, "consistency": "" if weight is None else weight}
                about = {"subject": known.subject, "modality": known.modality, "contrast": known.contrast}
                rows.append({**head, **about, "degradation": self.description, **metrics})
                for number, figures in enumerate(zip(noise.tolist(), similarity.tolist(), strict=True)):
                    by_slice.append({**head, "slice": number * self.every, "psnr": figures[0], "ssim": figures[1]})
        return rows, by_slice

    def _to_slices(self, volume: Tensor) -> Tensor:
        """(1, X, Y, Z) -> (slices, 1, rows, columns)."""
        return volume.movedim(self.slice_axis + 1, 0)

    def _to_volume(self, slices: Tensor) -> Tensor:
        return slices.movedim(0, self.slice_axis + 1)
