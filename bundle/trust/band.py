"""The edge of the acquired band in the power spectrum of one image axis, sharp or softened by a k-space filter.

Two explanations of the power at the frequencies 1 to Nyquist are fitted and compared:

* **cut**: a smooth spectrum, multiplied by one of the usual k-space filters, ends at half the acquired matrix; beyond
  it lies a floor (rounding, the magnitude's rectified background, noise added after the interpolation);
* **not cut**: a smooth spectrum, which may be blurred or filtered over the whole band, falls onto the same floor, or
  was averaged over neighbours, which leaves zeros in the spectrum with signal on both sides.

The difference of their misfits is a log likelihood ratio. Blur, a noise floor or a filter of the whole band explain
nothing that the second does not explain as well, so they are not taken for interpolation. Missing halves of k-space
(partial Fourier) do step down, but by 3 to 8 dB onto a spectrum full of signal: hence the edge must also be deep.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

Array = np.ndarray

_EDGES = (0.3, 0.94)  # range of the edge, in units of Nyquist
_REACH = 0.35  # the explanations are compared from this part of the edge upwards
_WORST = 25.0  # misfit of one frequency is capped here: one odd frequency decides nothing
_SCATTER = 0.5  # decibels, at least: no spectrum is as smooth as the model
_COARSE = 128  # about so many edges are tried, and then all those beside the best
_NEGLIGIBLE = 1e-3  # weight of the smear
_FEWEST = 6  # frequencies that a fit needs
_FLOOR_TAIL, _HIGHEST_TAIL = 0.08, 3.0  # length of the tail beside the edge in units of the edge, and decibels
# Log odds are 0 at the first value, and rise by 1 with the second.
_LIKELIHOOD, _DEPTH, _SOFT_OUTSIDE = (13.0, 6.0), (11.7, 1.3), (0.74, 0.04)
_BEYOND_DOUBT, _PER_DECIBEL, _MOST_SPARED = 45.0, 40.0, 3.0  # a higher likelihood ratio makes up for some depth


def _raised_cosine(width: float) -> Callable[[Array], Array]:
    return lambda f: 0.5 + 0.5 * np.cos(np.pi * np.clip((f - 1 + width) / width, 0, 1))


def _fermi(centre: float, width: float) -> Callable[[Array], Array]:
    return lambda f: 1 / (1 + np.exp((f - centre) / width))


def _hamming(alpha: float) -> Callable[[Array], Array]:
    return lambda f: alpha + (1 - alpha) * np.cos(np.pi * f)


_FILTERS: list[tuple[str | None, Callable[[Array], Array]]] = [
    (None, np.ones_like),  # an even matrix
    (None, np.ones_like),  # an odd one
    *(("Hamming", _hamming(a)) for a in (0.54, 0.7, 0.85)),
    *(("raised cosine", _raised_cosine(w)) for w in (0.15, 0.3, 0.5, 0.75)),
    ("Hann", _raised_cosine(1.0)),
    *(("Fermi", _fermi(c, w)) for c, w in ((0.9, 0.05), (1.0, 0.05), (1.0, 0.1), (0.8, 0.1))),
]
"""k-space filters as functions of the frequency in units of the acquired band's edge, from 0 to 1."""
_NYQUIST = np.where(np.arange(len(_FILTERS)) == 1, 0.0, 0.25)
"""Power that is left at the edge: the Nyquist sample of an even matrix is split between both sides."""
_AVERAGES = (3, 5, 7)
"""Lengths of moving averages."""
_CLEARLY = 0.25  # a filter is named if it adds this part to the log likelihood ratio


@dataclass(frozen=True)
class Edge:
    """The likeliest end of the acquired band.

    Attributes:
        size: acquired samples, even or odd.
        confidence: from 0 to 1.
        filtered: name of the k-space filter that explains the fall before the edge; ``None`` for a sharp edge.
        likelihood: log likelihood ratio of "cut" to "not cut".
        depth: decibels between the power at three quarters of the band and that beyond the edge.
    """

    size: int
    confidence: float
    filtered: str | None
    likelihood: float
    depth: float

    @property
    def log_odds(self) -> float:
        """Of the confidence."""
        return float(np.log(self.confidence / (1 - self.confidence)))


