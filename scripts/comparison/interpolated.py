"""How surely the acquired matrix of an interpolated image is found, on volumes whose matrix is known.

Volumes as they are and harmless changes of them must raise no alarm. A scan with a smaller matrix is simulated in its
order: a phase is given to the image, k-space is truncated, noise is added, k-space is filtered and filled with zeros,
coils are combined, and the magnitude is rounded to whole numbers.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from scipy.ndimage import gaussian_filter
from torch import Tensor
from tqdm import tqdm

from bundle.data import read_volume
from bundle.physics import fft2c, ifft2c
from bundle.physics.degradation import kspace_window, smooth_phase
from bundle.physics.kspace import crop_kspace, pad_kspace
from bundle.trust.interpolation import CONFIDENT, SMALLEST_AXIS, find_interpolation, strongest
from comparison.protocol import KnownVolume
from comparison.records import Row
from comparison.tables import markdown

FILTERS: dict[str, tuple[str, float | None] | None] = {
    "none": None,
    "Hamming": ("hamming", None),
    "Fermi": ("fermi", 0.9),
    "raised cosine": ("tukey", 0.3),
    "Hann": ("hann", None),
}
SCANS = 10
"""Simulated scans of each MR volume, with each filter in turn."""
THINNED = 2
"""Changes and scans are made of every n-th of the strongest slices: fewer than a whole volume offers."""
TISSUE = 0.1
AS_IS = "as it is"


@dataclass(frozen=True)
class Scan:
    """A simulated acquisition of slices (S, H, W).

    Attributes:
        acquired: rows and columns.
        stored: rows and columns, not smaller.
        window: key of :data:`FILTERS`.
        snr: mean of the tissue over the noise of the acquired image; 0: none is added.
        partial: part of the rows of k-space that was acquired.
        elliptical: whether the corners of k-space were left out.
        coils: whose magnitudes are combined by the root of the sum of squares.
        after: "", "crop" or "mask" (the background set to 0).
    """

    acquired: tuple[int, int]
    stored: tuple[int, int]
    window: str = "none"
    snr: int = 0
    partial: float = 1.0
    elliptical: bool = False
    coils: int = 1
    after: str = ""


def random_scan(size: tuple[int, int], window: str, rng: np.random.Generator) -> Scan:
    """Acquired from 60 to 100 % of an image's own matrix, stored 1.1 to 2.5 times as large on one axis or both."""
    acquired = tuple(int(n) for n in np.rint(np.array(size) * rng.uniform(0.6, 1.0, 2)))
    ratio = rng.uniform(1.1, 2.5, 2)
    if rng.random() < 0.3:
        ratio[rng.integers(2)] = 1.0
    return Scan(
        acquired=(acquired[0], acquired[1]),
        stored=(round(acquired[0] * ratio[0]), round(acquired[1] * ratio[1])),
        window=window,
        snr=int(rng.choice([0, 10, 20, 40, 80])),
        partial=float(rng.choice([1.0, 1.0, 1.0, 1.0, 1.0, 0.75, 0.625])),
        elliptical=bool(rng.random() < 0.25),
        coils=int(rng.choice([1, 1, 4])),
        after=str(rng.choice(["", "", "", "crop", "mask"])),
    )


def simulate(slices: Tensor, scan: Scan, rng: np.random.Generator) -> Tensor:
    """The stored magnitude (S, H', W'), whole numbers, of a scan of slices (S, H, W)."""
    generator = torch.Generator().manual_seed(int(rng.integers(2**31)))
    size = (slices.shape[-2], slices.shape[-1])
    sigma = (
        float(slices[slices > TISSUE * torch.quantile(_thinned(slices), 0.999)].mean()) / scan.snr if scan.snr else 0
    )
    energy = torch.zeros(len(slices), *scan.stored)
    for sensitivity in _sensitivities(size, scan.coils):
        phase = smooth_phase(torch.randn(1, 4, 4, generator=generator), size)
        kspace = crop_kspace(
            fft2c(torch.polar(slices * sensitivity, phase.expand_as(slices).contiguous())), scan.acquired
        )
        noise = torch.randn(kspace.shape, generator=generator, dtype=torch.complex64) * 2**0.5
        kspace = (kspace + sigma * kspace[0].numel() ** 0.5 * noise) * _support(scan)
        energy += ifft2c(pad_kspace(kspace, scan.stored)).abs().square()
    image = energy.sqrt()
    return torch.round(image * (float(rng.choice([200, 500, 2000])) / torch.quantile(_thinned(image), 0.99)))


