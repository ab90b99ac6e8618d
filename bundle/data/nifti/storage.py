"""How real values are stored in a file: data type, slope and intercept, without wrap-around or clipping."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Storage:
    """value = slope * stored + intercept; floating point types are stored unscaled."""

    dtype: np.dtype
    slope: float = 1.0
    intercept: float = 0.0

    def holds(self, low: float, high: float) -> bool:
        """Whether `low`, `high` and all values in between can be stored."""
        if self.dtype.kind == "f":
            return True
        least, most = _stored_range(self.dtype)
        ends = self._stored(np.array([low, high], np.float64))
        return bool(ends.min() >= least and ends.max() <= most)

    def covering(self, low: float, high: float) -> Storage:
        """This storage if it holds the range, otherwise the same type with the finest slope that does."""
        if self.holds(low, high):
            return self
        least, most = _stored_range(self.dtype)
        slope, growth = (high - low) / (most - least) or 1.0, 1e-7
        while True:  # the header holds both numbers as float32, and rounding may push one end out of range
            slope = float(np.float32(slope * (1 + growth)))
            intercept = float(np.float32((low + high) / 2 - slope * (least + most) / 2))
            wider = Storage(self.dtype, slope, intercept)
            if wider.holds(low, high):
                return wider
            growth *= 2

    def encode(self, values: np.ndarray) -> np.ndarray:
        """Values as they are stored, in little-endian byte order.

        Raises:
            OverflowError: a value does not fit into the type.
        """
        kind = self.dtype.newbyteorder("<")
        if self.dtype.kind == "f":
            return values.astype(kind, copy=False)
        stored = self._stored(values)
        least, most = _stored_range(self.dtype)
        if beyond := int(((stored < least) | (stored > most)).sum()):
            raise OverflowError(f"{beyond} values do not fit into {self.dtype.name}")
        return stored.astype(kind)

    def _stored(self, values: np.ndarray) -> np.ndarray:
        return np.rint((values.astype(np.float64) - self.intercept) / self.slope)


FLOAT32 = Storage(np.dtype("<f4"))


def _stored_range(dtype: np.dtype) -> tuple[float, float]:
    """Smallest and largest value of an integer type that float64 represents without leaving the type's range."""
    info = np.iinfo(dtype)
    least, most = float(info.min), float(info.max)
    return least, most if most <= info.max else float(np.nextafter(most, 0))
