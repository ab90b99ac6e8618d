"""Markdown tables of the comparison: means over subjects, paired differences, costs."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence

from bundle.networks import NETWORKS
from bundle.options import DEFAULT_NETWORK
from comparison.protocol import BICUBIC, ZERO_FILLED
from comparison.records import Row, label
from comparison.statistics import Difference, paired_difference, spread, subject_means

TABLE_ORDER = sorted(NETWORKS, key=lambda name: not NETWORKS[name].is_baseline)
"""Names of the networks in the order of the tables: baselines first, ICONet last."""

METRICS = {"psnr": ("PSNR, dB", 2), "ssim": ("SSIM", 4), "nmse": ("NMSE", 5), "hfen": ("HFEN", 3)}
MODALITY_ORDER = ("T1", "T2", "PD/FLAIR", "MR", "PET")


def groups_of(row: Row) -> list[str]:
    """Columns that a volume belongs to: its modality, and for MR also T1 (with or without agent), T2 or PD/FLAIR."""
    modality, contrast = row["modality"], row["contrast"].upper()
    if modality != "MR":
        return [modality]
    if "FLAIR" in contrast or contrast.startswith("PD"):
        return ["PD/FLAIR", "MR"]
    return [contrast[:2], "MR"] if contrast[:2] in ("T1", "T2") else ["MR"]


class Results:
    """The rows of one comparison, accessed by method and group."""

    def __init__(self, rows: Iterable[Row]) -> None:
        self.rows = sorted(rows, key=_place)
        self.methods = list(dict.fromkeys(label(row) for row in self.rows))
        found = {group for row in self.rows for group in groups_of(row)}
        self.groups = [g for g in MODALITY_ORDER if g in found] + sorted(found - set(MODALITY_ORDER))
        self.degradation = next((row["degradation"] for row in self.rows), "")

    @property
    def modalities(self) -> list[str]:
        """The groups that are modalities rather than MR contrasts."""
        return [g for g in self.groups if g not in ("T1", "T2", "PD/FLAIR")]

    def of(self, method: str, group: str) -> list[Row]:
        return [row for row in self.rows if label(row) == method and group in groups_of(row)]

    def subjects(self, group: str) -> dict[str, int]:
        """Subject -> number of its volumes in the group."""
        rows = [row for row in self.of(self.methods[0], group)]
        return {s: sum(row["subject"] == s for row in rows) for s in sorted({row["subject"] for row in rows})}

    def values(self, method: str, group: str, metric: str) -> dict[str, float]:
        """Mean of each subject."""
        return subject_means((row["subject"], row[metric]) for row in self.of(method, group))

    def difference(self, method: str, reference: str, group: str, metric: str) -> Difference:
        """Mean difference paired over subjects, with a 95 % confidence interval."""
        return paired_difference(self.values(method, group, metric), self.values(reference, group, metric))

    def worst(self, method: str, group: str, metric: str = "psnr") -> float:
        """Smallest gain over zero-filled Fourier interpolation of any volume."""
        base = {row["file"]: row[metric] for row in self.of(ZERO_FILLED, group)}
        return min(row[metric] - base[row["file"]] for row in self.of(method, group))


def _place(row: Row) -> tuple[int, float]:
    """Sort key: interpolation first, then the networks in :data:`TABLE_ORDER`, then others in their order."""
    names = [ZERO_FILLED, BICUBIC, *(NETWORKS[name].title for name in TABLE_ORDER)]
    method, weight = row["method"], row.get("consistency") or 0.0
    return (names.index(method) if method in names else len(names)), 1.0 if weight == "auto" else float(weight)


def markdown(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table, ending with an empty line."""
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows), "", ""])


def mean_cell(values: Iterable[float], digits: int) -> str:
    """Mean ± standard deviation, without the latter for one subject."""
    mean, sd = spread(list(values))
    return f"{mean:.{digits}f}" + ("" if math.isnan(sd) else f" ± {sd:.{digits}f}")


def difference_cell(difference: Difference, digits: int) -> str:
    """Difference [low, high], without an interval for one subject."""
    mean, low, high = difference
    limits = "" if math.isnan(low) else f" [{low:+.{digits}f}, {high:+.{digits}f}]"
    return f"{mean:+.{digits}f}{limits}"


def metric_table(results: Results, metric: str) -> str:
    """Mean ± standard deviation over subjects, one column per group."""
    digits = METRICS[metric][1]
    header = ["method", *(f"{g} (n = {len(results.subjects(g))})" for g in results.groups)]
    cells = (
        (m, *(mean_cell(results.values(m, g, metric).values(), digits) for g in results.groups))
        for m in results.methods
    )
    return markdown(header, cells)


def difference_table(results: Results, metric: str, reference: Callable[[str], str]) -> str:
    """Paired differences from each method's reference; methods that are their own reference are left out."""
    digits = METRICS[metric][1]
    pairs = [(m, reference(m)) for m in results.methods if m != reference(m) and reference(m) in results.methods]
    rows = (
        (m, *(difference_cell(results.difference(m, r, g, metric), digits) for g in results.groups)) for m, r in pairs
    )
    return markdown(["method", *results.groups], rows)