def confidence_of(log_odds: float) -> float:
    """Probability strictly between 0 and 1."""
    return float(1 / (1 + np.exp(-np.clip(log_odds, -30.0, 30.0))))


def band_edge(power: Array, smear: Array, near: tuple[float, float] | None = None) -> Edge | None:
    """Where the acquired band ends, with a confidence that may be small; ``None`` if nothing can be fitted.

    Args:
        power: at the frequencies 1 to Nyquist in steps of one sample, both signs averaged, shape (K,).
        smear: what the window of the image makes of a single frequency, shape (2 r + 1,), sum 1.
        near: only consider acquired matrices of this range of samples.
    """
    count = len(power)
    if count < 16 or not power.max() > 0:
        return None
    power = np.maximum(power, 1e-10 * power.max())
    level = _decibels(power)
    low, high = (0.0, np.inf) if near is None else near
    first = max(8.0, _EDGES[0] * count, low / 2)
    last = min(_EDGES[1] * count, high / 2, count - _width(smear) - 3)  # a floor needs some frequencies
    edges = np.arange(round(first), int(last) + 1)
    if not len(edges):
        return None
    step = 1 + count // _COARSE
    search = _Search(power, level, smear)
    fits, which, at, likelihoods = search(edges[::step])
    if step > 1:
        fits, which, at, likelihoods = search(edges[np.abs(edges - fits.edges[at]) < step])
    return _judged(fits, level, which, at, likelihoods)


class _Search:
    """Compares both explanations for any candidate edges."""

    def __init__(self, power: Array, level: Array, smear: Array) -> None:
        self._power, self._level, self._smear = power, level, smear
        self._scatter = max(_SCATTER, 1.5 * 1.4826 / np.sqrt(6) * float(np.median(np.abs(np.diff(level, 2)))))
        self._uncut = self._misfit(_whole_band(power)).min(axis=0)

    def _misfit(self, made: Array) -> Array:
        """Of spectra (..., K): sum over a frequency and all higher ones."""
        return _from_above(_loss(made - self._level, self._scatter))

    def __call__(self, edges: Array) -> tuple[_Fits, int, int, Array]:
        """Fits, index of the best filter and edge, and the log likelihood ratios of all filters at this edge."""
        fits = _Fits(self._power, edges, self._smear)
        self._uncut = np.minimum(self._uncut, self._misfit(fits.falling()).min(axis=0))
        start = np.maximum(3, np.ceil(_REACH * edges).astype(int) - 1)
        cut = np.stack([self._misfit(made)[np.arange(len(edges)), start] for made in fits.cut()])
        likelihood = (self._uncut[start] - cut) / 2  # neighbouring frequencies share the window
        which, at = (int(i) for i in np.unravel_index(likelihood.argmax(), likelihood.shape))
        return fits, which, at, likelihood[:, at]


def _judged(fits: _Fits, level: Array, which: int, at: int, likelihoods: Array) -> Edge:
    """The edge with index ``at`` behind filter ``which``, with its exact size and confidence."""
    edge, best = int(fits.edges[at]), float(likelihoods[which])
    sharp = int(likelihoods[:2].argmax())
    if best - likelihoods[sharp] < max(4.0, _CLEARLY * best):
        which = sharp
    inside, outside = round(0.75 * edge), edge + fits.width
    width = max(3, round(0.08 * len(level)))
    depth = float(level[max(0, inside - 3) : inside + 2].mean() - level[outside : outside + width].mean())
    spared = float(np.clip((best - _BEYOND_DOUBT) / _PER_DECIBEL, 0, _MOST_SPARED))
    odds = [(best - _LIKELIHOOD[0]) / _LIKELIHOOD[1], (depth + spared - _DEPTH[0]) / _DEPTH[1]]
    name = _FILTERS[which][0]
    if name is not None:
        # A filter of the whole band over an image that ends softly itself resembles a soft edge near Nyquist.
        odds[0] -= max(0.0, edge / len(level) - _SOFT_OUTSIDE[0]) / _SOFT_OUTSIDE[1]
    return Edge(fits.exact_size(level, which, at), confidence_of(min(odds)), name, best, depth)


