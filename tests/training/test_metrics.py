"""The image metrics against scikit-image, and their behaviour as MONAI metrics."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from scipy.ndimage import gaussian_laplace
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from torch import Tensor

from bundle.training.metrics import (
    VolumeNMSE,
    VolumePSNR,
    VolumeSSIM,
    hfen,
    laplacian_of_gaussian,
    nmse,
    psnr,
    ssim,
    ssim_slices,
)

CLASSES = [VolumePSNR, VolumeSSIM, VolumeNMSE]


def pair(*shape: int, seed: int = 0, level: float = 800.0) -> tuple[Tensor, Tensor]:
    """A prediction and its truth: noise on a structured volume, not in [0, 1]."""
    generator = torch.Generator().manual_seed(seed)
    truth = torch.rand(shape, generator=generator) * level
    return truth + 0.05 * level * torch.randn(shape, generator=generator), truth


@pytest.fixture(params=[(9, 12, 8), (16, 7, 9)], ids=str)
def volumes(request: pytest.FixtureRequest) -> tuple[Tensor, Tensor]:
    return pair(*request.param)


def test_psnr_is_that_of_scikit_image(volumes: tuple[Tensor, Tensor]) -> None:
    pred, truth = (v.double().numpy() for v in volumes)
    expected = peak_signal_noise_ratio(truth, pred, data_range=truth.max())
    assert float(psnr(*volumes)) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("slice_axis", [0, 1, 2])
def test_ssim_is_the_mean_over_slices_of_that_of_scikit_image(volumes: tuple[Tensor, Tensor], slice_axis: int) -> None:
    pred, truth = (np.moveaxis(v.double().numpy(), slice_axis, 0) for v in volumes)
    expected = [structural_similarity(t, p, data_range=truth.max()) for p, t in zip(pred, truth, strict=True)]
    assert float(ssim(*volumes, slice_axis)) == pytest.approx(np.mean(expected), abs=1e-6)
    slices = ssim_slices(*(v.movedim(slice_axis, 0) for v in volumes), data_range=float(volumes[1].max()))
    assert slices.numpy() == pytest.approx(np.array(expected), abs=1e-6)


def test_ssim_of_an_image_is_that_of_scikit_image() -> None:
    pred, truth = pair(11, 14)
    expected = structural_similarity(truth.double().numpy(), pred.double().numpy(), data_range=float(truth.max()))
    assert float(ssim(pred, truth)) == pytest.approx(expected, abs=1e-6)


def test_nmse_is_the_squared_error_over_the_energy(volumes: tuple[Tensor, Tensor]) -> None:
    pred, truth = (v.double().numpy() for v in volumes)
    expected = np.linalg.norm(truth - pred) ** 2 / np.linalg.norm(truth) ** 2
    assert float(nmse(*volumes)) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("slice_axis", [0, 1, 2])
def test_hfen_is_the_relative_error_of_the_laplacian_of_gaussian_of_scipy(
    volumes: tuple[Tensor, Tensor], slice_axis: int
) -> None:
    pred, truth = (np.moveaxis(v.double().numpy(), slice_axis, 0) for v in volumes)

    def edges(volume: np.ndarray) -> np.ndarray:
        return np.stack([gaussian_laplace(s, 1.5, mode="nearest", truncate=14 / 3) for s in volume])

    assert laplacian_of_gaussian(torch.from_numpy(truth.copy())).numpy() == pytest.approx(edges(truth), abs=1e-9)
    expected = np.linalg.norm(edges(pred) - edges(truth)) / np.linalg.norm(edges(truth))
    assert float(hfen(*volumes, slice_axis)) == pytest.approx(expected, rel=1e-9)


def test_the_kernel_of_hfen_is_fifteen_voxels_wide() -> None:
    impulse = torch.zeros(1, 31, 31)
    impulse[0, 15, 15] = 1.0
    rows, columns = laplacian_of_gaussian(impulse)[0].nonzero().T
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (8, 22, 8, 22)


def test_hfen_sees_lost_edges_and_no_offset() -> None:
    _, truth = pair(16, 18, 3)
    assert float(hfen(torch.full_like(truth, float(truth.mean())), truth)) == pytest.approx(1.0, abs=1e-3)
    assert float(hfen(truth + 100.0, truth)) == pytest.approx(0.0, abs=1e-3)
    assert float(hfen(0.9 * truth, truth)) == pytest.approx(0.1)


def test_a_perfect_prediction_has_the_best_value() -> None:
    _, truth = pair(8, 8, 3)
    assert float(psnr(truth, truth)) == math.inf
    assert float(ssim(truth, truth)) == pytest.approx(1.0)
    assert float(nmse(truth, truth)) == float(hfen(truth, truth)) == 0.0


def test_the_range_is_the_maximum_of_the_truth_over_the_volume() -> None:
    pred, truth = pair(8, 9, 4)
    truth[..., 0] *= 10
    peak, error = float(truth.double().max()), float((pred.double() - truth.double()).square().mean().sqrt())
    assert float(psnr(pred, truth)) == pytest.approx(20 * math.log10(peak / error))
    expected = [
        structural_similarity(t, p, data_range=peak)
        for p, t in zip(*(v.double().movedim(2, 0).numpy() for v in (pred, truth)), strict=True)
    ]
    assert float(ssim(pred, truth)) == pytest.approx(np.mean(expected), abs=1e-6)


@pytest.mark.parametrize("gain", [1e-4, 1e4])
def test_the_unit_of_the_images_does_not_matter(gain: float) -> None:
    pred, truth = (v.double() for v in pair(8, 9, 3))
    for metric in (psnr, ssim, nmse, hfen):
        assert float(metric(gain * pred, gain * truth)) == pytest.approx(float(metric(pred, truth)))


def test_integer_and_half_volumes_are_measured_in_double() -> None:
    pred, truth = (v.clamp(0, 255).to(torch.uint8) for v in pair(8, 9, 3, level=200))
    for metric in (psnr, ssim, nmse, hfen):
        out = metric(pred, truth)
        assert out.dtype == torch.float64 and float(out) == float(metric(pred.double(), truth.double()))
        assert metric(pred.half(), truth.half()).dtype == torch.float64


@pytest.mark.parametrize("metric", [psnr, ssim, nmse, hfen])
def test_volumes_of_different_shapes_are_an_error(metric) -> None:
    with pytest.raises(ValueError, match="differ in shape"):
        metric(torch.zeros(8, 8, 3), torch.zeros(8, 8, 1))


def test_slices_below_the_window_are_an_error() -> None:
    with pytest.raises(ValueError, match="at least 7x7"):
        ssim(*pair(6, 9, 3))


# --------------------------------------------------------------------------------------------- as metrics of MONAI


@pytest.mark.parametrize(("kind", "function"), [(VolumePSNR, psnr), (VolumeSSIM, ssim), (VolumeNMSE, nmse)])
def test_a_metric_gathers_one_figure_per_volume_and_channel(kind, function) -> None:
    metric, volumes = kind(), [pair(8, 9, 3, seed=s) for s in range(4)]
    (p0, t0), (p1, t1), (p2, t2), (p3, t3) = volumes
    expected = [[function(p0, t0), function(p1, t1)], [function(p2, t2), function(p3, t3)]]
    rows = metric(torch.stack([torch.stack([p0, p1])]), torch.stack([torch.stack([t0, t1])]))
    assert rows.shape == (1, 2) and torch.allclose(rows, torch.tensor(expected[:1]))
    metric([torch.stack([p2, p3])], [torch.stack([t2, t3])])
    assert torch.allclose(metric.get_buffer(), torch.tensor(expected))
    assert float(metric.aggregate()) == pytest.approx(float(torch.tensor(expected).mean()))


@pytest.mark.parametrize("kind", CLASSES)
def test_volumes_of_different_matrices_are_given_as_a_list(kind) -> None:
    metric = kind()
    volumes = [pair(1, 8, 9, 3), pair(1, 10, 7, 5, seed=1)]
    metric([p for p, _ in volumes], [t for _, t in volumes])
    assert metric.get_buffer().shape == (2, 1)


@pytest.mark.parametrize("kind", CLASSES)
def test_a_reset_forgets_the_volumes_before(kind) -> None:
    metric = kind()
    first, second = (tuple(v[None, None] for v in pair(8, 9, 3, seed=s)) for s in (0, 1))
    metric(*first)
    before = float(metric.aggregate())
    metric.reset()
    metric(*second)
    after = float(metric.aggregate())
    metric(*first)
    assert after != before and float(metric.aggregate()) == pytest.approx((before + after) / 2)


@pytest.mark.parametrize("kind", CLASSES)
def test_a_metric_without_volumes_or_truth_is_an_error(kind) -> None:
    with pytest.raises(ValueError, match="not seen any volume"):
        kind().aggregate()
    with pytest.raises(ValueError, match="needs the truth"):
        kind()(torch.zeros(1, 1, 8, 8))


@pytest.mark.parametrize("kind", CLASSES)
def test_metadata_and_images_of_two_axes_are_accepted(kind) -> None:
    pred, truth = pair(2, 1, 8, 9)
    plain = kind()(pred, truth)
    assert torch.allclose(torch.as_tensor(kind()(MetaTensor(pred), MetaTensor(truth))), plain)
    assert plain.shape == (2, 1)


def test_the_slice_axis_reaches_the_figure() -> None:
    pred, truth = pair(1, 1, 8, 9, 10)
    for axis in (0, 1, 2):
        assert float(VolumeSSIM(axis)(pred, truth)) == float(ssim(pred[0, 0], truth[0, 0], axis))
    with pytest.raises(ValueError, match="slice_axis must be 0, 1 or 2"):
        VolumeSSIM(3)