def worst_table(results: Results) -> str:
    """Smallest PSNR gain of any volume over zero-filled Fourier, and the mean residual over volumes."""
    header = ["method", *(f"worst {g}, dB" for g in results.groups), "residual"]
    rows = []
    for method in results.methods:
        residuals = [row["residual"] for row in results.rows if label(row) == method]
        cells = [f"{results.worst(method, group):+.2f}" for group in results.groups]
        rows.append((method, *cells, f"{sum(residuals) / len(residuals):.4f}"))
    return markdown(header, rows)


def same_consistency(name: str) -> Callable[[str], str]:
    """Reference of a method: the named network with the same data consistency."""

    def reference(method: str) -> str:
        return name + (" + DC" + method.partition(" + DC")[2] if " + DC" in method else "")

    return reference


def cost_table(rows: Iterable[Row], seconds: bool = True) -> str:
    """Parameters, multiply-adds and optionally seconds of each network."""
    header = ["network", "scale", "parameters", "matmul and convolution, G", "scan, G", "patch search, G"]
    cells = [
        (
            row["method"],
            f"{row['scale']}x",
            f"{row['parameters']:,}",
            *(f"{row[kind] / 1e9:.2f}" for kind in ("products_and_convolutions", "scan", "patch_search")),
            *([f"{row['seconds']:.2f}"] if seconds else []),
        )
        for row in sorted(rows, key=lambda row: (row["scale"], _place(row)))
    ]
    return markdown([*header, "seconds"] if seconds else header, cells)


def summary_table(results: Results) -> str:
    """One row per method: PSNR, SSIM, gain over zero-filled Fourier and worst volume of each modality."""
    groups = results.modalities
    header = ["method", *(f"{g} {what}" for g in groups for what in ("PSNR, dB", "SSIM", "gain, dB", "worst, dB"))]
    rows = []
    for method in results.methods:
        cells = [method]
        for group in groups:
            cells += [mean_cell(results.values(method, group, m).values(), METRICS[m][1]) for m in ("psnr", "ssim")]
            if method == ZERO_FILLED:
                cells += ["", ""]
                continue
            gain = results.difference(method, ZERO_FILLED, group, "psnr")
            cells += [difference_cell(gain, 2), f"{results.worst(method, group):+.2f}"]
        rows.append(cells)
    return markdown(header, rows)


def readme_table(comparisons: Iterable[tuple[int, Results]]) -> str:
    """The table of the README: what the small network, as it is shipped, gains over zero-filled Fourier interpolation.

    Args:
        comparisons: scale and results; those without that network give no rows.
    """
    found = []
    for scale, results in comparisons:
        methods = [method for method in results.methods if method.startswith(NETWORKS[DEFAULT_NETWORK].title)]
        found += [(scale, results, group, methods[-1]) for group in results.modalities if methods]
    found.sort(key=lambda row: modality_place(row[2]))  # keeps the order of the scales
    rows = []
    for scale, results, group, method in found:
        subjects = results.subjects(group)
        before, after = (spread(list(results.values(m, group, "ssim").values()))[0] for m in (ZERO_FILLED, method))
        gain = results.difference(method, ZERO_FILLED, group, "psnr")
        rows.append(
            (
                f"{group} {scale}x",
                f"{sum(subjects.values())} ({len(subjects)})",
                difference_cell(gain, 2),
                f"{before:.3f} → {after:.3f}",
                f"{results.worst(method, group):+.2f}",
            )
        )
    return markdown(["", "volumes (subjects)", "PSNR gain, dB", "SSIM", "worst volume, dB"], rows)


def modality_place(group: str) -> int:
    """Sort key of modalities: those of :data:`MODALITY_ORDER` first."""
    return MODALITY_ORDER.index(group) if group in MODALITY_ORDER else len(MODALITY_ORDER)


def ablation_table(results: Results) -> str:
    """Parameters, multiply-adds, metrics and paired difference from the last method, per method and modality."""
    header = ["row", "parameters", "matmul and convolution, G", "scan, G", "patch search, G"]
    header += [f"{g} {what}" for g in results.modalities for what in ("PSNR, dB", "SSIM", "difference, dB")]
    rows, last = [], results.methods[-1]
    for method in results.methods:
        cost = next(row for row in results.rows if label(row) == method)
        work = [cost[kind] for kind in ("products_and_convolutions", "scan", "patch_search")]
        figures = [f"{cost['parameters']:,}", *(f"{n / 1e9:.2f}" for n in work)] if cost["parameters"] else [""] * 4
        cells = [method, *figures]
        for group in results.modalities:
            cells += [mean_cell(results.values(method, group, m).values(), METRICS[m][1]) for m in ("psnr", "ssim")]
            cells.append("" if method == last else difference_cell(results.difference(method, last, group, "psnr"), 2))
        rows.append(cells)
    return markdown(header, rows)
