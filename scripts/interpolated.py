"""Images that the scanner interpolated: how surely the acquired matrix is found.

    python scripts/interpolated.py DATA --split_file DATA/manifest.csv [--every N]

Part "detection": every volume of the split file as it is and after harmless changes (crop, blur, noise, rounding,
filters, masks ...), where nothing may be found; and every MR volume acquired with a smaller matrix from its own
k-space, with filters, noise, partial Fourier and elliptical supports, and interpolated by 1.1 to 2.5. Writes
detection.csv and about.md to docs/results/interpolated, and docs/figures/interpolation_roc.png.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from comparison.interpolated import about, evaluate, roc_figure
from comparison.protocol import known_volumes
from comparison.records import write_rows, write_text

from bundle.data.splits import SPLITS, evaluation_datalist
from bundle.workflow.errors import one_line_exit

ROOT = Path(__file__).resolve().parent.parent


@one_line_exit
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, metavar="DATA", help="folder of high-resolution volumes")
    parser.add_argument("--split_file", type=Path, required=True, help="CSV with the columns file, subject, split")
    parser.add_argument("--part", choices=("detection",), nargs="+", default=["detection"])
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


if __name__ == "__main__":
    main()
