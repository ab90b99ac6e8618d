"""Check a bundle folder as the MONAI model zoo does before it accepts one, and more.

    python scripts/zoo_check.py [BUNDLE_ROOT] [--schema FILE] [--install] [--processes N]

One line per check: PASS, FAIL with the reasons, or SKIP with the reason; exit status 1 if any failed. The folder is
this repository, or an export from `iconet-sr export-bundle`: such a folder may lack what only the repository needs, and
those checks are skipped. Works offline, except for --install. Nothing is written into the folder.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    here = Path(__file__).resolve().parent.parent
    parser.add_argument("root", nargs="?", type=Path, default=here, help="bundle folder (default: this repository)")
    parser.add_argument("--schema", type=Path, help="also check metadata.json against this schema file of the zoo")
    parser.add_argument("--install", action="store_true", help="ask pip whether the required versions are compatible")
    parser.add_argument("--processes", type=int, default=1, help="parallel runs, besides this process")
    args = parser.parse_args()
    root = args.root.resolve()
    if not (root / "bundle/networks").is_dir():
        sys.exit(f"{root}: not a bundle of this project; it has no bundle/networks")
    sys.path.insert(0, str(root))  # build and check the folder's own package, whichever one is installed

    from release.zoo.folder import Folder
    from release.zoo.gate import verdicts

    started = time.monotonic()
    with tempfile.TemporaryDirectory() as work:
        counts = dict.fromkeys(("PASS", "FAIL", "SKIP"), 0)
        folder = Folder(root, Path(work), args.schema, args.install)
        for verdict in verdicts(folder, processes=args.processes):
            counts[verdict.status] += 1
            print(verdict, flush=True)
    print(*(f"{count} {status.lower()}" for status, count in counts.items()), sep=", ", end=" ")
    print(f"in {time.monotonic() - started:.0f} s: {root.name}")
    sys.exit(1 if counts["FAIL"] else 0)


if __name__ == "__main__":
    main()