def _thinned(values: Tensor) -> Tensor:
    """Some of many values, for their quantiles."""
    return values.flatten()[:: max(1, values.numel() // 100_000)]


def _sensitivities(size: tuple[int, int], coils: int) -> Iterator[Tensor]:
    """Real sensitivities (H, W) of coils around the image; constant for one."""
    rows, cols = torch.meshgrid(torch.linspace(-1, 1, size[0]), torch.linspace(-1, 1, size[1]), indexing="ij")
    for angle in torch.arange(coils) * (2 * torch.pi / coils):
        apart = (rows - angle.sin()).square() + (cols - angle.cos()).square()
        yield torch.exp(-apart / 1.5) if coils > 1 else torch.ones(size)


def _support(scan: Scan) -> Tensor:
    """Weights (h, w) of the acquired k-space: filter, ellipse and rows that were left out."""
    height, width = scan.acquired
    window = FILTERS[scan.window]
    rows, cols = (kspace_window(window[0], n, window[1]) if window else torch.ones(n) for n in scan.acquired)
    weights = rows[:, None] * cols
    weights[: round((1 - scan.partial) * height)] = 0
    if scan.elliptical:
        y = (torch.arange(height) - height // 2)[:, None] / (height / 2)
        x = (torch.arange(width) - width // 2) / (width / 2)
        weights *= (y**2 + x**2) <= 1
    return weights


# ------------------------------------------------------------------------------------------------------ no false alarm


def harmless(slices: np.ndarray, rng: np.random.Generator) -> Iterator[tuple[str, np.ndarray]]:
    """Changes of slices (S, H, W) that do not interpolate."""
    top = max(float(np.percentile(slices, 99.9)), float(np.finfo(np.float32).tiny))
    body = np.stack([gaussian_filter(image, 3) > 0.15 * top for image in slices])
    height, width = slices.shape[1:]

    def blurred(rows: float, cols: float) -> np.ndarray:
        return np.asarray(gaussian_filter(slices, (0, rows, cols)))

    yield "transposed and flipped", slices.transpose(0, 2, 1)[:, ::-1]
    yield "cropped", slices[:, 5:-9, 3:-11]
    yield "zero-padded", np.pad(slices, ((0, 0), (20, 30), (16, 40)))
    yield "masked", slices * body
    face = slices.copy()
    face[:, : height // 3, width // 4 : 3 * width // 4] = 0
    yield "defaced", face
    yield "rounded to 300 levels", np.rint(slices * (300 / top))
    yield "8 bits", np.clip(np.rint(slices * (255 / top)), 0, 255)
    for sigma in (0.5, 0.8, 1.2):
        yield f"blurred {sigma}, rounded", np.rint(blurred(sigma, sigma) * (500 / top))
    yield "blurred 0.7", blurred(0.7, 0.7)
    yield "blurred 1 on one axis, rounded", np.rint(blurred(1.0, 0.0) * (3000 / top))
    yield "blurred 0.9, 8 bits", np.clip(np.rint(blurred(0.9, 0.9) * (255 / top)), 0, 255)
    yield "blurred 0.8, masked", np.rint(blurred(0.8, 0.8) * body * (500 / top))
    for snr in (10, 20):
        sigma = float(slices[slices > TISSUE * top].mean()) / snr
        noise = rng.normal(size=(2, *slices.shape)) * sigma
        yield f"noise, SNR {snr}", np.rint(np.hypot(slices + noise[0], noise[1]) * (1000 / top))
    for name, window in FILTERS.items():
        if window is not None:
            rows, cols = (kspace_window(window[0], n, window[1]) for n in (height, width))
            image = ifft2c(fft2c(torch.from_numpy(slices)) * rows[:, None] * cols).abs().numpy()
            yield f"{name} filter", np.rint(image * (1000 / top))


# ----------------------------------------------------------------------------------------------------------- the rows


def evaluate(volumes: Sequence[KnownVolume], split: str) -> list[Row]:
    """One row per volume, change or scan, and axis; all changes of all volumes, scans of MR alone."""
    rows: list[Row] = []
    for known in tqdm(volumes, desc=f"detection, {split}", disable=None):
        rng = np.random.default_rng(zlib.crc32(known.name.encode()))
        slices = strongest(np.moveaxis(read_volume(known.path).array, 2, 0))
        about = {"file": known.name, "subject": known.subject, "modality": known.modality, "split": split}
        fewer = np.maximum(slices[::THINNED], 0)
        for case, changed in [(AS_IS, slices), *harmless(fewer, rng)]:
            scan = Scan((changed.shape[1], changed.shape[2]), (changed.shape[1], changed.shape[2]))
            rows += [about | row for row in _rows(case, changed, scan)]
        if known.modality != "MR":
            continue
        for i in range(SCANS):
            scan = random_scan((slices.shape[1], slices.shape[2]), list(FILTERS)[i % len(FILTERS)], rng)
            image = simulate(torch.from_numpy(fewer), scan, rng).numpy()
            image, scan = _after(image, scan)
            rows += [about | row for row in _rows("interpolated", image, scan)]
    return rows


def _after(image: np.ndarray, scan: Scan) -> tuple[np.ndarray, Scan]:
    """The image (S, H, W) as somebody changed it afterwards. A crop keeps the voxel size, not the number of samples."""
    if scan.after == "mask":
        top = float(np.percentile(image, 99.9))
        return image * np.stack([gaussian_filter(x, 3) > 0.15 * top for x in image]), scan
    if scan.after == "crop":
        cropped = image[:, 3:-5, 4:-2]
        old, new = image.shape[1:], cropped.shape[1:]
        acquired = (round(scan.acquired[0] * new[0] / old[0]), round(scan.acquired[1] * new[1] / old[1]))
        return cropped, replace(scan, acquired=acquired, stored=(new[0], new[1]))
    return image, scan


def _rows(case: str, slices: np.ndarray, scan: Scan) -> list[Row]:
    found = {sign.axis: sign for sign in find_interpolation(np.moveaxis(slices, 0, 2), 2, least=0.0)}
    rows = []
    for axis in (0, 1):
        if scan.stored[axis] < SMALLEST_AXIS:
            continue
        sign = found.get(axis)
        rows.append(
            {
                "case": case,
                "axis": axis,
                "stored": scan.stored[axis],
                "acquired": scan.acquired[axis],
                "filter": scan.window,
                "snr": scan.snr,
                "partial": scan.partial,
                "elliptical": int(scan.elliptical),
                "coils": scan.coils,
                "after": scan.after,
                "found": sign.true_size if sign else scan.stored[axis],
                "kind": sign.kind if sign else "",
                "named": (sign.filtered or "") if sign else "",
                "confidence": round(sign.confidence, 4) if sign else 0.0,
            }
        )
    return rows


# ---------------------------------------------------------------------------------------------------------- the report


def interpolated(row: Row) -> bool:
    """Whether this axis was interpolated at all."""
    return bool(row["acquired"] < row["stored"])


def _detection(rows: Sequence[Row]) -> list[str]:
    """Number, detection rate, and error of the matrix where it was found."""
    found = [row for row in rows if row["confidence"] >= CONFIDENT]
    errors = np.array([abs(row["found"] / row["acquired"] - 1) for row in found] or [np.nan])
    return [
        str(len(rows)),
        f"{len(found) / max(1, len(rows)):.1%}",
        f"{np.median(errors):.1%}",
        f"{np.percentile(errors, 90):.1%}",
        f"{np.mean(errors <= 0.03):.1%}",
    ]


def about(rows: Sequence[Row]) -> str:
    """Tables of false alarms and of detection, in Markdown."""
    clean = [row for row in rows if not interpolated(row)]
    scans = [row for row in rows if interpolated(row)]
    parts: list[tuple[str, Callable[[Row], bool]]] = [
        ("train and val", lambda row: row["split"] != "test"),
        ("test", lambda row: row["split"] == "test"),
    ]
    kinds: list[tuple[str, Callable[[Row], bool]]] = [
        ("MR, train and val", lambda row: row["modality"] == "MR" and row["split"] != "test"),
        ("MR, test", lambda row: row["modality"] == "MR" and row["split"] == "test"),
        ("PET", lambda row: row["modality"] != "MR"),
    ]
    alarms = []
    for case in dict.fromkeys(row["case"] for row in clean):
        these = [row for row in clean if row["case"] == case]
        line = ["not interpolated axis of a scan" if case == "interpolated" else case]
        for _, chosen in kinds:
            part = [row for row in these if chosen(row)]
            most = max((row["confidence"] for row in part), default=0.0)
            line += [str(len(part)), str(sum(row["confidence"] >= CONFIDENT for row in part)), f"{most:.2f}"]
        alarms.append(line)
    tests: list[tuple[str, Callable[[Row], bool]]] = [
        *((f"filter: {name}", lambda row, name=name: row["filter"] == name and not row["after"]) for name in FILTERS),
        *((f"ratio {a} to {b}", lambda row, a=a, b=b: a <= row["stored"] / row["acquired"] < b) for a, b in RATIOS),
        ("SNR 10", lambda row: row["snr"] == 10),
        ("partial Fourier", lambda row: row["partial"] < 1 and row["axis"] == 0),
        ("elliptical", lambda row: bool(row["elliptical"])),
        ("four coils", lambda row: row["coils"] > 1),
        ("cropped", lambda row: row["after"] == "crop"),
        ("masked", lambda row: row["after"] == "mask"),
        ("all", lambda row: True),
    ]
    found = [
        [name, part, *_detection([row for row in scans if chosen(row) and inside(row)])]
        for name, chosen in tests
        for part, inside in parts
    ]
    heads = ["axes", "false alarms", "highest confidence"]
    return "\n".join(
        [
            "# How surely the acquired matrix is found",
            "",
            "Made by `scripts/interpolated.py`; raw rows in [detection.csv](detection.csv). An axis counts as",
            f"interpolated from a confidence of {CONFIDENT}, chosen on the training and validation subjects.",
            "",
            "## False alarms",
            "",
            "PET is shown for comparison: it is smooth, many of these volumes are a single slice, and it is not cut.",
            "",
            markdown(["change", *(f"{head} ({part})" for part, _ in kinds for head in heads)], alarms),
            "",
            "## Detection",
            "",
            "MR volumes acquired with a smaller matrix from their own k-space, and interpolated 1.1 to 2.5 times.",
            "Rows of filters are without later crop or mask; errors are of the matrix, where it was found.",
            "",
            markdown(["scans", "subjects", "axes", "found", "error, median", "90 %", "within 3 %"], found),
            "",
            "![Detection against false alarms](../../figures/interpolation_roc.png)",
            "",
        ]
    )


RATIOS = ((1.1, 1.2), (1.2, 1.5), (1.5, 2.0), (2.0, 2.6))


def roc_figure(rows: Sequence[Row], path: Path) -> None:
    """Detection rate against the rate of false alarms while the confidence is lowered; a dot at the operating point."""
    from matplotlib.figure import Figure

    clean = np.array([row["confidence"] for row in rows if not interpolated(row)])
    levels = np.unique(np.concatenate([np.geomspace(1e-6, 0.5, 200), 1 - np.geomspace(1e-6, 0.5, 200)]))
    alarms = np.array([np.mean(clean >= level) for level in levels])
    figure = Figure(figsize=(6.4, 4.4), layout="constrained")
    axes = figure.subplots()
    for name in FILTERS:
        these = np.array([row["confidence"] for row in rows if interpolated(row) and row["filter"] == name])
        line = axes.step(
            np.maximum(alarms, 0.5 / len(clean)),
            [np.mean(these >= level) for level in levels],
            label=name,
            where="post",
        )
        at = max(0.5 / len(clean), float(np.mean(clean >= CONFIDENT)))
        axes.plot(at, np.mean(these >= CONFIDENT), "o", color=line[0].get_color())
    axes.set(xscale="log", xlabel="axes with a false alarm", ylabel="interpolated axes found", ylim=(0, 1.02))
    axes.set_title(f"Dots: confidence {CONFIDENT}; the left border is no false alarm in {len(clean)} axes", fontsize=9)
    axes.legend(title="k-space filter", loc="lower right")
    axes.grid(alpha=0.3)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
