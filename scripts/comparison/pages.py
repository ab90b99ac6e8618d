"""Documents generated from the result files: the page with all tables, and the summary shown in the README."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

from bundle.networks import NETWORKS
from comparison.alike import BUDGET_HEADER, COMPUTE, UPDATES, budget_rows
from comparison.protocol import ZERO_FILLED
from comparison.records import read_rows, write_text
from comparison.robustness_tables import robustness_section
from comparison.tables import (
    METRICS,
    Results,
    cost_table,
    difference_table,
    markdown,
    metric_table,
    readme_table,
    same_consistency,
    summary_table,
    worst_table,
)

SUMMARY, COSTS = "compare.md", "cost.csv"
_COMPARISON = re.compile(r"compare_(?P<lines>lines_)?x(?P<scale>\d)\.csv")

_INTRODUCTION = """# Results

Every volume is degraded slice by slice, reconstructed with each method and compared with the original. The raw data are
in [results]({link}); `scripts/compare.py` and `scripts/ablation.py` make this page and the README's table from them.

* **Statistics** are over subjects: the volumes of a subject are averaged first. Tables give mean ± standard deviation
  over subjects; differences are paired by subject.
* **[low, high]** is the 95 % percentile bootstrap interval of a mean difference, resampled over subjects (10,000
  draws). It is too narrow for few subjects: four have only 35 distinct resamples. A single subject has no interval.
* **PSNR** uses the maximum of the true volume as data range; **SSIM** is the mean over slices with the same range (7x7
  uniform window); **NMSE** is the squared error divided by the energy of the truth; **HFEN** is
  `||LoG(error)|| / ||LoG(truth)||` per volume (sigma 1.5, 15x15). All metrics: `bundle/training/metrics.py`.
* **+ DC**: with data consistency, which puts the measured k-space back into the result. **residual** is
  `||degrade(result) - input|| / ||input||`, mean over volumes.
* **T1** includes T1 with and without contrast agent, **MR** all contrasts.

"""

_COSTS = """## Costs

For one low-resolution slice of 128x128. Multiply-adds: matrix products and convolutions by
`torch.utils.flop_counter.FlopCounterMode` / 2; the selective scan `4 Di (4 N + R + 2)` per pixel; the patch search
`9 C (H W)^2`, though the kernels need only a ninth of that. Element-wise operations and FFTs are not counted. Seconds
are from a single run on one machine ({machine}).

