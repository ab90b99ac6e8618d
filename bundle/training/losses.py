"""The multi-stage loss (equation 8) and its targets."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.functional import l1_loss

from bundle.networks import ICONetOutput
from bundle.physics import smooth_truncate


def stage_targets(label: Tensor, outputs: list[Tensor], taper: float = 0.25) -> list[Tensor]:
    """Ground truth for images on coarser grids than ``label``.

    An output with the matrix of ``label`` has ``label`` as its target; a smaller one has ``label`` truncated by a
    smooth k-space window (:func:`bundle.physics.smooth_truncate`), which keeps it aligned and rings less than plain
    truncation. With the plain crop as target, the first reconstruction would be its own input.

    Args:
        label: high-resolution images (B, C, H, W).
        outputs: images (B, C, h, w) with ``h <= H`` and ``w <= W``.
        taper: fraction of the half band over which the window falls.
    """
    return [
        label if out.shape[-2:] == label.shape[-2:] else smooth_truncate(label, (out.shape[-2], out.shape[-1]), taper)
        for out in outputs
    ]


class MultiStageL1Loss(nn.Module):
    """``alpha * sum_i |SR_i - HR_i|_1 + (1 - alpha) * sum_i |Rec_i - HR_i|_1``, each a mean over voxels.

    Given one image instead of all stages (``return_stages=False``), it is the L1 loss of that image: supervision of
    only the last stage (Table VIII).

    Args:
        alpha: weight of the super-resolution task, in [0, 1] (the paper's choice is 0.9).
        taper: see :func:`stage_targets`.
    """

    def __init__(self, alpha: float = 0.9, taper: float = 0.25) -> None:
        super().__init__()
        if not 0.0 <= alpha <= 1.0:
            raise ValueError(f"alpha must be in [0, 1], got {alpha}")
        self.alpha, self.taper = alpha, taper

    def forward(self, pred: ICONetOutput | Tensor, label: Tensor) -> Tensor:
        """Scalar loss of the predictions against the high-resolution ``label`` (B, C, H, W)."""
        if isinstance(pred, Tensor):
            return l1_loss(pred, label)
        return self.alpha * self._sum(pred.super_resolved, label) + (1.0 - self.alpha) * self._sum(
            pred.reconstructions, label
        )

    def _sum(self, outputs: list[Tensor], label: Tensor) -> Tensor:
        terms = [l1_loss(o, t) for o, t in zip(outputs, stage_targets(label, outputs, self.taper), strict=True)]
        return sum(terms, start=label.new_zeros(()))
