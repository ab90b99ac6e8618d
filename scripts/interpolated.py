"""Images that the scanner interpolated: how surely the acquired matrix is found, and what is gained by it.

    python scripts/interpolated.py DATA --split_file DATA/manifest.csv [--every N]

Part "detection": every volume of the split file as it is and after harmless changes (crop, blur, noise, rounding,
filters, masks ...), where nothing may be found; and every MR volume acquired with a smaller matrix from its own
k-space, with filters, noise, partial Fourier and elliptical supports, and interpolated by 1.1 to 2.5. Writes
detection.csv and about.md to docs/results/interpolated, and docs/figures/interpolation_roc.png.

Part "gain": the MR volumes of the test split, interpolated as a scanner does it, through the default network with
--matrix keep and auto, compared with Fourier interpolation. Writes gain.csv and gain.md to the same folder.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from comparison.interpolated import about, evaluate, roc_figure
from comparison.interpolated_gain import SLICES_APART, about_gain, gains
from comparison.protocol import Protocol, known_volumes
from comparison.records import write_rows, write_text

from bundle.data.splits import SPLITS, evaluation_datalist
from bundle.inference.model import load_model
from bundle.inference.shipped import shipped_scales
from bundle.options import DEFAULT_NETWORK
from bundle.workflow.errors import one_line_exit

PARTS = ("detection", "gain")
ROOT = Path(__file__).resolve().parent.parent


@one_line_exit
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, metavar="DATA", help="folder of high-resolution volumes")
    parser.add_argument("--split_file", type=Path, required=True, help="CSV with the columns file, subject, split")
    parser.add_argument("--part", choices=PARTS, nargs="+", default=list(PARTS))
    parser.add_argument("--every", type=int, default=1, help="use only every n-th volume of each split")
    parser.add_argument("--output_dir", type=Path, default=ROOT / "docs")
    args = parser.parse_args()
    results = args.output_dir / "results/interpolated"
    if "detection" in args.part:
        rows = []
        for split in SPLITS:
            datalist = evaluation_datalist(args.data, split, args.split_file)
            rows += evaluate(known_volumes(args.data, datalist, args.split_file)[:: args.every], split)
        write_rows(results / "detection.csv", rows)
        write_text(results / "about.md", about(rows))
        roc_figure([row for row in rows if row["modality"] == "MR"], args.output_dir / "figures/interpolation_roc.png")
        print(about(rows))
    if "gain" in args.part:
        datalist = evaluation_datalist(args.data, "test", args.split_file)
        volumes = [known for known in known_volumes(args.data, datalist, args.split_file) if known.modality == "MR"]
        rows = []
        for scale in shipped_scales(DEFAULT_NETWORK):
            network = load_model(DEFAULT_NETWORK, scale).network
            rows += gains(Protocol(scale, 2, every=SLICES_APART), volumes[:: args.every], network)
        write_rows(results / "gain.csv", rows)
        write_text(results / "gain.md", about_gain(rows))
        print(about_gain(rows))


if __name__ == "__main__":
    main()
