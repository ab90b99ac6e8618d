"""Compare the shipped network with interpolation on volumes of known truth.

    python scripts/compare.py DATA [--split_file DATA/manifest.csv] [--split test] [--output_dir docs/results]

Every volume is truncated in k-space by 2 and by 4, slice by slice, and brought back by each method. Writes one row per
volume and method to compare_x2.csv and compare_x4.csv, and the means over subjects to compare.md. PSNR and SSIM are
those of bundle/metrics.py. With a split file, its columns subject and modality are used; else every file is a subject.
"""

from __future__ import annotations

import argparse
import csv
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from statistics import mean, stdev

import torch
from monai.transforms import Compose, EnsureChannelFirst, LoadImage
from torch import Tensor
from tqdm import tqdm

from bundle.data import NiftiVolumeReader, evaluation_datalist
from bundle.inferers import VolumeInferer
from bundle.metrics import psnr, ssim
from bundle.networks import iconet
from bundle.networks.upsample import aligned_bicubic_upsample, fourier_image_upsample
from bundle.transforms import CropToMultiple, KSpaceTruncation, NormalizeVolume
from bundle.workflow import prepare_network

ROOT = Path(__file__).resolve().parent.parent
BASELINE = "zero-filled Fourier"
Row = dict[str, str | float]


def methods(scale: int, size: str, slice_axis: int) -> dict[str, Callable[[Tensor], Tensor]]:
    """Name -> function of a low-resolution volume (1, X, Y, Z)."""
    suffix = ("" if size == "small" else f"_{size}") + ("" if scale == 2 else f"_x{scale}")
    network = prepare_network(iconet(size, scale), str(ROOT / f"models/model{suffix}.pt"), "cpu").eval()

    def by_network(data_consistency: bool) -> Callable[[Tensor], Tensor]:
        inferer = VolumeInferer(slice_axis, data_consistency=data_consistency)
        return lambda low: inferer(low[None], network)[0]

    def by_slices(upsample: Callable[[Tensor, int], Tensor]) -> Callable[[Tensor], Tensor]:
        return lambda low: upsample(low.movedim(slice_axis + 1, 0), scale).movedim(0, slice_axis + 1)

    return {
        BASELINE: by_slices(fourier_image_upsample),
        "aligned bicubic": by_slices(aligned_bicubic_upsample),
        f"ICONet {size}, no data consistency": by_network(False),
        f"ICONet {size}": by_network(True),
    }


def subjects_of(split_file: Path | None) -> dict[str, dict[str, str]]:
    """File name -> its row of the split file."""
    if split_file is None:
        return {}
    with open(split_file, newline="") as file:
        return {Path(row["file"]).name: row for row in csv.DictReader(file)}


def evaluate(paths: list[str], scale: int, args: argparse.Namespace) -> list[Row]:
    load = Compose(
        [
            LoadImage(reader=NiftiVolumeReader()),
            EnsureChannelFirst(),
            NormalizeVolume(),
            CropToMultiple(scale, args.slice_axis),
        ]
    )
    degrade, compared = KSpaceTruncation(scale, args.slice_axis), methods(scale, args.size, args.slice_axis)
    table, rows = subjects_of(args.split_file), []
    for path in tqdm(paths, desc=f"x{scale}"):
        truth = load(path)
        low = degrade(truth).as_tensor()
        truth = truth.as_tensor()
        known = table.get(Path(path).name, {})
        for name, method in compared.items():
            pred = method(low)
            rows.append(
                {
                    "file": Path(path).name,
                    "subject": known.get("subject", Path(path).name),
                    "modality": known.get("modality", "all"),
                    "method": name,
                    "psnr": round(float(psnr(pred, truth)), 4),
                    "ssim": round(float(ssim(pred[0], truth[0], args.slice_axis)), 6),
                }
            )
    return rows


def by_subject(rows: list[Row], modality: str, method: str, key: str) -> dict[str, float]:
    """Mean over the volumes of each subject."""
    values: dict[str, list[float]] = defaultdict(list)
    for row in rows:
        if row["modality"] == modality and row["method"] == method:
            values[str(row["subject"])].append(float(row[key]))
    return {subject: mean(v) for subject, v in values.items()}


def spread(values: list[float], digits: int) -> str:
    deviation = stdev(values) if len(values) > 1 else 0.0
    return f"{mean(values):.{digits}f} ± {deviation:.{digits}f}"


def summary(rows: list[Row], scale: int) -> list[str]:
    """Markdown table: mean and standard deviation over subjects, and the paired gain over the baseline."""
    lines = [f"### x{scale}", "", "| modality | subjects | method | PSNR, dB | SSIM | gain, dB | worst volume, dB |"]
    lines.append("|---|---|---|---|---|---|---|")
    names = list(dict.fromkeys(str(row["method"]) for row in rows))
    for modality in sorted({str(row["modality"]) for row in rows}):
        base = by_subject(rows, modality, BASELINE, "psnr")
        reference = {r["file"]: float(r["psnr"]) for r in rows if r["method"] == BASELINE}
        for name in names:
            values = by_subject(rows, modality, name, "psnr")
            ssims = list(by_subject(rows, modality, name, "ssim").values())
            gain = [values[s] - base[s] for s in base]
            mine = [r for r in rows if r["method"] == name and r["modality"] == modality]
            worst = min(float(r["psnr"]) - reference[r["file"]] for r in mine)
            cells = [modality, str(len(base)), name, spread(list(values.values()), 2), spread(ssims, 4)]
            lines.append("| " + " | ".join([*cells, f"{mean(gain):+.2f}", f"{worst:+.2f}"]) + " |")
    return [*lines, ""]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder of high-resolution NIfTI volumes")
    parser.add_argument("--split_file", type=Path, help="CSV with the columns file, subject, split")
    parser.add_argument("--split", default="test")
    parser.add_argument("--size", default="small")
    parser.add_argument("--slice_axis", type=int, default=2)
    parser.add_argument("--output_dir", type=Path, default=ROOT / "docs" / "results")
    args = parser.parse_args()

    paths = [item["image"] for item in evaluation_datalist(args.data, args.split, args.split_file)]
    args.output_dir.mkdir(parents=True, exist_ok=True)
    lines: list[str] = []
    for scale in (2, 4):
        with torch.no_grad():
            rows = evaluate(paths, scale, args)
        with open(args.output_dir / f"compare_x{scale}.csv", "w", newline="") as file:
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            writer.writerows(rows)
        lines += summary(rows, scale)
    (args.output_dir / "compare.md").write_text("\n".join(lines))
    print("\n".join(lines))


if __name__ == "__main__":
    main()
