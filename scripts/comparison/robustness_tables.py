"""Markdown of the robustness files: the section "Other acquisitions" of the page of results."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from comparison.acquisitions import ACQUISITIONS, PHASE_SNR, TISSUE
from comparison.records import Row, read_rows
from comparison.robustness import BELOW, BRIGHTNESS, DIMMED, LIT, NOISE_ROW
from comparison.statistics import subject_means
from comparison.tables import markdown, modality_place

_FILE = re.compile(r"robustness_x(\d)\.csv")
SPLIT_NAMES = {"val": "validation split", "test": "test split", "train": "training split"}

_SECTION = f"""## Other acquisitions

What the networks gain when an input was not only truncated. Every input is degraded as the row says, with fixed random
numbers. The network runs as in inference, data consistency included, and its result is compared with zero-filled
Fourier interpolation of the same input. `scripts/compare.py --robustness` makes the tables;
`docs/geometry_and_intensity.md` says what the rows mean.

* **gain**: PSNR over zero-filled Fourier interpolation in dB, mean over subjects, with the smallest and largest subject
  in brackets; **worst volume**: the smallest gain of any volume.
* **slices below**: slices that lose more than {BELOW:g} dB against Fourier interpolation, of those whose maximum is
  above {100 * LIT:g} % of the volume's, with the gain of the worst slice in brackets.
* **SNR**: mean of the tissue (voxels above {100 * TISSUE:g} % of the 99.9th percentile) over the standard deviation of
  the noise in the real and the imaginary part of a low-resolution voxel. The phase of the
  complex image is as noisy as at an SNR of {PHASE_SNR:g}.
* **Dimmed slice**: gain of one good slice of a volume, darkened before truncation to the given brightness of the
  others; mean over all volumes with at least three slices.
* **Noise in tissue**: standard deviation over noise realisations (Rician, SNR 20) in the result, divided by that of
  Fourier interpolation; mean over volumes, and the largest in brackets.
* **Hot spot**: value at the brightest voxel of a PET image divided by the true one, truncation alone; mean over
  volumes, and the one that is farthest from 1 in brackets.

"""


def robustness_file(folder: Path, scale: int) -> Path:
    """The file with the rows of one scale."""
    return folder / f"robustness_x{scale}.csv"


def robustness_section(folder: Path, link: str) -> str:
    """The section for all robustness files of a folder; empty without any."""
    files = [
        (int(match[1]), path) for path in folder.glob("robustness_x?.csv") if (match := _FILE.fullmatch(path.name))
    ]
    text = "".join(_scale(scale, path, f"{link}/{path.name}") for scale, path in sorted(files))
    return _SECTION + text if text else ""


def _scale(scale: int, path: Path, link: str) -> str:
    rows, text = read_rows(path), ""
    for method, split in dict.fromkeys((row["method"], row["split"]) for row in rows):
        mine = [row for row in rows if (row["method"], row["split"]) == (method, split)]
        where = f", {SPLIT_NAMES[split]}" if split in SPLIT_NAMES else ""
        text += f"### {scale}x, {method}{where}\n\n{about(mine)} Raw data: [{path.name}]({link}).\n\n"
        text += robustness_tables(mine)
    return text


def about(rows: Sequence[Row]) -> str:
    """Volumes and subjects of each modality, the part of the slices, and data consistency."""
    words = []
    for modality in _modalities(rows):
        pairs = {(row["file"], row["subject"]) for row in rows if row["modality"] == modality}
        words.append(f"{modality} {len(pairs)} ({len({subject for _, subject in pairs})})")
    sparse = f" 1 of {rows[0]['every']} slices." if rows[0]["every"] > 1 else ""
    return f"Volumes (subjects): {', '.join(words)}.{sparse} Data consistency: {rows[0]['data_consistency']}."


def robustness_tables(rows: Sequence[Row]) -> str:
    """The tables of one network on one split: gains, dimmed slice, noise and hot spot."""
    modalities = _modalities(rows)
    found = [name for name in ACQUISITIONS if any(row["degradation"] == name for row in rows)]
    text = ""
    if found:
        header = [
            "input",
            *(f"{m} {what}" for m in modalities for what in ("gain, dB", "worst volume", "slices below")),
        ]
        cells = ((ACQUISITIONS[n].title, *(c for m in modalities for c in _gain_cells(_of(rows, n, m)))) for n in found)
        text += markdown(header, cells)
    for table in (_dimmed_table(rows, modalities), _further_table(rows, modalities)):
        text += table
    return text


def _modalities(rows: Iterable[Row]) -> list[str]:
    return sorted({row["modality"] for row in rows}, key=lambda modality: (modality_place(modality), modality))


def _of(rows: Iterable[Row], degradation: str, modality: str) -> list[Row]:
    return [row for row in rows if (row["degradation"], row["modality"]) == (degradation, modality)]


def _gain_cells(rows: Sequence[Row]) -> list[str]:
    if not rows:
        return ["", "", ""]
    subjects = subject_means((row["subject"], row["gain"]) for row in rows).values()
    gain = f"{_mean(subjects):+.2f} ({min(subjects):+.2f} to {max(subjects):+.2f})"
    below, slices = (sum(row[column] for row in rows) for column in ("below", "slices"))
    worst = min(row["worst_slice_gain"] for row in rows)
    return [gain, f"{min(row['gain'] for row in rows):+.2f}", f"{below} of {slices} ({worst:+.2f})"]


def _dimmed_table(rows: Sequence[Row], modalities: Iterable[str]) -> str:
    """Mean gain of the dimmed slice, one row per modality and one column per brightness; empty without such rows."""
    cells = []
    for modality in modalities:
        if mine := _of(rows, DIMMED, modality):
            gains = [[row["gain"] for row in mine if row["brightness"] == brightness] for brightness in BRIGHTNESS]
            cells.append([f"{modality} (n = {len(gains[0])})", *(f"{_mean(values):+.2f}" for values in gains)])
    return markdown(["dimmed slice, gain in dB", *(f"{b:g}" for b in BRIGHTNESS)], cells) if cells else ""


def _further_table(rows: Sequence[Row], modalities: Sequence[str]) -> str:
    """Noise in tissue and hot spots, one column per modality; empty without such rows."""
    columns: dict[str, tuple[str, str, Callable[[list[float]], float]]] = {
        "noise in tissue / that of Fourier": (NOISE_ROW, "noise_ratio", max),
        "hot spot / the true one": ("truncation", "hot_spot", _farthest),
        "hot spot of Fourier / the true one": ("truncation", "fourier_hot_spot", _farthest),
    }
    cells = []
    for title, (name, column, worst) in columns.items():
        values = [[row[column] for row in _of(rows, name, m) if row[column] != ""] for m in modalities]
        if any(values):
            cells.append([title, *(f"{_mean(v):.2f} ({worst(v):.2f})" if v else "" for v in values)])
    return markdown(["mean over volumes (worst)", *modalities], cells) if cells else ""


def _farthest(values: Iterable[float]) -> float:
    return max(values, key=lambda value: abs(value - 1.0))


def _mean(values: Iterable[float]) -> float:
    numbers = list(values)
    return sum(numbers) / len(numbers)
