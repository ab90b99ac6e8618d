"""Figures of the comparison: methods next to the truth, and the stages of a network, with error maps on one scale."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.patches import Rectangle
from PIL import Image
from torch import Tensor

from bundle.networks import ICONetOutput

WIDTH, SMALLEST, LARGEST = 14.0, 1.2, 1.75
"""Inches: width of a whole figure with many columns, and limits for one column."""
DOTS_PER_INCH = 110
ERRORS, FRAME = "magma", (1.0, 1.0, 0.0)
"""Colour map of the errors, colour of the frame around the magnified part."""


def _show(ax: Axes, image: Tensor, aspect: float, title: str = "", **style: Any) -> AxesImage:
    """An image (rows, columns) with its first axis pointing right and its second up."""
    ax.set_title(title, fontsize=8)
    ax.set_xticks([])
    ax.set_yticks([])
    finer = image.shape[0] > LARGEST * DOTS_PER_INCH
    return ax.imshow(image.T.flip(0).numpy(), interpolation="hanning" if finer else "nearest", aspect=aspect, **style)


def error_limit(errors: Sequence[Tensor], share: float = 0.998) -> float:
    """Upper limit for error maps in percent: the given quantile of the largest errors, rounded up."""
    return float(math.ceil(max(float(torch.quantile(error.flatten().float(), share)) for error in errors)))


def worst_box(error: Tensor, side: int) -> tuple[int, int]:
    """First row and column of the ``side x side`` window with the largest sum of an error map (rows, columns)."""
    total = torch.nn.functional.avg_pool2d(error[None, None].float(), side, stride=1)[0, 0]
    row, column = np.unravel_index(int(total.argmax()), tuple(total.shape))
    return int(row), int(column)


def _panel(columns: int) -> float:
    return min(max(WIDTH / columns, SMALLEST), LARGEST)


def _save(figure: Figure, path: Path) -> None:
    """PNG with a palette of 256 colours (greys, error map, frame): a fraction of the size."""
    figure.set_dpi(DOTS_PER_INCH)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    greys = np.linspace(0, 255, 128)[:, None].repeat(3, axis=1)
    colours = np.concatenate(
        [greys, 255 * colormaps[ERRORS](np.linspace(0, 1, 127))[:, :3], 255 * np.array(FRAME)[None]]
    )
    palette = Image.new("P", (1, 1))
    palette.putpalette(colours.round().astype(np.uint8).tobytes())
    picture = Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")
    picture.quantize(palette=palette, dither=Image.Dither.NONE).save(path, optimize=True)


def _colour_bar(figure: Figure, image: AxesImage, axes: Sequence[Axes], label: str) -> None:
    bar = figure.colorbar(image, ax=list(axes), fraction=0.02, pad=0.01)
    bar.set_label(label, fontsize=8)
    bar.ax.tick_params(labelsize=7)


def draw_methods(images: Mapping[str, Tensor], truth: Tensor, path: Path, title: str, aspect: float = 1.0) -> None:
    """Whole slices, a magnified part, and error maps, one column per method and the truth last.

    The magnified window has a quarter of the slice's width (at most its height) and is where the first method has the
    largest error; that error sets the scale of all error maps.

    Args:
        images: method -> slice (rows, columns), in the order of the columns.
        truth: the true slice.
        path: PNG to write.
        title: of the figure.
        aspect: height of a voxel over its width, as shown.
    """
    top = float(truth.max())
    errors = {name: 100 * (image - truth).abs() / top for name, image in images.items()}
    side = max(1, min(truth.shape[0] // 4, truth.shape[1]))
    first = next(iter(errors.values()))
    row, column = worst_box(first, side)
    limit = error_limit([first])
    columns = {**images, "truth": truth}
    ratio = truth.shape[1] / truth.shape[0] * aspect
    panel = _panel(len(columns))
    figure = Figure(figsize=(panel * len(columns) + 0.6, panel * (2 * ratio + aspect) + 0.9), layout="compressed")
    axes = figure.subplots(3, len(columns), height_ratios=(ratio, aspect, ratio), squeeze=False)
    grey: dict[str, Any] = {"cmap": "gray", "vmin": 0, "vmax": top}
    for number, (name, image) in enumerate(columns.items()):
        _show(axes[0, number], image, aspect, name, **grey)
        axes[0, number].add_patch(_frame(truth, row, column, side))
        _show(axes[1, number], image[row : row + side, column : column + side], aspect, **grey)
        if name in errors:
            shown = f"RMSE {float(errors[name].square().mean().sqrt()):.2f} %"
            drawn = _show(axes[2, number], errors[name], aspect, shown, cmap=ERRORS, vmin=0, vmax=limit)
        else:
            axes[2, number].set_axis_off()
    _colour_bar(figure, drawn, axes[2], "|error|, % of maximum")
    figure.suptitle(title, fontsize=9)
    _save(figure, path)


def _frame(truth: Tensor, row: int, column: int, side: int) -> Rectangle:
    """Mark the magnified window in the picture of the whole slice."""
    low = truth.shape[1] - column - side - 0.5  # pictures are drawn with the second axis up
    return Rectangle((row - 0.5, low), side, side, fill=False, edgecolor=FRAME, linewidth=0.8)


def draw_stages(
    low: Tensor, output: ICONetOutput, targets: ICONetOutput, path: Path, title: str, aspect: float = 1.0
) -> None:
    """Targets, outputs and errors of every stage, in the order of the network.

    Args:
        low: the input slice (rows, columns).
        output: the network's images, each (1, 1, rows, columns).
        targets: their targets, in the same order.
        path: PNG to write.
        title: of the figure.
        aspect: height of a voxel over its width, as shown.
    """
    made, wanted = _in_order(output, low), _in_order(targets, low)
    top = float(wanted[-1][1].max())
    made = [("input", low), *made]
    wanted = [wanted[0], *wanted]  # the input is compared with the target of the first reconstruction
    errors = [100 * (image - target).abs() / top for (_, image), (_, target) in zip(made, wanted, strict=True)]
    limit = error_limit(errors)
    ratio = low.shape[1] / low.shape[0] * aspect
    panel = _panel(len(made))
    figure = Figure(figsize=(panel * len(made) + 0.6, panel * 3 * ratio + 0.9), layout="compressed")
    axes = figure.subplots(3, len(made), squeeze=False)
    grey: dict[str, Any] = {"cmap": "gray", "vmin": 0, "vmax": top}
    for number, ((name, image), (_, target), error) in enumerate(zip(made, wanted, errors, strict=True)):
        size = f"{image.shape[0]}x{image.shape[1]}"
        _show(axes[0, number], target, aspect, f"target, {size}", **grey)
        _show(axes[1, number], image, aspect, name, **grey)
        shown = f"RMSE {float(error.square().mean().sqrt()):.2f} %"
        drawn = _show(axes[2, number], error, aspect, shown, cmap=ERRORS, vmin=0, vmax=limit)
    _colour_bar(figure, drawn, axes[2], "|error|, % of maximum")
    figure.suptitle(title, fontsize=9)
    _save(figure, path)


def _in_order(output: ICONetOutput, low: Tensor) -> list[tuple[str, Tensor]]:
    """[("Rec 1", image), ("SR x2", image), ...] of (1, 1, rows, columns) images; a network may have no Rec.

    T2Net takes one step to any scale, so the factor follows from the sizes, not from the number of the stage.
    """
    images: list[tuple[str, Tensor]] = []
    for number, image in enumerate(output.super_resolved):
        if number < len(output.reconstructions):
            images.append((f"Rec {number + 1}", output.reconstructions[number][0, 0]))
        images.append((f"SR x{image.shape[2] // low.shape[0]}", image[0, 0]))
    return images
