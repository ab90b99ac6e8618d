"""The HTML of a report: a section for each volume, and the page around them."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from bundle.data.atomic import replacing
from bundle.data.paths import PathLike
from bundle.report.entry import ReportEntry
from bundle.report.pictures import (
    LONGEST,
    Picture,
    grey_picture,
    histograms,
    share_beyond,
    signed_picture,
    spectrum,
    spectrum_peak,
)
from bundle.report.planes import Plane, axis_codes, planes

_DETAIL = 96  # samples on a side of the enlarged part
_ACROSS = 200  # longest side of the planes across the slices

_environment = Environment(
    loader=PackageLoader(__name__.rpartition(".")[0]),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)


@dataclass(frozen=True)
class Section:
    """The rendered section of one volume and its row in the table at the top; holds no voxels."""

    name: str
    html: str
    sizes: str
    residual: float | None
    warnings: int
    seconds: float | None


@dataclass(frozen=True)
class _View:
    """Grey-scale window of the images and range of the differences, the same for all pictures of a volume."""

    window: tuple[float, float]
    reach: float

    @property
    def percent(self) -> float:
        """The range of the differences in per cent of the grey-scale window."""
        return 100 * self.reach / ((self.window[1] - self.window[0]) or 1.0)


@dataclass(frozen=True)
class _Row:
    """Three pictures of one plane."""

    title: str
    directions: str
    interpolated: Picture
    output: Picture
    difference: Picture
    enlarged: bool


def section(entry: ReportEntry) -> Section:
    """Draw one volume; its voxels are not needed afterwards."""
    cuts = planes(entry)
    shown, across = cuts[0], cuts[1:]
    view = _View(_window(cuts), _reach(cuts))
    stored, measured = _bands(entry, shown)
    html = _environment.get_template("volume.html.j2").render(
        entry=entry,
        rows=[
            _row(shown, view, entry.name, LONGEST, False),
            _row(_detail(shown), view, entry.name, _DETAIL, True),
            *(_row(plane, view, entry.name, _ACROSS, True) for plane in across),
        ],
        view=view,
        spectra=_spectra(shown, measured, stored, entry.name),
        beyond=share_beyond(shown.output, measured),
        acquired=None if entry.acquired is None else _acquired(entry),
        histogram=histograms(entry.input_voxels, entry.output_voxels, f"histograms, {entry.name}"),
        statistics=_statistics(entry),
        header=_header(entry),
        facts=_lines(entry.facts),
    )
    sizes = " → ".join(_shape(voxels) for voxels in (entry.input_voxels, entry.output_voxels))
    return Section(entry.name, html, sizes, entry.residual, len(entry.warnings), entry.seconds)


def write_report(
    sections: Sequence[Section],
    path: PathLike,
    run_facts: Mapping[str, Any],
    failures: Mapping[str, str] | None = None,
) -> Path:
    """Atomically write one self-contained HTML file without scripts or network access.

    Args:
        sections: from :func:`section`, in the order of the page.
        path: of the file; missing folders are made.
        run_facts: facts about the whole run: versions, hash of the weights, settings, seconds.
        failures: name of each volume that failed, and why.

    Raises:
        OSError: the file cannot be written; no partial file is left.
    """
    target = Path(path)
    page = _environment.get_template("page.html.j2").stream(
        sections=[(f"volume-{number}", part, Markup(part.html)) for number, part in enumerate(sections, start=1)],
        facts=_lines(run_facts),
        failures=dict(failures or {}),
    )
    with replacing(target) as stream:
        page.dump(stream, encoding="utf-8", errors="backslashreplace")  # file names need not be valid text
    return target


def _row(plane: Plane, view: _View, name: str, longest: int, enlarged: bool) -> _Row:
    def grey(image: np.ndarray, what: str) -> Picture:
        return grey_picture(image, view.window, f"{what}, {plane.title}, {name}", plane.aspect, longest)

    return _Row(
        plane.title,
        plane.directions,
        grey(plane.interpolated, "Fourier interpolation"),
        grey(plane.output, "network output"),
        signed_picture(plane.difference, view.reach, f"difference, {plane.title}, {name}", plane.aspect, longest),
        enlarged,
    )


def _detail(plane: Plane) -> Plane:
    """The centre of a plane, to be shown enlarged voxel by voxel."""
    height, width = plane.output.shape
    h, w = min(_DETAIL, height), min(_DETAIL, width)
    middle = slice((height - h) // 2, (height - h) // 2 + h), slice((width - w) // 2, (width - w) // 2 + w)
    return Plane(
        f"Centre of this slice, {w} x {h} voxels",
        plane.directions,
        plane.interpolated[middle],
        plane.output[middle],
        plane.aspect * (height * w) / (width * h),
        plane.axes,
    )


def _window(cuts: list[Plane]) -> tuple[float, float]:
    """Grey-scale window: from 0 (or the low end of negative data) to nearly the brightest voxel."""
    values = np.concatenate([cut.output.ravel() for cut in cuts])
    low, high = np.percentile(values, (0.2, 99.8))
    return min(float(low), 0.0), float(high)


def _reach(cuts: list[Plane]) -> float:
    """Range of the differences, rounded up to two digits."""
    value = float(np.percentile(np.abs(np.concatenate([cut.difference.ravel() for cut in cuts])), 99.5))
    if value <= 0 or not math.isfinite(value):
        return 1.0
    digit = 10.0 ** (math.floor(math.log10(value)) - 1)
    return math.ceil(value / digit) * digit


def _bands(entry: ReportEntry, shown: Plane) -> tuple[tuple[int, int], tuple[int, int]]:
    """Samples down and across in the k-space of the shown slice that were stored, and those that were measured."""
    stored = {axis: entry.input_voxels.shape[axis] for axis in entry.in_plane}
    measured = stored if entry.acquired is None else dict(zip(entry.in_plane, entry.acquired, strict=True))

    def within(samples: Mapping[int, int]) -> tuple[int, int]:
        down, across = (min(samples[axis], n) for axis, n in zip(shown.axes, shown.output.shape, strict=True))
        return down, across

    return within(stored), within(measured)


def _acquired(entry: ReportEntry) -> str:
    stored = " x ".join(str(entry.input_voxels.shape[axis]) for axis in entry.in_plane)
    return f"acquired matrix {' x '.join(map(str, entry.acquired or ()))} of {stored}"


def _spectra(shown: Plane, measured: tuple[int, int], stored: tuple[int, int], name: str) -> list[tuple[str, Picture]]:
    """k-space of the shown slice before and after, on the same scale."""
    peak = spectrum_peak(shown.output)
    images = (("Fourier interpolation", shown.interpolated), ("network output", shown.output))
    return [
        (title, spectrum(image, measured, f"k-space of the slice, {title}, {name}", peak, stored))
        for title, image in images
    ]


def _statistics(entry: ReportEntry) -> list[tuple[str, str, str]]:
    measures: dict[str, Callable[[np.ndarray], Any]] = {
        "minimum": np.min,
        "median": np.median,
        "mean": np.mean,
        "maximum": np.max,
    }
    before, after = entry.input_voxels, entry.output_voxels
    return [(name, f"{float(of(before)):.5g}", f"{float(of(after)):.5g}") for name, of in measures.items()]


def _header(entry: ReportEntry) -> list[tuple[str, str, str]]:
    """Rows of the table: what, before, after."""
    columns = [
        _geometry(voxels, affine) | {k: str(v) for k, v in header.items()}
        for voxels, affine, header in (
            (entry.input_voxels, entry.input_affine, entry.input_header),
            (entry.output_voxels, entry.output_affine, entry.output_header),
        )
    ]
    before, after = columns
    return [(key, before.get(key, ""), after.get(key, "")) for key in dict.fromkeys([*before, *after])]


def _geometry(voxels: np.ndarray, affine: np.ndarray) -> dict[str, str]:
    spacing = np.linalg.norm(affine[:3, :3], axis=0)[: voxels.ndim]
    return {
        "matrix": _shape(voxels),
        "voxel size, mm": " x ".join(f"{s:.5g}" for s in spacing),
        "orientation": axis_codes(affine),
        "affine, mm": textwrap.dedent("\n".join("  ".join(f"{x:10.5g}" for x in row) for row in affine[:3])),
    }


def _shape(voxels: np.ndarray) -> str:
    return " x ".join(map(str, voxels.shape))


def _lines(facts: Mapping[str, Any]) -> list[tuple[str, str]]:
    return [(str(key), _text(value)) for key, value in facts.items()]


def _text(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_text(item)}" for key, item in value.items())
    if isinstance(value, (list, tuple)):
        return ", ".join(map(_text, value))
    return f"{value:.6g}" if isinstance(value, float) else str(value)
