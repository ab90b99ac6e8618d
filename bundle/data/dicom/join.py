"""Single slices that an anonymiser has torn apart by giving each file a study, series or patient of its own.

They are joined only on request. A warning says so where slices share number, class, matrix, spacing and orientation and
lie in even steps, and where either the series, or the patient and study, or at least the folder is the same.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Mapping, Sequence

import numpy as np

from bundle.data.dicom.frame import Broken, Frame
from bundle.data.dicom.volumes import places

ENOUGH = 3
"""Fewer slices are always in even steps."""

EVEN = 0.1
"""Largest deviation from a whole number of steps, as a fraction of the step."""

Groups = Mapping[Hashable, Sequence[Frame | Broken]]


def torn_apart(groups: Groups) -> list[list[Hashable]]:
    """Keys of groups of one slice each that seem to be a single series, one list for each series."""
    single = {key: members[0] for key, members in groups.items() if len(members) == 1 and isinstance(members[0], Frame)}
    single = {key: frame for key, frame in single.items() if frame.position and frame.orientation and frame.spacing}
    found = []
    for known, certain in ((_series, True), (_study, True), (_folder, False)):
        together: dict[Hashable, list[Hashable]] = defaultdict(list)
        for key, frame in single.items():
            if (shared := known(frame)) is not None:
                together[shared, *_geometry(frame)].append(key)
        for keys in together.values():
            if len(keys) >= ENOUGH and in_even_steps([single[key] for key in keys], certain):
                found.append(keys)
                for key in keys:
                    del single[key]
    return found


def _series(frame: Frame) -> Hashable | None:
    return frame.image.series or None


def _study(frame: Frame) -> Hashable | None:
    image = frame.image
    return (image.study, image.patient) if image.study else None


def _folder(frame: Frame) -> Hashable | None:
    return frame.path.parent


def _geometry(frame: Frame) -> tuple[Hashable, ...]:
    image = frame.image
    directions = tuple(round(x, 2) + 0.0 for x in (*(frame.orientation or ()), *(frame.spacing or ())))
    return image.sop_class, image.series_number, image.rows, image.columns, directions


def in_even_steps(frames: Sequence[Frame], certain: bool) -> bool:
    """Whether the slices lie in even steps, gaps aside; they share positions only if `certain` to be one."""
    placed = places(frames)
    if placed is None:
        return False
    first = {item.place: item for item in reversed(placed)}
    if len(first) < ENOUGH or (not certain and len(first) < len(frames)):
        return False
    positions = np.array([first[place].frame.position for place in sorted(first)])
    steps = np.linalg.norm(np.diff(positions, axis=0), axis=1)
    return bool(np.abs(steps / steps.min() - np.rint(steps / steps.min())).max() <= EVEN)
