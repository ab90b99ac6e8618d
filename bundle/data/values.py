"""What the values of a volume mean: which voxels are padding, and whether negative values are measurements.

One survey over all volumes of a series decides for all of them, on every route.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

LEAST_PADDING = 1e-3
"""A plateau is padding only if it has at least this share of the voxels."""

NEVER_MEASURED = -32768.0
"""The lowest value of 16-bit numbers is padding in any number of voxels."""

STRAYS = 1e-3
"""This share of the other voxels may be as low as padding, as streaks beside metal in CT are."""

PADDING_GAP = 2.0
"""... and lies below all others but strays by at least this multiple of their range (1st to 99th percentile): the
background of standardised images is nearer."""

AIR = (-1024.0, -1000.0)
"""How CT stores air: a plateau there is signal."""

BELOW_AIR_GAP = 0.25
"""The same multiple for values below those of air: CT has padding at -2000 and -3024, near its signal."""

SIGNED = 0.03
"""Negative values are measurements if their root of sum of squares exceeds this share of that of all voxels of a
volume; those of one volume suffice for a series.

Interpolation by cubic splines of real images gives 0.001 to 0.005 and of a phantom with hard edges 0.024; CT, z-scores
and differences give 0.3 to 1. Setting to zero what is below changes an image by less than this share."""

NEXT_TO_NOTHING = 1e-3
"""Negative values of a volume count if their root mean square is this share of that of the series."""

_SAMPLES = 40_000  # of a volume, for percentiles
_CHUNK = 4 * 2**20


@dataclass(frozen=True)
class Values:
    """What the values of a volume, or of all volumes of a series, mean.

    Attributes:
        padding: the value of voxels in which nothing was measured; None if there are none.
        padding_share: their share of all voxels.
        signed: negative values are measurements; otherwise the image is a magnitude, and they are set to zero.
        negative_share: root of the sum of squares of the negative voxels as a share of that of all, without padding; of
            a series, that of the volume with the largest.
        negatives, lowest: how many voxels are negative, and the lowest value; without padding.
        strongest: number of the volume with the largest contrast, from 0: what holds for all volumes of a series, such
            as the acquired matrix, is looked for there. The first one may be empty, or noise.
    """

    padding: float | None = None
    padding_share: float = 0.0
    signed: bool = False
    negative_share: float = 0.0
    negatives: int = 0
    lowest: float = 0.0
    strongest: int = field(default=0, compare=False)

    def mask(self, frame: np.ndarray) -> np.ndarray | None:
        """Which voxels of a volume are padding; None if none are."""
        if self.padding is None:
            return None
        mask = frame == np.float32(self.padding)
        return mask if mask.any() else None

    @property
    def warnings(self) -> tuple[str, ...]:
        lines = []
        if self.padding is not None:
            lines.append(
                f"padding: {100 * self.padding_share:.3g}% of the voxels have the value {self.padding:g}; the network "
                "sees a continuation of their neighbourhood, and they are padding again in the result"
            )
        if self.negatives and not self.signed:
            what = "1 slightly negative voxel" if self.negatives == 1 else f"{self.negatives} slightly negative voxels"
            lines.append(f"set to zero: {what} (lowest {self.lowest:.4g}) in an image that is otherwise a magnitude")
        return tuple(lines)

    def record(self) -> dict[str, Any]:
        """The entries of the record beside a result."""
        return {
            "PaddingValue": self.padding,
            "PaddingShare": float(f"{self.padding_share:.6g}"),
            "Signed": self.signed,
            "NegativeShare": float(f"{self.negative_share:.6g}"),
            "NegativeVoxels": self.negatives,
        }


def put_padding(frame: np.ndarray, mask: np.ndarray, padding: float) -> None:
    """Set the padding of a volume, in place (float32); no other voxel may have its value, so that is moved a little."""
    value = np.float32(padding)
    frame[frame == value] = np.nextafter(value, np.float32(0 if value else 1))
    frame[mask] = value


@dataclass(frozen=True)
class _Volume:
    """What a survey keeps of a volume; the voxels of the lowest value, which may be padding, are kept apart."""

    lowest: float
    plateau: int
    next: float
    energy: float
    negative_energy: float
    negatives: int
    variance: float = 0.0

    def without(self, padding: float | None) -> _Volume:
        """The volume with its lowest voxels counted among the others, unless they are padding."""
        if self.lowest == padding or not self.plateau:
            return self
        energy, below = self.plateau * self.lowest**2, self.lowest < 0
        return _Volume(
            *(self.lowest, 0, min(self.lowest, self.next), self.energy + energy),
            self.negative_energy + (energy if below else 0.0),
            self.negatives + (self.plateau if below else 0),
        )

    @property
    def negative_share(self) -> float:
        return (self.negative_energy / self.energy) ** 0.5 if self.energy else 0.0


@dataclass
class Survey:
    """Collects what is needed to decide, volume by volume; the order of the volumes does not matter.

    Attributes:
        declared: value of padding that the file declares; without one, padding is a plateau of one negative value far
            below all others.
        hounsfield: any negative value is a measurement, as in CT.
    """

    declared: float | None = None
    hounsfield: bool = False
    _count: int = 0
    _volumes: list[_Volume] = field(default_factory=list)
    _samples: list[np.ndarray] = field(default_factory=list)

    def add(self, frame: np.ndarray) -> None:
        """Take a volume (X, Y[, Z]) into account."""
        values = np.asarray(frame, np.float32)
        lowest = float(np.float32(self.declared)) if self.declared is not None else float(values.min())
        rest = values[values != lowest]
        total, energy, negative_energy, negatives = 0.0, 0.0, 0.0, 0
        for at in range(0, rest.size, _CHUNK):
            piece = rest[at : at + _CHUNK].astype(np.float64)
            below = piece[piece < 0]
            total += float(piece.sum())
            energy += float(np.square(piece).sum())
            negative_energy += float(np.square(below).sum())
            negatives += below.size
        following = float(rest.min()) if rest.size else np.inf
        variance = energy / rest.size - (total / rest.size) ** 2 if rest.size else 0.0
        plateau = values.size - rest.size
        self._volumes.append(_Volume(lowest, plateau, following, energy, negative_energy, negatives, variance))
        self._count += values.size
        if sum(map(len, self._samples)) < 50 * _SAMPLES:
            step = max(1, round((values.size / _SAMPLES) ** (1 / values.ndim)))
            self._samples.append(values[(slice(None, None, step),) * values.ndim].flatten())

    def decide(self) -> Values:
        """The decision for all volumes that were added."""
        lowest = min((volume.lowest for volume in self._volumes if volume.plateau), default=0.0)
        padded = sum(volume.plateau for volume in self._volumes if volume.lowest == lowest)
        padding = lowest if self._is_padding(lowest, padded) else None
        volumes = [volume.without(padding) for volume in self._volumes]
        # Volumes that are next to empty, as before an injection, have no say.
        faint = NEXT_TO_NOTHING**2 * sum(volume.energy for volume in volumes) / max(len(volumes), 1)
        share = max((volume.negative_share for volume in volumes if volume.negative_energy >= faint), default=0.0)
        negatives = sum(volume.negatives for volume in volumes)
        return Values(
            padding,
            padded / self._count if padding is not None else 0.0,
            bool(negatives) if self.hounsfield else share > SIGNED,
            share,
            negatives,
            min((volume.next for volume in volumes if np.isfinite(volume.next)), default=0.0),
            max(range(len(volumes)), key=lambda number: self._volumes[number].variance, default=0),
        )

    def _is_padding(self, lowest: float, count: int) -> bool:
        if not 0 < count < self._count:
            return False
        if self.declared is not None:
            return True
        if lowest >= 0 or AIR[0] <= lowest <= AIR[1]:
            return False
        if count < LEAST_PADDING * self._count and lowest != NEVER_MEASURED:
            return False
        others = np.concatenate(self._samples)
        others = others[others != lowest]
        if not others.size:
            return False
        gap = BELOW_AIR_GAP if lowest < AIR[0] else PADDING_GAP
        following, low, high = np.percentile(others.astype(np.float64), (100 * STRAYS, 1, 99))
        return bool(high > low and following - lowest >= gap * (high - low))


def survey(frames: Iterable[np.ndarray], declared: float | None = None, hounsfield: bool = False) -> Values:
    """What the values of all these volumes mean; arguments as for :class:`Survey`."""
    found = Survey(declared, hounsfield)
    for frame in frames:
        found.add(frame)
    return found.decide()
