"""Checks on real volumes: ICONET_DATA names a folder with manifest.csv (columns file, subject, split, modality)."""

from __future__ import annotations

import csv
import os
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from bundle.data import read_volume, training_datalist
from bundle.inference.inferers import VolumeInferer
from bundle.inference.shipped import weights_path
from bundle.inference.weights import load_weights
from bundle.networks import build_network
from bundle.networks.upsample import fourier_image_upsample
from bundle.physics import consistency_residual
from bundle.training.metrics import psnr
from bundle.transforms import KSpaceTruncation, NormalizeVolume

DATA = os.environ.get("ICONET_DATA")
pytestmark = pytest.mark.skipif(not DATA, reason="ICONET_DATA is not set: no real volumes were checked")


def rows(**wanted: str) -> list[dict[str, str]]:
    with open(Path(DATA or "") / "manifest.csv", newline="") as file:
        return [row for row in csv.DictReader(file) if all(row[key] == value for key, value in wanted.items())]


def middle_slices(row: dict[str, str], count: int = 2) -> torch.Tensor:
    """(1, X, Y, count), normalised."""
    volume = torch.from_numpy(read_volume(Path(DATA or "") / row["file"]).array)
    middle = volume.shape[2] // 2
    return NormalizeVolume()(volume[None, :, :, max(0, middle - count // 2) :][..., :count])


def test_every_volume_is_read_as_nibabel_reads_it():
    for row in rows():
        path = Path(DATA or "") / row["file"]
        volume, image = read_volume(path), nib.load(path)
        assert np.allclose(volume.array, image.get_fdata(dtype=np.float32), rtol=1e-6)
        assert np.allclose(volume.affine, image.affine, atol=1e-5)


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_the_manifest_gives_its_splits(split):
    assert len(training_datalist(DATA, split, Path(DATA or "") / "manifest.csv")) == len(rows(split=split))


@pytest.mark.parametrize("scale", [2, 4])
def test_the_shipped_weights_beat_fourier_interpolation_on_every_unseen_mr_volume(scale, bundle_root):
    network = build_network(scale=scale).eval()
    load_weights(network, weights_path(bundle_root / "models", scale=scale))
    gains = {}
    for row in rows(split="test", modality="MR"):
        truth = middle_slices(row)
        low = KSpaceTruncation(scale)(truth)
        pred = VolumeInferer()(low[None], network)[0]
        fourier = fourier_image_upsample(low.movedim(3, 0), scale).movedim(0, 3)
        gains[row["file"]] = float(psnr(pred, truth) - psnr(fourier, truth))
        planes, measured = pred.movedim(3, 0), low.movedim(3, 0)
        assert consistency_residual(planes, measured) < 0.02, "the input is not kept"
    assert min(gains.values()) > 0, gains
    assert sum(gains.values()) / len(gains) > 0.3, gains
