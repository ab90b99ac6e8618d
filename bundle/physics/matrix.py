"""The in-plane matrix that a scanner acquired, as opposed to the one that it stored."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

Kind = Literal["zero-filled", "kernel"]


@dataclass(frozen=True)
class StatedMatrix:
    """The acquired matrix as a file states it, in its DICOM header or BIDS sidecar.

    Attributes:
        samples: acquired samples over the stored field of view, for each of the three array axes; they need not be
            whole numbers (percent sampling); None where nothing is stated, as for the slice axis.
        source: where it is stated, such as "DICOM header" or "BIDS sidecar".
    """

    samples: tuple[float | None, float | None, float | None]
    source: str


@dataclass(frozen=True)
class KnownMatrix:
    """The in-plane matrix that was acquired, and how it is known.

    Attributes:
        stored: samples along the two in-plane array axes, in the order of the array.
        acquired: samples that hold all the information, at most ``stored``; the same where nothing was interpolated.
        source: "image", "header", "image and header", or "given" by the user.
        confidence: from 0 to 1, that the acquired matrix is right; 1 if it was given.
        kinds: how each of the two axes was interpolated; None where it was not.
        filtered: the k-space filter that was found, in words; it is named, not inverted.
        notes: lines for the record, such as that header and image do not agree.
    """

    stored: tuple[int, int]
    acquired: tuple[int, int]
    source: str
    confidence: float = 1.0
    kinds: tuple[Kind | None, Kind | None] = (None, None)
    filtered: str | None = None
    notes: tuple[str, ...] = field(default=())

    @property
    def interpolated(self) -> bool:
        """Whether fewer samples were acquired than are stored."""
        return self.acquired != self.stored