def _decibels(power: Array) -> Array:
    values: Array = 10 * np.log10(power)
    return values


def _power(decibels: Array) -> Array:
    values: Array = 10 ** (np.clip(decibels, -300, 300) / 10)
    return values


def _loss(difference: Array, scatter: float) -> Array:
    """Huber's loss of decibels, capped."""
    z = np.abs(difference) / scatter
    loss: Array = np.minimum(np.where(z < 2, z**2 / 2, 2 * z - 2), _WORST)
    return loss


def _from_above(loss: Array) -> Array:
    """Sum of the losses of a frequency and all higher ones."""
    sums: Array = np.cumsum(loss[..., ::-1], axis=-1)[..., ::-1]
    return sums


def _shapes(x: Array) -> Array:
    """(K, 3): a smooth spectrum is a power law times a Gaussian blur, so linear in these functions (decibels)."""
    return np.stack([np.ones_like(x), np.log(x), x**2], axis=-1)


def _least_squares(weights: Array, values: Array, shapes: Array) -> Array:
    """Coefficients (M, d) of weighted fits of values (M, K) by shapes (K, d) or (M, K, d)."""
    shapes = np.broadcast_to(shapes, (len(values), *shapes.shape[-2:]))
    weighted = (shapes * weights[..., None]).transpose(0, 2, 1)
    normal = weighted @ shapes
    ridge = 1e-7 * (1e-9 + np.trace(normal, axis1=1, axis2=2))
    solved: Array = np.linalg.solve(
        normal + ridge[:, None, None] * np.eye(shapes.shape[-1]), weighted @ values[..., None]
    )
    return solved[..., 0]


def _width(smear: Array) -> int:
    """Frequencies on each side of an edge that the window of the image mixes."""
    reach = np.arange(len(smear)) - len(smear) // 2
    return max(1, int(np.ceil(2 * np.sqrt((smear * reach**2).sum()))))


