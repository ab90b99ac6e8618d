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

Every volume is degraded slice by slice, reconstructed by each method, and compared with the original. The raw rows lie
in [results]({link}); `scripts/compare.py` and `scripts/ablation.py` make this page and the README's table from them.

* **Subjects** are the unit: the volumes of a subject are averaged first, tables give mean ± standard deviation over
  subjects, differences are paired by subject.
* **[low, high]** is the 95 % percentile bootstrap interval of a mean difference, drawn over subjects (10,000 draws).
  With few subjects it is too narrow: four have only 35 different draws. A single subject has none.
* **PSNR** takes the maximum of the true volume as range, **SSIM** is the mean over slices with that range (7x7 uniform
  window); **NMSE** is the squared error over the energy of the truth; **HFEN** is `||LoG(error)|| / ||LoG(truth)||` per
  volume (sigma 1.5, 15x15). One implementation, `bundle/training/metrics.py`.
* **+ DC**: the measured k-space is put back into the result (data consistency). **residual** is
  `||degrade(result) - input|| / ||input||`, the mean over volumes.
* **T1** holds T1 with and without contrast agent, **MR** every contrast.

"""

_COSTS = """## Costs

For one low-resolution slice of 128x128. Multiply-adds: products and convolutions by
`torch.utils.flop_counter.FlopCounterMode` / 2; the selective scan `4 Di (4 N + R + 2)` per pixel; the patch search
`9 C (H W)^2`, though the kernels need a ninth of it. Element-wise work and FFTs are not counted. Seconds are those of
one machine ({machine}) and of one run.

"""

_SIZES = """Sizes and work, counted as [below](#costs):

"""

_ABLATIONS = """
## Ablations

The rows of the paper's tables IV to IX, one YAML file each in configs/experiments, at the budget that stands above each
table. Differences are to the last row, which is the paper's choice; their intervals are over subjects and know nothing
of the chance in a training, of which the same table with another seed gives an idea.

"""

_PICTURES = """Made by `scripts/figures.py`. Methods: whole slice, the part where zero-filled Fourier interpolation errs
most, absolute error. Stages: what each stage was to make, what it made, absolute error.

"""


_ALIKE = {
    UPDATES: "Networks trained alike: equal updates",
    COMPUTE: "Networks trained alike: equal compute",
    "longer_updates": "Two networks trained alike for longer: equal updates",
    "longer_compute": "Two networks trained alike for longer: equal compute",
}
"""Folders of results of networks trained alike, in the order of the page, and their headings."""


def comparison_files(folder: Path) -> list[tuple[str, int, Path]]:
    """(degradation, scale, file) of every comparison in a folder of results, truncation first."""
    found = [(match, path) for path in folder.glob("compare_*.csv") if (match := _COMPARISON.fullmatch(path.name))]
    kinds = [("lines" if match["lines"] else "truncation", int(match["scale"]), path) for match, path in found]
    return sorted(kinds, key=lambda item: (item[0] != "truncation", item[1]))


def comparison_file(folder: Path, degradation: str, scale: int) -> Path:
    """Where the rows of a comparison lie."""
    return folder / f"compare_{'lines_' if degradation == 'lines' else ''}x{scale}.csv"


def summary(folder: Path) -> str:
    """The tables of compare.md: one for each scale of the comparison on truncation; empty without any."""
    files = [(scale, path) for degradation, scale, path in comparison_files(folder) if degradation == "truncation"]
    tables = [f"### x{scale}\n\n{summary_table(Results(read_rows(path)))}" for scale, path in files]
    return "".join(tables).removesuffix("\n")


def page(folder: Path, link: str) -> str:
    """Every table: each degradation and scale, the costs, the ablations.

    Args:
        folder: of the result files.
        link: from the page to that folder.
    """
    parts = [_INTRODUCTION.format(link=link) + _about(folder / "about.md")]
    for _, scale, path in comparison_files(folder):
        results = Results(read_rows(path))
        parts.append(f"## x{scale}, {results.degradation}\n\n{_volumes(results, path, link)}\n\n{_tables(results)}")
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
    """What is to be said of some results besides what is true of any: a text beside their files, if there is one."""
    return file.read_text(encoding="utf-8").rstrip() + "\n\n" if file.is_file() else ""


def _alike(folder: Path, link: str) -> str:
    """The section of networks trained alike, from the files of one budget and the records of the trainings."""
    records = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("training_*.json"))]
    kept = COMPUTE if folder.name.endswith("compute") else UPDATES
    text = f"## {_ALIKE[folder.name]}\n\n{_about(folder / 'about.md')}"
    text += markdown(BUDGET_HEADER, budget_rows(records, kept))
    if kept == UPDATES and (folder / COSTS).is_file():
        text += _SIZES + cost_table(read_rows(folder / COSTS), seconds=False)
    for _, scale, path in comparison_files(folder):
        results = Results(read_rows(path))
        text += f"### x{scale}, {results.degradation}\n\n{_volumes(results, path, link)}\n\n{summary_table(results)}"
        for metric in ("psnr", "ssim"):
            table = difference_table(results, metric, same_consistency(NETWORKS["iconet_small"].title))
            text += f"{METRICS[metric][0]}, difference to ICONet small with the same data consistency:\n\n{table}"
    return text


def _volumes(results: Results, file: Path, link: str) -> str:
    words = []
    for group in results.groups:
        subjects = results.subjects(group)
        words.append(f"{group} {sum(subjects.values())} ({len(subjects)})")
    slices = file.with_name(file.stem + "_slices.csv")
    links = [f"[{path.name}]({link}/{path.name})" for path in (file, slices) if path.is_file()]
    return f"Volumes (subjects): {', '.join(words)}. Every figure: {', '.join(links)}."


def _tables(results: Results) -> str:
    parts = [f"{title}:\n\n{metric_table(results, metric)}" for metric, (title, _) in METRICS.items()]
    for metric in ("psnr", "ssim"):
        title = METRICS[metric][0]
        parts.append(
            f"{title}, difference to {ZERO_FILLED}:\n\n{difference_table(results, metric, lambda _: ZERO_FILLED)}"
        )
        for name in (NETWORKS[size].title for size in ("iconet_small", "iconet_paper")):
            if name in results.methods:
                table = difference_table(results, metric, same_consistency(name))
                parts.append(f"{title}, difference to {name} with the same data consistency:\n\n{table}")
    parts.append(f"Smallest PSNR gain of any volume over {ZERO_FILLED}, and the residual:\n\n{worst_table(results)}")
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
