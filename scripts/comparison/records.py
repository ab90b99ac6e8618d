"""Result files: rows of metrics as CSV, written atomically and merged with those of earlier runs."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from bundle.data.atomic import replacing

Row = dict[str, Any]
"""One line of a result file; metrics are floats."""

FIGURES = {"consistency", "psnr", "ssim", "nmse", "hfen", "residual", "seconds"}
FIGURES |= {"brightness", "fourier_psnr", "gain", "worst_slice_gain", "noise_ratio", "hot_spot", "fourier_hot_spot"}
COUNTS = {"scale", "slice", "parameters", "products_and_convolutions", "scan", "patch_search", "threads"}
COUNTS |= {"every", "slices", "below", "worst_slice"}
SHARED = ("file", "subject", "modality", "contrast", "degradation")
"""Columns whose values must agree between methods; otherwise the comparison would mix different things."""
DIGITS = {"psnr": 4, "ssim": 6, "nmse": 8, "hfen": 6, "residual": 6, "seconds": 3}
DIGITS |= {"fourier_psnr": 4, "gain": 4, "worst_slice_gain": 4, "noise_ratio": 4, "hot_spot": 4, "fourier_hot_spot": 4}


def write_text(path: Path, text: str) -> None:
    """Replace a file atomically: a run that is stopped leaves the old one."""
    with replacing(path) as file:
        file.write(text.encode())


def write_rows(path: Path, rows: Sequence[Row]) -> None:
    """Write rows with the same columns as CSV, metrics rounded to meaningful digits; "" is an empty cell."""
    out = io.StringIO()
    writer = csv.DictWriter(out, rows[0], lineterminator="\n")
    writer.writeheader()
    writer.writerows({k: round(v, DIGITS[k]) if k in DIGITS and v != "" else v for k, v in row.items()} for row in rows)
    write_text(path, out.getvalue())


def read_rows(path: Path) -> list[Row]:
    """Rows written by :func:`write_rows`; empty cells stay empty."""
    with open(path, newline="", encoding="utf-8") as file:
        return [{k: _value(k, v) for k, v in row.items()} for row in csv.DictReader(file)]


def _value(column: str, text: str) -> Any:
    if text and column in FIGURES and text != "auto":
        return float(text)
    return int(text) if text and column in COUNTS else text


def label(row: Row) -> str:
    """Method of a row with its data consistency: "X", "X + DC" (auto or 1), "X + DC 0.5"."""
    weight = row.get("consistency") or 0.0
    return row["method"] + ("" if weight == 0 else " + DC" if weight in (1, "auto") else f" + DC {weight:g}")


def joined(old: Sequence[Row], new: Sequence[Row]) -> list[Row]:
    """New rows, and the old rows of methods that were not run again.

    Raises:
        ValueError: the volumes, what is known about them, or the degradation differ between old and new rows.
    """
    again = {row["method"] for row in new}
    kept = [row for row in old if row["method"] not in again]

    def volumes(rows: Iterable[Row]) -> set[tuple[str, ...]]:
        return {tuple(row[column] for column in SHARED) for row in rows}

    if kept and (different := volumes(kept) ^ volumes(new)):
        example = ", ".join(word for word in min(different) if word)
        raise ValueError(
            "the existing rows have other volumes, subjects, contrasts or another degradation than the new ones "
            f"(only in one of them: {example})"
        )
    return [*kept, *new]


def write_slices(path: Path, rows: Sequence[Row], keep: bool = False) -> None:
    """Metrics of slices, one line per slice and metric and one column per method.

    Args:
        path: the file.
        rows: of slices, from :meth:`comparison.protocol.Protocol.evaluate`.
        keep: keep the columns of methods in the file that were not run again; slices without any value are dropped.
    """
    table: dict[tuple[str, str, str], dict[str, str]] = {}
    again = {row["method"] for row in rows}
    if keep and path.is_file():
        with open(path, newline="", encoding="utf-8") as file:
            for line in csv.DictReader(file):
                key = line.pop("file"), line.pop("slice"), line.pop("metric")
                table[key] = {name: v for name, v in line.items() if name.partition(" + DC")[0] not in again}
    for row in rows:
        for metric, digits in (("psnr", 3), ("ssim", 4)):
            cells = table.setdefault((row["file"], str(row["slice"]), metric), {})
            cells[label(row)] = f"{row[metric]:.{digits}f}"
    table = {key: cells for key, cells in table.items() if any(cells.values())}
    columns = list(dict.fromkeys(name for cells in table.values() for name in cells))
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["file", "slice", "metric", *columns])
    writer.writerows([*key, *(cells.get(name, "") for name in columns)] for key, cells in table.items())
    write_text(path, out.getvalue())
