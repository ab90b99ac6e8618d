"""The project's image metrics: one implementation for all tables.

All work on whole volumes and use the maximum of the ground-truth volume as data range, as fastMRI and related papers
do. (MONAI's PSNRMetric takes a fixed range and its SSIMMetric another window; the numbers differ.)
"""

from __future__ import annotations

import torch
from monai.metrics import CumulativeIterationMetric
from torch import Tensor
from torch.nn.functional import avg_pool2d, conv2d, pad

from bundle.physics.slices import check_slice_axis

WINDOW, K1, K2 = 7, 0.01, 0.03
LOG_SIGMA, LOG_RADIUS = 1.5, 7


def _volumes(pred: Tensor, truth: Tensor) -> tuple[Tensor, Tensor]:
    if pred.shape != truth.shape:
        raise ValueError(f"prediction {tuple(pred.shape)} and truth {tuple(truth.shape)} differ in shape")
    return pred.double(), truth.double()


def psnr(pred: Tensor, truth: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of one volume, in dB: ``20 log10(max(truth) / rmse)``."""
    pred, truth = _volumes(pred, truth)
    return 10.0 * torch.log10(truth.max() ** 2 / (pred - truth).square().mean())


def nmse(pred: Tensor, truth: Tensor) -> Tensor:
    """Squared error of one volume divided by the energy of the truth."""
    pred, truth = _volumes(pred, truth)
    return (pred - truth).square().sum() / truth.square().sum()


def ssim_slices(pred: Tensor, truth: Tensor, data_range: float) -> Tensor:
    """Structural similarity of each slice: 7x7 uniform window, sample covariance, valid windows (as scikit-image).

    Args:
        pred, truth: ``(S, H, W)`` with ``H, W >= 7``.
        data_range: of the whole volume.

    Returns:
        ``(S,)``, float64.
    """
    if min(pred.shape[-2:]) < WINDOW:
        raise ValueError(f"SSIM needs slices of at least {WINDOW}x{WINDOW} voxels, got {tuple(pred.shape[-2:])}")
    x, y = (t[:, None] for t in _volumes(pred, truth))

    def mean(image: Tensor) -> Tensor:
        return avg_pool2d(image, WINDOW, stride=1)

    mx, my = mean(x), mean(y)
    sample = WINDOW**2 / (WINDOW**2 - 1)
    vx, vy = sample * (mean(x * x) - mx * mx), sample * (mean(y * y) - my * my)
    vxy = sample * (mean(x * y) - mx * my)
    c1, c2 = (K1 * data_range) ** 2, (K2 * data_range) ** 2
    similarity = (2 * mx * my + c1) * (2 * vxy + c2) / ((mx**2 + my**2 + c1) * (vx + vy + c2))
    return similarity.mean(dim=(1, 2, 3))


def ssim(pred: Tensor, truth: Tensor, slice_axis: int = 2) -> Tensor:
    """Mean over slices of :func:`ssim_slices` for one volume (X, Y, Z) or image (X, Y)."""
    pred, truth = _volumes(pred, truth)
    x, y = (t[None] if t.ndim == 2 else t.movedim(slice_axis, 0) for t in (pred, truth))
    return ssim_slices(x, y, data_range=float(truth.max())).mean()


def laplacian_of_gaussian(slices: Tensor) -> Tensor:
    """Laplacian of Gaussian of each slice ``(S, H, W)``: sigma 1.5 voxels, 15x15 kernel, borders replicated, float64.

    The sampled second derivative of a normalised Gaussian along one axis times the Gaussian along the other, summed
    over both: ``scipy.ndimage.gaussian_laplace(slice, 1.5, mode="nearest", truncate=14 / 3)``.
    """
    x = torch.arange(-LOG_RADIUS, LOG_RADIUS + 1, dtype=torch.float64, device=slices.device)
    smooth = torch.exp(-0.5 * (x / LOG_SIGMA) ** 2)
    smooth = smooth / smooth.sum()
    second = smooth * (x**2 / LOG_SIGMA**2 - 1.0) / LOG_SIGMA**2
    image = pad(slices[:, None].double(), [LOG_RADIUS] * 4, mode="replicate")
    rows, columns = (conv2d(image, k[None, None, :, None]) for k in (second, smooth))
    return (conv2d(rows, smooth[None, None, None]) + conv2d(columns, second[None, None, None]))[:, 0]


def hfen(pred: Tensor, truth: Tensor, slice_axis: int = 2) -> Tensor:
    """High-frequency error norm of one volume (X, Y, Z) or image (X, Y): ``||LoG(pred - truth)|| / ||LoG(truth)||``.

    The relative form of Ravishankar and Bresler (IEEE TMI 2011): :func:`laplacian_of_gaussian` per slice, norms over
    the whole volume. Smaller is better; an image without any edges has about 1.
    """
    pred, truth = _volumes(pred, truth)
    x, y = (t[None] if t.ndim == 2 else t.movedim(slice_axis, 0) for t in (pred, truth))
    return laplacian_of_gaussian(x - y).norm() / laplacian_of_gaussian(y).norm()


class _VolumeMetric(CumulativeIterationMetric):
    """One value per volume and channel of a batch ``(B, C, X, Y[, Z])``; ``aggregate`` returns their mean."""

    def _volume(self, pred: Tensor, truth: Tensor) -> Tensor:
        raise NotImplementedError

    def _compute_tensor(self, y_pred: Tensor, y: Tensor | None = None) -> Tensor:  # type: ignore[override]
        if y is None:
            raise ValueError("a full-reference metric needs the truth")
        pairs = zip(y_pred, y, strict=True)
        rows = [torch.stack([self._volume(p, t) for p, t in zip(*pair, strict=True)]) for pair in pairs]
        return torch.stack(rows).double()

    def aggregate(self) -> Tensor:  # type: ignore[override]
        data = self.get_buffer()
        if not isinstance(data, Tensor):
            raise ValueError("the metric has not seen any volume yet")
        return data.mean()


class VolumePSNR(_VolumeMetric):
    """:func:`psnr` of each volume."""

    def _volume(self, pred: Tensor, truth: Tensor) -> Tensor:
        return psnr(pred, truth)


class VolumeNMSE(_VolumeMetric):
    """:func:`nmse` of each volume."""

    def _volume(self, pred: Tensor, truth: Tensor) -> Tensor:
        return nmse(pred, truth)


class VolumeSSIM(_VolumeMetric):
    """:func:`ssim` of each volume.

    Args:
        slice_axis: axis of the volume (0, 1, 2) that runs over slices.
    """

    def __init__(self, slice_axis: int = 2) -> None:
        super().__init__()
        self.slice_axis = check_slice_axis(slice_axis)

    def _volume(self, pred: Tensor, truth: Tensor) -> Tensor:
        return ssim(pred, truth, self.slice_axis)