class _Fits:
    """Fits of a spectrum for each candidate edge (first index) and filter."""

    def __init__(self, power: Array, edges: Array, smear: Array) -> None:
        count = len(power)
        self.edges, self._k = edges, np.arange(1, count + 1)
        self.width = _width(smear)
        self._smear = smear
        self._shapes = _shapes(self._k / count)
        self._floor = self._fitted_floor(_decibels(power))
        floor = _power(self._floor)
        self._signal = _decibels(np.maximum(power - floor, 1e-3 * power))
        below = (self._k < edges[:, None] - self.width + 2) & (self._k >= np.maximum(4, 0.3 * edges[:, None]))
        self._used = below & (power > 2 * floor)
        self._smooth = [self._fitted_signal(i) for i in range(len(_FILTERS))]

    def _fitted_floor(self, level: Array) -> Array:
        """Decibels (edges, K): a straight line beyond the edge, higher beside it; its value at the edge inside it."""
        edges = self.edges[:, None]
        distance = np.maximum(self._k - edges - self.width, 0) / edges
        shapes = np.stack([np.ones_like(distance), distance, np.exp(-distance / _FLOOR_TAIL)], axis=-1)
        outside = (self._k >= edges + self.width).astype(float)
        normal = (shapes * outside[..., None]).transpose(0, 2, 1)
        fitted = np.linalg.solve(normal @ shapes + np.diag([1e-9, 1e-4, 0.5]), normal @ level[:, None])
        fitted[:, 2] = np.clip(fitted[:, 2], 0, _HIGHEST_TAIL)
        floor: Array = (shapes @ fitted)[..., 0]
        return floor

    def _fitted_signal(self, which: int) -> Array:
        """Decibels (edges, K) of the filtered spectrum without its end; NaN where too few frequencies are left."""
        attenuation = 20 * np.log10(
            np.maximum(_FILTERS[which][1](np.minimum(self._k / self.edges[:, None], 1.0)), 1e-4)
        )
        used = self._used & (attenuation > -35)
        smooth = _least_squares(used.astype(float), self._signal - attenuation, self._shapes) @ self._shapes.T
        signal: Array = np.where(used.sum(axis=1)[:, None] >= _FEWEST, smooth + attenuation, np.nan)
        return signal

    def cut(self) -> Iterator[Array]:
        """For each filter, decibels (edges, K) of spectra that end at the edge."""
        below, at, floor = self._k < self.edges[:, None], self._k == self.edges[:, None], _power(self._floor)
        for signal, nyquist in zip(self._smooth, _NYQUIST, strict=True):
            ended = self._smeared(_power(signal) * (below + nyquist * at))
            yield np.nan_to_num(_decibels(ended + floor), nan=1e3)

    def falling(self) -> Array:
        """Decibels (edges, K) of spectra that do not end there, but fall onto the floor."""
        return np.nan_to_num(_decibels(_power(self._smooth[0]) + _power(self._floor)), nan=1e3)

    def _smeared(self, power: Array) -> Array:
        """Spectra (M, K) as the window of the image shows them; they go on beyond both ends as they were there."""
        count, reach = power.shape[1], len(self._smear) // 2
        padded = np.pad(power, ((0, 0), (reach, reach)), mode="edge")
        made = np.zeros_like(power)
        for shift, weight in enumerate(self._smear):
            if weight > _NEGLIGIBLE:
                made += weight * padded[:, shift : shift + count]
        return made

    def exact_size(self, level: Array, which: int, at: int) -> int:
        """The acquired matrix to the sample."""
        edge = int(self.edges[at])
        sizes = np.arange(2 * edge - 4, 2 * edge + 4)
        last = (sizes // 2)[:, None]
        kept = np.where((self._k == last) & (sizes % 2 == 0)[:, None], _NYQUIST[0], (self._k <= last).astype(float))
        made = _decibels(self._smeared(_power(self._smooth[which][at]) * kept) + _power(self._floor[at]))
        near = np.abs(self._k - edge) <= 3 + self.width
        misfit = _loss(made - level, 1.0)[:, near].sum(axis=1)
        return int(sizes[misfit.argmin()])


def _averaged(x: Array, length: int) -> Array:
    """What a moving average of so many samples leaves at frequencies in units of Nyquist, from 0 to 1."""
    return np.abs(np.sinc(length * x / 2) / np.sinc(x / 2))


def _whole_band(power: Array) -> Array:
    """Decibels (M, K) of smooth spectra without an edge, filtered over the whole band, on a constant floor.

    Moving averages are tried without a floor: where it hides the signal beyond their first zero, that may be an edge.
    """
    count = len(power)
    x = np.arange(1, count + 1) / count
    shapes = np.concatenate([_shapes(x), x[:, None] ** 4], axis=1)
    top = float(np.median(power[-max(3, count // 40) :]))
    filters = 20 * np.log10(np.maximum([taper(x) for _, taper in _FILTERS], 1e-4))
    averages = 20 * np.log10(np.maximum([_averaged(x, length) for length in _AVERAGES], 1e-2))  # the window fills zeros
    made: list[Array] = []
    for floor in (1e-9 * top, 0.5 * top, 0.9 * top):
        attenuations = np.concatenate([filters, averages]) if not made else filters
        signal = _decibels(np.maximum(power - floor, 1e-3 * power))
        for lowest in (0.08, 0.2, 0.35):
            used = ((x >= lowest) & (power > 1.7 * floor) & (attenuations > -30)).astype(float)
            for basis in (shapes[:, :3], shapes):
                fit = _least_squares(used, signal - attenuations, basis)
                made.append(_decibels(_power(fit @ basis.T + attenuations) + floor))
    return np.concatenate(made)
