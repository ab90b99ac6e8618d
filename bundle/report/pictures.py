"""Pictures as data URIs, small enough that a report on many volumes still opens."""

from __future__ import annotations

import base64
import math
from dataclasses import dataclass
from io import BytesIO

import matplotlib
import numpy as np
import torch
from matplotlib.figure import Figure
from PIL import Image, ImageDraw

from bundle.physics import fft2c

LONGEST = 256
_QUALITY = 88
_STEPS = 15
_SPECTRUM = 192  # samples on the longest side: k-space is mostly noise, which compresses worst
_DECIBELS = 80.0


@dataclass(frozen=True)
class Picture:
    """A picture for an ``<img>``: data URI, alternative text, aspect ratio (width over height) when shown."""

    uri: str
    alt: str
    aspect: float


def grey_picture(image: np.ndarray, window: tuple[float, float], alt: str, aspect: float, longest: int) -> Picture:
    """An image (height, width), grey from the low to the high end of a window.

    Images with more than ``longest`` samples on a side are reduced by area averaging; the browser does any enlarging.
    """
    return Picture(_webp(_coloured(_reduced(image, longest), window, "gray")), alt, aspect)


def signed_picture(image: np.ndarray, reach: float, alt: str, aspect: float, longest: int) -> Picture:
    """A signed image (height, width): blue at minus ``reach``, white at 0, red at ``reach``.

    Stored losslessly, in steps of a fifteenth of the reach: lossy formats would mix neighbouring blue and red.
    """
    steps = np.rint(np.clip(_reduced(image, longest) / reach, -1.0, 1.0) * _STEPS)
    return Picture(_webp(_coloured(steps, (-_STEPS, _STEPS), "RdBu_r"), lossless=True), alt, aspect)


def spectrum(
    image: np.ndarray, measured: tuple[int, int], alt: str, peak: float, stored: tuple[int, int] | None = None
) -> Picture:
    """Log magnitude of the k-space of an image (H, W) below ``peak``, with a box around the measured samples (h, w).

    A grey box is around the ``stored`` samples, if they are more than the measured ones.
    """
    magnitude = _magnitudes(image)
    decibels = _reduced(20 * np.log10(np.maximum(magnitude / peak, 1e-12)), _SPECTRUM)
    drawn = _coloured(decibels, (-_DECIBELS, 0.0), "inferno")
    scale = [have / full for have, full in zip(decibels.shape, image.shape, strict=True)]
    boxes = [(stored, (150, 150, 150))] if stored is not None and stored != measured else []
    for size, colour in (*boxes, (measured, (0, 230, 230))):
        (top, bottom), (left, right) = (
            (s * (n // 2 - m // 2), s * (n // 2 - m // 2 + m) - 1)
            for s, n, m in zip(scale, image.shape, size, strict=True)
        )
        ImageDraw.Draw(drawn).rectangle((left, top, right, bottom), outline=colour)
    return Picture(_webp(drawn), alt, 1.0)


def spectrum_peak(image: np.ndarray) -> float:
    """Largest magnitude in the k-space of an image."""
    return float(_magnitudes(image).max()) or 1.0


def share_beyond(image: np.ndarray, measured: tuple[int, int]) -> float:
    """Fraction of the energy of an image's contrast that lies outside the measured samples (h, w)."""
    power = np.square(_magnitudes(image - image.mean()))
    (top, h), (left, w) = ((n // 2 - m // 2, m) for n, m in zip(image.shape, measured, strict=True))
    total = float(power.sum())
    return 1.0 - float(power[top : top + h, left : left + w].sum()) / total if total else 0.0


def _magnitudes(image: np.ndarray) -> np.ndarray:
    """Magnitude of the k-space of an image (H, W), DC in the middle."""
    magnitudes: np.ndarray = fft2c(torch.tensor(np.ascontiguousarray(image))).abs().numpy()
    return magnitudes


def histograms(before: np.ndarray, after: np.ndarray, alt: str) -> Picture:
    """Intensity histograms of the voxels before and after, as fractions on a logarithmic scale."""
    low, high = np.percentile(after, (0.01, 99.99))
    reach = 0.1 * (high - low) or 1.0
    edges = np.linspace(min(low, 0.0), high + reach, 81)
    figure = Figure(figsize=(5.4, 2.4), layout="constrained")
    axes = figure.add_subplot()
    for voxels, label, colour in ((before, "input", "#3b82f6"), (after, "output", "#f97316")):
        shares = np.histogram(voxels, edges)[0] / voxels.size
        axes.stairs(shares, edges, label=label, color=colour, linewidth=1.4)
    axes.set(yscale="log", xlabel="intensity in the units of the file", ylabel="fraction of voxels")
    axes.minorticks_off()
    axes.legend(frameon=False, labelcolor="#808080")
    axes.tick_params(colors="#808080")
    for part in (axes.xaxis.label, axes.yaxis.label):
        part.set_color("#808080")
    axes.spines[:].set_color("#808080")
    stream = BytesIO()
    # Keep text as text, and give equal bytes for equal data.
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "report", "font.family": "sans-serif"}):
        figure.savefig(stream, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return Picture(_uri("svg+xml", stream.getvalue()), alt, 5.4 / 2.4)


def _reduced(image: np.ndarray, longest: int) -> np.ndarray:
    height, width = (math.ceil(n / max(1.0, max(image.shape) / longest)) for n in image.shape)
    if (height, width) == image.shape:
        return image
    resized = Image.fromarray(image.astype(np.float32)).resize((width, height), Image.Resampling.BOX)
    return np.asarray(resized)


def _coloured(image: np.ndarray, window: tuple[float, float], colours: str) -> Image.Image:
    low, high = window
    levels = np.clip((image - low) / ((high - low) or 1.0), 0.0, 1.0)
    rgb = matplotlib.colormaps[colours](levels, bytes=True)[..., :3]
    return Image.fromarray(np.ascontiguousarray(rgb))


def _webp(image: Image.Image, lossless: bool = False) -> str:
    stream = BytesIO()
    image.save(stream, format="WEBP", quality=_QUALITY, lossless=lossless)
    return _uri("webp", stream.getvalue())


def _uri(kind: str, content: bytes) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode('ascii')}"
