"""The command in this process, and its results as tables."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

from click.testing import CliRunner, Result

from bundle.cli.command import main


def command(*arguments: object) -> Result:
    """Run `python -m bundle ...` without starting a process; unexpected exceptions come through."""
    return CliRunner().invoke(main, [str(argument) for argument in arguments], catch_exceptions=False)


def results(folder: Path) -> dict[str, dict[str, str]]:
    """`results.csv` by volume."""
    with open(folder / "results.csv", newline="", encoding="utf-8") as file:
        return {row["volume"]: row for row in csv.DictReader(file)}


def record(result: Path) -> dict[str, Any]:
    """The sidecar of a NIfTI result."""
    return json.loads(result.with_name(result.name.removesuffix(".nii.gz") + ".json").read_bytes())
