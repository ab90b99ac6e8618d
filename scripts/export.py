"""Export the shipped networks to TorchScript and ONNX, and check each file against PyTorch.

    python scripts/export.py [--output_dir exports] [--scales 2 4] [--networks iconet_small]

Each file is compared with the network on every slice of the sample volume and on other shapes; if they differ by more
than 1e-4 of the range, the file is not kept and the exit status is 1. The figures are printed as a table and written to
exports.json beside the files; with --publish also to docs/results/exports.json and docs/performance.md. Times are
comparable within a run, where all forms take turns.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from release.exports import (
    TOLERANCE,
    Runner,
    compare,
    describe,
    onnx_runner,
    torchscript_runner,
    write_onnx,
    write_torchscript,
)
from torch import Tensor, nn

from bundle.inference.shipped import weights_path
from bundle.inference.weights import load_weights
from bundle.networks import NETWORKS, build_network
from bundle.ops import use_backend
from bundle.transforms import NormalizeVolume

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "performance.md"
BEGIN, END = "<!-- exports -->", "<!-- /exports -->"
SCALES = [2, 4]  # of the sample
OTHER_SHAPES = [(3, 1, 21, 34), (1, 1, 37, 23)]


def shipped() -> list[tuple[str, int]]:
    """(network, scale) of everything with weights in models/."""
    pairs = [(name, scale) for name in NETWORKS for scale in SCALES]
    return [(name, scale) for name, scale in pairs if Path(weights_path(ROOT / "models", name, scale)).is_file()]


def sample_slices(scale: int) -> list[Tensor]:
    """The slices of the sample volume as passed to the network."""
    path = next((ROOT / "docs" / "sample" / f"lr_x{scale}").glob("*.nii.gz"))
    voxels = np.asarray(nib.load(path).dataobj, dtype=np.float32)
    volume = NormalizeVolume()(torch.from_numpy(voxels)[None])[0]
    return [piece[None, None].contiguous() for piece in volume.unbind(-1) if piece.max() > piece.min()]


def build(name: str, scale: int) -> tuple[nn.Module, str]:
    """The network with its shipped weights, and their checksum."""
    network = build_network(name, scale).eval()
    return network, load_weights(network, weights_path(ROOT / "models", name, scale))


def plain(network: nn.Module) -> Runner:
    """The network on the PyTorch back end, which needs no compiler."""

    def run(image: Tensor) -> Tensor:
        with use_backend("torch"):
            result: Tensor = network(image)
        return result

    return run


def exports(name: str, scale: int, output_dir: Path, count: int | None = None) -> Iterator[dict[str, Any]]:
    """Write, check and time each form of one network; only files that pass are put in the folder."""
    network, sha256 = build(name, scale)
    slices = sample_slices(scale)[:count]
    common = {"network": name, "scale": scale, "slice": list(slices[0].shape[2:])}
    eager = compare(network, plain(network), slices[:1])
    yield {**common, "form": "PyTorch, torch back end", "slices": 1, **asdict(eager)}
    forms = {"TorchScript": (".ts", write_torchscript, torchscript_runner), "ONNX": (".onnx", write_onnx, onnx_runner)}
    output_dir.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output_dir, prefix=".") as scratch:
        for form, (ending, write, runner) in forms.items():
            path = Path(scratch) / f"{name}_x{scale}{ending}"
            write(network, path, describe(name, scale, sha256))
            run = runner(path)
            other = compare(network, run, [torch.rand(shape) for shape in OTHER_SHAPES]).difference
            sample = compare(network, run, slices)
            size = path.stat().st_size
            if max(other, sample.difference) <= TOLERANCE:
                os.replace(path, output_dir / path.name)
            figures = {"bytes": size, "slices": len(slices), "difference_other_shapes": other}
            yield {**common, "form": form, **figures, **asdict(sample)}


HEAD = (
    "network",
    "slice",
    "form",
    "file, MB",
    "difference on the sample (slices)",
    "on other shapes",
    "time / PyTorch's",
)


def cells(row: dict[str, Any]) -> list[str]:
    """One row of the table; processor times are relative to PyTorch's fastest back end in the same turns."""
    return [
        f"{row['network']} x{row['scale']}",
        "x".join(map(str, row["slice"])),
        row["form"],
        f"{row['bytes'] / 1e6:.2f}" if "bytes" in row else "",
        f"{row['difference']:.1e} ({row['slices']})",
        f"{row['difference_other_shapes']:.1e}" if "difference_other_shapes" in row else "",
        f"{row['seconds'] / row['expected_seconds']:.1f}",
    ]


def aligned(texts: Sequence[str]) -> str:
    """A line of the table on the screen."""
    widths = (16, 7, 23, 8, 33, 15, 0)
    return "  ".join(f"{text:{width}}" for text, width in zip(texts, widths, strict=True)).rstrip()


def table(rows: list[dict[str, Any]]) -> str:
    """The table in Markdown."""
    return "\n".join(
        ["| " + " | ".join(HEAD) + " |", "|---" * len(HEAD) + "|", *("| " + " | ".join(cells(r)) + " |" for r in rows)]
    )


def record(rows: list[dict[str, Any]], command: str) -> str:
    """All figures with the command and the machine, as JSON."""
    machine = {"processors": os.cpu_count(), "threads": torch.get_num_threads(), "torch": torch.__version__}
    machine["python"] = platform.python_version()
    return json.dumps({"command": command, "machine": machine, "tolerance": TOLERANCE, "rows": rows}, indent=1) + "\n"


def publish(rows: list[dict[str, Any]], command: str) -> None:
    (ROOT / "docs" / "results" / "exports.json").write_text(record(rows, command))
    before, rest = PAGE.read_text().split(BEGIN)
    after = rest.split(END)[1]
    PAGE.write_text(f"{before}{BEGIN}\n`{command}`\n\n{table(rows)}\n{END}{after}")


def positive(text: str) -> int:
    if int(text) < 1:
        raise ValueError
    return int(text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", type=Path, default=Path("exports"), help="output folder")
    names = list(dict.fromkeys(name for name, _ in shipped()))
    parser.add_argument("--scales", type=int, nargs="+", choices=SCALES, default=SCALES)
    parser.add_argument("--networks", nargs="+", choices=names, default=names, help="default: all that have weights")
    parser.add_argument("--slices", type=positive, help="compare on only that many slices of the sample")
    parser.add_argument("--publish", action="store_true", help="write the figures into docs/")
    args = parser.parse_args()
    rows: list[dict[str, Any]] = []
    print(aligned(HEAD))
    for name, scale in shipped():
        if name in args.networks and scale in args.scales:
            for row in exports(name, scale, args.output_dir, args.slices):
                rows.append(row)
                print(aligned(cells(row)), flush=True)
    if not rows:
        raise SystemExit("nothing to export: no such network has weights in models/")
    command = shlex.join(["python", "scripts/export.py", *sys.argv[1:]])
    (args.output_dir / "exports.json").write_text(record(rows, command))
    if args.publish:
        publish(rows, command)
    print(f"files and exports.json: {args.output_dir}")
    differences = [max(row["difference"], row.get("difference_other_shapes", 0.0)) for row in rows]
    if max(differences) > TOLERANCE:
        raise SystemExit(f"an export differs from PyTorch by {max(differences):.1e} of the range and was not kept")


if __name__ == "__main__":
    main()