"""

_SIZES = """Parameters and multiply-adds, counted as [below](#costs):

"""

_ABLATIONS = """
## Ablations

The rows of the paper's tables IV to IX, one YAML file each in configs/experiments, with the training budget given above
each table. Differences are to the last row, which is the paper's choice. Their intervals are over subjects and do not
include the variation between trainings; the same table with another seed gives an idea of that.

"""

_PICTURES = """Made by `scripts/figures.py`. Methods: whole slice, the part where zero-filled Fourier interpolation has
the largest error, absolute error. Stages: target and output of each stage, absolute error.

"""


_ALIKE = {
    "default_compute": "Matched training of the default network: equal compute",
    "default_updates": "Matched training of the default network: equal updates",
    UPDATES: "Matched training of the baselines: equal updates",
    COMPUTE: "Matched training of the baselines: equal compute",
    "longer_updates": "Longer matched training of two networks: equal updates",
    "longer_compute": "Longer matched training of two networks: equal compute",
}
"""Folders with results of matched training, in the order of the page, and their headings."""


def comparison_files(folder: Path) -> list[tuple[str, int, Path]]:
    """(degradation, scale, file) of every comparison in a folder of results, truncation first."""
    found = [(match, path) for path in folder.glob("compare_*.csv") if (match := _COMPARISON.fullmatch(path.name))]
    kinds = [("lines" if match["lines"] else "truncation", int(match["scale"]), path) for match, path in found]
    return sorted(kinds, key=lambda item: (item[0] != "truncation", item[1]))


def comparison_file(folder: Path, degradation: str, scale: int) -> Path:
    """The file with the rows of a comparison."""
    return folder / f"compare_{'lines_' if degradation == 'lines' else ''}x{scale}.csv"


def summary(folder: Path) -> str:
    """The tables of compare.md: one for each scale of the comparison on truncation; empty without any."""
    files = [(scale, path) for degradation, scale, path in comparison_files(folder) if degradation == "truncation"]
    tables = [f"### x{scale}\n\n{summary_table(Results(read_rows(path)))}" for scale, path in files]
    return "".join(tables).removesuffix("\n")


def page(folder: Path, link: str) -> str:
    """The page of all tables: every degradation and scale, other acquisitions, costs, ablations.

    Args:
        folder: of the result files.
        link: relative path from the page to that folder.
    """
    parts = [_INTRODUCTION.format(link=link) + _about(folder / "about.md")]
    for _, scale, path in comparison_files(folder):
        results = Results(read_rows(path))
        parts.append(f"## {scale}x, {results.degradation}\n\n{_volumes(results, path, link)}\n\n{_tables(results)}")
    parts.append(robustness_section(folder, link))
    parts += [_alike(folder / name, f"{link}/{name}") for name in _ALIKE if (folder / name).is_dir()]
    if (folder / COSTS).is_file():
        costs = read_rows(folder / COSTS)
        machines = sorted({f"{row['device']}, {row['threads']} threads" for row in costs})
        parts.append(_COSTS.format(machine="; ".join(machines)) + cost_table(costs))
    ablations = [path.read_text(encoding="utf-8") for path in sorted(folder.glob("ablation_table*.md"))]
    if ablations:
        parts.append(_ABLATIONS + "\n".join(ablations) + "\n")
    figures = folder.parent / "figures"
    if pictures := sorted([*figures.glob("methods_x?.png"), *figures.glob("stages_x?.png")]):
        links = [f"![{path.stem}]({link}/../figures/{path.name})" for path in pictures]
        parts.append("## Pictures\n\n" + _PICTURES + "\n\n".join(links))
    return "".join(parts).rstrip() + "\n"


def _about(file: Path) -> str:
    """Notes specific to some results, from a text file next to them, if there is one."""
    return file.read_text(encoding="utf-8").rstrip() + "\n\n" if file.is_file() else ""


def _alike(folder: Path, link: str) -> str:
    """The section on matched training at one budget, from its result files and training records."""
    records = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("training_*.json"))]
    kept = COMPUTE if folder.name.endswith("compute") else UPDATES
    text = f"## {_ALIKE[folder.name]}\n\n{_about(folder / 'about.md')}"
    text += markdown(BUDGET_HEADER, budget_rows(records, kept))
    if kept == UPDATES and (folder / COSTS).is_file():
        text += _SIZES + cost_table(read_rows(folder / COSTS), seconds=False)
    for _, scale, path in comparison_files(folder):
        results = Results(read_rows(path))
        text += f"### {scale}x, {results.degradation}\n\n{_volumes(results, path, link)}\n\n{summary_table(results)}"
        for metric in ("psnr", "ssim"):
            table = difference_table(results, metric, same_consistency(NETWORKS["iconet_small"].title))
            text += f"{METRICS[metric][0]}, difference from ICONet small with the same data consistency:\n\n{table}"
    return text


def _volumes(results: Results, file: Path, link: str) -> str:
    words = []
    for group in results.groups:
        subjects = results.subjects(group)
        words.append(f"{group} {sum(subjects.values())} ({len(subjects)})")
    slices = file.with_name(file.stem + "_slices.csv")
    links = [f"[{path.name}]({link}/{path.name})" for path in (file, slices) if path.is_file()]
    return f"Volumes (subjects): {', '.join(words)}. Raw data: {', '.join(links)}."


def _tables(results: Results) -> str:
    parts = [f"{title}:\n\n{metric_table(results, metric)}" for metric, (title, _) in METRICS.items()]
    for metric in ("psnr", "ssim"):
        title = METRICS[metric][0]
        parts.append(
            f"{title}, difference from {ZERO_FILLED}:\n\n{difference_table(results, metric, lambda _: ZERO_FILLED)}"
        )
        for name in (NETWORKS[size].title for size in ("iconet_small", "iconet_paper")):
            if name in results.methods:
                table = difference_table(results, metric, same_consistency(name))
                parts.append(f"{title}, difference from {name} with the same data consistency:\n\n{table}")
    parts.append(f"Smallest PSNR gain over {ZERO_FILLED} of any volume, and residual:\n\n{worst_table(results)}")
    return "".join(parts)


def write_pages(folder: Path, page_path: Path, readme: Path | None = None) -> None:
    """Write the page and the summary of a results folder, and insert the summary between the README's markers."""
    text = summary(folder)
    if text:
        write_text(folder / SUMMARY, text)
    write_text(page_path, page(folder, os.path.relpath(folder, page_path.parent)))
    if readme is not None:
        before, _, rest = readme.read_text(encoding="utf-8").partition("<!-- results -->")
        _, mark, after = rest.partition("<!-- /results -->")
        if not mark:
            raise ValueError(f"{readme}: no block between <!-- results --> and <!-- /results -->")
        write_text(readme, f"{before}<!-- results -->\n{readme_block(folder)}<!-- /results -->{after}")


def readme_block(folder: Path) -> str:
    """The table of the README: the gain of the shipped network at each scale, over truncation."""
    files = [(scale, path) for degradation, scale, path in comparison_files(folder) if degradation == "truncation"]
    return readme_table((scale, Results(read_rows(path))) for scale, path in files).removesuffix("\n")
